"""Answers of ESPs over HTTP, and Anymail's errors: `anymail.exceptions`."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from anymail.exceptions import (
    AnymailCancelSend,
    AnymailError,
    AnymailInvalidAddress,
    AnymailRecipientsRefused,
    AnymailSerializationError,
    AnymailUnsupportedFeature,
)

from ...outcomes import Kind, Outcome
from .errors import first_argument
from .kinds import (
    ACCEPTED,
    BAD_ADDRESS,
    CANCELLED,
    DEFERRED,
    MISCONFIGURED,
    NOT_HERE,
    REFUSED,
    THROTTLED,
    UNAVAILABLE,
    UNCERTAIN,
    named,
    without_addresses,
)
from .system import of_network_error

HTTP = "http"
"""The phase of all that came as the answer to a request."""
ANSWERS: tuple[tuple[str, str, Outcome], ...] = (
    # ESP            status, the provider's own code, its text                                    is
    ("Postmark", r"\d+ (10|400|401|405|412|413) ", MISCONFIGURED),
    ("Postmark", r"\d+ 406 ", BAD_ADDRESS),  # it bounced, or complained
    ("Postmark", r"\d+ 300 (Invalid|Error parsing) 'To'", BAD_ADDRESS),
    ("Postmark", r"\d+ 300 Header .* not allowed", NOT_HERE),  # it writes that one itself
    ("Postmark", r"\d+ 100 ", UNAVAILABLE),  # maintenance
    ("Mailgun", r"400 .*'(to|cc|bcc)' parameter is not a valid address", BAD_ADDRESS),
    ("Mailgun", r"400 .*limit exceeded", THROTTLED),
    ("Mailgun", r"400 .*(\b(domain|account)\b.*\b(not allowed|disabled|suspended)\b|sandbox subdomain)", MISCONFIGURED),
    ("Amazon SES", r"\d+ \w*(Throttl|TooManyRequests|LimitExceeded)", THROTTLED),
    ("Amazon SES", r"\d+ (MailFromDomainNotVerified|AccountSuspended|SendingPaused|NotFound)", MISCONFIGURED),
    ("Amazon SES", r"\d+ (ExpiredToken|InvalidClientTokenId|SignatureDoesNotMatch|AccessDenied)", MISCONFIGURED),
    ("Amazon SES", r"\d+ (UnrecognizedClient|InvalidSignature|IncompleteSignature|OptInRequired)", MISCONFIGURED),
    ("Amazon SES", r"\d+ MessageRejected.*not verified", MISCONFIGURED),
    ("Amazon SES", r"\d+ MessageRejected", NOT_HERE),
    ("Resend", r"409 invalid_idempotent_request", MISCONFIGURED),  # our key with another body: a bug of ours
    ("Resend", r"409 concurrent_idempotent_requests", UNCERTAIN),  # our key, and its first call isn't decided yet
    ("Brevo", r"\d+ (account_under_validation|not_enough_credits|permission_denied|unauthorized) ", MISCONFIGURED),
    ("Brevo", r"400 \w+ email is not valid in (to|cc|bcc)\b", BAD_ADDRESS),
    ("Brevo", r"400 \w+ .*\bsender you used\b.*\bnot valid\b", MISCONFIGURED),
    ("Mailjet", r"\d+ mj-0013 .*\((To|Cc|Bcc)\b", BAD_ADDRESS),
    ("Mailjet", r"\d+ send-0008 ", MISCONFIGURED),  # a sender that it doesn't know
    ("Mailjet", r"\d+ send-0011 ", NOT_HERE),  # a header that it writes itself
    ("", r"2", UNCERTAIN),  # probably accepted, but the answer can't be read
    ("", r"3", MISCONFIGURED),  # we never follow: it could send twice
    ("", r"4\d\d .*\bdaily\b.*\bquota\b.*\bexceeded\b", THROTTLED),
    ("", r"40[1-7]|41[015]|426|501|505", MISCONFIGURED),
    ("", r"408|409|425", DEFERRED),  # it was not processed
    ("", r"413", NOT_HERE),
    ("", r"420|429", THROTTLED),
    ("", r"503", UNAVAILABLE),
    ("", r"52[12356]", UNAVAILABLE),  # the edge never reached the origin
    ("", r"5", UNCERTAIN),  # the origin may have processed it
    ("", r"4", REFUSED),
)
NOT_TO_ALL = "Message OK, but will not deliver to these inactive addresses"
"""What Postmark says, under its code 0, when it took a mail for others alone."""
RETRY_AFTER_SECONDS = (1.0, 3600.0)
"""The shortest and the longest wait that we let a provider ask for."""


def of_anymail_status(status: Any) -> Outcome:
    """What Anymail read for each recipient: accepted if anybody was."""
    read = _read(getattr(status, "esp_response", None))
    # Postmark and Mailjet alone name recipients in an answer that says no.
    is_yes = read.status in {0, *range(200, 300)} and read.text != "[]"  # of which Anymail makes "unknown" for each
    is_inactive = read.code == "406" or (read.code == "0" and read.text.startswith(NOT_TO_ALL))
    esp = "Mailjet" if read.code.startswith(("mj-", "send-")) else "Postmark"
    whole = replace(REFUSED, detail=read.text, phase=HTTP) if is_yes else _of_read(esp, read)
    is_told_of = esp == "Mailjet" and len(status.recipients) == 1 and whole.address_is_bad
    refusals: dict[str, Outcome] = {}
    message_ids: list[str] = []
    for address, recipient in status.recipients.items():
        if recipient.status in {"sent", "queued"} or (recipient.status == "unknown" and is_yes):
            message_ids.append(str(recipient.message_id or ""))
        else:
            # "rejected" may be said of a good address, for what is in the mail; not so by Postmark.
            bad = recipient.status == "invalid" or (recipient.status == "rejected" and is_inactive) or is_told_of
            refusals[address] = replace(whole, code=whole.code or recipient.status, address_is_bad=bad)
    if message_ids:
        return replace(ACCEPTED, phase=HTTP, provider_message_id=message_ids[0], refusals=refusals)
    first = next(iter(refusals.values()))
    return first if len(refusals) == 1 else replace(first, address_is_bad=False, refusals=refusals)


def of_anymail_error(error: AnymailError, status: Any) -> Outcome:
    if isinstance(error, AnymailCancelSend):
        return CANCELLED
    if isinstance(error, AnymailUnsupportedFeature):
        return named(NOT_HERE, error, detail=first_argument(error))
    answered = getattr(status, "esp_response", None) is not None
    if isinstance(error, (AnymailInvalidAddress, AnymailSerializationError)):
        if answered:  # what it tells of is the ESP's answer, and not the mail
            return named(replace(UNCERTAIN, phase=HTTP), error)
        return named(REFUSED, error, detail=first_argument(error))
    answer = error.response
    if answer is None:
        answer = getattr(error.__cause__, "response", None)
    if answer is not None:
        return _of_answer(error.esp_name or "", answer)
    if error.__cause__ is not None or isinstance(error, OSError):
        return of_network_error(error, opening=False)
    if answered or isinstance(error, AnymailRecipientsRefused):
        return named(replace(UNCERTAIN, phase=HTTP), error)
    return named(MISCONFIGURED, error, detail=first_argument(error))  # a sender domain it can't do without, say


def of_words(esp: str, status: int, body: Mapping[str, Any]) -> Outcome:
    """By what an ESP says of one mail, within an answer to a call for many, and the status it would have by itself."""
    return _of_read(esp, _read_body(status, body, "", {}))


def _of_answer(esp: str, answer: Any) -> Outcome:
    """By an HTTP answer: a `requests.Response`, or the dictionary that boto3 makes of one."""
    return _of_read(esp, _read(answer))


def _of_read(esp: str, read: _Answer) -> Outcome:
    line = " ".join(part for part in (str(read.status), read.code, without_addresses(read.text)) if part)
    flags = re.IGNORECASE | re.DOTALL
    fitting = (outcome for name, pattern, outcome in ANSWERS if name in {"", esp} and re.match(pattern, line, flags))
    outcome = next(fitting, UNCERTAIN)
    asked = read.headers.get("Retry-After") or read.headers.get("retry-after")
    if esp == "Brevo" and read.status == 429:
        asked = asked or read.headers.get("x-sib-ratelimit-reset")  # https://developers.brevo.com/docs/limit-headers
    wait = retry_after_seconds(asked)
    if read.status == 503 and wait is not None:
        outcome = THROTTLED
    return replace(
        outcome,
        code=f"HTTP {read.status} {read.code}".strip(),
        detail=read.text,
        phase=HTTP,
        retry_after_seconds=wait if outcome.kind is Kind.THROTTLED else None,
    )


def retry_after_seconds(value: object) -> float | None:
    """The Retry-After header as seconds from now, 1 to 3,600, in either of its forms; None for garbage, or nothing."""
    text = str(value or "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        seconds = float(text)
    else:
        try:
            date = parsedate_to_datetime(text)
        except (TypeError, ValueError, IndexError, OverflowError):
            return None
        # HTTP's are of GMT; the oldest of its three forms does not say so.
        seconds = (date if date.tzinfo else date.replace(tzinfo=timezone.utc)).timestamp() - time.time()
    shortest, longest = RETRY_AFTER_SECONDS
    return min(max(seconds, shortest), longest)


class _Answer(NamedTuple):
    status: int
    code: str
    """The provider's own, for the error."""
    text: str
    """The provider's own words."""
    headers: Mapping[str, str]


def _read(answer: Any) -> _Answer:
    if isinstance(answer, Mapping):  # botocore's
        about, error = answer.get("ResponseMetadata") or {}, answer.get("Error") or {}
        status = int(about.get("HTTPStatusCode") or 0)
        code = str(error.get("Code", ""))
        if code == str(status):  # what botocore says when there was none
            code = ""
        return _Answer(status, code, str(error.get("Message", "")), about.get("HTTPHeaders") or {})
    status = int(getattr(answer, "status_code", 0) or 0)
    headers: Mapping[str, str] = getattr(answer, "headers", None) or {}
    body = ""
    with suppress(Exception):  # whatever is wrong with the body, the status decides
        body = answer.text
        parsed = json.loads(body)
        if isinstance(parsed, list) and parsed:
            parsed = parsed[0]
        if isinstance(parsed, dict):
            return _read_body(status, _error_of_mailjet(parsed) or parsed, body, headers)
    return _Answer(status, "", body or str(getattr(answer, "reason", "") or ""), headers)


def _read_body(status: int, parsed: Mapping[str, Any], body: str, headers: Mapping[str, str]) -> _Answer:
    code = next((parsed[name] for name in ("ErrorCode", "name", "code") if name in parsed), "")
    words = _words_in(parsed) or body
    related = parsed.get("ErrorRelatedTo")
    if isinstance(related, list) and related:
        words = f"{words} ({', '.join(map(str, related))})"
    return _Answer(status, str(code), words, headers)


def _error_of_mailjet(parsed: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The first error that it names, where it speaks of each mail by itself."""
    for message in parsed.get("Messages") or ():
        for error in message.get("Errors") or ():
            return error if isinstance(error, dict) else None
    return None


def _words_in(body: Mapping[str, Any]) -> str:
    """What a human should read in the JSON body of an error; each ESP has a name of its own for it."""
    errors = body.get("errors")
    if isinstance(errors, list) and errors:
        return "; ".join(str(each.get("message", each)) if isinstance(each, dict) else str(each) for each in errors)
    for name in ("Message", "message", "ErrorMessage", "detail", "error"):
        if body.get(name):
            return str(body[name])
    return ""
