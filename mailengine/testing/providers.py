"""A provider that plays a script, without a network: `FakeProvider`."""

from __future__ import annotations

import errno
import smtplib
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend

from ..backends.smtp import Phase, set_phase
from ..errors import did_you_mean


@dataclass
class Record:
    """What one provider saw, however many backend objects there were."""

    calls: int = 0
    accepted: list[EmailMessage] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)


class FakeProvider(BaseEmailBackend):
    """A backend for `MAILERS` that makes no connection and does as its OPTIONS say, call by call.

        "lambda": {"BACKEND": "mailengine.testing.FakeProvider", "OPTIONS": {"fails_every": 2}}
        "iota": {"BACKEND": "mailengine.testing.FakeProvider", "OPTIONS": {"script": ["deferred", "accept"]}}

    `script` is played in order; after its end every mail is accepted, or with `repeat` it starts again. The words:
    accept, bad_address, deferred, greylisted, misconfigured, refused, throttled, too_large, unavailable, uncertain.
    `fails_every: 2` is "unavailable" at every second call. What happened is in `FakeProvider.named(name)`, where the
    name is the option `name`, or else the alias.
    """

    _records: dict[str, Record] = {}  # noqa: RUF012 (shared by all objects, on purpose)
    _records_lock = threading.Lock()

    def __init__(
        self,
        fail_silently: bool = False,
        *,
        name: str = "",
        fails_every: int = 0,
        script: Iterable[str] = (),
        repeat: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.fail_silently = fail_silently
        self._name = name
        self._script = ["accept"] * (fails_every - 1) + ["unavailable"] if fails_every else list(script)
        self._repeat = repeat or bool(fails_every)
        for word in self._script:
            if word not in ERRORS:
                raise ImproperlyConfigured(f"FakeProvider can't play {word!r}.{did_you_mean(word, ERRORS)}")

    @classmethod
    def named(cls, name: str) -> Record:
        """What the provider of this name saw since the last `reset()`."""
        with cls._records_lock:
            return cls._records.setdefault(name, Record())

    @classmethod
    def reset(cls) -> None:
        """Forget everything, of all providers; scripts start anew."""
        with cls._records_lock:
            cls._records.clear()

    @property
    def name(self) -> str:
        # Asked for late: before Django 6.1 a backend learns its alias only once it is made.
        return self._name or getattr(self, "alias", None) or "default"

    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        """Accept them all, or raise what a real backend would at the first that the script says so for."""
        record = self.named(self.name)
        for email in email_messages:
            with record.lock:
                call = record.calls
                record.calls += 1
                make_error = ERRORS[self._word(call)]
                if make_error is None:
                    record.accepted.append(email)
            if make_error is not None:
                raise make_error(email)
        return len(email_messages)

    def _word(self, call: int) -> str:
        if self._repeat and self._script:
            return self._script[call % len(self._script)]
        return self._script[call] if call < len(self._script) else "accept"


def _at(phase: Phase, error: Exception) -> Exception:
    set_phase(error, phase)
    return error


def _refused(code: int, text: bytes) -> Callable[[EmailMessage], Exception]:
    return lambda email: _at(Phase.RCPT, smtplib.SMTPRecipientsRefused(dict.fromkeys(email.recipients(), (code, text))))


ERRORS: dict[str, Callable[[EmailMessage], Exception] | None] = {
    "accept": None,
    "bad_address": _refused(550, b"5.1.1 No such user"),
    "deferred": _refused(450, b"4.2.1 Mailbox busy"),
    "greylisted": _refused(450, b"4.7.1 Greylisted, come back later"),
    "misconfigured": lambda _: _at(Phase.AUTH, smtplib.SMTPAuthenticationError(535, b"5.7.8 Wrong password")),
    "refused": _refused(550, b"5.2.1 Mailbox disabled"),
    "too_large": lambda _: _at(Phase.MAIL, smtplib.SMTPSenderRefused(552, b"5.3.4 Message too big", "")),
    "throttled": lambda _: _at(Phase.AWAIT, smtplib.SMTPDataError(454, b"4.7.0 Throttling failure")),
    "unavailable": lambda _: _at(Phase.CONNECT, ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")),
    "uncertain": lambda _: _at(Phase.AWAIT, smtplib.SMTPServerDisconnected("Connection unexpectedly closed")),
}
