"""Whose fault each error is: the tables of `providers/classify.py`, row by row."""

from __future__ import annotations

import errno
import json
import smtplib
import socket
import ssl
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
import requests
from anymail.exceptions import (
    AnymailAPIError,
    AnymailConfigurationError,
    AnymailInvalidAddress,
    AnymailRequestsAPIError,
    AnymailSerializationError,
    AnymailUnsupportedFeature,
)
from anymail.message import AnymailRecipientStatus, AnymailStatus
from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage
from hypothesis import given
from hypothesis import strategies as st
from requests import exceptions as http
from urllib3 import exceptions as urllib3

from mailengine.backends.smtp import Phase, set_phase
from mailengine.outcomes import Kind
from mailengine.providers.classify import outcome_of_error, outcome_of_return, retry_after_seconds

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


def flags_of(outcome):
    return {name for name in ("address_is_bad", "elsewhere", "greylisted") if getattr(outcome, name)}


@pytest.mark.parametrize(
    ("phase", "reply", "kind", "flags"),
    [
        (Phase.GREETING, "421 Too busy", Kind.UNAVAILABLE, ""),
        (Phase.GREETING, "450 Later", Kind.UNAVAILABLE, ""),
        (Phase.GREETING, "554 5.7.1 Blocked", Kind.MISCONFIGURED, ""),
        (Phase.EHLO, "501 5.5.4 Invalid name", Kind.MISCONFIGURED, ""),
        (Phase.EHLO, "550 No", Kind.UNAVAILABLE, ""),
        (Phase.STARTTLS, "454 4.7.0 TLS not available", Kind.UNAVAILABLE, ""),
        (Phase.STARTTLS, "502 Not implemented", Kind.MISCONFIGURED, ""),
        (Phase.AUTH, "535 5.7.8 Wrong password", Kind.MISCONFIGURED, ""),
        (Phase.AUTH, "534 5.7.9 Mechanism too weak", Kind.MISCONFIGURED, ""),
        (Phase.AUTH, "454 4.7.0 Temporary failure", Kind.UNAVAILABLE, ""),
        (Phase.AUTH, "432 4.7.12 Password transition", Kind.UNAVAILABLE, ""),
        (Phase.MAIL, "421 4.3.2 Closing", Kind.UNAVAILABLE, ""),
        (Phase.MAIL, "452 4.3.1 Disk full", Kind.UNAVAILABLE, ""),
        (Phase.MAIL, "451 4.3.0 Later", Kind.DEFERRED, ""),
        (Phase.MAIL, "530 5.7.0 Authentication required", Kind.MISCONFIGURED, ""),
        (Phase.MAIL, "550 5.7.1 Sender not verified", Kind.MISCONFIGURED, ""),
        (Phase.MAIL, "553 5.1.8 Bad sender system", Kind.MISCONFIGURED, ""),
        (Phase.MAIL, "552 5.3.4 Too big", Kind.REFUSED, "elsewhere"),
        (Phase.MAIL, "503 5.5.1 Bad sequence", Kind.DEFERRED, ""),
        (Phase.RCPT, "550 5.1.1 No such user", Kind.REFUSED, "address_is_bad"),
        (Phase.RCPT, "556 5.1.10 Null MX", Kind.REFUSED, "address_is_bad"),
        (Phase.RCPT, "501 5.1.3 Bad syntax", Kind.REFUSED, "address_is_bad"),
        (Phase.RCPT, "550 no such user", Kind.REFUSED, ""),
        (Phase.RCPT, "552 5.2.2 Mailbox full", Kind.REFUSED, ""),
        (Phase.RCPT, "452 4.2.2 Mailbox full", Kind.DEFERRED, ""),
        (Phase.RCPT, "450 4.2.1 Mailbox busy", Kind.DEFERRED, ""),
        (Phase.RCPT, "450 4.7.1 Come back", Kind.DEFERRED, "greylisted"),
        (Phase.RCPT, "451 Greylisted", Kind.DEFERRED, "greylisted"),
        (Phase.RCPT, "450 4.2.0 Graylisted", Kind.DEFERRED, "greylisted"),
        (Phase.RCPT, "452 4.5.3 Too many recipients", Kind.DEFERRED, ""),
        (Phase.RCPT, "421 4.7.0 Closing", Kind.UNAVAILABLE, ""),
        (Phase.RCPT, "550 5.7.1 Relay denied", Kind.DEFERRED, ""),
        (Phase.RCPT, "550 5.7.1 Spam", Kind.REFUSED, ""),
        (Phase.RCPT, "550 5.7.26 Unauthenticated", Kind.MISCONFIGURED, ""),
        (Phase.RCPT, "550 5.7.515 Access denied", Kind.MISCONFIGURED, ""),
        (Phase.RCPT, "503 5.5.1 Bad sequence", Kind.DEFERRED, ""),
        (Phase.RCPT, "550 5.2.1 <unverified-relay@example.org> disabled", Kind.REFUSED, ""),
        (Phase.DATA, "451 4.3.0 Later", Kind.DEFERRED, ""),
        (Phase.DATA, "554 5.5.1 No", Kind.REFUSED, "elsewhere"),
        (Phase.BODY, "552 5.3.4 Too big", Kind.REFUSED, "elsewhere"),
        (Phase.AWAIT, "251 Taken", Kind.ACCEPTED, ""),
        (Phase.AWAIT, "421 4.3.0 Closing", Kind.UNAVAILABLE, ""),
        (Phase.AWAIT, "452 4.3.1 Disk full", Kind.UNAVAILABLE, ""),
        (Phase.AWAIT, "451 4.3.0 Later", Kind.DEFERRED, ""),
        (Phase.AWAIT, "454 Throttling failure: Maximum sending rate exceeded", Kind.THROTTLED, ""),
        (Phase.AWAIT, "550 5.1.1 No such user", Kind.REFUSED, "address_is_bad"),
        (Phase.AWAIT, "550 5.7.1 Spam", Kind.REFUSED, "elsewhere"),
        (Phase.AWAIT, "552 5.3.4 Too big", Kind.REFUSED, "elsewhere"),
        (Phase.AWAIT, "554 5.6.0 Bad content", Kind.REFUSED, "elsewhere"),
        (Phase.AWAIT, "552 5.7.0 Blocked for its attachment", Kind.REFUSED, "elsewhere"),
        (Phase.AWAIT, "553 No", Kind.REFUSED, ""),
        (Phase.AWAIT, "554 Message rejected: Email address is not verified.", Kind.MISCONFIGURED, ""),
        (Phase.AWAIT, "550 5.7.26 Unauthenticated", Kind.MISCONFIGURED, ""),
        (Phase.AWAIT, "-1 what?", Kind.UNCERTAIN, ""),
        (Phase.AWAIT, "354 Go on", Kind.UNCERTAIN, ""),
        (Phase.AWAIT, "699 What", Kind.UNCERTAIN, ""),
    ],
)
def test_an_smtp_reply(phase, reply, kind, flags):
    """F-S12, F-S16 to F-S23"""
    outcome = after_reply(phase, reply)

    assert (outcome.kind, flags_of(outcome)) == (kind, set(flags.split()))


@pytest.mark.parametrize("phase", Phase)
def test_a_connection_that_breaks_is_in_doubt_after_the_final_dot_only(phase):
    """F-S02 to F-S07"""
    error = at(phase, smtplib.SMTPServerDisconnected("Connection unexpectedly closed"))

    kind = outcome_of_error(error, email=an_email(), opening=phase in OPENING).kind

    special = {Phase.BODY: Kind.DEFERRED, Phase.AWAIT: Kind.UNCERTAIN, Phase.DONE: Kind.ACCEPTED}
    assert kind is special.get(phase, Kind.UNAVAILABLE)


def test_a_line_too_long_after_the_final_dot_is_in_doubt():
    error = at(Phase.AWAIT, smtplib.SMTPResponseException(500, "Line too long."))

    assert outcome_of_error(error, email=an_email()).kind is Kind.UNCERTAIN


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (smtplib.SMTPServerDisconnected("Connection unexpectedly closed"), Kind.UNCERTAIN),
        (smtplib.SMTPServerDisconnected("Connection unexpectedly closed: timed out"), Kind.UNCERTAIN),
        (smtplib.SMTPServerDisconnected("Server not connected"), Kind.UNAVAILABLE),
        (smtplib.SMTPServerDisconnected("please run connect() first"), Kind.UNAVAILABLE),
        (smtplib.SMTPException("?"), Kind.UNCERTAIN),
        (smtplib.SMTPRecipientsRefused({"ann@example.org": (450, b"4.2.1 Busy")}), Kind.DEFERRED),
        (smtplib.SMTPSenderRefused(550, b"5.1.8 No", "news@example.org"), Kind.MISCONFIGURED),
        (smtplib.SMTPDataError(451, b"4.3.0 Later"), Kind.DEFERRED),
        (smtplib.SMTPDataError(550, b"5.1.1 No such user"), Kind.REFUSED),
        (smtplib.SMTPNotSupportedError("SMTPUTF8 not supported by server"), Kind.REFUSED),
        (TimeoutError("timed out"), Kind.UNCERTAIN),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), Kind.UNCERTAIN),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), Kind.UNAVAILABLE),
        (OSError(errno.EHOSTUNREACH, "No route to host"), Kind.UNAVAILABLE),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), Kind.UNAVAILABLE),
    ],
)
def test_another_smtp_backend_does_not_say_how_far_it_got(error, kind):
    assert outcome_of_error(error, email=an_email()).kind is kind


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (smtplib.SMTPNotSupportedError("STARTTLS extension not supported by server."), Kind.MISCONFIGURED),
        (smtplib.SMTPException("No suitable authentication method found."), Kind.MISCONFIGURED),
        (smtplib.SMTPServerDisconnected("Connection unexpectedly closed"), Kind.UNAVAILABLE),
        (TimeoutError("timed out"), Kind.UNAVAILABLE),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), Kind.UNAVAILABLE),
        (ssl.SSLCertVerificationError(1, "certificate verify failed"), Kind.MISCONFIGURED),
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), Kind.UNAVAILABLE),
        (ImproperlyConfigured("No host"), Kind.MISCONFIGURED),
        (AnymailConfigurationError("No key"), Kind.MISCONFIGURED),
        (ModuleNotFoundError("No module named 'boto3'"), Kind.MISCONFIGURED),
        (TypeError("unexpected keyword argument 'hots'"), Kind.MISCONFIGURED),
        (OSError(errno.EMFILE, "Too many open files"), Kind.THROTTLED),
    ],
)
def test_what_goes_wrong_while_opening_puts_no_mail_in_doubt(error, kind):
    """F-S24, F-S25"""
    assert outcome_of_error(error, email=an_email(), opening=True).kind is kind


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


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (302, Kind.MISCONFIGURED),
        (405, Kind.MISCONFIGURED),
        (409, Kind.DEFERRED),
        (410, Kind.MISCONFIGURED),
        (418, Kind.REFUSED),
        (420, Kind.THROTTLED),
        (422, Kind.REFUSED),
        (425, Kind.DEFERRED),
        (501, Kind.MISCONFIGURED),
        (505, Kind.MISCONFIGURED),
        (520, Kind.UNCERTAIN),
        (524, Kind.UNCERTAIN),
        (525, Kind.UNAVAILABLE),
        (599, Kind.UNCERTAIN),
    ],
)
def test_an_http_status(status, kind):
    """The others are in test_esp.py, over real HTTP."""
    assert outcome_of_error(http_answer(status, {}), email=an_email()).kind is kind


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


@pytest.mark.parametrize(
    ("esp", "status", "body", "kind"),
    [
        ("Mailgun", 400, {"message": "Sandbox subdomains are for test purposes only."}, Kind.MISCONFIGURED),
        ("Mailgun", 400, {"message": "from parameter is missing"}, Kind.REFUSED),
        ("Resend", 409, {"name": "invalid_idempotent_request", "message": "Other body"}, Kind.MISCONFIGURED),
        ("Resend", 409, {"name": "concurrent_idempotent_requests", "message": "Wait"}, Kind.DEFERRED),
    ],
)
def test_a_providers_own_error(esp, status, body, kind):
    assert outcome_of_error(http_answer(status, body, esp=esp), email=an_email()).kind is kind


class ClientError(Exception):
    """As botocore's, which need not be installed: what was answered is in `response`."""

    def __init__(self, code, message, status):
        super().__init__(message)
        self.response = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}


class BotoCoreError(Exception):
    pass


class EndpointConnectionError(BotoCoreError):
    pass


class ReadTimeoutError(BotoCoreError):
    pass


class NoCredentialsError(BotoCoreError):
    pass


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (ClientError("TooManyRequestsException", "Slow down", 429), Kind.THROTTLED),
        (ClientError("ThrottlingException", "Rate exceeded", 400), Kind.THROTTLED),
        (ClientError("LimitExceededException", "Daily quota", 400), Kind.THROTTLED),
        (ClientError("MessageRejected", "Email address is not verified.", 400), Kind.MISCONFIGURED),
        (ClientError("MessageRejected", "Virus", 400), Kind.REFUSED),
        (ClientError("AccountSuspendedException", "Suspended", 400), Kind.MISCONFIGURED),
        (ClientError("SendingPausedException", "Paused", 400), Kind.MISCONFIGURED),
        (ClientError("MailFromDomainNotVerifiedException", "DNS", 400), Kind.MISCONFIGURED),
        (ClientError("ExpiredTokenException", "Expired", 403), Kind.MISCONFIGURED),
        (ClientError("BadRequestException", "Bad", 400), Kind.REFUSED),
        (ClientError("InternalFailure", "Oops", 500), Kind.UNCERTAIN),
        (ClientError("ServiceUnavailable", "Down", 503), Kind.UNAVAILABLE),
        (EndpointConnectionError("Could not connect"), Kind.UNAVAILABLE),
        (ReadTimeoutError("Read timeout"), Kind.UNCERTAIN),
        (NoCredentialsError("Unable to locate credentials"), Kind.MISCONFIGURED),
    ],
)
def test_amazon_ses(cause, kind):
    error = AnymailAPIError(str(cause), response=getattr(cause, "response", None), esp_name="Amazon SES")
    error.__cause__ = cause

    assert outcome_of_error(error, email=an_email()).kind is kind


@pytest.mark.parametrize(
    ("error", "kind", "flags"),
    [
        (AnymailInvalidAddress("Invalid email address"), Kind.REFUSED, ""),
        (AnymailSerializationError("Don't know how to send this"), Kind.REFUSED, ""),
        (AnymailUnsupportedFeature("No merge_data"), Kind.REFUSED, "elsewhere"),
        (ValueError("Header values may not contain a newline"), Kind.REFUSED, ""),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), Kind.REFUSED, ""),
        (LookupError("unknown encoding: klingon"), Kind.REFUSED, ""),
        (MemoryError(), Kind.DEFERRED, ""),
        (RecursionError(), Kind.DEFERRED, ""),
        (at(Phase.MAIL, RuntimeError("bug")), Kind.DEFERRED, ""),
        (at(Phase.AWAIT, RuntimeError("bug")), Kind.UNCERTAIN, ""),
        (RuntimeError("a bug in a backend that we know nothing of"), Kind.UNCERTAIN, ""),
    ],
)
def test_an_error_of_python_or_anymail(error, kind, flags):
    outcome = outcome_of_error(error, email=an_email())

    assert (outcome.kind, flags_of(outcome)) == (kind, set(flags.split()))
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

    assert outcome.kind is not Kind.ACCEPTED or 200 <= code <= 299


class UnprintableError(Exception):
    def __str__(self):
        raise RuntimeError("not even that")


@pytest.mark.parametrize("opening", [True, False])
def test_an_error_that_cannot_be_printed_has_an_outcome(opening):
    assert outcome_of_error(UnprintableError(), opening=opening).code == "UnprintableError"
