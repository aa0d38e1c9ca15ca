"""Anymail's real backends, against a server that speaks as Mailgun, Postmark and SendGrid do."""

from __future__ import annotations

import time

import pytest
from anymail.exceptions import AnymailCancelSend
from anymail.message import AnymailMessage
from anymail.signals import post_send, pre_send
from django.core.mail import EmailMessage

from mailengine.outcomes import Kind
from mailengine.providers.connection import Connection
from mailengine.testing.esp_server import ESPS, Answer, ESPServer, Fault, every, in_turn

HTML = "<html>No JSON here</html>"


@pytest.fixture
def server():
    with ESPServer() as server:
        yield server


@pytest.fixture(params=sorted(ESPS))
def esp(request):
    return request.param


@pytest.fixture
def connection(server, esp, settings):
    settings.MAILERS = {"esp": server.mailer(esp, timeout=1)}
    connection = Connection("esp")
    yield connection
    connection.close()


def an_email(*to, **kwargs):
    return EmailMessage("Hello", "Hello.", "news@example.org", to or ["ann@example.org"], **kwargs)


def test_mail_is_accepted(server, connection, esp):
    outcome = connection.hand_over(an_email("Ann <ann@example.org>", cc=["bob@example.org"]))

    assert outcome.kind is Kind.ACCEPTED
    assert outcome.provider_message_id
    assert [(mail.esp, mail.recipients) for mail in server.accepted] == [(esp, ("ann@example.org", "bob@example.org"))]


@pytest.mark.parametrize("kwargs", [{}, {"attachments": [("note.txt", "Grüße", "text/plain")]}])
def test_our_id_arrives_in_the_metadata(server, connection, kwargs):
    email = AnymailMessage("Hello", "Hello.", "news@example.org", ["ann@example.org"], **kwargs)
    email.metadata = {"mailengine_id": "0190"}

    connection.hand_over(email)

    assert server.accepted[0].mailengine_id == "0190"


def test_our_id_arrives_in_a_header(server, connection):
    connection.hand_over(an_email(headers={"X-Mailengine-Id": "0190"}))

    assert server.accepted[0].mailengine_id == "0190"


def test_many_mails_use_one_connection(server, connection):
    started_at = time.monotonic()
    kinds = {connection.hand_over(an_email()).kind for _ in range(50)}

    assert kinds == {Kind.ACCEPTED}
    assert server.connection_count == 1
    assert time.monotonic() - started_at < 50 * 0.04  # what each would take with Nagle's algorithm


def test_an_inactive_recipient_is_refused(server, connection, esp):
    """F-E01"""
    server.inactive.add("gone@example.org")

    outcome = connection.hand_over(an_email("gone@example.org"))

    assert outcome.kind is Kind.REFUSED
    assert outcome.code.startswith("HTTP 4")
    assert outcome.address_is_bad == (esp != "sendgrid")  # which doesn't say which address it means
    assert not server.accepted


@pytest.mark.parametrize(
    ("answer", "kind", "code"),
    [
        (Answer(400, {"message": "No"}), Kind.REFUSED, "HTTP 400"),
        (Answer(401, {"message": "No"}), Kind.MISCONFIGURED, "HTTP 401"),
        (Answer(402, {"message": "No"}), Kind.MISCONFIGURED, "HTTP 402"),
        (Answer(403, {"message": "No"}), Kind.MISCONFIGURED, "HTTP 403"),
        (Answer(404, {"message": "No"}), Kind.MISCONFIGURED, "HTTP 404"),
        (Answer(408), Kind.DEFERRED, "HTTP 408"),
        (Answer(413), Kind.REFUSED, "HTTP 413"),
        (Answer(429), Kind.THROTTLED, "HTTP 429"),
        (Answer(500, HTML), Kind.UNCERTAIN, "HTTP 500"),
        (Answer(502, HTML), Kind.UNCERTAIN, "HTTP 502"),
        (Answer(503, HTML), Kind.UNAVAILABLE, "HTTP 503"),
        (Answer(503, headers={"Retry-After": "7"}), Kind.THROTTLED, "HTTP 503"),
        (Answer(504), Kind.UNCERTAIN, "HTTP 504"),
        (Answer(521), Kind.UNAVAILABLE, "HTTP 521"),
        (Answer(307, headers={"Location": "/elsewhere"}), Kind.MISCONFIGURED, "HTTP 307"),
    ],
)
def test_a_status_says_whose_fault_it_was(server, connection, answer, kind, code):
    """F-E01, F-E02, F-E05, F-E06, F-E07"""
    server.behave = in_turn(answer)

    outcome = connection.hand_over(an_email())

    assert (outcome.kind, outcome.code) == (kind, code)
    assert server.calls == 1


def test_retry_after_is_how_long_we_wait(server, connection):
    """F-E04"""
    server.behave = in_turn(Answer(429, headers={"Retry-After": "7"}))

    outcome = connection.hand_over(an_email())

    assert (outcome.kind, outcome.retry_after_seconds) == (Kind.THROTTLED, 7)


@pytest.mark.parametrize("fault", Fault)
def test_a_call_without_an_answer_is_uncertain_and_made_once(server, connection, fault):
    """F-E09, F-E15"""
    server.behave = in_turn(fault)

    assert connection.hand_over(an_email()).kind is Kind.UNCERTAIN
    assert server.calls == 1


def test_a_refused_connection_is_clean(server, connection):
    server.down()
    outcome = connection.hand_over(an_email())
    server.up()

    assert (outcome.kind, outcome.code) == (Kind.UNAVAILABLE, "ConnectionRefusedError")
    assert connection.hand_over(an_email()).kind is Kind.ACCEPTED


def test_every_second_call_can_fail(server, connection):
    """F-E21"""
    server.behave = every(2, Answer(503))

    kinds = [connection.hand_over(an_email()).kind for _ in range(4)]

    assert kinds == [Kind.ACCEPTED, Kind.UNAVAILABLE] * 2


@pytest.mark.parametrize("esp", ["mailgun", "postmark"], indirect=True)
def test_a_yes_that_cannot_be_read_is_uncertain(server, connection):
    server.behave = in_turn(Answer(200, HTML))

    outcome = connection.hand_over(an_email())

    assert (outcome.kind, outcome.code) == (Kind.UNCERTAIN, "HTTP 200")


@pytest.mark.parametrize("esp", ["postmark"], indirect=True)
class TestPostmark:
    def test_one_of_two_recipients_may_be_refused(self, server, connection):
        """F-E11"""
        server.inactive.add("gone@example.org")

        outcome = connection.hand_over(an_email("ann@example.org", "gone@example.org"))

        assert outcome.kind is Kind.ACCEPTED
        assert {address: refusal.address_is_bad for address, refusal in outcome.refusals.items()} == {
            "gone@example.org": True
        }

    @pytest.mark.parametrize(
        ("error_code", "text", "kind"),
        [
            (10, "The request does not contain a valid Server token.", Kind.MISCONFIGURED),
            (100, "Maintenance", Kind.UNAVAILABLE),
            (300, "Invalid 'From' address: 'x'.", Kind.REFUSED),
            (300, "Invalid 'To' address: 'ann@example.org'.", Kind.REFUSED),
            (400, "The sender signature is not confirmed.", Kind.MISCONFIGURED),
            (405, "Not allowed to send: out of credits.", Kind.MISCONFIGURED),
            (406, "Words that Anymail has never seen", Kind.REFUSED),
            (412, "Account is pending approval.", Kind.MISCONFIGURED),
        ],
    )
    def test_its_own_error_codes_are_known(self, server, connection, error_code, text, kind):
        server.behave = in_turn(Answer(422, {"ErrorCode": error_code, "Message": text}))

        outcome = connection.hand_over(an_email())

        assert (outcome.kind, outcome.code, outcome.detail) == (kind, f"HTTP 422 {error_code}", text)


@pytest.mark.parametrize("esp", ["mailgun"], indirect=True)
def test_no_key_and_nothing_of_the_mail_gets_into_an_outcome(server, connection):
    server.behave = every(1, Answer(400, {"message": "No"}))
    email = an_email("secret-address@example.org")
    email.body = "secret words"

    assert str(connection.hand_over(email)) == "HTTP 400 No"


@pytest.fixture
def receiver():
    """A function that connects a receiver of one of Anymail's signals for the time of the test."""
    connected = []

    def connect(signal, error):
        def receive(**_kwargs):
            raise error

        signal.connect(receive, weak=False)
        connected.append((signal, receive))

    yield connect
    for signal, receive in connected:
        signal.disconnect(receive)


def test_a_receiver_that_raises_afterwards_does_not_unsend_the_mail(server, connection, receiver):
    receiver(post_send, RuntimeError("a bug in the project"))

    assert connection.hand_over(an_email()).kind is Kind.ACCEPTED


def test_mail_withdrawn_by_pre_send_is_not_sent(server, connection, receiver):
    """F-E19"""
    receiver(pre_send, AnymailCancelSend())

    outcome = connection.hand_over(an_email())

    assert (outcome.kind, outcome.code) == (Kind.REFUSED, "cancelled by pre_send")
    assert server.calls == 0


def test_a_receiver_that_raises_before_costs_the_mail_time_only(server, connection, receiver):
    receiver(pre_send, RuntimeError("a bug in the project"))

    outcome = connection.hand_over(an_email())

    assert (outcome.kind, outcome.code) == (Kind.DEFERRED, "RuntimeError")


@pytest.mark.parametrize("esp", ["mailgun"], indirect=True)
def test_what_one_provider_cannot_do_another_may(server, connection):
    email = AnymailMessage("Hello", "Hello.", "news@example.org", ["ann@example.org"])
    email.envelope_sender = "bounces@example.org"
    email.attach_alternative("<p>1</p>", "text/html")
    email.attach_alternative("<p>2</p>", "text/html")

    outcome = connection.hand_over(email)

    assert (outcome.kind, outcome.elsewhere) == (Kind.REFUSED, True)


@pytest.mark.parametrize("esp", ["mailgun"], indirect=True)
def test_what_an_earlier_provider_said_is_not_believed_of_the_next(server, connection):
    email = an_email()
    connection.hand_over(email)
    server.down()

    assert connection.hand_over(email).kind is not Kind.ACCEPTED


def test_a_missing_key_is_ours_to_mend(settings):
    settings.MAILERS = {"esp": {"BACKEND": "anymail.backends.mailgun.EmailBackend"}}

    assert Connection("esp").hand_over(an_email()).kind is Kind.MISCONFIGURED
