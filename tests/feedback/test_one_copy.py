"""With webhooks there is no second copy: real workers, a server that speaks as Mailgun, the project's pages."""

from __future__ import annotations

import signal

import pytest
from django.db import connection

from mailengine.models import Attempt
from mailengine.testing.esp_server import Answer, Fault

from .. import processes
from ..dispatch.helpers import ledger, queue, send
from ..dispatch.test_crashes import LEASE_SECONDS, die_at, rescued, wait_for
from .payloads import post

pytestmark = pytest.mark.django_db(transaction=True)

BEFORE_END = die_at("mailengine.models.attempts:AttemptQuerySet.end_many")


@pytest.fixture(autouse=True)
def ways(mailgun, pages):
    """The way out and the way back."""


def sent_and_killed(mailgun):
    """A message that Mailgun has answered 200 to, whose worker was killed before it could enter that."""
    message = queue()
    killed = processes.run("send_mail", before=BEFORE_END)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [mail.mailengine_id for mail in mailgun.accepted] == [str(message.pk)]
    return message


def run() -> None:
    """Send, whatever the exit code."""
    try:
        send()
    except SystemExit:
        return


def webhook(mail) -> None:
    """What Mailgun posts about a mail that it has accepted."""
    assert post("mailgun", mail.mailengine_id).status_code == 200


def test_a_webhook_before_the_rescue_leaves_nothing_to_be_done(mailgun, clock):
    """F-P05, P28."""
    message = sent_and_killed(mailgun)

    webhook(mailgun.accepted[0])

    message.refresh_from_db()
    assert message.status == "sent"
    clock.advance(seconds=LEASE_SECONDS + 1)
    run()
    clock.advance(seconds=601)
    run()
    assert len(mailgun.accepted) == 1
    message.refresh_from_db()
    attempt = message.attempts.get()
    assert (message.status, attempt.outcome, attempt.code) == ("sent", "accepted", "webhook")


def test_a_webhook_within_the_window_spares_the_second_copy(mailgun, clock):
    """F-P05, P28."""
    message = sent_and_killed(mailgun)
    clock.advance(seconds=LEASE_SECONDS + 1)
    wait_for(lambda: rescued(message))
    assert message.status == "uncertain"

    webhook(mailgun.accepted[0])
    clock.advance(seconds=601)
    run()

    message.refresh_from_db()
    assert (message.status, len(mailgun.accepted)) == ("sent", 1)
    assert ledger(message) == [("mailgun", "accepted")]


def test_without_a_webhook_there_is_one_more(mailgun, clock):
    """What the two tests above would see if nobody read the webhook."""
    message = sent_and_killed(mailgun)
    clock.advance(seconds=LEASE_SECONDS + 1)
    wait_for(lambda: rescued(message))
    clock.advance(seconds=601)
    run()
    assert len(mailgun.accepted) == 2
    assert ledger(message) == [("mailgun", "uncertain"), ("mailgun", "accepted")]


ANSWERS = {
    "accepted": None,
    "lost": Fault.ACCEPT_AND_HANG_UP,
    "unavailable": Answer(503),
    "refused": Answer(400, {"message": "to parameter is not a valid address"}),
    "throttled": Answer(429, headers={"Retry-After": "60"}),
    "misconfigured": Answer(401),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_the_result_of_a_handover_that_a_webhook_has_overtaken_changes_nothing(mailgun, clock, answer):
    def overtaken(mail):
        webhook_from_a_thread(mail)
        return ANSWERS[answer]

    mailgun.behave = overtaken
    message = queue()
    run()
    mailgun.behave = None
    for _ in range(3):
        clock.advance(hours=1)
        run()

    message.refresh_from_db()
    assert (message.status, mailgun.calls) == ("sent", 1)
    assert ledger(message) == [("mailgun", "accepted")]


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ("accepted", "accepted"),
        ("lost", "uncertain"),
        ("unavailable", "unavailable"),
        ("misconfigured", "misconfigured"),
    ],
)
def test_there_is_no_third_copy(mailgun, clock, answer, outcome):
    """The first is proven while the second is under way: that one ends in the ledger as it ends."""
    mailgun.behave = lambda mail: Fault.ACCEPT_AND_HANG_UP
    message = queue()
    run()
    assert ledger(message) == [("mailgun", "uncertain")]

    def overtaken(mail):
        webhook_from_a_thread(mail)
        return ANSWERS[answer]

    mailgun.behave = overtaken
    clock.advance(seconds=601)
    run()
    mailgun.behave = None
    for _ in range(3):
        clock.advance(hours=1)
        run()

    message.refresh_from_db()
    assert (message.status, mailgun.calls) == ("sent", 2)
    assert ledger(message) == [("mailgun", "accepted"), ("mailgun", outcome)]
    assert not Attempt.objects.open().exists()


def webhook_from_a_thread(mail) -> None:
    """As `webhook()`, from a thread of the ESP's, with a connection to the database that is its own."""
    try:
        webhook(mail)
    finally:
        connection.close()
