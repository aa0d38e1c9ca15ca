"""One open way to one provider: `Connection`."""

from __future__ import annotations

import re
import smtplib
import time
from contextlib import suppress

from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend

from ..backends.smtp import Phase, phase_of
from ..compat import get_mailer
from ..outcomes import Kind, Outcome
from .classify import outcome_of_error, outcome_of_return

IDLE_SECONDS = 30.0
"""A connection unused for longer is made anew: servers close idle ones, and over HTTP we could not tell that from a
request that got lost."""

_STILL_USABLE = re.compile(r"HTTP \d|4\d\d|5[1-9]\d")
"""Codes of proper answers; after 50x an SMTP server and we are out of step."""
_LEFT_BY_A_BACKEND = ("anymail_status", "mailengine_refusals", "mailengine_sha256")


class Connection:
    """A connection to the provider `alias`, opened when first needed and kept; for one thread at a time."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self._backend: BaseEmailBackend | None = None
        self._used_at = 0.0

    def hand_over(self, email: EmailMessage) -> Outcome:
        """Send this one email, and say what became of it; no provider's failure is raised.

        If the server closed a kept connection before it heard of this email, the email goes by a new one.
        """
        if self._backend is not None and time.monotonic() - self._used_at > IDLE_SECONDS:
            self.close()
        was_open = self._backend is not None
        outcome, error = self._try(email)
        if was_open and _closed_in_between(error):
            self.close()
            outcome, error = self._try(email)
        if _leaves_doubt(outcome):
            self.close()
        self._used_at = time.monotonic()
        return outcome

    def close(self) -> None:
        """Hang up. Never raises: what was sent is sent."""
        backend, self._backend = self._backend, None
        if backend is not None:
            with suppress(Exception):
                backend.close()

    def _try(self, email: EmailMessage) -> tuple[Outcome, Exception | None]:
        # One email object may have been at other providers before: what they left on it is not this one's word.
        for name in _LEFT_BY_A_BACKEND:
            vars(email).pop(name, None)
        opening = True
        try:
            backend = self._open()
            opening = False
            sent_count = backend.send_messages([email])
        # The one broad except: a backend is anybody's code, and its worst bug may cost this mail time, but not the
        # thread that all other mail goes by.
        except Exception as error:  # noqa: BLE001
            return outcome_of_error(error, email=email, opening=opening), error
        return outcome_of_return(email, sent_count), None

    def _open(self) -> BaseEmailBackend:
        if self._backend is None:
            backend = get_mailer(self.alias)
            if "fail_silently" in vars(backend):
                backend.fail_silently = False  # whatever its OPTIONS say: a failure that nobody hears of is lost mail
            self._backend = backend
            backend.open()
            session = getattr(backend, "session", None)
            if session is not None:
                session.max_redirects = 0  # one request for one attempt: to follow a redirect would be another
        return self._backend


def _closed_in_between(error: Exception | None) -> bool:
    """Whether the server had closed the connection, or did so at MAIL: then it never heard of the email."""
    if error is None or phase_of(error) not in {Phase.EHLO, Phase.MAIL}:
        return False
    if isinstance(error, smtplib.SMTPSenderRefused):
        return error.smtp_code == 421
    return isinstance(error, smtplib.SMTPServerDisconnected)


def _leaves_doubt(outcome: Outcome) -> bool:
    """Whether the next email had better go by a new connection."""
    return outcome.kind is not Kind.ACCEPTED and (outcome.is_bad_round or not _STILL_USABLE.match(outcome.code))
