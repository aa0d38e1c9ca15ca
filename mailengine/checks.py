"""System checks: each has an id, says what was seen, and hints at the mend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any
from warnings import catch_warnings, simplefilter

from django.apps import apps
from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register  # noqa: A004  Django's own name
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from . import compat
from .addresses import parse_address
from .conf import Settings, get_settings, problems
from .errors import InvalidAddress, did_you_mean
from .providers import build
from .providers.batch import most_in_a_call

QUEUE = "mailengine.backends.EmailBackend"


@register("mailengine")
def check_settings(**_: Any) -> list[CheckMessage]:
    """`MAILENGINE`: unknown names, values that make no sense, leases that are too short."""
    found: list[CheckMessage] = []
    for problem in problems():
        kind, number = (Error, "mailengine.E004") if problem.serious else (Warning, "mailengine.W007")
        found.append(kind(problem.text, hint=problem.hint or None, id=number))
    found += _check_functions(get_settings())
    if not getattr(django_settings, "USE_TZ", True):
        text = "USE_TZ is False, and mailengine compares instants in UTC."
        found.append(Error(text, hint="Set USE_TZ = True.", id="mailengine.E005"))
    return found


@register("mailengine")
def check_providers(**_: Any) -> list[CheckMessage]:
    """`MAILENGINE["PROVIDERS"]` against `MAILERS`."""
    settings = get_settings()
    if not settings.providers:
        hint = 'Name aliases of MAILERS: MAILENGINE = {"PROVIDERS": {"relay": {}}}.'
        return [Error("mailengine has no providers, so no mail can leave.", hint=hint, id="mailengine.E003")]
    return [message for alias in settings.providers for message in _check_provider(alias)]


@register("mailengine")
def check_surroundings(**_: Any) -> list[CheckMessage]:
    """What stands around the queue: who hears of trouble, and who else has commands of the same names."""
    return [
        *_check_default_mailer(),
        *_check_alert_road(get_settings()),
        *_check_sender(),
        *_check_attachments(),
        *_check_other_apps(),
    ]


@register(Tags.database)
def check_database(databases: Iterable[str] | None = None, **_: Any) -> list[CheckMessage]:
    """A SQLite that would fail under two writers; a database whose times are not in UTC."""
    from django.db import connections

    found: list[CheckMessage] = []
    for alias in databases or ():
        connection = connections[alias]
        options = connection.settings_dict.get("OPTIONS", {})
        if connection.vendor == "sqlite" and str(options.get("transaction_mode") or "").upper() != "IMMEDIATE":
            text = (
                f'The SQLite database {alias!r} does not begin its transactions IMMEDIATE: "database is locked" ahead.'
            )
            hint = 'Set DATABASES[...]["OPTIONS"]["transaction_mode"] = "IMMEDIATE" and a "timeout" of 20.'
            found.append(Warning(text, hint=hint, id="mailengine.W003"))
        if connection.vendor != "postgresql" and connection.timezone_name != "UTC":
            text = f"The database {alias!r} keeps its times in {connection.timezone_name}: mail would go hours off."
            found.append(Error(text, hint='Remove "TIME_ZONE" from its entry of DATABASES.', id="mailengine.E009"))
    return found


def _check_provider(alias: str) -> Iterator[CheckMessage]:
    where = f'MAILENGINE["PROVIDERS"] names {alias!r}'
    if alias not in compat.mailer_aliases():
        mend = did_you_mean(alias, compat.mailer_aliases()).strip()
        example = f'Add it: MAILERS[{alias!r}] = {{"BACKEND": "mailengine.backends.SMTPBackend", "OPTIONS": {{...}}}}.'
        yield Error(f"{where}, which MAILERS does not have.", hint=f"{mend} {example}".strip(), id="mailengine.E001")
        return
    if build.is_queue(alias):
        hint = "A provider sends; let only MAILERS['default'] queue."
        yield Error(f"{where}, which is the queue itself: mail would go in circles.", hint=hint, id="mailengine.E002")
        return
    if found := list(_check_mailer(alias, where=where)):
        yield from found
        return
    yield from _check_batch(alias, get_settings().provider(alias).batch)
    path, options = compat.mailer_backend_path(alias), compat.mailer_options(alias)
    quiet = not build.has_network(alias) or path.startswith(("mailengine.", "anymail.backends.test"))
    if not quiet and not options.get("timeout") and not options.get("client_params"):
        hint = f'Set MAILERS[{alias!r}]["OPTIONS"]["timeout"] = 10.'
        yield Warning(f"{where}, which has no timeout: a send could hang.", hint=hint, id="mailengine.W004")
    if path in {QUEUE.replace("Email", "SMTP"), "mailengine.backends.smtp.SMTPBackend"}:
        yield from _check_clear_text(alias, options)


def _check_mailer(alias: str, *, where: str) -> Iterator[CheckMessage]:
    """Whether backends can be made of this entry of MAILERS, as far as that can be told without opening one."""
    try:
        compat.mailer_class(alias)
    except Exception as error:  # noqa: BLE001  A module is anybody's code.
        text = f"{where}, whose BACKEND can't be imported: {_words(error)}"
        yield Error(text, hint="Mend its BACKEND, or install what it needs.", id="mailengine.E006")
        return
    try:
        with catch_warnings():
            simplefilter("ignore")  # what a backend warns of is for those who send, and not for each command
            build.check(alias)
    except Exception as error:  # noqa: BLE001  So is a constructor.
        hint = f"Mend MAILERS[{alias!r}]: as it is, all mail waits or goes by other providers."
        yield Error(f"{where}, whose backend can't be made: {_words(error)}", hint=hint, id="mailengine.E010")


def _words(error: Exception) -> str:
    """What an error says, where that quotes no value of an option."""
    return str(error) if isinstance(error, ImproperlyConfigured) else type(error).__name__


def _check_batch(alias: str, batch: int) -> Iterator[CheckMessage]:
    most = most_in_a_call(alias)
    if batch <= most:
        return
    where = f'MAILENGINE["PROVIDERS"][{alias!r}]["BATCH"] is {batch:,}'
    if most == 1:
        text, hint = f"{where}, and it has no call that carries many mails: each goes alone.", "Leave BATCH out."
    else:
        text, hint = f"{where}, and its API takes {most:,} mails in a call.", f"Make it {most:,} or less."
    yield Warning(text, hint=hint, id="mailengine.W011")


def _check_clear_text(alias: str, options: dict[str, Any]) -> Iterator[CheckMessage]:
    local = str(options.get("host", "localhost")) in {"localhost", "127.0.0.1", "::1"}
    if options.get("password") and not local and not options.get("use_tls") and not options.get("use_ssl"):
        hint = f'Set MAILERS[{alias!r}]["OPTIONS"]["use_tls"] = True.'
        yield Warning(f"The provider {alias!r} sends its password in clear.", hint=hint, id="mailengine.W008")


def _check_functions(settings: Settings) -> Iterator[CheckMessage]:
    for name, path in (("SHOULD_PROBE", settings.should_probe), ("CLASSIFIER", settings.classifier)):
        try:
            if path is None or callable(import_string(path)):
                continue
            problem = "which can't be called"
        except ImportError as error:
            problem = f"which can't be imported: {error}"
        text = f"MAILENGINE[{name!r}] is {path!r}, {problem}."
        yield Error(text, hint="Give the dotted path of a function; until then ours decides.", id="mailengine.E011")


def _check_default_mailer() -> Iterator[CheckMessage]:
    if build.is_queue("default"):
        yield from _check_queue_options()
        return
    hint = f'Set MAILERS["default"] = {{"BACKEND": "{QUEUE}"}}, and EMAIL_BACKEND to the same before Django 6.1.'
    yield Warning("What Django itself sends does not go through the queue.", hint=hint, id="mailengine.W001")


def _check_queue_options() -> Iterator[CheckMessage]:
    from .pipeline.enqueue import terms_of

    try:
        options = compat.mailer_options("default")
        terms_of(options.get("stream", "transactional"), options.get("priority"), None, None)
    except (ValueError, compat.InvalidMailer) as error:
        text = f'MAILERS["default"]["OPTIONS"]: {error}'
        yield Error(text, hint="Every mail that Django sends would fail in its request.", id="mailengine.E008")


def _check_alert_road(settings: Settings) -> Iterator[CheckMessage]:
    if settings.alert_mailer is not None and settings.alert_mailer not in compat.mailer_aliases():
        mend = did_you_mean(settings.alert_mailer, compat.mailer_aliases()).strip()
        text = f"ALERT_MAILER is {settings.alert_mailer!r}, which MAILERS does not have."
        yield Error(text, hint=mend or None, id="mailengine.E007")
    elif settings.alert_mailer is not None and build.is_queue(settings.alert_mailer):
        text = (
            f"ALERT_MAILER is {settings.alert_mailer!r}, which is the queue: alerts would wait for the broken provider."
        )
        yield Error(text, hint="Name an alias of MAILERS that sends.", id="mailengine.E007")
    elif settings.alert_mailer is not None and settings.alert_mailer not in settings.providers:
        yield from _check_mailer(settings.alert_mailer, where=f"ALERT_MAILER is {settings.alert_mailer!r}")
    if not getattr(django_settings, "ADMINS", None):
        hint = "Set ADMINS, so that somebody gets a mail when a provider's credentials stop working."
        yield Warning("Nobody is told by mail when mail can't be sent.", hint=hint, id="mailengine.W005")
    elif settings.alert_mailer is None and len(settings.providers) < 2:
        hint = "Set ALERT_MAILER to an alias of MAILERS that isn't a provider, or add a second provider."
        yield Warning("An alert has no road of its own: there is one provider.", hint=hint, id="mailengine.W006")


def _check_sender() -> Iterator[CheckMessage]:
    try:
        parse_address(django_settings.DEFAULT_FROM_EMAIL)
    except (InvalidAddress, ImproperlyConfigured) as error:
        text = f"DEFAULT_FROM_EMAIL: {error}"
        yield Warning(text, hint="Mail that names no sender waits until this is mended.", id="mailengine.W009")


def _check_attachments() -> Iterator[CheckMessage]:
    if "mailengine" not in django_settings.STORAGES and not str(django_settings.MEDIA_ROOT):
        hint = 'Set STORAGES["mailengine"] to a folder that all hosts share and no visitor sees, or MEDIA_ROOT.'
        text = "Attachments would be kept in whatever folder a process starts in."
        yield Warning(text, hint=hint, id="mailengine.W010")


def _check_other_apps() -> Iterator[CheckMessage]:
    if apps.is_installed("mailer"):
        hint = 'List "mailengine" first in INSTALLED_APPS, or remove "mailer" once its queue is empty.'
        yield Warning("django-mailer has commands of the same names.", hint=hint, id="mailengine.W002")
