"""Whose fault it is when an ESP says no, or nothing; Anymail's real backends, against servers that play each row."""

from __future__ import annotations

import socket

import pytest
from anymail.exceptions import AnymailCancelSend
from anymail.message import AnymailMessage
from anymail.signals import post_send, pre_send
from django.core.mail import EmailMessage

from mailengine.providers.connection import Connection
from mailengine.testing.esp_server import Answer, ESPServer, Fault, in_turn

from .judgements import judgement
from .scripted import RawServer, ScriptedHTTPServer, closes, hangs, resets, says

HTML = "<html>No JSON here</html>"
ALL = ["amazon_ses", "brevo", "mailgun", "mailjet", "postmark", "resend", "sendgrid"]


def an_email(*to):
    return EmailMessage("Hello", "Hello.", "news@example.org", to or ["ann@example.org"])


@pytest.fixture
def server():
    with ESPServer() as server:
        yield server


@pytest.fixture
def hand_over(settings):
    """Send a mail by this entry of MAILERS, and say what came of it."""

    def hand_over(mailer, email=None):
        if "amazon_ses" in mailer["BACKEND"]:
            pytest.importorskip("boto3")
        settings.MAILERS = {"esp": mailer}
        connection = Connection("esp")
        try:
            return connection.hand_over(email or an_email())
        finally:
            connection.close()

    return hand_over


def amazon_ses(status, error, text="No", **headers):
    return "amazon_ses", Answer(status, {"message": text}, {"x-amzn-ErrorType": error, **headers})


def brevo(status, code, text="No"):
    return "brevo", Answer(status, {"code": code, "message": text})


def mailgun(status, text):
    return "mailgun", Answer(status, {"message": text})


def mailjet(status, code, text="No", *related_to, of_all=False):
    """What it says of one mail, or of the call as a whole."""
    about = {"ErrorIdentifier": "f987008f", "ErrorCode": code, "StatusCode": status, "ErrorMessage": text}
    errors = {"Messages": [{"Status": "error", "Errors": [{**about, "ErrorRelatedTo": list(related_to)}]}]}
    return "mailjet", Answer(status, about if of_all else errors)


def postmark(status, error_code, text="No"):
    return "postmark", Answer(status, {"ErrorCode": error_code, "Message": text})


def resend(status, name, text="No"):
    return "resend", Answer(status, {"statusCode": status, "name": name, "message": text})


def sendgrid(status, text):
    return "sendgrid", Answer(status, {"errors": [{"message": text, "field": None, "help": None}]})


SENDER = "the sender you used not-valid@example.org"
INACTIVE = "Found inactive addresses: ann@example.org.\nInactive recipients are ones that have bounced."

ANSWERS = [
    (brevo(400, "invalid_parameter", "email is not valid in to"), "refused, bad address"),
    (brevo(400, "invalid_parameter", "email is not valid in replyTo"), "refused"),
    (brevo(400, "invalid_parameter", f"Sending has been rejected because {SENDER} is not valid."), "misconfigured"),
    (brevo(400, "missing_parameter", "htmlContent is missing"), "refused"),
    (brevo(400, "account_under_validation"), "misconfigured"),
    (brevo(400, "not_enough_credits"), "misconfigured"),
    (brevo(401, "unauthorized", "Key not found"), "misconfigured"),
    (brevo(402, "not_enough_credits"), "misconfigured"),
    (brevo(403, "permission_denied", "Your SMTP account is not yet activated."), "misconfigured"),
    (brevo(406, "not_acceptable"), "misconfigured"),
    (brevo(429, "too_many_requests"), "throttled"),
    (("brevo", Answer(429, {"code": "too_many_requests"}, {"x-sib-ratelimit-reset": "7"})), "throttled 7 s"),
    (("brevo", Answer(503, {"code": "down"}, {"x-sib-ratelimit-reset": "7"})), "unavailable"),
    (brevo(500, "internal_error"), "uncertain"),
    (mailgun(302, "There"), "misconfigured"),
    (mailgun(400, "from parameter is missing"), "refused"),
    (mailgun(400, "'to' parameter is not a valid address. please check documentation"), "refused, bad address"),
    (mailgun(400, "Sandbox subdomains are for test purposes only."), "misconfigured"),
    (mailgun(400, "Domain example.org is not allowed to send: disabled"), "misconfigured"),
    (mailgun(400, "Domain example.org is not allowed to send: recipient limit exceeded"), "throttled"),
    (mailgun(400, "Daily quota exceeded"), "throttled"),
    (mailgun(401, "Forbidden"), "misconfigured"),
    (mailgun(402, "Pay"), "misconfigured"),
    (mailgun(403, "Forbidden"), "misconfigured"),
    (mailgun(404, "Domain not found: example.org"), "misconfigured"),
    (mailgun(405, "No"), "misconfigured"),
    (mailgun(406, "No"), "misconfigured"),
    (mailgun(407, "Log in at the proxy"), "misconfigured"),
    (mailgun(408, "Too slow"), "deferred"),
    (mailgun(409, "Conflict"), "deferred"),
    (mailgun(410, "Gone"), "misconfigured"),
    (mailgun(411, "How long?"), "misconfigured"),
    (mailgun(413, "Too large"), "not here"),
    (mailgun(415, "What is it?"), "misconfigured"),
    (mailgun(418, "Teapot"), "refused"),
    (mailgun(420, "Calm down"), "throttled"),
    (mailgun(422, "No"), "refused"),
    (mailgun(425, "Too early"), "deferred"),
    (mailgun(429, "Too many"), "throttled"),
    (mailgun(500, "Oops"), "uncertain"),
    (mailgun(501, "No"), "misconfigured"),
    (mailgun(502, "Bad gateway"), "uncertain"),
    (mailgun(503, "Down"), "unavailable"),
    (mailgun(504, "Too slow"), "uncertain"),
    (mailgun(505, "HTTP?"), "misconfigured"),
    (mailgun(520, "Cloudflare: unknown"), "uncertain"),
    (mailgun(521, "Cloudflare: origin is down"), "unavailable"),
    (mailgun(522, "Cloudflare: origin timed out"), "unavailable"),
    (mailgun(523, "Cloudflare: origin unreachable"), "unavailable"),
    (mailgun(524, "Cloudflare: a timeout occurred"), "uncertain"),
    (mailgun(525, "Cloudflare: handshake failed"), "unavailable"),
    (mailgun(526, "Cloudflare: certificate"), "unavailable"),
    (mailjet(400, "mj-0002", "Malformed JSON, please review the syntax.", of_all=True), "refused"),
    (mailjet(400, "mj-0013", '"ann@" is an invalid email address.', "To[0].Email"), "refused, bad address"),
    (mailjet(400, "mj-0013", '"shop@" is an invalid email address.', "ReplyTo.Email"), "refused"),
    (mailjet(400, "send-0003", "TextPart must be provided.", "TextPart"), "refused"),
    (mailjet(403, "send-0008", '"s@a.org" is not an authorized sender email address.', "From"), "misconfigured"),
    (mailjet(400, "send-0008", '"s@a.org" is not an authorized sender email address.', "From"), "misconfigured"),
    (mailjet(400, "send-0011", "Header cannot be customized.", 'Headers["Sender"]'), "not here"),
    (mailjet(413, "send-0001", "Too large"), "not here"),
    (mailjet(401, "", "API key authentication/authorization failure.", of_all=True), "misconfigured"),
    (("mailjet", Answer(401, {"StatusCode": 401, "ErrorMessage": "API key failure."})), "misconfigured"),
    (("mailjet", Answer(429, {"StatusCode": 429, "ErrorMessage": "Too many requests"})), "throttled"),
    (("mailjet", Answer(400, {"Messages": [{"Status": "error"}]})), "refused"),
    (("mailjet", Answer(400, {"Messages": "?"})), "refused"),
    (mailjet(500, "mj-0001", "Oops", of_all=True), "uncertain"),
    (postmark(422, 10), "misconfigured"),
    (postmark(422, 100), "unavailable"),
    (postmark(503, 100), "unavailable"),
    (postmark(422, 300, "Invalid 'From' address: 'x'."), "refused"),
    (postmark(422, 300, "Invalid 'To' address: 'ann@example.org'."), "refused, bad address"),
    (postmark(422, 300, "Header 'Sender' not allowed."), "not here"),
    (postmark(422, 300, "Words that nobody has seen"), "refused"),
    (postmark(422, 400), "misconfigured"),
    (postmark(422, 401), "misconfigured"),
    (postmark(422, 405), "misconfigured"),
    (postmark(422, 406, INACTIVE), "refused, bad address"),
    (postmark(422, 406, "Words that nobody has seen"), "refused"),
    (postmark(422, 412), "misconfigured"),
    (postmark(422, 413), "misconfigured"),
    (postmark(422, 411), "refused"),
    (amazon_ses(400, "BadRequestException"), "refused"),
    (amazon_ses(400, "MessageRejected", "Email address is not verified."), "misconfigured"),
    (amazon_ses(400, "MessageRejected", "A virus"), "not here"),
    (amazon_ses(400, "MailFromDomainNotVerifiedException"), "misconfigured"),
    (amazon_ses(400, "AccountSuspendedException"), "misconfigured"),
    (amazon_ses(400, "SendingPausedException"), "misconfigured"),
    (amazon_ses(404, "NotFoundException", "No such configuration set"), "misconfigured"),
    (amazon_ses(403, "ExpiredTokenException"), "misconfigured"),
    (amazon_ses(403, "AccessDeniedException"), "misconfigured"),
    (amazon_ses(403, "SignatureDoesNotMatch"), "misconfigured"),
    (amazon_ses(400, "ThrottlingException", "Rate exceeded"), "throttled"),
    (amazon_ses(429, "TooManyRequestsException"), "throttled"),
    (amazon_ses(429, "TooManyRequestsException", **{"Retry-After": "7"}), "throttled 7 s"),
    (amazon_ses(400, "LimitExceededException", "Daily message quota exceeded"), "throttled"),
    (amazon_ses(409, "ConflictException"), "deferred"),
    (amazon_ses(500, "InternalFailure"), "uncertain"),
    (amazon_ses(503, "ServiceUnavailable"), "unavailable"),
    (resend(400, "invalid_idempotency_key"), "refused"),
    (resend(401, "missing_api_key"), "misconfigured"),
    (resend(403, "validation_error", "The example.org domain is not verified."), "misconfigured"),
    (resend(409, "invalid_idempotent_request"), "misconfigured"),
    (resend(409, "concurrent_idempotent_requests"), "uncertain"),
    (resend(422, "validation_error"), "refused"),
    (resend(429, "rate_limit_exceeded"), "throttled"),
    (resend(429, "daily_quota_exceeded"), "throttled"),
    (resend(500, "application_error"), "uncertain"),
    (sendgrid(400, "Does not contain a valid address."), "refused"),
    (sendgrid(401, "Maximum credits exceeded"), "misconfigured"),
    (sendgrid(403, "The from address does not match a verified Sender Identity."), "misconfigured"),
    (sendgrid(413, "Too large"), "not here"),
    (sendgrid(429, "too many requests"), "throttled"),
    (sendgrid(500, "Oops"), "uncertain"),
    *[((esp, Answer(401, HTML)), "misconfigured") for esp in ALL],
    *[((esp, Answer(307, headers={"Location": "/elsewhere"})), "misconfigured") for esp in ALL],
    *[((esp, Answer(429, headers={"Retry-After": "7"})), "throttled 7 s") for esp in ALL],
    *[((esp, Answer(502, HTML)), "uncertain") for esp in ALL],
    *[((esp, Answer(503, HTML)), "unavailable") for esp in ALL],
    *[((esp, Answer(503, headers={"Retry-After": "7"})), "throttled 7 s") for esp in ALL],
]


def name_of(case):
    esp, answer = case
    told = answer.body if isinstance(answer.body, str) else " ".join(map(str, answer.body.values()))
    return " ".join([esp, str(answer.status), *answer.headers.values(), told])[:70]


@pytest.mark.parametrize(
    ("case", "words"), ANSWERS, ids=lambda value: name_of(value) if isinstance(value, tuple) else ""
)
def test_an_answer(server, hand_over, case, words):
    """F-E01, F-E02, F-E05 to F-E07, F-E11"""
    esp, answer = case
    server.behave = in_turn(answer)

    outcome = hand_over(server.mailer(esp))

    assert (judgement(outcome), outcome.phase) == (words, "http")
    assert server.calls == 1


@pytest.mark.parametrize("esp", ALL)
@pytest.mark.parametrize(
    "body", [HTML, {"what": 1}, "", "[" * 2000], ids=["HTML", "other JSON", "nothing", "deep JSON"]
)
def test_a_yes_that_cannot_be_read(server, hand_over, esp, body):
    server.behave = in_turn(Answer(200, body))

    outcome = hand_over(server.mailer(esp))

    # Anymail reads nothing of it there, or nothing where there is nothing.
    is_enough = esp == "sendgrid" or (esp == "brevo" and not body)
    assert judgement(outcome) == ("accepted" if is_enough else "uncertain")


@pytest.mark.parametrize("esp", ALL)
@pytest.mark.parametrize("fault", [None, *set(Fault) - {Fault.DRIP}], ids=str)
def test_an_answer_that_does_not_come(server, hand_over, esp, fault):
    """F-E09, F-E15"""
    server.behave = in_turn(fault)

    outcome = hand_over(server.mailer(esp, timeout=0.5))

    assert judgement(outcome) == ("uncertain" if fault else "accepted")
    assert server.calls == 1
    assert len(server.accepted) == (fault not in {Fault.HANG_UP, Fault.HANG})


def at_localhost(server, esp, scheme="https", **options):
    mailer = ESPServer().mailer(esp, timeout=0.5)
    url = f"{scheme}://localhost:{server.port}"
    if esp == "amazon_ses":
        mailer["OPTIONS"]["client_params"] |= {"endpoint_url": url, **options}
    else:
        mailer["OPTIONS"] |= {"api_url": f"{url}/v3", **options}
    return mailer


ONE_OF_EACH_LIBRARY = pytest.mark.parametrize("esp", ["amazon_ses", "mailgun"])


@ONE_OF_EACH_LIBRARY
@pytest.mark.parametrize("act", [closes, resets, hangs], ids=lambda act: act.__name__)
def test_a_connection_that_breaks_after_the_request(hand_over, esp, act):
    with ScriptedHTTPServer(act) as server:
        outcome = hand_over(at_localhost(server, esp, "http"))

    assert (judgement(outcome), outcome.phase) == ("uncertain", "")
    assert server.request_count == 1


@ONE_OF_EACH_LIBRARY
def test_an_answer_that_breaks_off(hand_over, esp):
    whole = says(200, b"{}", X="x")

    def breaks_off(peer):
        whole(peer)
        closes(peer)

    def too_short(peer):
        peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
        closes(peer)

    for act in (breaks_off, too_short):
        with ScriptedHTTPServer(act) as server:
            assert judgement(hand_over(at_localhost(server, esp, "http"))) == "uncertain"


@ONE_OF_EACH_LIBRARY
def test_a_port_that_nobody_listens_at(hand_over, esp):
    with RawServer() as server:
        pass

    assert judgement(hand_over(at_localhost(server, esp, "http"))) == "unavailable"


@ONE_OF_EACH_LIBRARY
def test_a_name_that_nobody_knows(hand_over, esp):
    with pytest.raises(socket.gaierror) as unresolved:
        socket.getaddrinfo("no.invalid", 80)
    says_no = unresolved.value.errno != socket.EAI_AGAIN  # a host without DNS can't know
    option = {"endpoint_url": "http://no.invalid"} if esp == "amazon_ses" else {"api_url": "http://no.invalid/"}
    with RawServer() as server:
        mailer = at_localhost(server, esp, **option)

    assert judgement(hand_over(mailer)) == ("unavailable, ours after 10 min" if says_no else "unavailable")


@ONE_OF_EACH_LIBRARY
def test_a_proxy_that_is_not_there(server, hand_over, monkeypatch, esp):
    with RawServer() as gone:
        pass
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{gone.port}")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{gone.port}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)

    assert judgement(hand_over(server.mailer(esp))) == "unavailable"
    assert server.calls == 0


class HandshakeServer(RawServer):
    """Does this when it has heard a client's hello."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def converse(self, peer):
        peer.sock.recv(1 << 16)
        self.act(peer)


@ONE_OF_EACH_LIBRARY
@pytest.mark.parametrize(
    ("act", "words"),
    [(closes, "unavailable, ours once open"), (says(400), "unavailable, ours once open")],
    ids=["closes", "speaks in clear"],
)
def test_a_handshake_that_fails(hand_over, esp, act, words):
    with HandshakeServer(act) as server:
        assert judgement(hand_over(at_localhost(server, esp))) == words


@ONE_OF_EACH_LIBRARY
@pytest.mark.parametrize(
    ("name", "expired", "trusted"),
    [("localhost", False, False), ("localhost", True, True), ("other.example", False, True)],
    ids=["nobody's", "expired", "of another host"],
)
def test_a_certificate_that_will_not_do(hand_over, certificate, monkeypatch, esp, name, expired, trusted):
    path, tls_context = certificate(name, expired=expired)
    if trusted:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(path))
        monkeypatch.setenv("AWS_CA_BUNDLE", str(path))

    with ScriptedHTTPServer(says(200), tls_context=tls_context) as server:
        assert judgement(hand_over(at_localhost(server, esp))) == "misconfigured"


def test_certificates_that_are_not_where_the_settings_say(hand_over, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/ca.pem")
    with RawServer() as server:
        assert judgement(hand_over(at_localhost(server, "mailgun"))) == "misconfigured"


@pytest.mark.parametrize("api_url", ["http://", "127.0.0.1/v3"])
def test_a_url_that_is_none(hand_over, api_url):
    options = {"api_key": "test", "sender_domain": "example.org", "api_url": api_url}

    assert (
        judgement(hand_over({"BACKEND": "anymail.backends.mailgun.EmailBackend", "OPTIONS": options}))
        == "misconfigured"
    )


def test_amazon_ses_without_credentials(server, hand_over, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    mailer = server.mailer("amazon_ses")
    for name in ("aws_access_key_id", "aws_secret_access_key"):
        del mailer["OPTIONS"]["client_params"][name]

    assert judgement(hand_over(mailer)) == "misconfigured"


@pytest.mark.parametrize(
    "mailer",
    [
        {"BACKEND": "anymail.backends.mailgun.EmailBackend"},
        {"BACKEND": "anymail.backends.nobody.EmailBackend"},
        {"BACKEND": "anymail.backends.amazon_ses.EmailBackend", "OPTIONS": {"client_params": {"region_name": 7}}},
    ],
    ids=["no key", "unknown backend", "no region"],
)
def test_a_backend_that_cannot_be_built(hand_over, mailer):
    assert judgement(hand_over(mailer)) == "misconfigured"


def test_what_this_provider_cannot_do_another_may(server, hand_over):
    email = AnymailMessage("Hello", "Hello.", "news@example.org", ["ann@example.org"])
    email.merge_data = {"ann@example.org": {"name": "Ann"}}

    assert judgement(hand_over(server.mailer("resend"), email)) == "not here"


@pytest.fixture
def receiver():
    """A function that connects a receiver of one of Anymail's signals, which raises, for the time of the test."""
    connected = []

    def connect(signal, error):
        def receive(**_kwargs):
            raise error

        signal.connect(receive, weak=False)
        connected.append((signal, receive))

    yield connect
    for signal, receive in connected:
        signal.disconnect(receive)


@pytest.mark.parametrize("esp", ALL)
@pytest.mark.parametrize(
    ("signal", "error", "words", "calls"),
    [
        (pre_send, AnymailCancelSend("not today"), "cancelled", 0),
        (pre_send, RuntimeError("a bug of the project"), "deferred, 3rd refused", 0),
        (pre_send, KeyError("a bug of the project"), "deferred, 3rd refused", 0),
        (pre_send, ValueError("a bad header"), "refused", 0),
        (post_send, RuntimeError("a bug of the project"), "accepted", 1),
        (post_send, AnymailCancelSend("too late"), "accepted", 1),
        (post_send, ConnectionRefusedError(111, "of the project's own"), "accepted", 1),
    ],
)
def test_a_receiver_that_raises(server, hand_over, receiver, esp, signal, error, words, calls):
    """F-E19"""
    receiver(signal, error)

    assert judgement(hand_over(server.mailer(esp))) == words
    assert server.calls == calls
