"""Whose fault an error is, where no server can be made to show it; the other rows are in test_table_*.py."""

from __future__ import annotations

import errno
import json
import smtplib
import socket
import ssl
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
import requests
from anymail.exceptions import (
    AnymailAPIError,
    AnymailConfigurationError,
    AnymailInvalidAddress,
    AnymailRecipientsRefused,
    AnymailRequestsAPIError,
    AnymailSerializationError,
    AnymailUnsupportedFeature,
)
from anymail.message import AnymailRecipientStatus, AnymailStatus
from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from requests import exceptions as http
from urllib3 import exceptions as urllib3

from mailengine.backends.dialogue import Phase, set_phase
from mailengine.outcomes import Kind, Outcome
from mailengine.providers.classify import outcome_of_error, outcome_of_return, retry_after_seconds
from mailengine.providers.classify.http import NOT_TO_ALL
from mailengine.providers.classify.smtp import PHASE_OF_TYPE

from .judgements import judgement

REPLY_ERRORS = {
    Phase.GREETING: smtplib.SMTPConnectError,
    Phase.EHLO: smtplib.SMTPHeloError,
    Phase.STARTTLS: smtplib.SMTPResponseException,
    Phase.AUTH: smtplib.SMTPAuthenticationError,
    Phase.MAIL: lambda code, text: smtplib.SMTPSenderRefused(code, text, "news@example.org"),
    Phase.RCPT: lambda code, text: smtplib.SMTPRecipientsRefused({"ann@example.org": (code, text)}),
    Phase.DATA: smtplib.SMTPDataError,
    Phase.BODY: smtplib.SMTPDataError,
    Phase.AWAIT: smtplib.SMTPDataError,
}
OPENING = {Phase.CONNECT, Phase.GREETING, Phase.EHLO, Phase.STARTTLS, Phase.AUTH}


def an_email(*to):
    return EmailMessage("Hello", "Hello.", "news@example.org", to or ["ann@example.org"])


def at(phase, error):
    set_phase(error, phase)
    return error


def after_reply(phase, reply):
    code, _, text = reply.partition(" ")
    error = at(phase, REPLY_ERRORS[phase](int(code), text.encode()))
    return outcome_of_error(error, email=an_email(), opening=phase in OPENING)


@pytest.mark.parametrize("code", [450, 451, 454, 550, 553])
@pytest.mark.parametrize(
    "words",
    [
        "unverified address: host mx.example said: 550 5.7.26 Sender not verified",
        "host mx.example said: 454 Throttling failure: Maximum sending rate exceeded",
        "Daily quota exceeded",
        "authentication required, relay denied",
        "5.7 5.7.515 421 452 4.3.1 530",
    ],
)
def test_what_a_strangers_server_says_of_one_address_stops_no_provider(code, words):
    outcome = after_reply(Phase.RCPT, f"{code} {words}")

    assert outcome.kind in {Kind.REFUSED, Kind.DEFERRED}
    assert outcome.then is Kind.REFUSED


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ("554 5.7.0 Reject, id=1-01 - BANNED: .exe,daily report limit.exe", "not here"),
        ("554 5.7.1 Spam; Subject: Address not verified", "not here"),
        ("554 5.7.1 Address not verified", "not here"),
        ("550 5.6.0 Subject: Your address is not verified", "not here"),
        ("554 5.2.2 Mailbox over its daily quota", "refused"),
        ("452 4.2.2 Mailbox over its daily quota", "deferred"),
        ("451 4.2.1 Mailbox is throttled", "deferred"),
        ("550 5.1.1 Daily limit of unknown users", "refused, bad address"),
    ],
)
def test_words_under_the_code_of_a_mailbox_or_a_filter_stop_no_provider(reply, words):
    assert judgement(after_reply(Phase.AWAIT, reply)) == words


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ("454 Throttling failure: Maximum sending rate exceeded.", "throttled"),
        ("454 4.7.0 Throttling failure", "throttled"),
        ("451 4.3.2 Sending rate exceeded", "throttled"),
        ("550 5.4.5 Daily user sending limit exceeded", "throttled"),
        ("550 Daily quota exceeded", "throttled"),
        ("554 Message rejected: Email address is not verified.", "misconfigured"),
        ("550 The from address does not match a verified Sender Identity.", "misconfigured"),
        ("550 5.7.1 Sender not verified", "misconfigured"),
        ("550 5.7.0 The from address is not verified", "misconfigured"),
    ],
)
def test_words_that_are_the_servers_own_count(reply, words):
    assert judgement(after_reply(Phase.AWAIT, reply)) == words


@pytest.mark.parametrize("phase", [Phase.RCPT, Phase.AWAIT])
@pytest.mark.parametrize(
    "address",
    [
        "unverified-sender@example.org",
        "<sender-not-verified@example.org>",
        '"sender not verified"@example.org',
        '<"sender not verified: daily quota"@example.org>',
        r'"a \" sender not verified"@example.org',
    ],
)
def test_nobody_stops_a_provider_by_the_name_of_an_address(phase, address):
    assert after_reply(phase, f"550 5.2.1 {address} is disabled").kind is Kind.REFUSED


def test_nobody_stops_mailgun_by_the_name_of_an_address():
    body = {"message": "no domain suspended@account-disabled.example"}

    assert outcome_of_error(http_answer(400, body, esp="Mailgun"), email=an_email()).kind is Kind.REFUSED


@pytest.mark.parametrize("piece", ["a", '"', '"a', "<", "@", "daily ", "domain "])
def test_a_long_answer_takes_no_long_time(piece):
    """With the square of its length it would take hours."""
    text = piece * (1_000_000 // len(piece))

    assert after_reply(Phase.RCPT, f"550 {text}").kind is Kind.REFUSED
    assert outcome_of_error(http_answer(400, {"message": text}, esp="Mailgun"), email=an_email()).kind is Kind.REFUSED


def test_a_line_too_long_after_the_final_dot_is_in_doubt():
    error = at(Phase.AWAIT, smtplib.SMTPResponseException(500, "Line too long."))

    assert outcome_of_error(error, email=an_email()).kind is Kind.UNCERTAIN


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (smtplib.SMTPServerDisconnected("Connection unexpectedly closed"), Kind.UNCERTAIN),
        (smtplib.SMTPServerDisconnected("Connection unexpectedly closed: timed out"), Kind.UNCERTAIN),
        (smtplib.SMTPServerDisconnected("Server not connected"), Kind.DEFERRED),
        (smtplib.SMTPServerDisconnected("please run connect() first"), Kind.UNAVAILABLE),
        (smtplib.SMTPException("?"), Kind.UNCERTAIN),
        (smtplib.SMTPRecipientsRefused({"ann@example.org": (450, b"4.2.1 Busy")}), Kind.DEFERRED),
        (smtplib.SMTPSenderRefused(550, b"5.1.8 No", "news@example.org"), Kind.MISCONFIGURED),
        (smtplib.SMTPDataError(451, b"4.3.0 Later"), Kind.DEFERRED),
        (smtplib.SMTPDataError(250, b"2.1.5 Ok, but that is no 354"), Kind.UNAVAILABLE),
        (smtplib.SMTPDataError(251, b"2.0.0 Queued"), Kind.UNCERTAIN),
        (smtplib.SMTPDataError(550, b"5.1.1 No such user"), Kind.REFUSED),
        (smtplib.SMTPNotSupportedError("SMTPUTF8 not supported by server"), Kind.REFUSED),
        (TimeoutError("timed out"), Kind.UNCERTAIN),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), Kind.UNCERTAIN),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), Kind.UNAVAILABLE),
        (OSError(errno.EHOSTUNREACH, "No route to host"), Kind.UNAVAILABLE),
        (OSError(errno.ENOSPC, "No space left on device"), Kind.UNCERTAIN),
        (OSError(errno.EMFILE, "Too many open files"), Kind.UNCERTAIN),
        (FileNotFoundError(errno.ENOENT, "No such file", "/var/log/mail"), Kind.UNCERTAIN),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), Kind.UNAVAILABLE),
        (MemoryError(), Kind.UNCERTAIN),
        (ValueError("a line of a log"), Kind.UNCERTAIN),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "of an answer"), Kind.UNCERTAIN),
    ],
)
def test_another_smtp_backend_does_not_say_how_far_it_got(error, kind):
    assert outcome_of_error(error, email=an_email()).kind is kind


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), MemoryError(), ConnectionRefusedError(), ValueError()]
)
def test_what_goes_wrong_once_an_esp_has_answered_leaves_doubt(error):
    email = an_email()
    email.anymail_status = AnymailStatus()
    email.anymail_status.esp_response = http_answer(200, {}).response

    assert outcome_of_error(error, email=email).kind is Kind.UNCERTAIN


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (smtplib.SMTPNotSupportedError("STARTTLS extension not supported by server."), Kind.MISCONFIGURED),
        (smtplib.SMTPException("No suitable authentication method found."), Kind.MISCONFIGURED),
        (smtplib.SMTPServerDisconnected("Connection unexpectedly closed"), Kind.UNAVAILABLE),
        (TimeoutError("timed out"), Kind.UNAVAILABLE),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), Kind.UNAVAILABLE),
        (ssl.SSLCertVerificationError(1, "certificate verify failed"), Kind.MISCONFIGURED),
        (ImproperlyConfigured("No host"), Kind.MISCONFIGURED),
        (AnymailConfigurationError("No key"), Kind.MISCONFIGURED),
        (ModuleNotFoundError("No module named 'boto3'"), Kind.MISCONFIGURED),
        (TypeError("unexpected keyword argument 'hots'"), Kind.MISCONFIGURED),
        (OSError(errno.EMFILE, "Too many open files"), Kind.UNAVAILABLE),
    ],
)
def test_what_goes_wrong_while_opening_puts_no_mail_in_doubt(error, kind):
    """F-S24, F-S25"""
    assert outcome_of_error(error, email=an_email(), opening=True).kind is kind


@pytest.mark.parametrize("number", ["EMFILE", "ENFILE", "ENOMEM", "ENOBUFS", "EADDRNOTAVAIL", "ENOSPC", "EAGAIN"])
def test_what_this_host_lacks_is_no_providers_fault(number):
    lacking = OSError(getattr(errno, number), number)
    within_the_body = at(Phase.BODY, smtplib.SMTPServerDisconnected("Connection lost within the body"))
    within_the_body.__cause__ = lacking

    for outcome in (
        outcome_of_error(lacking, email=an_email(), opening=True),
        outcome_of_error(at(Phase.RCPT, lacking), email=an_email()),
        outcome_of_error(within_the_body, email=an_email()),
        outcome_of_error(anymail_network_error(never_connected(new_connection_error(lacking))), email=an_email()),
    ):
        assert (judgement(outcome), outcome.is_bad_round) == ("local", False)
    assert outcome_of_error(at(Phase.AWAIT, lacking), email=an_email()).kind is Kind.UNCERTAIN


@pytest.mark.parametrize("number", ["ENOMEM", "ENOBUFS", "EAGAIN"])
def test_what_this_host_lacks_in_the_middle_of_a_call_leaves_it_in_doubt(number):
    error = http.ConnectionError(urllib3.ProtocolError("Connection aborted.", OSError(getattr(errno, number), number)))

    assert outcome_of_error(anymail_network_error(error), email=an_email()).kind is Kind.UNCERTAIN


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (socket.EAI_NONAME, "unavailable, ours after 10 min"),
        (socket.EAI_NODATA, "unavailable, ours after 10 min"),
        (socket.EAI_FAIL, "unavailable, ours after 10 min"),
        (socket.EAI_AGAIN, "unavailable"),
    ],
)
def test_a_name_that_is_not_known_may_be_ours_to_mend(number, words):
    unknown = socket.gaierror(number, "Name or service not known")
    over_http = urllib3.NameResolutionError("api.example", None, unknown)
    over_http.__cause__ = unknown

    assert judgement(outcome_of_error(at(Phase.CONNECT, unknown), opening=True)) == words
    assert judgement(outcome_of_error(anymail_network_error(never_connected(over_http)), email=an_email())) == words


def test_a_file_that_is_missing_costs_its_mail_three_tries():
    """Its storage may be away for a moment."""
    missing = at(Phase.MAIL, FileNotFoundError(errno.ENOENT, "No such file or directory", "/media/note.pdf"))

    assert judgement(outcome_of_error(missing, email=an_email())) == "deferred, 3rd refused"


def test_memory_that_is_short_while_opening_is_no_mails_fault():
    assert judgement(outcome_of_error(MemoryError(), email=an_email(), opening=True)) == "local"


def test_a_letter_before_the_at_that_this_provider_cannot_send_may_go_by_another():
    error = at(Phase.MAIL, ValueError("Invalid address"))

    assert judgement(outcome_of_error(error, email=an_email("jörg@example.org"))) == "not here"
    assert judgement(outcome_of_error(error, email=an_email("joerg@bücher.example"))) == "refused"


def test_a_password_that_cannot_be_sent_is_not_quoted():
    with pytest.raises(UnicodeEncodeError) as caught:
        "Pässword".encode("ascii")

    assert str(outcome_of_error(caught.value, opening=True)) == "UnicodeEncodeError"


def test_recipients_refused_for_several_reasons_wait_while_there_is_hope_for_one():
    error = smtplib.SMTPRecipientsRefused(
        {"gone@example.org": (550, b"5.1.1 No such user"), "busy@example.org": (450, b"4.2.1 Busy")}
    )

    outcome = outcome_of_error(error, email=an_email("gone@example.org", "busy@example.org"))

    assert (outcome.kind, outcome.address_is_bad) == (Kind.DEFERRED, False)
    assert {address: each.kind for address, each in outcome.refusals.items()} == {
        "gone@example.org": Kind.REFUSED,
        "busy@example.org": Kind.DEFERRED,
    }


def test_a_refusal_after_the_content_suppresses_nobody_of_several():
    error = at(Phase.AWAIT, smtplib.SMTPDataError(550, b"5.1.1 No such user"))

    assert not outcome_of_error(error, email=an_email("a@example.org", "b@example.org")).address_is_bad


def anymail_network_error(error):
    """As Anymail raises it: of both classes, with the original as its cause."""
    both = type("AnymailRequestsAPIError", (AnymailRequestsAPIError, type(error)), {})
    try:
        raise both("Error posting to https://api.example/:") from error
    except AnymailRequestsAPIError as raised:
        return raised


def never_connected(reason):
    return http.ConnectionError(urllib3.MaxRetryError(None, "/", reason))


def new_connection_error(cause):
    error = urllib3.NewConnectionError(None, f"Failed to establish a new connection: {cause}")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (
            never_connected(new_connection_error(ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"))),
            Kind.UNAVAILABLE,
            "ConnectionRefusedError",
        ),
        (
            never_connected(urllib3.NameResolutionError("api.example", None, socket.gaierror(-2, "Unknown"))),
            Kind.UNAVAILABLE,
            "NameResolutionError",
        ),
        (http.ConnectTimeout("timed out"), Kind.UNAVAILABLE, "ConnectTimeout"),
        (http.ProxyError("Cannot connect to proxy."), Kind.UNAVAILABLE, "ProxyError"),
        (
            http.SSLError(
                urllib3.MaxRetryError(None, "/", urllib3.SSLError(ssl.SSLCertVerificationError(1, "expired")))
            ),
            Kind.MISCONFIGURED,
            "SSLCertVerificationError",
        ),
        (http.SSLError(urllib3.SSLError(ssl.SSLEOFError(8, "EOF occurred"))), Kind.UNCERTAIN, "SSLEOFError"),
        (http.ReadTimeout("Read timed out."), Kind.UNCERTAIN, "ReadTimeout"),
        (
            http.ConnectionError(urllib3.ProtocolError("Connection aborted.", ConnectionResetError(104, "Reset"))),
            Kind.UNCERTAIN,
            "ProtocolError",
        ),
        (http.ChunkedEncodingError("Broken"), Kind.UNCERTAIN, "ChunkedEncodingError"),
        (http.ContentDecodingError("Broken"), Kind.UNCERTAIN, "ContentDecodingError"),
        (http.InvalidURL("No host"), Kind.MISCONFIGURED, "InvalidURL"),
        (http.TooManyRedirects("Exceeded 0 redirects."), Kind.MISCONFIGURED, "TooManyRedirects"),
    ],
)
def test_a_network_error_below_anymail(error, kind, code):
    outcome = outcome_of_error(anymail_network_error(error), email=an_email())

    assert (outcome.kind, outcome.code) == (kind, code)


def http_answer(status, body, *, esp="", headers=()):
    response = requests.Response()
    response.status_code, response._content = status, json.dumps(body).encode()
    response.headers.update(headers)
    return AnymailRequestsAPIError(response=response, esp_name=esp, payload="a key and people's words")


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"message": "a"}, "a"),
        ({"Message": "a", "ErrorCode": 1}, "a"),
        ({"errors": [{"message": "a"}, {"message": "b"}]}, "a; b"),
        ({"errors": ["a"]}, "a"),
        ({"detail": "a"}, "a"),
        ([{"message": "a"}], "a"),
        ({"what": 1}, '{"what": 1}'),
    ],
)
def test_the_detail_is_what_the_provider_said(body, detail):
    assert outcome_of_error(http_answer(400, body), email=an_email()).detail == detail


class BotoCoreError(Exception):
    """As botocore's, which need not be installed."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (AnymailInvalidAddress("Invalid email address"), "refused"),
        (AnymailSerializationError("Don't know how to send this"), "refused"),
        (AnymailUnsupportedFeature("No merge_data"), "not here"),
        (at(Phase.MAIL, ValueError("Header values may not contain a newline")), "refused"),
        (at(Phase.MAIL, UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")), "refused"),
        (at(Phase.MAIL, LookupError("unknown encoding: klingon")), "refused"),
        (at(Phase.MAIL, MemoryError()), "deferred, 3rd refused"),
        (at(Phase.MAIL, RecursionError()), "deferred, 3rd refused"),
        (at(Phase.MAIL, RuntimeError("bug")), "deferred, 3rd refused"),
        (at(Phase.BODY, KeyError("bug")), "deferred, 3rd refused"),
        (at(Phase.AWAIT, RuntimeError("bug")), "uncertain"),
        (RuntimeError("a bug in a backend that we know nothing of"), "uncertain"),
        (KeyError("id"), "uncertain"),
        (json.JSONDecodeError("an answer that it can't read", "", 0), "uncertain"),
    ],
)
def test_an_error_of_python_or_anymail(error, words):
    outcome = outcome_of_error(error, email=an_email())

    assert judgement(outcome) == words
    assert outcome.code == type(error).__name__


def with_status(**recipients):
    email = an_email(*(f"{name}@example.org" for name in recipients))
    email.anymail_status = AnymailStatus()
    email.anymail_status.set_recipient_status(
        {f"{name}@example.org": AnymailRecipientStatus(f"id-{name}", status) for name, status in recipients.items()}
    )
    return email


@pytest.mark.parametrize(
    ("status", "kind", "is_bad"),
    [
        ("sent", Kind.ACCEPTED, False),
        ("queued", Kind.ACCEPTED, False),
        ("unknown", Kind.ACCEPTED, False),
        ("rejected", Kind.REFUSED, False),
        ("failed", Kind.REFUSED, False),
        ("invalid", Kind.REFUSED, True),
    ],
)
def test_anymails_word_for_a_recipient(status, kind, is_bad):
    """F-E11"""
    outcome = outcome_of_return(with_status(ann=status), 1)

    assert (outcome.kind, outcome.address_is_bad) == (kind, is_bad)


@pytest.mark.parametrize(
    ("status", "body", "is_bad"),
    [
        (200, [{"email": "inactive@example.org", "status": "sent"}, {"reject_reason": "rule"}], False),
        (200, {"ErrorCode": 0, "Message": "OK, for inactive@example.org"}, False),
        (200, {"ErrorCode": 0, "Message": f"{NOT_TO_ALL}: ann@example.org. Inactive"}, True),
        (422, {"ErrorCode": 406, "Message": "You tried to send to recipients that are inactive"}, True),
        (422, {"ErrorCode": 300, "Message": "inactive@example.org is no address"}, False),
    ],
)
def test_only_postmarks_own_word_makes_a_rejected_address_bad(status, body, is_bad):
    email = with_status(ann="rejected")
    email.anymail_status.esp_response = http_answer(status, body).response

    assert outcome_of_return(email, 1).address_is_bad is is_bad


@pytest.mark.parametrize("body", [[], {}])
def test_a_yes_that_names_nobody_is_in_doubt(body):
    email = with_status()
    answer = email.anymail_status.esp_response = http_answer(200, body).response
    error = AnymailRecipientsRefused(response=answer, email_message=email)

    assert outcome_of_error(error, email=email).kind is Kind.UNCERTAIN
    assert outcome_of_error(AnymailRecipientsRefused(), email=email).kind is Kind.UNCERTAIN
    email.to = ["ann@example.org"]
    assert outcome_of_return(email, 1).kind is Kind.UNCERTAIN


def test_accepted_for_one_of_two_is_accepted():
    outcome = outcome_of_return(with_status(ann="queued", bob="invalid"), 1)

    assert (outcome.kind, outcome.provider_message_id) == (Kind.ACCEPTED, "id-ann")
    assert list(outcome.refusals) == ["bob@example.org"]


@pytest.mark.parametrize(("sent_count", "kind"), [(1, Kind.ACCEPTED), (0, Kind.UNCERTAIN), (None, Kind.UNCERTAIN)])
def test_a_backend_that_returns_nothing_has_not_said_that_it_sent(sent_count, kind):
    assert outcome_of_return(an_email(), sent_count).kind is kind


def test_mail_to_nobody_is_refused():
    assert outcome_of_return(EmailMessage("Hello", "Hello.", "news@example.org"), 0).code == "no recipients"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7),
        ("0", 1),
        ("86400", 3600),
        (" 1.5 ", 1.5),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 1),
        ("Wed, 99 Oct 2015", None),
        ("-5", None),
        ("1e9", None),
        ("nan", None),
        ("soon", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after(value, seconds):
    assert retry_after_seconds(value) == seconds


def test_retry_after_as_a_date_is_counted_from_now():
    in_a_minute = datetime.now(timezone.utc) + timedelta(seconds=60)

    assert 55 <= retry_after_seconds(format_datetime(in_a_minute, usegmt=True)) <= 60


@given(st.text())
def test_no_retry_after_header_can_hurt(text):
    seconds = retry_after_seconds(text)

    assert seconds is None or 1 <= seconds <= 3600


@given(st.sampled_from(sorted(REPLY_ERRORS, key=lambda phase: phase.value)), st.integers(-1, 999), st.binary())
def test_any_reply_has_an_outcome(phase, code, text):
    outcome = outcome_of_error(at(phase, REPLY_ERRORS[phase](code, text)), email=an_email(), opening=phase in OPENING)

    assert outcome.kind is not Kind.ACCEPTED or (200 <= code <= 299 and phase is Phase.AWAIT)


class UnprintableError(Exception):
    def __str__(self):
        raise RuntimeError("not even that")


@pytest.mark.parametrize("opening", [True, False])
def test_an_error_that_cannot_be_printed_has_an_outcome(opening):
    assert outcome_of_error(UnprintableError(), opening=opening).code == "UnprintableError"


class Hostile:
    """Raises whatever is done with it."""

    def __getattribute__(self, name):
        if name == "__class__":
            return Hostile
        raise RuntimeError("not even that")

    def __str__(self):
        raise RuntimeError("not even that")

    __repr__ = __hash__ = __eq__ = __bool__ = __len__ = __iter__ = __str__


class Answered:
    """What might be an HTTP response."""

    def __init__(self, **attributes):
        vars(self).update(attributes)


GARBAGE = st.deferred(
    lambda: st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(),
        st.binary(),
        st.builds(Hostile),
        st.sampled_from(Phase),
        st.lists(GARBAGE, max_size=2),
        st.dictionaries(st.sampled_from(["Error", "ResponseMetadata", "error", "Code", "a@b"]), GARBAGE, max_size=3),
        st.builds(Answered, status_code=GARBAGE, headers=GARBAGE, text=GARBAGE, reason=GARBAGE),
        ERRORS,
    )
)
ATTRIBUTES = ["args", "errno", "filename", "reason", "response", "kwargs", "smtp_code", "smtp_error", "recipients"]
ATTRIBUTES += ["email_message", "esp_name", "mailengine_phase", "__cause__"]
CLASSES = [
    smtplib.SMTPException,
    *(known for known, _ in PHASE_OF_TYPE),
    AnymailAPIError,
    AnymailRequestsAPIError,
    AnymailUnsupportedFeature,
    BotoCoreError,
]
CLASSES += [OSError, TimeoutError, ssl.SSLError, socket.gaierror, http.ConnectionError, urllib3.MaxRetryError]
CLASSES += [ValueError, KeyError, MemoryError, UnprintableError, KeyboardInterrupt, ImproperlyConfigured]


def make_error(cls, attributes, is_cyclic):
    error = cls.__new__(cls)
    for name, value in attributes.items():
        with suppress(Exception):
            setattr(error, name, value)
    if is_cyclic:
        error.__cause__ = error.reason = error
    return error


ERRORS = st.builds(
    make_error, st.sampled_from(CLASSES), st.dictionaries(st.sampled_from(ATTRIBUTES), GARBAGE), st.booleans()
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(ERRORS, st.booleans(), st.one_of(st.none(), st.builds(Answered, esp_response=GARBAGE, recipients=GARBAGE)))
def test_no_error_is_so_odd_that_judging_it_fails(error, opening, status):
    email = an_email()
    email.anymail_status = status

    assert isinstance(outcome_of_error(error, email=email, opening=opening), Outcome)
