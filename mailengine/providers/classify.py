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
import socket
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from email.utils import parseaddr, parsedate_to_datetime
from traceback import walk_tb
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
AT_ONCE = Outcome(Kind.DEFERRED, retry_after_seconds=0)
GREYLISTED = Outcome(Kind.DEFERRED, greylisted=True)
CUT_SHORT = Outcome(Kind.DEFERRED, counts_as_bad=True)
ONCE_MORE = Outcome(Kind.DEFERRED, tries=2, then=Kind.REFUSED)
OUT_OF_STEP = Outcome(Kind.DEFERRED, tries=2, then=Kind.MISCONFIGURED)
UNCLASSIFIED = Outcome(Kind.DEFERRED, tries=3, then=Kind.REFUSED)
UNAVAILABLE = Outcome(Kind.UNAVAILABLE)
NAME_UNKNOWN = Outcome(Kind.UNAVAILABLE, ours_after_seconds=600)
NO_HANDSHAKE = Outcome(Kind.UNAVAILABLE, ours_after_seconds=0)
LOCAL = Outcome(Kind.UNAVAILABLE, is_local=True)
MISCONFIGURED = Outcome(Kind.MISCONFIGURED)
THROTTLED = Outcome(Kind.THROTTLED)
UNCERTAIN = Outcome(Kind.UNCERTAIN)


# -- SMTP -------------------------------------------------------------------------------------------------------------

OPENING = frozenset({Phase.CONNECT, Phase.GREETING, Phase.EHLO, Phase.STARTTLS, Phase.AUTH})
MAIL, RCPT, AWAIT = frozenset({Phase.MAIL}), frozenset({Phase.RCPT}), frozenset({Phase.AWAIT})
COMMANDS = frozenset({Phase.MAIL, Phase.RCPT, Phase.DATA})
CONTENT = frozenset({Phase.DATA, Phase.BODY, Phase.AWAIT})
SENDING = COMMANDS | CONTENT

# Only where a row needs words does it look at more than the code and the enhanced code right behind it. A server's
# words may be a stranger's: its address, or what the stranger's own server said to ours. So no words in a reply to
# RCPT do harm to more than that one message, and addresses are left out of all replies before they are looked at.
NO_ENHANCED_CODE = r"(?!\d\.\d+\.\d)"
LIMITED = rf"(4\.7\.\d+ |4\.3\.\d+ |[45]\.4\.5 |{NO_ENHANCED_CODE})"
"""Where words about a limit can be the server's own: with another code a content filter or a mailbox speaks."""
NOT_VERIFIED = r"((sender|address|domain|identity) (is )?not verified|verified sender identity|unverified sender)"

REPLIES: tuple[tuple[frozenset[Phase], str, Outcome], ...] = (
    # in these phases         a reply like "550 5.1.1 No such user"                  is
    (AWAIT, r"2\d\d ", ACCEPTED),
    (AWAIT, r"(?![45]\d\d )", UNCERTAIN),  # garbage, or no code at all
    (SENDING, r"(?![45]\d\d )", UNAVAILABLE),  # the same, and it has not got the mail yet
    (frozenset({Phase.GREETING}), r"554 ", MISCONFIGURED),  # our address is on a block list
    (frozenset({Phase.EHLO}), r"50[14] ", MISCONFIGURED),  # it dislikes our name
    (frozenset({Phase.STARTTLS, Phase.AUTH}), r"5", MISCONFIGURED),
    (OPENING, r"", UNAVAILABLE),
    # The server as a whole
    (SENDING, r"421 |452 4\.3\.1 ", UNAVAILABLE),
    (SENDING, r"5\d\d 5\.4\.5 ", THROTTLED),  # Google's for a day's quota
    (MAIL | CONTENT, rf"4\d\d {LIMITED}.*(throttl|sending rate)", THROTTLED),
    (MAIL | CONTENT, rf"[45]\d\d {LIMITED}.*\bdaily\b.*\b(quota|limit)\b", THROTTLED),
    (SENDING, r"530 |5\d\d 5\.7\.[89] ", MISCONFIGURED),  # log in first
    # Who we say we are
    (SENDING, r"5\d\d 5\.7\.(2[0-79]|30|515) ", MISCONFIGURED),  # SPF, DKIM, DMARC, PTR
    (SENDING, r"5\d\d 5\.1\.[78] ", MISCONFIGURED),  # the sender's address
    (CONTENT, rf"5\d\d {NO_ENHANCED_CODE}.*{NOT_VERIFIED}", MISCONFIGURED),
    # Behind a code only as the first words: a filter of content quotes what it dislikes, and that under 554 5.7.1.
    (CONTENT, rf"(?!554 5\.7\.1 )5\d\d \S+ ((the|from|email) )*{NOT_VERIFIED}", MISCONFIGURED),
    (MAIL, r"552 |5\d\d 5\.3\.4 ", NOT_HERE),  # larger than it takes, says SIZE
    # The address
    (RCPT | CONTENT, r"5\d\d 5\.1\.([1236]|10) ", BAD_ADDRESS),
    (RCPT, r"452 4\.5\.3 ", AT_ONCE),  # too many for one transaction
    (RCPT, r"45[012] 4\.7\.1 (?!.*relay)|45[01] 4\.2\.0 ", GREYLISTED),
    (SENDING, r"4\d\d .*gr[ea]y", GREYLISTED),
    # Perhaps the server's configuration, which somebody may be mending
    (RCPT, r"554 5\.7\.1 |5\d\d .*(relay|authenticat|sender|verified)", ONCE_MORE),
    # Out of step with the server: begin anew. That a parameter is wrong may be said of one odd address.
    (RCPT, r"50[14] ", ONCE_MORE),
    (COMMANDS, r"503 |50[0124] (?!5\.1\.)", OUT_OF_STEP),
    # The rest goes by the first digit
    (SENDING, r"4", DEFERRED),
    (MAIL, r"5", MISCONFIGURED),
    (RCPT, r"5", REFUSED),
    (CONTENT, r"5\d\d 5\.2\.2 ", REFUSED),  # mailbox full
    (CONTENT, r"552 |554 |5\d\d 5\.(3\.4|6\.\d+|7\.1) ", NOT_HERE),  # size, media, content
    (frozenset({Phase.DATA}), r"5", NOT_HERE),
    (SENDING, r"5", REFUSED),
)

ADDRESS = re.compile(r'<[^<>]*@[^<>]*>|("(\\.|[^"\\])*"|[^\s"]+)@\S+')

CUT_OFF: dict[Phase | None, Outcome] = {
    # The connection broke, or the wait for a reply was too long.
    **dict.fromkeys(OPENING | COMMANDS, UNAVAILABLE),
    Phase.BODY: CUT_SHORT,  # without the final dot it is not kept; but who knows whether this very mail broke it
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
NOT_ALL_SENT: dict[str, Phase] = {"please run connect() first": Phase.CONNECT, "Server not connected": Phase.BODY}
"""What smtplib says when nothing, or not even all of a command or of the content and its dot, could be sent."""

# -- HTTP -------------------------------------------------------------------------------------------------------------

HTTP = "http"
"""The phase of all that came as the answer to a request."""

ANSWERS: tuple[tuple[str, str, Outcome], ...] = (
    # ESP            status, the provider's own code, its text                                    is
    ("Postmark", r"\d+ (10|400|401|405|412|413) ", MISCONFIGURED),
    ("Postmark", r"\d+ 406 ", BAD_ADDRESS),  # it bounced, or complained
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

NETWORK: tuple[tuple[str, Outcome], ...] = (
    # One of these classes (of requests, urllib3, botocore, ssl, the stdlib) among the error and its causes   is
    ("SSLCertVerificationError|CertificateError", MISCONFIGURED),
    ("InvalidURL|MissingSchema|InvalidSchema|InvalidHeader|InvalidProxyURL|TooManyRedirects", MISCONFIGURED),
    (
        "NoCredentialsError|PartialCredentialsError|CredentialRetrievalError|NoRegionError|ProfileNotFound",
        MISCONFIGURED,
    ),
    ("gaierror|NameResolutionError|NewConnectionError", UNAVAILABLE),
    ("ConnectTimeout|ConnectTimeoutError|EndpointConnectionError", UNAVAILABLE),
    ("ProxyError|ProxyConnectionError|ConnectionRefusedError", UNAVAILABLE),
    ("ParamValidationError", REFUSED),
)
"""What can only happen before a request is sent. A read timeout is not here: the request may have arrived."""
NO_FILE_FOR_TLS = re.compile("Could not find .*(certificate|key)")
"""What requests says of the options `verify` and `cert`, in an OSError like any other."""

BEFORE_A_REQUEST = re.compile("prepare_(auth|cookies|headers|method|url)|put(header|request)|_new_conn|getaddrinfo")
"""Functions of requests, urllib3, http.client and socket that write the request's own lines, or find the host."""

# -- Everything else --------------------------------------------------------------------------------------------------

SPEAK_OF_NO_SECRET = frozenset({"builtins", "socket", "ssl"})
"""Modules whose OSErrors quote nothing but a file's name."""
WRITING = {
    *(("django.core.mail.message", name) for name in ("message", "sanitize_address", "forbid_multi_line_headers")),
    *((f"{module}.message", name) for module in ("django.core.mail", "email") for name in ("as_bytes", "as_string")),
    ("django.core.mail.backends.smtp", "prep_address"),
    ("smtplib", "putcmd"),
}
"""Where Django's SMTP backend, and whoever does as it does, has sent nothing of a mail yet."""
OUR_HOST = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOSPC, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN}
)
"""This host has run out of something: nobody else's fault."""
OUR_HOST_AT_ANY_TIME = frozenset({errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN})
"""Of these, what may also be said of a connection that has been in use for a while."""
OUR_FILES = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES})
UNREACHED = frozenset({errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN})
LONGEST_MATCHED = 1000
"""How much of an answer is looked at: time must not grow with the square of what a stranger writes."""


def outcome_of_return(email: EmailMessage, sent_count: int | None) -> Outcome:
    """What became of `email` when its backend returned without an error; Anymail's word counts more than the number."""
    status = getattr(email, "anymail_status", None)
    if getattr(status, "recipients", None):
        return _of_anymail_status(status)
    if sent_count and getattr(status, "esp_response", None) is not None:
        return replace(UNCERTAIN, code="no recipients", detail="The answer names nobody.", phase=HTTP)
    if sent_count:
        refusals = getattr(email, "mailengine_refusals", None) or {}
        return Outcome(
            Kind.ACCEPTED,
            phase=Phase.AWAIT.value,
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
    try:
        return _judged(error, email=email, opening=opening)
    # An error is anybody's object: it may raise when it is looked at, and hold what no library would put there.
    except Exception:  # noqa: BLE001
        return Outcome(Kind.MISCONFIGURED if opening else Kind.UNCERTAIN, code=type(error).__name__)


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


def _judged(error: BaseException, *, email: EmailMessage | None, opening: bool) -> Outcome:
    status = None if opening else getattr(email or getattr(error, "email_message", None), "anymail_status", None)
    if getattr(status, "recipients", None):
        return _of_anymail_status(status)  # the ESP had answered already; a receiver of post_send may have raised
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


def _needs_smtputf8(email: EmailMessage) -> bool:
    """Whether an address has letters before its @ that not every provider can send."""
    return not all(parseaddr(address)[1].rpartition("@")[0].isascii() for address in email.recipients())


def _of_error(error: BaseException, *, status: Any, opening: bool) -> Outcome:
    # The order matters: Anymail's errors over HTTP are OSErrors, and smtplib's are too.
    if isinstance(error, AnymailError):
        return _of_anymail_error(error, status)
    if isinstance(error, (ImproperlyConfigured, ImportError)):
        return _named(MISCONFIGURED, error)
    if isinstance(error, smtplib.SMTPException):
        return _of_smtp_error(error, opening=opening)
    says_nothing = not opening and status is None and phase_of(error) is None
    answered = getattr(status, "esp_response", None) is not None
    if says_nothing or answered:
        return _of_silent_backend(error, answered=answered)
    if isinstance(error, OSError) or _is_of(error, "BotoCoreError"):
        return _of_network_error(error, opening=opening)
    return _of_other_error(error, opening=opening)


# -- SMTP -------------------------------------------------------------------------------------------------------------


def _of_smtp_error(error: smtplib.SMTPException, *, opening: bool) -> Outcome:
    phase = phase_of(error)
    if phase is Phase.DONE:
        return ACCEPTED
    if phase is None:
        phase = next((phase for known, phase in PHASE_OF_TYPE if isinstance(error, known)), None)
        phase = phase if opening else NOT_ALL_SENT.get(str(error), phase)
    if isinstance(error, smtplib.SMTPDataError) and phase_of(error) is None and 200 <= error.smtp_code <= 299:
        # To DATA smtplib takes 354 alone for a yes, and to the content 250 alone.
        if error.smtp_code == 250:
            return _of_reply(Phase.DATA, 250, error.smtp_error)
        return replace(_of_reply(Phase.AWAIT, error.smtp_code, error.smtp_error), kind=Kind.UNCERTAIN)
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
    if opening:
        phase = phase or Phase.CONNECT
    if phase not in {None, Phase.AWAIT, Phase.DONE} and _number_in(_chain(error)) in OUR_HOST:
        return _named(LOCAL, error)
    return _named(CUT_OFF[phase], error)


def _of_refused_recipients(error: smtplib.SMTPRecipientsRefused) -> Outcome:
    """The most hopeful of the replies decides for the mail as a whole; each address has its own in `refusals`."""
    refusals = {address: _of_reply(Phase.RCPT, code, text) for address, (code, text) in error.recipients.items()}
    if len(refusals) == 1:
        return replace(next(iter(refusals.values())), retry_after_seconds=None)
    hopes = (Kind.UNAVAILABLE, Kind.MISCONFIGURED, Kind.THROTTLED, Kind.DEFERRED, Kind.REFUSED)
    if not refusals:
        return _named(DEFERRED, error)
    best = min(refusals.values(), key=lambda outcome: hopes.index(outcome.kind) if outcome.kind in hopes else 0)
    # "At once" is for those left over when others were taken: who has been left over alone waits like any other.
    refusals = {address: replace(refusal, retry_after_seconds=None) for address, refusal in refusals.items()}
    return replace(best, address_is_bad=False, retry_after_seconds=None, refusals=refusals)


def _of_reply(phase: Phase, code: int, text: bytes | str) -> Outcome:
    words = " ".join((text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)).split())
    found = re.match(r"([245]\.\d{1,3}\.\d{1,3})(?!\S) ?", words)
    enhanced = found[1] if found else ""
    reply = f"{code} {_without_addresses(words)} "
    for phases, pattern, outcome in REPLIES:
        if phase in phases and re.match(pattern, reply, re.IGNORECASE | re.DOTALL):
            detail = words[found.end() :] if found else words
            return replace(outcome, code=f"{code} {enhanced}".strip(), detail=detail, phase=phase.value)
    return replace(UNCERTAIN, code=str(code), detail=words, phase=phase.value)


def _without_addresses(text: str) -> str:
    """Nobody shall stop a provider by subscribing as unverified@example.org."""
    return re.sub(ADDRESS, "", text[:LONGEST_MATCHED])


# -- Anymail and HTTP -------------------------------------------------------------------------------------------------


def _of_anymail_status(status: Any) -> Outcome:
    """What Anymail read for each recipient: accepted if anybody was."""
    answer = getattr(status, "esp_response", None)
    http_status, own_code, text, _ = _read_answer(answer)
    # Postmark alone names recipients in an answer that says no.
    is_yes = http_status in {0, *range(200, 300)}
    is_inactive = own_code == "406" or (own_code == "0" and text.startswith(NOT_TO_ALL))
    whole = replace(REFUSED, detail=text, phase=HTTP) if is_yes else _of_answer("Postmark", answer)
    refusals: dict[str, Outcome] = {}
    message_ids: list[str] = []
    for address, recipient in status.recipients.items():
        if recipient.status in {"sent", "queued"} or (recipient.status == "unknown" and is_yes):
            message_ids.append(str(recipient.message_id or ""))
        else:
            # "rejected" may be said of a good address, for what is in the mail; not so by Postmark.
            bad = recipient.status == "invalid" or (recipient.status == "rejected" and is_inactive)
            refusals[address] = replace(whole, code=whole.code or recipient.status, address_is_bad=bad)
    if message_ids:
        return replace(ACCEPTED, phase=HTTP, provider_message_id=message_ids[0], refusals=refusals)
    first = next(iter(refusals.values()))
    return first if len(refusals) == 1 else replace(first, address_is_bad=False, refusals=refusals)


def _of_anymail_error(error: AnymailError, status: Any) -> Outcome:
    if isinstance(error, AnymailCancelSend):
        return CANCELLED
    if isinstance(error, AnymailUnsupportedFeature):
        return _named(NOT_HERE, error, detail=_first_argument(error))
    if isinstance(error, (AnymailInvalidAddress, AnymailSerializationError)):
        return _named(REFUSED, error, detail=_first_argument(error))
    answer = error.response
    if answer is None:
        answer = getattr(error.__cause__, "response", None)
    if answer is not None:
        return _of_answer(error.esp_name or "", answer)
    if error.__cause__ is not None or isinstance(error, OSError):
        return _of_network_error(error, opening=False)
    if getattr(status, "esp_response", None) is not None or isinstance(error, AnymailRecipientsRefused):
        return _named(replace(UNCERTAIN, phase=HTTP), error)
    return _named(MISCONFIGURED, error, detail=_first_argument(error))  # a sender domain it can't do without, say


def _of_answer(esp: str, answer: Any) -> Outcome:
    """By an HTTP answer: a `requests.Response`, or the dictionary that boto3 makes of one."""
    http_status, own_code, text, headers = _read_answer(answer)
    words = _without_addresses(text)
    line = f"{http_status} {own_code} {words}" if own_code else f"{http_status} {words}"
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
        phase=HTTP,
        retry_after_seconds=wait if outcome.kind is Kind.THROTTLED else None,
    )


def _read_answer(answer: Any) -> tuple[int, str, str, Mapping[str, str]]:
    """Its status, the provider's own error code, the provider's own words, and the headers."""
    if isinstance(answer, Mapping):  # botocore's
        about, error = answer.get("ResponseMetadata") or {}, answer.get("Error") or {}
        http_status = int(about.get("HTTPStatusCode") or 0)
        code = str(error.get("Code", ""))
        if code == str(http_status):  # what botocore says when there was none
            code = ""
        return http_status, code, str(error.get("Message", "")), about.get("HTTPHeaders") or {}
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
        return _caused(CUT_OFF[phase], error)
    names = {cls.__name__ for each in chain for cls in type(each).__mro__}
    number = _number_in(chain)
    was_connecting = opening or phase is not None or "NewConnectionError" in names
    if number in OUR_HOST and (was_connecting or number not in OUR_HOST_AT_ANY_TIME):
        return _caused(LOCAL, deepest)
    if any(_is_handshake(each) for each in chain):
        return _caused(NO_HANDSHAKE, deepest)
    if "gaierror" in names and number != socket.EAI_AGAIN:
        return _caused(NAME_UNKNOWN, deepest)
    if any(isinstance(each, ValueError) and _was_in(each, BEFORE_A_REQUEST) for each in chain):
        return _caused(MISCONFIGURED, deepest)  # botocore hides them in errors of its own
    for pattern, outcome in NETWORK:
        if names.intersection(pattern.split("|")):
            return _caused(outcome, deepest)
    if opening and phase is None and (number in OUR_FILES or isinstance(deepest, ssl.SSLError)):
        return _caused(MISCONFIGURED, deepest)  # a certificate or key of our own can't be read
    if not opening and isinstance(deepest, OSError) and deepest.filename is not None:
        return _caused(
            UNCLASSIFIED, deepest
        )  # an attachment, or a file of the project's: a network gives no such names
    if NO_FILE_FOR_TLS.match(_text_of(error)):
        return _named(MISCONFIGURED, error)
    if opening or phase is not None:
        return _caused(CUT_OFF[phase or Phase.CONNECT], deepest)
    if number in UNREACHED:
        return _caused(UNAVAILABLE, deepest)
    return _caused(UNCERTAIN, deepest)


def _of_silent_backend(error: BaseException, *, answered: bool) -> Outcome:
    """What nobody knows when it happened: it may be what went wrong after the mail had gone, at a log or a cache.

    Two things are known for what they are: mail that can't be written, and a connection that was never made. The
    latter might be one to something else, after the mail had gone; but nearly always it is a provider that is down.
    """
    if not answered and _is_of_content(error) and _was_in_writing(error):
        return _named(REFUSED, error)
    if isinstance(error, OSError) or _is_of(error, "BotoCoreError"):
        chain = list(_chain(error))
        unreached = _number_in(chain) in UNREACHED or any(_is_of(each, "gaierror") for each in chain)
        return _caused(UNAVAILABLE if unreached and not answered else UNCERTAIN, chain[-1])
    return _named(UNCERTAIN, error)


def _is_of_content(error: BaseException) -> bool:
    """Whether it may tell of a bad header, address, character or charset."""
    return type(error) is LookupError or (isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError))


def _was_in_writing(error: BaseException) -> bool:
    """Whether Django, or smtplib before it sent a command, raised it over a mail."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    return any((frame.f_globals.get("__name__"), frame.f_code.co_name) in WRITING for frame in frames)


def _of_other_error(error: BaseException, *, opening: bool) -> Outcome:
    phase = phase_of(error)
    if opening:
        if isinstance(error, MemoryError):
            return replace(LOCAL, code=type(error).__name__)
        # An option of the wrong type, a password that is not ASCII. Its text may quote the option.
        return replace(MISCONFIGURED, code=type(error).__name__)
    if phase in {Phase.AWAIT, Phase.DONE}:
        return _named(CUT_OFF[phase], error)
    if _was_in(error, "post_to_esp") and _was_in(error, "request|_make_api_call"):
        return _of_error_in_a_call(error)
    if _is_of_content(error):
        return _named(REFUSED, error)  # mail that can't be written
    if _was_in(error, "post_to_esp"):  # in Anymail's method of that name boto3 reads the answer, too
        return _named(UNCERTAIN, error)
    return _named(UNCLASSIFIED, error)


def _of_error_in_a_call(error: BaseException) -> Outcome:
    """By where a library for HTTP stumbled. Its text may quote what it stumbled over: a key, a password."""
    if isinstance(error, ValueError) and _was_in(error, BEFORE_A_REQUEST):
        outcome = MISCONFIGURED  # a key that was pasted with a character too many, a host that can't be one
    elif _was_in(error, "get_redirect_target"):
        outcome = MISCONFIGURED  # as any 3xx
    elif isinstance(error, ValueError) and _was_in(error, "prepare_body"):
        outcome = REFUSED
    else:
        outcome = UNCERTAIN
    return replace(outcome, code=type(error).__name__)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, its cause, the cause of that.

    urllib3 keeps a cause in `reason`, requests in the first argument, botocore in `kwargs`.
    """
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        first = following.args[0] if following.args else None
        kept = getattr(following, "kwargs", None)
        of_botocore = kept.get("error") if isinstance(kept, Mapping) else None
        causes = (following.__cause__, getattr(following, "reason", None), first, of_botocore)
        following = next(
            (cause for cause in causes if isinstance(cause, BaseException) and id(cause) not in seen), None
        )


def _number_in(chain: Iterable[BaseException]) -> int | None:
    """The operating system's error number, the deepest there is."""
    numbers = [each.errno for each in chain if isinstance(each, OSError) and each.errno]
    return numbers[-1] if numbers else None


def _is_handshake(error: BaseException) -> bool:
    """Whether a TLS handshake failed, for another reason than the server's certificate.

    ssl raises the same errors when a connection in use breaks; only where it did so tells them apart.
    """
    if not isinstance(error, ssl.SSLError) or isinstance(error, ssl.SSLCertVerificationError):
        return False
    return _was_in(error, "do_handshake")


def _was_in(error: BaseException, function: str | re.Pattern[str]) -> bool:
    """Whether a function whose name matches raised the error, or let it pass."""
    return any(re.fullmatch(function, frame.f_code.co_name) for frame, _ in walk_tb(error.__traceback__))


def _is_of(error: BaseException, class_name: str) -> bool:
    """Whether it is of a class with this name; for libraries that need not be installed."""
    return any(cls.__name__ == class_name for cls in type(error).__mro__)


def _named(outcome: Outcome, error: BaseException, *, detail: str | None = None) -> Outcome:
    if detail is None:
        detail = "" if isinstance(error, AnymailError) else _text_of(error)  # Anymail's has the payload
    return replace(outcome, code=type(error).__name__, detail=detail)


def _caused(outcome: Outcome, error: BaseException) -> Outcome:
    """With the class of the error; with its text only where that is the system's own, and so quotes no key."""
    is_the_systems = isinstance(error, OSError) and type(error).__module__ in SPEAK_OF_NO_SECRET
    says_where = type(error).__name__ in {"NewConnectionError", "NameResolutionError", "ConnectTimeoutError"}
    return _named(outcome, error, detail=_text_of(error) if is_the_systems or says_where else "")


def _text_of(error: BaseException) -> str:
    with suppress(Exception):  # anybody's __str__
        return str(error)
    return ""


def _first_argument(error: BaseException) -> str:
    return str(error.args[0]) if error.args else ""
