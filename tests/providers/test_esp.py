"""Anymail's real backends, against a server that speaks as their ESPs do."""

from __future__ import annotations

import threading
import time

import pytest
from anymail.message import AnymailMessage
from django.core.mail import EmailMessage

from mailengine.outcomes import Kind
from mailengine.providers.connection import Connection
from mailengine.testing.esp_server import ESPS, Answer, ESPServer, Fault, every, in_turn


@pytest.fixture
def server():
    with ESPServer() as server:
        yield server


@pytest.fixture(params=sorted(ESPS))
def esp(request):
    if request.param == "amazon_ses":
        pytest.importorskip("boto3")
    return request.param


@pytest.fixture
def connection(server, esp, settings):
    settings.MAILERS = {"esp": server.mailer(esp, timeout=0.5)}
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
    assert outcome.address_is_bad == (
        esp in {"brevo", "mailgun", "mailjet", "postmark"}
    )  # the others don't say what they mean
    assert not server.accepted


@pytest.mark.parametrize("esp", ["mailgun"], indirect=True)
def test_an_answer_that_drips_outlives_any_timeout_and_is_cut_off(server, connection):
    """F-E14"""
    server.behave = in_turn(Fault.DRIP)

    outcome = connection.hand_over(an_email(), until=time.monotonic() + 0.5)

    assert outcome.kind is Kind.UNCERTAIN
    assert len(server.accepted) == 1


def test_a_sink_hears_of_each_mail_before_its_sender_does(server, connection):
    written = []
    server.on_accepted = lambda mail: written.append(mail.mailengine_id)
    server.behave = in_turn(Fault.ACCEPT_AND_HANG_UP, Fault.HANG_UP, Answer(400))

    for number in range(4):
        connection.hand_over(an_email(headers={"X-Mailengine-Id": f"019{number}"}))

    assert written == ["0190", "0193"]


def test_a_mail_comes_with_the_headers_of_its_request(server, connection):
    connection.hand_over(an_email())

    assert "python" in server.accepted[0].headers["user-agent"].lower()


@pytest.mark.parametrize("esp", ["resend"], indirect=True)
class TestResend:
    """Its idempotency keys, as https://resend.com/docs/dashboard/emails/idempotency-keys has them."""

    def test_the_same_key_and_mail_get_the_first_answer_again(self, server, connection):
        first, second = (connection.hand_over(an_email(), key="0190-1") for _ in range(2))

        assert (first.kind, first.provider_message_id) == (second.kind, second.provider_message_id)
        assert server.calls == 2
        assert len(server.accepted) == 1

    def test_other_keys_and_none_are_other_mails(self, server, connection):
        for key in ("0190-1", "0190-2", "", ""):
            assert connection.hand_over(an_email(), key=key).kind is Kind.ACCEPTED

        assert len(server.accepted) == 4

    @pytest.mark.parametrize("fault", [Fault.ACCEPT_AND_HANG_UP, Fault.ACCEPT_IN_SILENCE])
    def test_mail_whose_answer_got_lost_is_taken_once(self, server, connection, fault):
        """F-E16"""
        server.behave = in_turn(fault)

        lost = connection.hand_over(an_email(), key="0190-1")
        again = connection.hand_over(an_email(), key="0190-1")

        assert (lost.kind, lost.is_repeatable, again.kind) == (Kind.UNCERTAIN, True, Kind.ACCEPTED)
        assert len(server.accepted) == 1

    @pytest.mark.parametrize("fault", [Fault.HANG_UP, Answer(503)])
    def test_a_call_that_was_not_taken_leaves_its_key_unused(self, server, connection, fault):
        server.behave = in_turn(fault)

        connection.hand_over(an_email(), key="0190-1")
        connection.hand_over(an_email(), key="0190-1")

        assert len(server.accepted) == 1

    def test_another_mail_under_a_used_key_is_our_fault(self, server, connection):
        connection.hand_over(an_email(), key="0190-1")

        outcome = connection.hand_over(an_email("bob@example.org"), key="0190-1")

        assert (outcome.kind, outcome.code) == (Kind.MISCONFIGURED, "HTTP 409 invalid_idempotent_request")
        assert len(server.accepted) == 1

    def test_a_call_whose_twin_is_not_done_may_yet_be_taken(self, server, connection):
        """It is asked again with its key; were it deferred, it could go elsewhere, and its twin arrive too."""
        is_taken, may_end = threading.Event(), threading.Event()
        server.on_accepted = lambda _mail: is_taken.set() or may_end.wait(10)
        twin = threading.Thread(target=lambda: Connection("esp").hand_over(an_email(), key="0190-1"))
        twin.start()
        assert is_taken.wait(10)

        outcome = connection.hand_over(an_email(), key="0190-1")
        may_end.set()
        twin.join()

        assert (outcome.kind, outcome.is_repeatable) == (Kind.UNCERTAIN, True)
        assert outcome.code == "HTTP 409 concurrent_idempotent_requests"
        assert len(server.accepted) == 1


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


@pytest.mark.parametrize("esp", ["mailgun"], indirect=True)
def test_no_key_and_nothing_of_the_mail_gets_into_an_outcome(server, connection):
    server.behave = every(1, Answer(400, {"message": "No"}))
    email = an_email("secret-address@example.org")
    email.body = "secret words"

    assert str(connection.hand_over(email)) == "HTTP 400 No"


@pytest.mark.parametrize("esp", ["mailgun"], indirect=True)
def test_what_an_earlier_provider_said_is_not_believed_of_the_next(server, connection):
    email = an_email()
    connection.hand_over(email)
    server.down()

    assert connection.hand_over(email).kind is not Kind.ACCEPTED
