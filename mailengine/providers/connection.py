"""One open way to one provider: `Connection`."""

from __future__ import annotations

import re
import smtplib
import socket
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import cast

from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend

from ..backends.dialogue import Phase, Progress, phase_of
from ..backends.smtp import SMTPBackend
from ..backends.wire import Mail, WireMail
from ..compat import mailer_class
from ..conf import get_settings
from ..deadline import Deadline
from ..hooks import judged
from ..outcomes import Kind, Outcome
from . import http
from .batch import NotOneCall, joined, outcomes_of_call, refused_as_a_whole
from .build import build
from .classify import outcome_of_error, outcome_of_return
from .esp import esp_name
from .fitting import fitted

IDLE_SECONDS = 30.0
"""A connection unused for longer is made anew: servers close idle ones, and over HTTP we could not tell that from a
request that got lost."""

_STILL_USABLE = re.compile(r"HTTP \d|4\d\d|5[1-9]\d")
"""Codes of proper answers; after 50x an SMTP server and we are out of step."""
TIME_WAS_OVER = Outcome(Kind.UNAVAILABLE, code="deadline", is_local=True)
_LEFT_BY_A_BACKEND = ("anymail_status", "mailengine_refusals", "mailengine_sha256")


class Connection:
    """A connection to the provider `alias`, opened when first needed and kept; for one thread at a time."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self._backend: BaseEmailBackend | None = None
        self._esp_name = ""
        self._used_at = 0.0
        self._begun: Mail | None = None
        self._until = self._patient_until = 0.0
        """By when the mail that was begun must be sent, and by when the server must say more."""

    def hand_over(self, email: Mail, *, until: float | None = None, key: str = "") -> Outcome:
        """Send this one email, and say what became of it; no provider's failure is raised.

        It may be a `WireMail` where `takes_wire_mail(alias)`; one that `begin()` has begun goes on from where it is.
        It is over at `until`, an instant on `time.monotonic()`, or else SEND_DEADLINE_SECONDS from now; with an
        SMTPBackend and with Anymail's backends over requests, that is: others have their own timeouts and no more.
        If the server closed a kept connection before it heard of this email, the email goes by a new one.
        Where `takes_key(alias)`, the request carries `key`, and an uncertain outcome is repeatable.
        """
        if until is None:
            until = time.monotonic() + get_settings().send_deadline_seconds
        is_begun, self._begun = self._begun is email, None
        if not is_begun and time.monotonic() >= until:
            return replace(TIME_WAS_OVER, detail="Its time was over before anything was sent.")
        with Deadline(until) as deadline:
            if self._backend is not None and not is_begun and time.monotonic() - self._used_at > IDLE_SECONDS:
                self.close()
            was_open = self._backend is not None
            outcome, error = self._try(email, key)
            if was_open and _closed_in_between(error):
                self.close()
                outcome, error = self._try(email, key)
            if deadline.has_passed:
                outcome = _cut_off(outcome, error, deadline)
            outcome = judged(outcome, error, provider=self.alias)
            if deadline.has_passed or _leaves_doubt(outcome):
                self.close()
        self._used_at = time.monotonic()
        return outcome

    def hand_over_together(self, emails: Sequence[Mail], *, until: float | None = None, key: str = "") -> list[Outcome]:
        """Send these emails in one call of the ESP's API; what became of each, in their order.

        `until` and `key` as in `hand_over()`; the key is that of the call, so that only the same emails in the same
        order may go with it again. A `CallRefused` says that this email, which was not sent, is to go by itself.
        """
        if len(emails) <= 1:
            return [self.hand_over(email, until=until, key=key) for email in emails]
        try:
            call = joined(cast(Sequence[EmailMessage], emails), self.alias)
        except NotOneCall as error:
            refused = Outcome(Kind.REFUSED, code=type(error).__name__, detail=str(error))
            return [refused_as_a_whole(refused)] * len(emails)
        outcome = self.hand_over(call, until=until, key=key)
        return outcomes_of_call(cast(Sequence[EmailMessage], emails), call, outcome, esp=esp_name(self.alias))

    def can_begin(self, emails: Sequence[Mail]) -> bool:
        """Whether `begin()` may be asked: an SMTP server was used a moment ago, and this is one mail in bytes."""
        is_plain = len(emails) == 1 and isinstance(emails[0], WireMail) and isinstance(self._backend, SMTPBackend)
        return is_plain and time.monotonic() - self._used_at <= IDLE_SECONDS

    def begin(self, emails: Sequence[Mail], *, until: float | None = None) -> socket.socket | None:
        """Begin to hand over this mail and wait for nothing; `go_on()` whenever its socket has something to read.

        `until` as in `hand_over()`. None where that can't be: nothing has begun, and `hand_over_together()` is for it.
        """
        email, backend, now = emails[0], self._backend, time.monotonic()
        if until is None:
            until = now + get_settings().send_deadline_seconds
        if now >= until or not isinstance(email, WireMail) or not isinstance(backend, SMTPBackend):
            return None
        self._until, self._patient_until = until, now + backend.timeout
        try:
            sock = backend.begin(email)
        except Exception:  # noqa: BLE001  As in _try(), where it is raised again, and judged.
            return None
        self._begun = email if sock else None
        return sock

    def go_on(self) -> Progress:
        """The next step. `STUCK`: `hand_over_together()` of the same emails goes on from here, and may wait."""
        backend, now = self._backend, time.monotonic()
        if now >= self._until or not isinstance(backend, SMTPBackend):
            return Progress.STUCK
        self._patient_until = now + backend.timeout
        try:
            return backend.go_on()
        except Exception:  # noqa: BLE001  As above.
            return Progress.STUCK

    def is_overdue(self) -> bool:
        """Whether the server should have said more by now: `hand_over_together()` goes on, and waits no longer."""
        now = time.monotonic()
        if now >= self._patient_until and isinstance(self._backend, SMTPBackend):
            self._backend.lose_patience()
        return now >= min(self._patient_until, self._until)

    def outcome_of(self, email: Mail) -> Outcome:
        """What came of the mail that was begun, now that it was sent."""
        self._begun, self._used_at = None, time.monotonic()
        return judged(outcome_of_return(email, 1), None, provider=self.alias)

    def close(self) -> None:
        """Hang up. Never raises: what was sent is sent."""
        backend, self._backend = self._backend, None
        if backend is not None:
            with suppress(Exception):
                backend.close()

    def _try(self, email: Mail, key: str) -> tuple[Outcome, Exception | None]:
        # One email object may have been at other providers before: what they left on it is not this one's word.
        for name in _LEFT_BY_A_BACKEND:
            vars(email).pop(name, None)
        opening, carried = True, False
        try:
            backend = self._open()
            opening = False
            if self._esp_name and isinstance(email, EmailMessage):
                email = fitted(email, self._esp_name)
            with http.carrying(backend, key) if self._esp_name else nullcontext(False) as carried:
                sent_count = backend.send_messages([email])  # type: ignore[list-item]  # see takes_wire_mail()
        # The one broad except: a backend is anybody's code, and its worst bug may cost this mail time, but not the
        # thread that all other mail goes by.
        except Exception as error:  # noqa: BLE001
            outcome = outcome_of_error(error, email=email, opening=opening)
            return replace(outcome, is_repeatable=carried and outcome.kind is Kind.UNCERTAIN), error
        return outcome_of_return(email, sent_count), None

    def _open(self) -> BaseEmailBackend:
        if self._backend is None:
            backend = build(self.alias)
            if "fail_silently" in vars(backend):
                backend.fail_silently = False  # whatever its OPTIONS say: a failure that nobody hears of is lost mail
            self._backend = backend
            self._esp_name = getattr(backend, "esp_name", "")
            http.prepare(backend)
            backend.open()
            http.hold(backend)
        return self._backend


def takes_key(alias: str) -> bool:
    """Whether the provider `alias` honours an idempotency key; by its entry of `MAILERS`, nothing is opened."""
    return esp_name(alias) in http.KEY_HEADERS


def takes_wire_mail(alias: str) -> bool:
    """Whether the provider `alias` sends mail that is bytes already: an `SMTPBackend` whose sending nobody changed."""
    try:
        backend = mailer_class(alias)
        return issubclass(backend, SMTPBackend) and backend.send_messages is SMTPBackend.send_messages
    except Exception:  # noqa: BLE001  Its module is anybody's code, and what is wrong is told when a mail goes there.
        return False


def _closed_in_between(error: Exception | None) -> bool:
    """Whether the server had closed the connection, or did so at MAIL: then it never heard of the email.

    A line too long, or one without a code, is what was left over from the mail before.
    """
    if error is None or phase_of(error) not in {Phase.EHLO, Phase.MAIL}:
        return False
    if isinstance(error, smtplib.SMTPSenderRefused):
        return error.smtp_code == 421 or not 400 <= error.smtp_code <= 599
    return isinstance(error, smtplib.SMTPServerDisconnected) or type(error) is smtplib.SMTPResponseException


def _cut_off(outcome: Outcome, error: Exception | None, deadline: Deadline) -> Outcome:
    """With the reason, where no provider's answer gave one: over HTTP it looks as if the provider had hung up."""
    is_answer = error is None or phase_of(error) is not None or outcome.code.startswith("HTTP")
    if is_answer or outcome.kind not in {Kind.UNAVAILABLE, Kind.UNCERTAIN}:
        return outcome
    return replace(outcome, code=TimeoutError.__name__, detail=str(deadline))


def _leaves_doubt(outcome: Outcome) -> bool:
    """Whether the next email had better go by a new connection."""
    return outcome.kind is not Kind.ACCEPTED and (outcome.is_bad_round or not _STILL_USABLE.match(outcome.code))
