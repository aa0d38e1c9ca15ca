"""What a backend returned or raised -> an `Outcome`: whose fault it was.

Tables, read from the top: the first row that fits decides. What no row proves, a clean failure above all, is
`UNCERTAIN`: a wait costs less than a second copy. Nothing of a request gets into an outcome, since its headers and
payload hold keys and people's words; only what the provider answered does.

On SMTP replies: RFC 5321, section 4.2, and RFC 3463. On Anymail's errors: `anymail.exceptions`.
"""

from __future__ import annotations

import errno
import json
import re
import smtplib
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import Any

from anymail.exceptions import (
    AnymailCancelSend,
    AnymailError,
    AnymailInvalidAddress,
    AnymailRecipientsRefused,
    AnymailSerializationError,
    AnymailUnsupportedFeature,
)
from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage

from ..backends.smtp import Phase, phase_of
from ..outcomes import Kind, Outcome

RETRY_AFTER_SECONDS = (1.0, 3600.0)
"""The shortest and the longest wait that we let a provider ask for."""

ACCEPTED = Outcome(Kind.ACCEPTED)
REFUSED = Outcome(Kind.REFUSED)
CANCELLED = Outcome(Kind.REFUSED, code="cancelled by pre_send", cancelled=True)
BAD_ADDRESS = Outcome(Kind.REFUSED, address_is_bad=True)
NOT_HERE = Outcome(Kind.REFUSED, elsewhere=True)
DEFERRED = Outcome(Kind.DEFERRED)
GREYLISTED = Outcome(Kind.DEFERRED, greylisted=True)
UNAVAILABLE = Outcome(Kind.UNAVAILABLE)
MISCONFIGURED = Outcome(Kind.MISCONFIGURED)
THROTTLED = Outcome(Kind.THROTTLED)
UNCERTAIN = Outcome(Kind.UNCERTAIN)


# -- SMTP -------------------------------------------------------------------------------------------------------------

OPENING = frozenset({Phase.CONNECT, Phase.GREETING, Phase.EHLO, Phase.STARTTLS, Phase.AUTH})
COMMANDS = frozenset({Phase.MAIL, Phase.RCPT, Phase.DATA})
CONTENT = frozenset({Phase.DATA, Phase.BODY, Phase.AWAIT})
SENDING = COMMANDS | CONTENT

REPLIES: tuple[tuple[frozenset[Phase], str, Outcome], ...] = (
    # in these phases       a reply like "550 5.1.1 No such user"                    is
    (SENDING, r"2\d\d", ACCEPTED),
    (SENDING, r"(?![45])", UNCERTAIN),  # garbage, or no code at all
    (frozenset({Phase.GREETING}), r"554", MISCONFIGURED),  # our address is on a block list
    (frozenset({Phase.EHLO}), r"501", MISCONFIGURED),  # it dislikes our name
    (frozenset({Phase.STARTTLS, Phase.AUTH}), r"5", MISCONFIGURED),
    (OPENING, r"", UNAVAILABLE),
    # The server as a whole
    (SENDING, r"421|452 4\.3\.1", UNAVAILABLE),
    (SENDING, r"454|4.*(throttl|sending rate)", THROTTLED),
    (SENDING, r"530|5.* 5\.7\.[89] |5.*authentication required", MISCONFIGURED),
    # The address; before the sender's identity, since "unverified" is said of a recipient's address, too
    (SENDING, r"5.* 5\.1\.([1236]|10) ", BAD_ADDRESS),
    # Who we say we are
    (SENDING, r"5.* 5\.7\.(2[0-79]|30|515) ", MISCONFIGURED),  # SPF, DKIM, DMARC, PTR
    (
        SENDING,
        r"5.* 5\.1\.[78] |5(?!.*recipient address).*(not verified|unverified)",
        MISCONFIGURED,
    ),  # the sender's identity
    (frozenset({Phase.MAIL}), r"552|5.* 5\.3\.4 ", NOT_HERE),  # larger than it takes, says SIZE
    # The address
    (frozenset({Phase.RCPT}), r"5.*relay", DEFERRED),  # the server's configuration, which somebody may be mending
    (frozenset({Phase.RCPT}), r"45[012] 4\.7\.1 |45[01] 4\.2\.0 ", GREYLISTED),
    (SENDING, r"4.*gr[ea]y", GREYLISTED),
    # Out of step with the server: begin anew
    (COMMANDS, r"503|50[0124] (?!5\.1\.)", DEFERRED),
    # The rest goes by the first digit
    (SENDING, r"4", DEFERRED),
    (frozenset({Phase.MAIL}), r"5", MISCONFIGURED),
    (frozenset({Phase.RCPT}), r"5", REFUSED),
    (CONTENT, r"552|5.* 5\.(3\.4|6\.\d+|7\.1) |554", NOT_HERE),  # size, media, content
    (frozenset({Phase.DATA}), r"5", NOT_HERE),
    (SENDING, r"5", REFUSED),
)

ADDRESS = re.compile(r"\S+@\S+")

CUT_OFF: dict[Phase | None, Outcome] = {
    # The connection broke, or the wait for a reply was too long.
    **dict.fromkeys(OPENING | COMMANDS, UNAVAILABLE),
    Phase.BODY: DEFERRED,  # without the final dot it is not kept; but who knows whether this very mail broke it
    Phase.AWAIT: UNCERTAIN,
    Phase.DONE: ACCEPTED,
    None: UNCERTAIN,
}

PHASE_OF_TYPE: tuple[tuple[type[smtplib.SMTPException], Phase], ...] = (
    # For replies that another SMTP backend got: smtplib's classes say at which step.
    (smtplib.SMTPConnectError, Phase.GREETING),
    (smtplib.SMTPHeloError, Phase.EHLO),
    (smtplib.SMTPAuthenticationError, Phase.AUTH),
    (smtplib.SMTPSenderRefused, Phase.MAIL),
    (smtplib.SMTPRecipientsRefused, Phase.RCPT),
    (smtplib.SMTPDataError, Phase.AWAIT),
)
NOTHING_SENT = re.compile(r"please run connect\(\) first|Server not connected")
"""What smtplib says when not even all of a command, or of the content and its dot, could be sent."""

# -- HTTP -------------------------------------------------------------------------------------------------------------

ANSWERS: tuple[tuple[str, str, Outcome], ...] = (
    # ESP            status, the provider's own code, its text                                    is
    ("Postmark", r"\d+ (10|400|401|405|412|413) ", MISCONFIGURED),
    ("Postmark", r"\d+ 406 ", BAD_ADDRESS),  # it bounced, or complained
    ("Postmark", r"\d+ 100 ", UNAVAILABLE),  # maintenance
    ("Mailgun", r"400 .*'(to|cc|bcc)' parameter is not a valid address", BAD_ADDRESS),
    ("Mailgun", r"400 .*(not allowed to send|sandbox|disabled|suspended)", MISCONFIGURED),
    ("Amazon SES", r"\d+ \w*(Throttl|TooManyRequests|LimitExceeded)", THROTTLED),
    ("Amazon SES", r"\d+ (MailFromDomainNotVerified|AccountSuspended|SendingPaused|NotFound)", MISCONFIGURED),
    ("Amazon SES", r"\d+ (ExpiredToken|InvalidClientTokenId|SignatureDoesNotMatch|AccessDenied)", MISCONFIGURED),
    ("Amazon SES", r"\d+ (UnrecognizedClient|InvalidSignature|IncompleteSignature|OptInRequired)", MISCONFIGURED),
    ("Amazon SES", r"\d+ MessageRejected.*not verified", MISCONFIGURED),
    ("Amazon SES", r"\d+ MessageRejected", NOT_HERE),
    ("Resend", r"409 invalid_idempotent_request", MISCONFIGURED),  # our key with another body: a bug of ours
    ("", r"2", UNCERTAIN),  # probably accepted, but the answer can't be read
    ("", r"3", MISCONFIGURED),  # we never follow: it could send twice
    ("", r"40[1-6]|41[015]|501|505", MISCONFIGURED),
    ("", r"408|409|425", DEFERRED),  # it was not processed
    ("", r"413", NOT_HERE),
    ("", r"420|429", THROTTLED),
    ("", r"503", UNAVAILABLE),
    ("", r"52[12356]", UNAVAILABLE),  # the edge never reached the origin
    ("", r"5", UNCERTAIN),  # the origin may have processed it
    ("", r"4", REFUSED),
)

NETWORK: tuple[tuple[str, Outcome], ...] = (
    # One of these classes (of requests, urllib3, botocore, ssl, the stdlib) among the error and its causes   is
    ("SSLCertVerificationError|CertificateError", MISCONFIGURED),
    ("InvalidURL|MissingSchema|InvalidSchema|InvalidHeader|InvalidProxyURL|TooManyRedirects", MISCONFIGURED),
    (
        "NoCredentialsError|PartialCredentialsError|CredentialRetrievalError|NoRegionError|ProfileNotFound",
        MISCONFIGURED,
    ),
    ("NewConnectionError|NameResolutionError|ConnectTimeout|ConnectTimeoutError|EndpointConnectionError", UNAVAILABLE),
    ("ProxyError|ProxyConnectionError|ConnectionRefusedError|gaierror", UNAVAILABLE),
    ("ParamValidationError", REFUSED),
)
"""What can only happen before a request is sent. A read timeout is not here: the request may have arrived."""
HANDSHAKE = re.compile("HANDSHAKE|VERSION|PROTOCOL|CIPHER")
"""In `SSLError.reason`: it can only happen before the first byte of a request."""

# -- Everything else --------------------------------------------------------------------------------------------------

OUR_HOST = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL, errno.ENOSPC}
)  # this host has run out of something: nobody's fault, and no reason to leave the provider for long
OUR_HOST_WAIT_SECONDS = 5.0
UNREACHED = frozenset({errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN})


def outcome_of_return(email: EmailMessage, sent_count: int | None) -> Outcome:
    """What became of `email` when its backend returned without an error; Anymail's word counts more than the number."""
    status = getattr(email, "anymail_status", None)
    if getattr(status, "recipients", None):
        return _of_anymail_status(status)
    if sent_count:
        refusals = getattr(email, "mailengine_refusals", None) or {}
        return Outcome(
            Kind.ACCEPTED,
            sha256=getattr(email, "mailengine_sha256", b""),
            refusals={address: _of_reply(Phase.RCPT, code, text) for address, (code, text) in refusals.items()},
        )
    if not email.recipients():
        return replace(REFUSED, code="no recipients")
    if status is not None:  # Anymail began with it, and nothing was raised
        return replace(CANCELLED, detail="A receiver of Anymail's pre_send signal withdrew it.")
    return replace(UNCERTAIN, code=f"returned {sent_count}", detail="The backend neither sent it nor said why.")


def outcome_of_error(error: BaseException, *, email: EmailMessage | None = None, opening: bool = False) -> Outcome:
    """What became of `email` when its backend raised `error`. Never raises.

    `opening` says that it came from the backend's constructor or from `open()`, when nothing of a mail was sent yet.
    """
    status = None if opening else getattr(email or getattr(error, "email_message", None), "anymail_status", None)
    if getattr(status, "recipients", None):
        return _of_anymail_status(status)  # the ESP had answered already; a receiver of post_send may have raised
    outcome = _of_error(error, status=status, opening=opening)
    if opening or email is None:
        return outcome
    several = len(email.recipients()) > 1
    return replace(
        outcome,
        address_is_bad=outcome.address_is_bad and not several,  # which of them? `refusals` knows, if anybody does
        sha256=getattr(email, "mailengine_sha256", b""),
    )


def retry_after_seconds(value: object) -> float | None:
    """The Retry-After header as seconds from now, 1 to 3,600, in either of its forms; None for garbage, or nothing."""
    text = str(value or "").strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", text):
        seconds = float(text)
    else:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (TypeError, ValueError, IndexError, OverflowError):
            return None
    shortest, longest = RETRY_AFTER_SECONDS
    return min(max(seconds, shortest), longest)


def _of_error(error: BaseException, *, status: Any, opening: bool) -> Outcome:
    # The order matters: Anymail's errors over HTTP are OSErrors, and smtplib's are too.
    if isinstance(error, AnymailError):
        return _of_anymail_error(error, status)
    if isinstance(error, (ImproperlyConfigured, ImportError)):
        return _named(MISCONFIGURED, error)
    if isinstance(error, smtplib.SMTPException):
        return _of_smtp_error(error, opening=opening)
    if isinstance(error, OSError) or _is_of(error, "BotoCoreError"):
        return _of_network_error(error, opening=opening)
    return _of_other_error(error, status=status, opening=opening)


# -- SMTP -------------------------------------------------------------------------------------------------------------


def _of_smtp_error(error: smtplib.SMTPException, *, opening: bool) -> Outcome:
    phase = phase_of(error)
    if phase is Phase.DONE:
        return ACCEPTED
    if phase is None:
        phase = next((phase for known, phase in PHASE_OF_TYPE if isinstance(error, known)), None)
    if isinstance(error, smtplib.SMTPNotSupportedError):
        # Not offered any more is what an attacker in between would make of it: never go on in clear.
        return _named(MISCONFIGURED if opening or phase in OPENING else NOT_HERE, error)
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return _of_refused_recipients(error)
    if isinstance(error, smtplib.SMTPResponseException) and type(error) is not smtplib.SMTPResponseException:
        return _of_reply(phase or Phase.AWAIT, error.smtp_code, error.smtp_error)
    if isinstance(error, smtplib.SMTPResponseException) and phase in OPENING:
        return _of_reply(phase, error.smtp_code, error.smtp_error)  # to STARTTLS
    if type(error) is smtplib.SMTPException and (opening or phase in OPENING):
        return _named(MISCONFIGURED, error)  # no way to log in that both sides know
    if opening or (phase is None and NOTHING_SENT.search(str(error))):
        phase = phase or Phase.CONNECT
    return _named(CUT_OFF[phase], error)


def _of_refused_recipients(error: smtplib.SMTPRecipientsRefused) -> Outcome:
    """The most hopeful of the replies decides for the mail as a whole; each address has its own in `refusals`."""
    refusals = {address: _of_reply(Phase.RCPT, code, text) for address, (code, text) in error.recipients.items()}
    if len(refusals) == 1:
        return next(iter(refusals.values()))
    hopes = (Kind.UNAVAILABLE, Kind.MISCONFIGURED, Kind.THROTTLED, Kind.DEFERRED, Kind.REFUSED)
    if not refusals:
        return _named(DEFERRED, error)
    best = min(refusals.values(), key=lambda outcome: hopes.index(outcome.kind) if outcome.kind in hopes else 0)
    return replace(best, address_is_bad=False, refusals=refusals)


def _of_reply(phase: Phase, code: int, text: bytes | str) -> Outcome:
    words = " ".join((text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)).split())
    found = re.match(r"([245]\.\d{1,3}\.\d{1,3})(?!\S) ?", words)
    enhanced = found[1] if found else ""
    # Without addresses: nobody shall stop a provider by subscribing as unverified@example.org.
    reply = f"{code} {re.sub(ADDRESS, '', words)} "
    for phases, pattern, outcome in REPLIES:
        if phase in phases and re.match(pattern, reply, re.IGNORECASE | re.DOTALL):
            return replace(outcome, code=f"{code} {enhanced}".strip(), detail=words[found.end() :] if found else words)
    return replace(UNCERTAIN, code=str(code), detail=words)


# -- Anymail and HTTP -------------------------------------------------------------------------------------------------


def _of_anymail_status(status: Any) -> Outcome:
    """What Anymail read for each recipient: accepted if anybody was."""
    answer = getattr(status, "esp_response", None)
    http_status, _, text, _ = _read_answer(answer)
    # Postmark alone names recipients in an answer that says no.
    whole = replace(REFUSED, detail=text) if http_status in {0, *range(200, 300)} else _of_answer("Postmark", answer)
    refusals: dict[str, Outcome] = {}
    message_ids: list[str] = []
    for address, recipient in status.recipients.items():
        if recipient.status in {"sent", "queued"} or (recipient.status == "unknown" and not whole.code):
            message_ids.append(str(recipient.message_id or ""))
        else:
            # "rejected" may be said of a good address, for what is in the mail.
            bad = recipient.status == "invalid" or (recipient.status == "rejected" and "inactive" in text)
            refusals[address] = replace(whole, code=whole.code or recipient.status, address_is_bad=bad)
    if message_ids:
        return replace(ACCEPTED, provider_message_id=message_ids[0], refusals=refusals)
    first = next(iter(refusals.values()))
    return first if len(refusals) == 1 else replace(first, address_is_bad=False, refusals=refusals)


def _of_anymail_error(error: AnymailError, status: Any) -> Outcome:
    if isinstance(error, AnymailCancelSend):
        return CANCELLED
    if isinstance(error, AnymailUnsupportedFeature):
        return _named(NOT_HERE, error, detail=_first_argument(error))
    if isinstance(error, (AnymailInvalidAddress, AnymailSerializationError, AnymailRecipientsRefused)):
        return _named(REFUSED, error, detail=_first_argument(error))
    answer = error.response
    if answer is None:
        answer = getattr(error.__cause__, "response", None)
    if answer is not None:
        return _of_answer(error.esp_name or "", answer)
    if error.__cause__ is not None or isinstance(error, OSError):
        return _of_network_error(error, opening=False)
    if getattr(status, "esp_response", None) is not None:
        return _named(UNCERTAIN, error)
    return _named(MISCONFIGURED, error, detail=_first_argument(error))  # a sender domain it can't do without, say


def _of_answer(esp: str, answer: Any) -> Outcome:
    """By an HTTP answer: a `requests.Response`, or the dictionary that boto3 makes of one."""
    http_status, own_code, text, headers = _read_answer(answer)
    line = f"{http_status} {own_code} {text}" if own_code else f"{http_status} {text}"
    flags = re.IGNORECASE | re.DOTALL
    fitting = (outcome for name, pattern, outcome in ANSWERS if name in {"", esp} and re.match(pattern, line, flags))
    outcome = next(fitting, UNCERTAIN)
    wait = retry_after_seconds(headers.get("Retry-After") or headers.get("retry-after"))
    if http_status == 503 and wait is not None:
        outcome = THROTTLED
    return replace(
        outcome,
        code=f"HTTP {http_status} {own_code}".strip(),
        detail=text,
        retry_after_seconds=wait if outcome.kind is Kind.THROTTLED else None,
    )


def _read_answer(answer: Any) -> tuple[int, str, str, Mapping[str, str]]:
    """Its status, the provider's own error code, the provider's own words, and the headers."""
    if isinstance(answer, Mapping):  # botocore's
        about, error = answer.get("ResponseMetadata") or {}, answer.get("Error") or {}
        http_status = int(about.get("HTTPStatusCode") or 0)
        return http_status, str(error.get("Code", "")), str(error.get("Message", "")), about.get("HTTPHeaders") or {}
    http_status = int(getattr(answer, "status_code", 0) or 0)
    headers: Mapping[str, str] = getattr(answer, "headers", None) or {}
    body = ""
    with suppress(Exception):  # whatever is wrong with the body, the status decides
        body = answer.text
        parsed = json.loads(body)
        if isinstance(parsed, list) and parsed:
            parsed = parsed[0]
        if isinstance(parsed, dict):
            own_code = parsed.get("ErrorCode", parsed.get("name", ""))
            return http_status, str(own_code), _words_in(parsed) or body, headers
    return http_status, "", body or str(getattr(answer, "reason", "") or ""), headers


def _words_in(body: Mapping[str, Any]) -> str:
    """What a human should read in the JSON body of an error; each ESP has a name of its own for it."""
    errors = body.get("errors")
    if isinstance(errors, list) and errors:
        return "; ".join(str(each.get("message", each)) if isinstance(each, dict) else str(each) for each in errors)
    for name in ("Message", "message", "detail", "error"):
        if body.get(name):
            return str(body[name])
    return ""


# -- Networks and the rest --------------------------------------------------------------------------------------------


def _of_network_error(error: BaseException, *, opening: bool) -> Outcome:
    """By what went wrong on the way: the error and all its causes are looked at."""
    chain = list(_chain(error))
    deepest = chain[-1]
    phase = phase_of(error)
    if phase in {Phase.AWAIT, Phase.DONE}:
        return _named(CUT_OFF[phase], error)
    number = next((each.errno for each in reversed(chain) if isinstance(each, OSError) and each.errno), None)
    if number in OUR_HOST:
        return replace(_named(THROTTLED, deepest), retry_after_seconds=OUR_HOST_WAIT_SECONDS)
    names = {cls.__name__ for each in chain for cls in type(each).__mro__}
    for pattern, outcome in NETWORK:
        if names.intersection(pattern.split("|")):
            return _named(outcome, deepest)
    if opening or phase is not None:
        return _named(CUT_OFF[phase or Phase.CONNECT], deepest)
    if number in UNREACHED or any(_is_handshake(each) for each in chain):
        return _named(UNAVAILABLE, deepest)
    return _named(UNCERTAIN, deepest)


def _of_other_error(error: BaseException, *, status: Any, opening: bool) -> Outcome:
    phase = phase_of(error)
    answered = getattr(status, "esp_response", None) is not None
    if opening:
        # An option of the wrong type, a password that is not ASCII. Its text may quote the option.
        return replace(MISCONFIGURED, code=type(error).__name__)
    if phase in {Phase.AWAIT, Phase.DONE}:
        return _named(CUT_OFF[phase], error)
    if answered:
        return _named(UNCERTAIN, error)
    if isinstance(error, (ValueError, LookupError)):
        return _named(REFUSED, error)  # a bad header, address, character or charset: mail that can't be written
    if phase is not None or status is not None or isinstance(error, (MemoryError, RecursionError)):
        return _named(DEFERRED, error)
    return _named(UNCERTAIN, error)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, its cause, the cause of that; urllib3 keeps a cause in `reason`, requests in the first argument."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        first = following.args[0] if following.args else None
        causes = (following.__cause__, getattr(following, "reason", None), first)
        following = next(
            (cause for cause in causes if isinstance(cause, BaseException) and id(cause) not in seen), None
        )


def _is_handshake(error: BaseException) -> bool:
    return isinstance(error, ssl.SSLError) and bool(HANDSHAKE.search(str(getattr(error, "reason", ""))))


def _is_of(error: BaseException, class_name: str) -> bool:
    """Whether it is of a class with this name; for libraries that need not be installed."""
    return any(cls.__name__ == class_name for cls in type(error).__mro__)


def _named(outcome: Outcome, error: BaseException, *, detail: str | None = None) -> Outcome:
    if detail is None:
        detail = ""
        if not isinstance(error, AnymailError):  # whose text has the payload
            with suppress(Exception):
                detail = str(error)
    return replace(outcome, code=type(error).__name__, detail=detail)


def _first_argument(error: BaseException) -> str:
    return str(error.args[0]) if error.args else ""
