"""What an operator's switches have changed, what follows from it, and what can't be switched; in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from django.core.exceptions import ImproperlyConfigured
from django.utils.formats import number_format
from django.utils.translation import gettext, ngettext

from ..compat import mailer_aliases
from ..conf import Mode, get_settings
from ..errors import UnknownName, UnknownProvider
from ..models import ProviderState
from ..models.providers import MODES
from ..providers.build import check, has_network, is_queue
from .providers import Picture
from .waits import switched_off

MOST_WEIGHT = 10_000
"""Each process counts through a part of the cycle of shares before it sends its first mail."""

Changes = Mapping[str, tuple[object, object]]
"""By the name of a switch: its value before and after."""


def in_words(changes: Changes) -> str:
    """`draining (was enabled), weight 3 (was as the settings say)`."""
    return ", ".join(_words(name, before, after) for name, (before, after) in changes.items())


def consequences(changes: Changes, *, alias: str, before: Picture, after: Picture) -> Iterator[str]:
    """What an operator should know after a change: streams that nobody carries now, mail that is left with it."""
    without = [stream for stream in switched_off(after) if stream not in switched_off(before)]
    if without:
        words = {"streams": ", ".join(without)}
        yield gettext("No provider may be given new mail of %(streams)s any more: it waits.") % words
    report = before.reports.get(alias)
    if report is None or not report.uncertain or not changes.keys() & {"mode", "is_added"}:
        return
    words = {"count": number_format(report.uncertain, force_grouping=True), "alias": alias}
    state = ProviderState.objects.get(pk=alias)
    is_gone = state.mode == Mode.RETIRED or (alias not in get_settings().providers and not state.is_added)
    if is_gone:
        text = ngettext(
            "%(count)s message may have gone by %(alias)s, and will be kept for a person unless you drain it first.",
            "%(count)s messages may have gone by %(alias)s, and will be kept for a person unless you drain it first.",
            report.uncertain,
        )
        yield text % words
    elif state.mode == Mode.DISABLED:
        text = ngettext(
            "%(count)s message may have gone by %(alias)s, and waits until it is enabled again.",
            "%(count)s messages may have gone by %(alias)s, and wait until it is enabled again.",
            report.uncertain,
        )
        yield text % words


def check_switchable(alias: str, *, seen: Picture) -> None:
    """Raise UnknownProvider for what is none, naming the nearest that is."""
    known = [name for name, report in seen.reports.items() if report.is_named or report.is_added]
    if alias in known:
        return
    if alias in mailer_aliases():
        raise SwitchError(gettext("%(alias)s is no provider so far: add it first.") % {"alias": repr(alias)})
    raise UnknownProvider(alias, known=known)


def check_addable(alias: str, *, seen: Picture) -> None:
    """Raise for what can't be put to use, with the reason."""
    words = {"alias": repr(alias)}
    if alias not in mailer_aliases():
        raise UnknownName(
            "no entry of MAILERS", alias, known=mailer_aliases(), mend="Credentials stay in the settings."
        )
    if alias in get_settings().providers:
        raise SwitchError(gettext("%(alias)s is a provider by the settings already.") % words)
    if is_queue(alias):
        raise SwitchError(gettext("%(alias)s is the queue itself: mail would go in circles.") % words)
    if not has_network(alias):
        raise SwitchError(gettext("%(alias)s sends no mail: it prints it or keeps it.") % words)
    try:
        check(alias)
    except Exception as error:  # a constructor is anybody's code
        said = str(error) if isinstance(error, ImproperlyConfigured) else type(error).__name__
        text = gettext("%(alias)s can't be put to use, since no backend can be made of it: %(said)s")
        raise SwitchError(text % {**words, "said": said}) from error


def check_removable(alias: str, *, seen: Picture) -> None:
    """Raise for what was not added by an operator."""
    check_switchable(alias, seen=seen)
    if not seen.reports[alias].is_added:
        text = gettext("%(alias)s was not added here, the settings name it: retire it instead.")
        raise SwitchError(text % {"alias": repr(alias)})


class SwitchError(ValueError):
    """What was asked for makes no sense for this provider."""


def _words(name: str, before: object, after: object) -> str:
    as_in_settings = gettext("as the settings say")
    if name == "is_added":
        return gettext("put to use") if after else gettext("taken back")
    if name == "mode":
        labels = {mode: str(label) for mode, label in MODES}
        words = {"after": labels.get(str(after), after), "before": labels.get(str(before), before)}
        return gettext("%(after)s (was %(before)s)") % words
    values = {"after": as_in_settings if after in (None, "") else after}
    values["before"] = as_in_settings if before in (None, "") else before
    if name == "weight":
        return gettext("weight %(after)s (was %(before)s)") % values
    return gettext("rate %(after)s (was %(before)s)") % values
