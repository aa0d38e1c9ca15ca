"""Whose fault it is when an email can't be written; Django's and Python's own errors, at each kind of backend."""

from __future__ import annotations

import pytest
from anymail.message import AnymailMessage

from mailengine.providers.connection import Connection
from mailengine.testing.esp_server import ESPServer

from .judgements import judgement
from .scripted import ScriptedHTTPServer, ScriptedServer

BACKENDS = ["smtp", "amazon_ses", "mailgun", "postmark", "resend", "sendgrid"]


@pytest.fixture(params=BACKENDS)
def backend(request):
    if request.param == "amazon_ses":
        pytest.importorskip("boto3")
    return request.param


@pytest.fixture
def hand_over(backend, settings):
    """Send this email, and say what came of it; and whether a server has taken it."""

    def hand_over(email):
        with ScriptedServer() as relay, ESPServer() as esp:
            settings.MAILERS = {"it": relay.mailer() if backend == "smtp" else esp.mailer(backend)}
            connection = Connection("it")
            outcome = connection.hand_over(email)
            connection.close()
            return outcome, bool(relay.accepted or esp.accepted)

    return hand_over


def an_email(**changes):
    email = AnymailMessage("Hello", "Hello.", "news@example.org", ["ann@example.org"])
    for name, value in changes.items():
        setattr(email, name, value)
    return email


class Unread(list):
    """Attachments of which something is done when they are looked at."""

    def __init__(self, read):
        super().__init__([("note.txt", "", "text/plain")])
        self.read = read

    def __iter__(self):
        self.read()
        return super().__iter__()


def missing_file():
    with open("/nowhere/note.pdf", "rb"):
        pass


def recursion():
    recursion()


def no_memory():
    bytearray(1 << 62)


def bug():
    raise RuntimeError("a bug of the project")


WRITES_MIME = {"smtp", "amazon_ses"}


@pytest.mark.parametrize(
    ("changes", "refused_by"),
    [
        ({"subject": "Hello\nBcc: eve@example.org"}, WRITES_MIME),
        ({"from_email": "Eve\n <eve@example.org>"}, {"smtp"}),
        ({"from_email": "nobody"}, set(BACKENDS) - {"smtp"}),
        ({"to": ["@"]}, set(BACKENDS)),
        ({"extra_headers": {"X-Note": "a\r\nBcc: eve@example.org"}}, WRITES_MIME),
        ({"body": "a lone surrogate: \ud800"}, {*WRITES_MIME, "mailgun"}),
        ({"encoding": "klingon"}, WRITES_MIME),
    ],
    ids=[
        "a line break in a header",
        "a line break in the sender",
        "a sender that is none",
        "a recipient that is none",
        "a line break in a header of one's own",
        "a lone surrogate",
        "an unknown character set",
    ],
)
def test_mail_that_cannot_be_written_is_refused(hand_over, backend, changes, refused_by):
    """Who gets it as JSON may see nothing wrong with it; none of these comes through the queue's own door."""
    outcome, taken = hand_over(an_email(**changes))

    assert judgement(outcome) == ("refused" if backend in refused_by else "accepted")
    assert taken == (backend not in refused_by)


@pytest.mark.parametrize(
    "changes",
    [
        {"subject": "Hello\nBcc: eve@example.org"},
        {"from_email": "Eve\n <eve@example.org>"},
        {"to": ["@"]},
        {"extra_headers": {"X-Note": "a\r\nBcc: eve@example.org"}},
        {"body": "a lone surrogate: \ud800"},
        {"encoding": "klingon"},
    ],
    ids=["subject", "sender", "recipient", "header", "surrogate", "charset"],
)
def test_mail_that_djangos_own_backend_cannot_write_is_refused(settings, changes):
    """It says nothing of how far it came; where it was raised does."""
    with ScriptedServer() as relay:
        backend = "django.core.mail.backends.smtp.EmailBackend"
        settings.MAILERS = {"it": {**relay.mailer(), "BACKEND": backend}}
        connection = Connection("it")
        outcome = connection.hand_over(an_email(**changes))
        connection.close()

    assert (judgement(outcome), relay.accepted) == ("refused", [])


@pytest.mark.parametrize("read", [missing_file, recursion, no_memory, bug], ids=lambda read: read.__name__)
def test_mail_that_stumbles_while_it_is_written_gets_three_tries(hand_over, backend, read):
    outcome, taken = hand_over(an_email(attachments=Unread(read)))

    assert (judgement(outcome), taken) == ("deferred, 3rd refused", False)


@pytest.fixture
def by_api(settings):
    """Send a mail by this ESP's backend with these OPTIONS, and say what came of it."""

    def by_api(esp, **options):
        if esp == "amazon_ses":
            pytest.importorskip("boto3")
        with ESPServer() as server:
            mailer = server.mailer(esp)
            for name, value in options.items():
                theirs = mailer["OPTIONS"].get(name)
                mailer["OPTIONS"][name] = {**theirs, **value} if isinstance(value, dict) else value
            settings.MAILERS = {"it": mailer}
            connection = Connection("it")
            outcome = connection.hand_over(an_email())
            connection.close()
            assert not server.accepted
            return outcome

    return by_api


@pytest.mark.parametrize(
    ("esp", "options"),
    [
        ("postmark", {"server_token": "SECRET\u200b"}),
        ("postmark", {"server_token": "SECRET\n"}),
        ("mailgun", {"api_key": "SECRET\u2019"}),
        ("sendgrid", {"api_key": "SECRET\u200b"}),
        ("postmark", {"api_url": "https://SECRET..example.com/"}),
        ("amazon_ses", {"client_params": {"endpoint_url": "https://SECRET..example.com/"}}),
    ],
    ids=["no-width space", "line break", "apostrophe", "bearer", "host", "host of SES"],
)
def test_a_key_that_was_pasted_badly_kills_no_mail_and_is_not_quoted(by_api, esp, options):
    outcome = by_api(esp, **options)

    assert judgement(outcome) == "misconfigured"
    assert "SECRET" not in str(outcome)
    assert "'" not in outcome.detail


# botocore leaves its connection to the garbage collector when it stumbles over an answer.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("esp", "answer", "words"),
    [
        ("postmark", b"HTTP/1.1 302 Found\r\nLocation: /\xe9\r\nContent-Length: 0\r\n\r\n", "misconfigured"),
        ("amazon_ses", b'HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\n{"MessageId":"1"}\xff', "uncertain"),
        ("amazon_ses", b"HTTP/1.1 502 Bad\r\nContent-Length: 7\r\n\r\n\xe9chou\xe9e", "uncertain"),
        ("mailgun", b'HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"\xff"', "uncertain"),
    ],
    ids=["redirect", "yes", "no", "mailgun"],
)
def test_an_answer_that_is_no_text_does_not_refuse_the_mail(settings, esp, answer, words):
    if esp == "amazon_ses":
        pytest.importorskip("boto3")
    with ScriptedHTTPServer(lambda peer: peer.say(answer)) as server, ESPServer() as known:
        url = f"http://127.0.0.1:{server.port}/"
        mailer = known.mailer(esp)
        options = mailer["OPTIONS"]
        options.get("client_params", options)["endpoint_url" if esp == "amazon_ses" else "api_url"] = url
        settings.MAILERS = {"it": mailer}
        connection = Connection("it")
        outcome = connection.hand_over(an_email())
        connection.close()

    assert server.request_count == 1
    assert judgement(outcome) == words
