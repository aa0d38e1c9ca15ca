"""Backends over HTTP: one request for one attempt, and a hard end for each."""

from __future__ import annotations

import time

import pytest
import requests
from anymail.signals import pre_send
from django.core.mail import EmailMessage
from urllib3.util.retry import Retry

from mailengine.deadline import current
from mailengine.outcomes import Kind
from mailengine.providers.connection import Connection, takes_key
from mailengine.testing.esp_server import ESPServer

from .scripted import GIVE_UP_SECONDS, ScriptedHTTPServer, closes, drips, hangs, resets, says

TAKEN = says(200, b'{"id": "1", "message": "Queued", "MessageId": "1"}')


def an_email(body="Hello."):
    return EmailMessage("Hello", body, "news@example.org", ["ann@example.org"])


def mailgun(url, **options):
    options = {"api_url": f"{url}/v3", "api_key": "test", "sender_domain": "example.org", "timeout": 10, **options}
    return {"BACKEND": "anymail.backends.mailgun.EmailBackend", "OPTIONS": options}


def sendgrid(url, **options):
    options = {"api_url": f"{url}/v3", "api_key": "test", "timeout": 10, **options}
    return {"BACKEND": "anymail.backends.sendgrid.EmailBackend", "OPTIONS": options}


def resend(url, **options):
    options = {"api_url": url, "api_key": "test", "timeout": 10, **options}
    return {"BACKEND": "anymail.backends.resend.EmailBackend", "OPTIONS": options}


def ses(url, *, timeout=10, **config):
    pytest.importorskip("boto3")
    client = {"endpoint_url": url, "region_name": "eu-west-1", "config": {"read_timeout": timeout, **config}}
    client |= {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    return {"BACKEND": "anymail.backends.amazon_ses.EmailBackend", "OPTIONS": {"client_params": client}}


@pytest.fixture
def connect(settings):
    """A function that gives a connection to the ESP at a server, by this entry of MAILERS."""
    made = []

    def to(server, esp, **options):
        settings.MAILERS = {"esp": esp(f"http://{server.host}:{server.port}", **options)}
        made.append(Connection("esp"))
        return made[-1]

    yield to
    for connection in made:
        connection.close()


FAULTS = {
    # what the server does once it has read the request       the outcome
    "503": (says(503), Kind.UNAVAILABLE),
    "reset": (resets, Kind.UNCERTAIN),
    "closed": (closes, Kind.UNCERTAIN),
    "silence": (hangs, Kind.UNCERTAIN),
    "307": (lambda peer: says(307, Location=f"http://127.0.0.1:{peer.server.port}/again")(peer), Kind.MISCONFIGURED),
    "308": (lambda peer: says(308, Location="/again")(peer), Kind.MISCONFIGURED),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("esp", [mailgun, sendgrid, ses])
def test_an_attempt_is_one_request(connect, esp, fault):
    """F-E15"""
    answer, kind = FAULTS[fault]
    with ScriptedHTTPServer(answer) as server:
        outcome = connect(server, esp, timeout=0.5).hand_over(an_email())

    assert server.request_count == 1
    if not (esp is ses and fault[0] == "3"):  # botocore has no word for a redirect
        assert outcome.kind is kind


def test_an_adapter_that_the_project_mounted_does_not_retry_either(connect, monkeypatch):
    """F-E15"""
    backend_class = pytest.importorskip("anymail.backends.mailgun").EmailBackend
    make_session = backend_class.create_session

    def with_retries(self):
        session = make_session(self)
        retries = Retry(3, status_forcelist=[503], allowed_methods=None, backoff_factor=0)
        session.mount("http://", requests.adapters.HTTPAdapter(max_retries=retries))
        return session

    monkeypatch.setattr(backend_class, "create_session", with_retries)
    with ScriptedHTTPServer(says(503)) as server:
        assert connect(server, mailgun).hand_over(an_email()).kind is Kind.UNAVAILABLE
    assert server.request_count == 1


def test_retries_that_the_project_or_its_environment_asks_boto3_for_are_not_made(connect, monkeypatch):
    """F-E15"""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "5")
    monkeypatch.setenv("AWS_RETRY_MODE", "adaptive")
    with ScriptedHTTPServer(says(503)) as server:
        connect(server, ses, retries={"max_attempts": 4}).hand_over(an_email())
    assert server.request_count == 1


def test_a_kept_connection_that_the_server_resets_is_not_sent_by_again(connect):
    """F-E20"""
    with ScriptedHTTPServer(TAKEN) as server:
        connection = connect(server, mailgun)
        assert connection.hand_over(an_email()).kind is Kind.ACCEPTED
        server.answer = resets
        assert connection.hand_over(an_email()).kind is Kind.UNCERTAIN
        server.answer = TAKEN
        assert connection.hand_over(an_email()).kind is Kind.ACCEPTED
    assert (server.request_count, server.connection_count) == (3, 2)


def test_mails_in_a_row_share_a_connection(connect):
    with ESPServer() as server:
        connection = connect(server, mailgun)
        assert {connection.hand_over(an_email()).kind for _ in range(20)} == {Kind.ACCEPTED}
    assert server.connection_count == 1


DEADLINE_SECONDS = 1.5


def says_and_drips(said, then):
    """Slowly: what arrives after our end was shut down resets it, and whoever waits has to wake up before that."""
    return lambda peer: (peer.say(said), drips(b"", then=then, every=0.4)(peer))


SLOW = {
    # what the server does                                                           the outcome
    "silence": (hangs, Kind.UNCERTAIN, "TimeoutError"),
    "a dripped status line": (drips(b"HTTP/1.1 ", then=b" "), Kind.UNCERTAIN, "TimeoutError"),
    "dripped headers": (says_and_drips(b"HTTP/1.1 200 OK\r\n", b"X-A: 1\r\n"), Kind.UNCERTAIN, "HTTP 200"),
    "a dripped refusal": (says_and_drips(b"HTTP/1.1 400 Bad\r\n", b"X-A: 1\r\n"), Kind.REFUSED, "HTTP 400"),
    "a dripped body": (
        says_and_drips(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b"x"),
        Kind.UNCERTAIN,
        "TimeoutError",
    ),
    "a body dripped in chunks": (
        says_and_drips(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        Kind.UNCERTAIN,
        "TimeoutError",
    ),
    "a dripped body without a length": (says_and_drips(b"HTTP/1.1 200 OK\r\n\r\n", b"x"), Kind.UNCERTAIN, "HTTP 200"),
}


@pytest.mark.parametrize("slow", SLOW)
@pytest.mark.parametrize("is_kept", [False, True])
def test_a_handover_is_over_at_its_deadline_whatever_the_server_does(connect, slow, is_kept):
    """F-E14"""
    with ScriptedHTTPServer(TAKEN) as server:
        connection = connect(server, mailgun)
        if is_kept:
            assert connection.hand_over(an_email()).kind is Kind.ACCEPTED
        server.answer, kind, code = SLOW[slow]
        began_at = time.monotonic()
        outcome = connection.hand_over(an_email(), until=began_at + DEADLINE_SECONDS)

        assert (outcome.kind, outcome.code) == (kind, code)
        assert time.monotonic() - began_at < GIVE_UP_SECONDS / 2
        server.answer = TAKEN
        assert connection.hand_over(an_email()).kind is Kind.ACCEPTED
    assert server.connection_count == 2


def test_the_deadline_is_that_of_the_settings_where_nobody_says(connect, settings):
    """F-E14"""
    settings.MAILENGINE = {"SEND_DEADLINE_SECONDS": 0.5}
    with ScriptedHTTPServer(hangs) as server:
        outcome = connect(server, mailgun).hand_over(an_email())

    assert (outcome.kind, outcome.detail) == (Kind.UNCERTAIN, "not done within 0.5 s")


def test_a_server_that_does_not_read_the_request_does_not_hold_it(connect):
    """F-E14"""
    with ScriptedHTTPServer(TAKEN) as server:
        server.converse = hangs
        outcome = connect(server, mailgun).hand_over(an_email("x" * 20_000_000), until=time.monotonic() + 1)

    assert (outcome.kind, outcome.code) == (Kind.UNCERTAIN, "TimeoutError")


def test_a_deadline_ends_it_by_way_of_a_proxy_too(settings, monkeypatch):
    """F-E14"""
    settings.MAILERS = {"esp": mailgun("http://mailgun.example")}
    with ScriptedHTTPServer(TAKEN) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.host}:{proxy.port}")
        monkeypatch.setenv("http_proxy", f"http://{proxy.host}:{proxy.port}")
        connection = Connection("esp")
        assert connection.hand_over(an_email()).kind is Kind.ACCEPTED
        proxy.answer = SLOW["a dripped status line"][0]
        began_at = time.monotonic()
        outcome = connection.hand_over(an_email(), until=began_at + DEADLINE_SECONDS)
        connection.close()

    assert (outcome.kind, outcome.code) == (Kind.UNCERTAIN, "TimeoutError")
    assert time.monotonic() - began_at < GIVE_UP_SECONDS / 2


@pytest.fixture
def https(settings, certificate, monkeypatch):
    """A function that gives a server for HTTPS that answers so, and a connection to Mailgun's API there."""
    path, tls_context = certificate()
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(path))

    def serve(answer):
        server = ScriptedHTTPServer(answer, tls_context=tls_context)
        settings.MAILERS = {"esp": mailgun(f"https://localhost:{server.port}")}
        made.append(Connection("esp"))
        return server, made[-1]

    made = []
    yield serve
    for connection in made:
        connection.close()


def test_a_deadline_ends_it_over_https_too(https):
    """F-E14"""
    server, connection = https(TAKEN)
    with server:
        assert connection.hand_over(an_email()).kind is Kind.ACCEPTED
        server.answer = SLOW["a dripped status line"][0]
        for _ in range(2):  # by a kept connection, then by a new one
            outcome = connection.hand_over(an_email(), until=time.monotonic() + DEADLINE_SECONDS)
            assert (outcome.kind, outcome.code) == (Kind.UNCERTAIN, "TimeoutError")


@pytest.mark.parametrize("handshake", [hangs, drips(b"\x16\x03\x03\x40\x00\x02"), closes, resets])
def test_what_fails_in_the_handshake_was_not_sent(https, handshake):
    """F-S25, over HTTP"""
    server, connection = https(TAKEN)

    def converse(peer):
        peer.sock.recv(1)  # Python 3.11 leaves a socket open that was reset before its handshake began
        handshake(peer)

    server.converse = converse
    with server:
        outcome = connection.hand_over(an_email(), until=time.monotonic() + DEADLINE_SECONDS)

    assert outcome.kind is Kind.UNAVAILABLE


SHORT_SECONDS = 5


@pytest.fixture
def slow_receiver():
    """A function of the project's own, called before each request, that outlasts a short deadline."""

    def dawdle(**_kwargs):
        deadline = current()
        while deadline.remaining_seconds < SHORT_SECONDS and not deadline.has_passed:
            time.sleep(0.01)

    pre_send.connect(dawdle, weak=False)
    yield
    pre_send.disconnect(dawdle)


@pytest.mark.usefixtures("slow_receiver")
@pytest.mark.parametrize("is_kept", [False, True])
def test_nothing_is_requested_once_the_time_is_over(connect, is_kept):
    with ScriptedHTTPServer(TAKEN) as server:
        connection = connect(server, mailgun)
        if is_kept:
            connection.hand_over(an_email())
        before = bytes(server.received)
        outcome = connection.hand_over(an_email(), until=time.monotonic() + 0.3)

        assert (outcome.kind, outcome.code) == (Kind.UNAVAILABLE, "TimeoutError")
        assert server.received == before


def test_an_idempotency_key_goes_with_its_own_request_only(connect):
    """F-E16"""
    with ScriptedHTTPServer(TAKEN) as server:
        connection = connect(server, resend)
        connection.hand_over(an_email(), key="7f3a")
        first, server.received = bytes(server.received), bytearray()
        connection.hand_over(an_email())

    assert b"\r\nIdempotency-Key: 7f3a\r\n" in first
    assert b"idempotency-key" not in server.received.lower()


def test_an_uncertain_request_with_a_key_can_be_repeated(connect):
    """F-E16"""
    with ScriptedHTTPServer(resets) as server:
        with_key = connect(server, resend).hand_over(an_email(), key="7f3a")
        without = connect(server, resend).hand_over(an_email())
        server.answer = says(422)
        refused = connect(server, resend).hand_over(an_email(), key="7f3a")

    assert (with_key.kind, with_key.is_repeatable) == (Kind.UNCERTAIN, True)
    assert (without.kind, without.is_repeatable) == (Kind.UNCERTAIN, False)
    assert (refused.kind, refused.is_repeatable) == (Kind.REFUSED, False)


def test_a_session_that_lost_the_header_meanwhile_hides_no_answer(connect):
    """Such as one to which a receiver of Anymail's signals gave headers of its own."""
    with ScriptedHTTPServer(TAKEN) as server:
        connection = connect(server, resend)
        connection.hand_over(an_email())
        session = connection._backend.session
        server.answer = lambda peer: (session.headers.clear(), says(422)(peer))

        assert connection.hand_over(an_email(), key="7f3a").kind is Kind.REFUSED


def test_a_provider_without_keys_is_given_none(connect):
    with ScriptedHTTPServer(resets) as server:
        outcome = connect(server, mailgun).hand_over(an_email(), key="7f3a")

    assert not outcome.is_repeatable
    assert b"7f3a" not in server.received


def test_which_providers_take_a_key_is_known_without_asking_them(settings):
    settings.MAILERS = {
        "resend": resend("http://127.0.0.1:9"),
        "mailgun": mailgun("http://127.0.0.1:9"),
        "relay": {"BACKEND": "mailengine.backends.SMTPBackend"},
        "broken": {"BACKEND": "no.such.Backend"},
    }

    assert [alias for alias in [*settings.MAILERS, "missing"] if takes_key(alias)] == ["resend"]
