"""What differs between Django 5.2 and 6.1, and nothing else: `MAILERS`, and the class of an attached MIME part."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from email import message_from_bytes
from email.message import Message, MIMEPart
from email.mime.base import MIMEBase
from email.policy import Policy, compat32, default
from typing import TYPE_CHECKING, Any

import django
from django.conf import Settings, UserSettingsHolder, settings
from django.core import mail
from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage
from django.core.mail.backends import locmem
from django.core.mail.backends.base import BaseEmailBackend
from django.utils.module_loading import import_string

if TYPE_CHECKING or django.VERSION >= (6, 1):
    from django.core.mail import InvalidMailer, MailerDoesNotExist
else:

    class InvalidMailer(ImproperlyConfigured):
        """An entry of `settings.MAILERS` that can't be used."""

        def __init__(self, msg: str, *, alias: str | None = None) -> None:
            super().__init__(msg if alias is None else f"MAILERS[{alias!r}]: {msg}")

    class MailerDoesNotExist(InvalidMailer, KeyError):  # noqa: N818 (Django's own name)
        """No entry of `settings.MAILERS` has this alias."""

        def __init__(self, *, alias: str) -> None:
            super().__init__(f"The mailer '{alias}' is not configured.")


__all__ = [
    "InvalidMailer",
    "MailerDoesNotExist",
    "get_mailer",
    "mailer_aliases",
    "mailer_backend_path",
    "mailer_class",
    "mailer_options",
    "mime_part",
]

SMTP_BACKEND = "django.core.mail.backends.smtp.EmailBackend"


def get_mailer(alias: str) -> BaseEmailBackend:
    """A new backend object for this alias of `MAILERS`, not yet open; its `alias` attribute is set.

    Under Django's test runner it collects mail in `mail.outbox`, unless the test overrides `MAILERS` itself: Django 6.1
    has this rule, and here it holds on older ones too, so that no project's tests send real mail.

    Raises MailerDoesNotExist, or InvalidMailer for an entry that can't be used.
    """
    if django.VERSION >= (6, 1):
        return mail.mailers[alias]
    options = mailer_options(alias)
    if "alias" in options:
        raise InvalidMailer("OPTIONS must not define 'alias'.", alias=alias)
    backend_class = mailer_class(alias)
    # Without alias=: before 6.1 nobody promised to take it, and a strict signature would raise TypeError.
    backend: BaseEmailBackend = _OutboxBackend() if backend_class is _OutboxBackend else backend_class(**options)
    with suppress(AttributeError):  # whatever it is, whether it is a backend is not asked here
        backend.alias = alias  # type: ignore[attr-defined]
    return backend


def mailer_class(alias: str) -> Any:
    """What this alias's backends are made by: a class, or whatever else its BACKEND names; as `get_mailer()` has it.

    Raises MailerDoesNotExist, or InvalidMailer where it can't be imported; an OSError or MemoryError as it comes.
    """
    if django.VERSION < (6, 1) and _test_runner_is_active() and not _test_overrides_mailers():
        _entry(alias)
        return _OutboxBackend
    path = mailer_backend_path(alias)
    try:
        return import_string(path)
    except (MemoryError, OSError):  # this host's, or a network's, for now
        raise
    except Exception as error:  # a module is anybody's code; only these two are sure to quote nothing secret
        reason = error if isinstance(error, (ImportError, ImproperlyConfigured)) else type(error).__name__
        raise InvalidMailer(f"BACKEND {path!r} can't be imported: {reason}", alias=alias) from error


def mailer_aliases() -> list[str]:
    """The aliases of `MAILERS`, in the order they are written; empty where the setting is missing."""
    return list(_mailers())


def mailer_backend_path(alias: str) -> str:
    """The dotted path of this alias's backend, as `MAILERS` has it; Django's SMTP backend where it says nothing.

    It and the others below raise MailerDoesNotExist, or InvalidMailer for an entry that can't be read.
    """
    path = _entry(alias).get("BACKEND", SMTP_BACKEND)
    if not isinstance(path, str):
        raise InvalidMailer(f"BACKEND is the dotted path of a class, and not {path!r}.", alias=alias)
    return path


def mailer_options(alias: str) -> dict[str, Any]:
    """A copy of this alias's OPTIONS, as `MAILERS` has them."""
    options = _entry(alias).get("OPTIONS", {})
    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
        raise InvalidMailer("OPTIONS is not a dictionary of options by name.", alias=alias)
    return dict(options)


def mime_part(data: bytes) -> MIMEBase | MIMEPart:
    """A MIME part made from its own bytes (`part.as_bytes()`), of the class that `EmailMessage.attach()` asks for.

    Headers, their parameters and the decoded payload are those of the bytes. Never raises: bytes that aren't a part
    become one whose `defects` say so.
    """
    if django.VERSION >= (6, 0):
        return message_from_bytes(data, policy=default)  # an EmailMessage, which is a MIMEPart
    return message_from_bytes(data, _StoredPart)


def _mailers() -> Mapping[str, object]:
    mailers = getattr(settings, "MAILERS", {})
    return mailers if isinstance(mailers, Mapping) else {}


def _entry(alias: str) -> Mapping[str, Any]:
    try:
        entry = _mailers()[alias]
    except KeyError:
        raise MailerDoesNotExist(alias=alias) from None
    if not isinstance(entry, Mapping):
        raise InvalidMailer("It is not a dictionary.", alias=alias)
    return entry


def _test_runner_is_active() -> bool:
    """Whether we are between `setup_test_environment()` and its teardown.

    `mail.outbox` would not do: a locmem backend built anywhere creates it, and then production would send nothing.
    """
    test_utils = sys.modules.get("django.test.utils")
    return test_utils is not None and hasattr(test_utils._TestState, "saved_data")


def _test_overrides_mailers() -> bool:
    """Whether `override_settings(MAILERS=...)`, or a fixture that uses it, is in force."""
    layer = settings._wrapped  # type: ignore[misc]
    while isinstance(layer, UserSettingsHolder):
        below = layer.default_settings
        # The lowest holder is that of settings.configure(): the project's own settings, not an override.
        if "MAILERS" in vars(layer) and isinstance(below, (Settings, UserSettingsHolder)):
            return True
        layer = below
    return False


class _OutboxBackend(locmem.EmailBackend):
    """Django's locmem backend, noting in `sent_using` which alias a mail went by, as Django 6.1's does."""

    alias: str

    def send_messages(self, messages: Sequence[EmailMessage]) -> int:
        collected = len(mail.outbox) if hasattr(mail, "outbox") else 0
        count = super().send_messages(messages)
        for message in mail.outbox[collected:]:
            message.sent_using = self.alias  # type: ignore[union-attr]
        return count


class _StoredPart(MIMEBase):
    """A MIMEBase that the parser can fill: its own constructor would ask for a content type and write headers."""

    def __init__(self, policy: Policy[Any] = compat32) -> None:
        Message.__init__(self, policy=policy)
