"""What a backend returned or raised -> an `Outcome`: whose fault it was.

Tables, read from the top: the first row that fits decides. What no row proves, a clean failure above all, is
`UNCERTAIN`: a wait costs less than a second copy. Nothing of a request gets into an outcome, since its headers and
payload hold keys and people's words; only what the provider answered does.
"""

from __future__ import annotations

import smtplib
from dataclasses import replace
from email.utils import parseaddr
from typing import Any

from anymail.exceptions import AnymailError
from django.core.exceptions import ImproperlyConfigured

from ...backends.dialogue import Phase, phase_of
from ...backends.wire import Mail
from ...outcomes import Kind, Outcome
from .errors import is_of
from .http import HTTP, of_anymail_error, of_anymail_status, retry_after_seconds
from .kinds import ADDRESS, CANCELLED, MISCONFIGURED, REFUSED, UNCERTAIN, named
from .mails import outcomes_of_mails
from .smtp import of_reply, of_smtp_error
from .system import of_network_error, of_other_error, of_silent_backend

__all__ = ["ADDRESS", "HTTP", "outcome_of_error", "outcome_of_return", "outcomes_of_mails", "retry_after_seconds"]


def outcome_of_return(email: Mail, sent_count: int | None) -> Outcome:
    """What became of `email` when its backend returned without an error; Anymail's word counts more than the number.

    Never raises.
    """
    try:
        return _of_return(email, sent_count)
    except Exception as error:  # noqa: BLE001  What a backend returns and leaves on the email is anybody's object.
        return Outcome(Kind.UNCERTAIN, code=type(error).__name__)


def _of_return(email: Mail, sent_count: int | None) -> Outcome:
    status = getattr(email, "anymail_status", None)
    if getattr(status, "recipients", None):
        return of_anymail_status(status)
    if sent_count and getattr(status, "esp_response", None) is not None:
        return replace(UNCERTAIN, code="no recipients", detail="The answer names nobody.", phase=HTTP)
    if sent_count and sent_count > 0:
        refusals = getattr(email, "mailengine_refusals", None) or {}
        return Outcome(
            Kind.ACCEPTED,
            phase=Phase.AWAIT.value,
            sha256=getattr(email, "mailengine_sha256", b""),
            refusals={address: of_reply(Phase.RCPT, code, text) for address, (code, text) in refusals.items()},
        )
    if not email.recipients():
        return replace(REFUSED, code="no recipients")
    if status is not None:  # Anymail began with it, and nothing was raised
        return replace(CANCELLED, detail="A receiver of Anymail's pre_send signal withdrew it.")
    return replace(UNCERTAIN, code=f"returned {sent_count}", detail="The backend neither sent it nor said why.")


def outcome_of_error(error: BaseException, *, email: Mail | None = None, opening: bool = False) -> Outcome:
    """What became of `email` when its backend raised `error`. Never raises.

    `opening` says that it came from the backend's constructor or from `open()`, when nothing of a mail was sent yet.
    """
    try:
        return _judged(error, email=email, opening=opening)
    # An error is anybody's object: it may raise when it is looked at, and hold what no library would put there.
    except Exception:  # noqa: BLE001
        return Outcome(Kind.MISCONFIGURED if opening else Kind.UNCERTAIN, code=type(error).__name__)


def _judged(error: BaseException, *, email: Mail | None, opening: bool) -> Outcome:
    status = None if opening else getattr(email or getattr(error, "email_message", None), "anymail_status", None)
    if getattr(status, "recipients", None):
        return of_anymail_status(status)  # the ESP had answered already; a receiver of post_send may have raised
    outcome = _of_error(error, status=status, opening=opening)
    if opening or email is None:
        return outcome
    several = len(email.recipients()) > 1
    if isinstance(error, ValueError) and outcome.kind is Kind.REFUSED and _needs_smtputf8(email):
        outcome = replace(outcome, elsewhere=True)
    return replace(
        outcome,
        address_is_bad=outcome.address_is_bad and not several,  # which of them? `refusals` knows, if anybody does
        sha256=getattr(email, "mailengine_sha256", b""),
    )


def _needs_smtputf8(email: Mail) -> bool:
    """Whether an address has letters before its @ that not every provider can send."""
    return not all(parseaddr(address)[1].rpartition("@")[0].isascii() for address in email.recipients())


def _of_error(error: BaseException, *, status: Any, opening: bool) -> Outcome:
    # The order matters: Anymail's errors over HTTP are OSErrors, and smtplib's are too.
    if isinstance(error, AnymailError):
        return of_anymail_error(error, status)
    if isinstance(error, (ImproperlyConfigured, ImportError)):
        return named(MISCONFIGURED, error)
    if isinstance(error, smtplib.SMTPException):
        return of_smtp_error(error, opening=opening)
    says_nothing = not opening and status is None and phase_of(error) is None
    answered = getattr(status, "esp_response", None) is not None
    if says_nothing or answered:
        return of_silent_backend(error, answered=answered)
    if isinstance(error, OSError) or is_of(error, "BotoCoreError"):
        return of_network_error(error, opening=opening)
    return of_other_error(error, opening=opening)
