"""How each provider stands, why, and since when: read-only figures for the admin, `mail_status` and `mail_provider`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

from django.db.models import Count, Min
from django.utils.formats import number_format
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from ..compat import mailer_aliases
from ..conf import Mode, ProviderPolicy, Settings, get_settings
from ..models import Message, ProviderState
from ..models.messages import Status
from ..providers.build import has_network, is_queue
from ..rate import LONGEST_MOMENT_SECONDS, Limit, free_at
from .traffic import ByProvider, Traffic, traffic_by_provider
from .trouble import Trouble, trouble_of

IN_USE, SLOWED, LIMITED, THROTTLED, RESTING, MISCONFIGURED = (
    "in use", "slowed", "limited", "throttled", "resting", "misconfigured",
)  # fmt: skip
DRAINING, DISABLED, RETIRED, NOT_CONFIGURED = "draining", "disabled", "retired", "not configured"
LABELS = {
    IN_USE: _("In use"),
    SLOWED: _("In use, slowed down"),
    LIMITED: _("Waits for its limit"),
    THROTTLED: _("It asked us to wait"),
    RESTING: _("Resting"),
    MISCONFIGURED: _("Misconfigured"),
    DRAINING: _("Draining"),
    DISABLED: _("Disabled"),
    RETIRED: _("Retired"),
    NOT_CONFIGURED: _("Not configured"),
}
BROKEN = frozenset({THROTTLED, RESTING, MISCONFIGURED})
"""It should be in use, and can't be."""
SWITCHED_OFF = frozenset({DRAINING, DISABLED, RETIRED, NOT_CONFIGURED})
"""Somebody wants it so."""
MOMENT = timedelta(seconds=LONGEST_MOMENT_SECONDS)

Clock = Callable[[datetime], str]
"""How an instant is written."""


@dataclass(frozen=True)
class LimitUse:
    """One limit of a provider, and how much of it is used."""

    name: str
    """ "s", "min", "h", "day": the window, which moves; "today": that of UTC, of a warm-up."""
    most: int
    used: int
    warm_up_day: int = 0
    """Of so many `warm_up_days`, from 1 on; 0: it is none of a warm-up."""
    warm_up_days: int = 0
    slowed_since: datetime | None = None
    """It asked us to slow down then; this limit grows by itself."""

    def __str__(self) -> str:
        used = {"used": number_format(self.used, force_grouping=True)}
        used["most"] = number_format(self.most, force_grouping=True)
        if self.slowed_since is not None:
            return gettext("%(used)s of %(most)s in this second, since it asked us to slow down") % used
        if self.warm_up_day:
            days = {"day": self.warm_up_day, "days": self.warm_up_days}
            return gettext("%(used)s of %(most)s today (warm-up day %(day)s of %(days)s)") % {**used, **days}
        return {
            "s": gettext("%(used)s of %(most)s in this second"),
            "min": gettext("%(used)s of %(most)s in this minute"),
            "h": gettext("%(used)s of %(most)s in 60 minutes"),
        }.get(self.name, gettext("%(used)s of %(most)s in 24 hours")) % used

    @property
    def percent(self) -> float:
        return min(100 * self.used / self.most, 100)


@dataclass(frozen=True)
class ProviderReport:
    """One provider as it stands now."""

    alias: str
    state: str
    now: datetime
    is_usable: bool = True
    """Whether mail may go there now, whatever its limits."""
    since: datetime | None = None
    until: datetime | None = None
    """While it is limited or asked us to wait."""
    bulk_until: datetime | None = None
    """Until then its limits leave nothing to mail of priority BULK."""
    next_try_at: datetime | None = None
    """While it rests; `now` or before: with the next mail."""
    bad_rounds: int = 0
    is_known: bool = True
    """False: it was never tried."""
    trouble: Trouble | None = None
    """While there is some."""
    trouble_at: datetime | None = None
    mode: Mode = Mode.ENABLED
    weight: int = 1
    rate: str = ""
    own_weight: int | None = None
    """As an operator has set it here; None: it is that of the settings."""
    own_rate: str = ""
    is_named: bool = True
    """The settings name it as a provider."""
    is_added: bool = False
    limits: Sequence[LimitUse] = ()
    uncertain: int = 0
    """Mail that may have gone by it, and waits for proof or its window: no other may carry it."""
    uncertain_due_at: datetime | None = None
    """When the first window of these is over, or was."""
    kept: int = 0
    """Mail that may have gone by it, and is kept for a person."""
    traffic: Traffic = field(default_factory=lambda: Traffic([], datetime.now(timezone.utc)))
    share: float | None = None
    """Of all that was accepted in the last 24 hours, from 0 to 1."""

    @property
    def label(self) -> str:
        return str(LABELS[self.state])

    @property
    def detail(self) -> str:
        """What there is to say beside the state, by the clock in UTC, with the provider's own words."""
        told = self.told(self.in_utc)
        return f"{told}; {self.trouble.kind}: {self.trouble.said}" if self.trouble else told

    @property
    def percent(self) -> str:
        """Its share, for people."""
        share = 100 * (self.share or 0)
        return "<1" if 0 < share < 0.5 else f"{share:.0f}"

    def told(self, clock: Clock) -> str:
        """What there is to say beside the state: since when, until when, how much is left."""
        uncertain = self._in_words(self.uncertain)
        match self.state:
            case "resting" | "misconfigured":
                words = {"since": clock(self.since) if self.since else "?", "next": self._next_try(clock)}
                return gettext("since %(since)s, next try %(next)s") % words
            case "throttled":
                return gettext("until %(until)s") % {"until": clock(self.until) if self.until else "?"}
            case "limited":
                return gettext("until %(until)s") % {"until": clock(self.until) if self.until else "?"}
            case "slowed":
                return "; ".join([*self._of_slowing(clock), *self._of_use(clock)])
            case "draining" if self.uncertain:
                return gettext("no new mail; %(uncertain)s left that no other may carry") % {"uncertain": uncertain}
            case "draining":
                return gettext("no new mail; nothing is left that only it may carry, so it can be retired")
            case "disabled" if self.uncertain:
                return gettext("waiting for it: %(uncertain)s") % {"uncertain": uncertain}
            case "retired" | "not configured" if self.uncertain:
                return gettext("left with it, to be kept for a person: %(uncertain)s") % {"uncertain": uncertain}
            case "not configured" if self.is_added:
                return gettext("added here, but MAILERS has no entry for it")
            case "not configured":
                return gettext("the settings no longer name it")
        return "; ".join(self._of_use(clock))

    def in_utc(self, instant: datetime) -> str:
        """An instant for logs and terminals."""
        instant = instant.astimezone(timezone.utc)
        is_today = instant.date() == self.now.date()
        return f"{instant:%H:%M:%S} UTC" if is_today else f"{instant:%Y-%m-%d %H:%M} UTC"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "alias": self.alias,
            "state": self.state,
            "detail": self.detail,
            "is_usable": self.is_usable,
            "since": _iso(self.since),
            "until": _iso(self.until),
            "bulk_until": _iso(self.bulk_until),
            "next_try_at": _iso(self.next_try_at),
            "what": self.trouble.what if self.trouble else "",
            "mend": self.trouble.mend if self.trouble else "",
            "last_error": f"{self.trouble.kind}: {self.trouble.said}" if self.trouble else "",
            "mode": str(self.mode),
            "weight": self.weight,
            "rate": self.rate,
            "own_weight": self.own_weight,
            "own_rate": self.own_rate,
            "is_added": self.is_added,
            "limits": [{**asdict(limit), "slowed_since": _iso(limit.slowed_since)} for limit in self.limits],
            "uncertain": self.uncertain,
            "kept": self.kept,
            "sent_today": self.traffic.sent_today,
            "share": self.share,
            "hours": [{"begins_at": _iso(h.begins_at), "outcomes": dict(h.outcomes)} for h in self.traffic.hours],
        }

    def _of_use(self, clock: Clock) -> Iterator[str]:
        if not self.is_known:
            yield gettext("not tried yet")
        if self.bulk_until is not None:
            yield gettext("bulk mail waits for its limit until %(until)s") % {"until": clock(self.bulk_until)}
        if self.bad_rounds:
            yield gettext("%(count)s bad in a row") % {"count": self.bad_rounds}

    def _of_slowing(self, clock: Clock) -> Iterator[str]:
        for limit in self.limits:
            if limit.slowed_since is not None:
                words = {"most": number_format(limit.most, force_grouping=True), "since": clock(limit.slowed_since)}
                yield gettext("to %(most)s/s, and more as time goes on; it asked us to at %(since)s") % words

    def _next_try(self, clock: Clock) -> str:
        is_due = self.next_try_at is None or self.next_try_at <= self.now
        return gettext("now") if is_due or self.next_try_at is None else clock(self.next_try_at)

    def _in_words(self, count: int) -> str:
        words = ngettext("%(count)s uncertain", "%(count)s uncertain", count)
        return words % {"count": number_format(count, force_grouping=True)}


@dataclass(frozen=True)
class Picture:
    """All providers at one instant."""

    now: datetime
    settings: Settings
    """As the operator's switches leave them."""
    reports: Mapping[str, ProviderReport]
    """In the order of the settings, then those that were added, then those that are gone and still matter."""
    states: Mapping[str, ProviderState]


def picture(*, now: datetime, with_traffic: bool = True) -> Picture:
    """How all providers stand; in two queries, and some in the ledger for the traffic."""
    now = now.astimezone(timezone.utc)
    written, states = get_settings(), ProviderState.objects.everything(())
    settings = written.under({alias: s.switches for alias, s in states.items()}, known=mailer_aliases())
    traffic = traffic_by_provider(now) if with_traffic else ByProvider({}, now=now)
    uncertain = _uncertain_mail()
    named = [*written.providers, *(alias for alias, state in states.items() if state.is_added)]
    others = sorted(alias for alias in states if alias in traffic or alias in uncertain)
    reports = {}
    for alias in dict.fromkeys([*named, *others]):
        waiting, kept, due_at = uncertain.get(alias, (0, 0, None))
        facts: dict[str, Any] = {
            "now": now, "is_named": alias in written.providers, "uncertain": waiting, "kept": kept,
            "uncertain_due_at": due_at,
            "traffic": traffic[alias], "share": traffic.share(alias),
        }  # fmt: skip
        policy = settings.providers.get(alias)
        reports[alias] = _report(alias, states.get(alias), policy, settings=settings, facts=facts)
    return Picture(now, settings, _living_first(reports), states)


def addable(states: Collection[str] = ()) -> list[str]:
    """Entries of MAILERS that could be put to use, and are no provider; `states` are aliases that were added."""
    known = {*get_settings().providers, *states}
    return [alias for alias in mailer_aliases() if alias not in known and not is_queue(alias) and has_network(alias)]


def as_written(limit: Limit) -> str:
    """As a RATE is: 50000/day."""
    return f"{limit.most}/{limit.name}"


def _report(
    alias: str, state: ProviderState | None, policy: ProviderPolicy | None, *, settings: Settings, facts: dict[str, Any]
) -> ProviderReport:
    if state is None:
        state, facts = ProviderState(alias=alias), {**facts, "is_known": False}
    facts |= {"mode": state.switches.mode, "own_weight": state.weight, "own_rate": state.rate}
    facts["is_added"] = state.is_added
    if policy is None:
        gone = RETIRED if state.switches.mode is Mode.RETIRED and facts["is_named"] | state.is_added else NOT_CONFIGURED
        return ProviderReport(alias, gone, is_usable=False, **facts)
    facts |= {"weight": policy.weight, "rate": ", ".join(map(as_written, policy.rate))}
    facts["limits"] = list(_limits(state, policy, now=facts["now"]))
    if policy.mode is not Mode.ENABLED:
        return ProviderReport(alias, str(policy.mode), is_usable=False, **facts)
    return _in_use(alias, state, policy, settings=settings, facts=facts)


def _in_use(
    alias: str, state: ProviderState, policy: ProviderPolicy, *, settings: Settings, facts: dict[str, Any]
) -> ProviderReport:
    """Of one that nobody has switched off."""
    now, circuit = facts["now"], state.circuit
    if circuit.is_open or circuit.bad_rounds or circuit.is_throttled(now=now):
        facts |= {"trouble": trouble_of(state.last_error, alias=alias), "trouble_at": state.last_error_at}
    if circuit.is_open:
        return ProviderReport(
            alias,
            MISCONFIGURED if circuit.misconfigured else RESTING,
            is_usable=False,
            since=circuit.opened_at,
            next_try_at=circuit.next_probe_at(settings.circuit_policy),
            **facts,
        )
    if circuit.is_throttled(now=now):
        return ProviderReport(
            alias, THROTTLED, is_usable=False, since=state.last_error_at, until=circuit.throttled_until, **facts
        )
    limits = state.limits(policy, now=now)
    until = free_at(limits, state.usage, now=now)
    bulk_until = free_at(limits, state.usage, now=now, share=1 - policy.reserve)
    facts |= {"bad_rounds": circuit.bad_rounds, "bulk_until": bulk_until if bulk_until > now + MOMENT else None}
    if until > now + MOMENT:
        return ProviderReport(alias, LIMITED, until=until, **facts)
    if state.slowing(now=now):
        return ProviderReport(alias, SLOWED, since=state.slowed_at, **facts)
    return ProviderReport(alias, IN_USE, since=circuit.closed_at, **facts)


def _limits(state: ProviderState, policy: ProviderPolicy, *, now: datetime) -> Iterator[LimitUse]:
    slowing = state.slowing(now=now)
    for limit in state.limits(policy, now=now):
        used = LimitUse(limit.name, limit.most, limit.used(state.usage, now=now))
        if limit in slowing:
            yield LimitUse(used.name, used.most, used.used, slowed_since=state.slowed_at)
        elif limit.name == "today":
            since = (state.warming_since or now).astimezone(timezone.utc)
            day = 1 + (now.date() - since.date()).days
            yield LimitUse(used.name, used.most, used.used, warm_up_day=day, warm_up_days=len(policy.warm_up))
        else:
            yield used


def _living_first(reports: Mapping[str, ProviderReport]) -> dict[str, ProviderReport]:
    """Those that are gone come last."""
    return dict(sorted(reports.items(), key=lambda item: item[1].state in (RETIRED, NOT_CONFIGURED)))


def _uncertain_mail() -> dict[str, tuple[int, int, datetime | None]]:
    """By provider: how much may have gone by it and waits, how much is kept for a person, when the first is due."""
    rows = (
        Message.objects.filter(status=Status.UNCERTAIN)
        .values_list("provider")
        .annotate(waiting=Count("available_at"), all=Count("pk"), due_at=Min("available_at"))
        .order_by()
    )
    return {provider: (waiting, both - waiting, due_at) for provider, waiting, both, due_at in rows}


def _iso(instant: datetime | None) -> str | None:
    return instant.isoformat() if instant else None
