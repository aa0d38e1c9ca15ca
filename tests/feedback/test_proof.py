"""What an event proves, whatever state it finds the message in."""

from __future__ import annotations

import itertools
from datetime import timedelta

import pytest
from anymail.signals import AnymailTrackingEvent, EventType, tracking
from django.db import transaction

from mailengine.models import Attempt, Message
from mailengine.models.messages import Status

from ..models.helpers import (
    LEASE_SECONDS,
    at_the_same_time,
    begin,
    claim,
    make_message,
    new_lease,
    now,
    rescue,
)

pytestmark = pytest.mark.django_db

PROOFS = [
    "queued", "sent", "rejected", "failed", "bounced", "deferred", "delivered", "autoresponded", "opened", "clicked",
    "complained", "unsubscribed",
]  # fmt: skip


@pytest.fixture(autouse=True)
def providers(esps):
    """All messages here are at real ESPs."""


def report(message, event_type="delivered", *, esp_name="Mailgun", message_id="<1@mailgun.test>", **event):
    """What Anymail's view does with an event about this message."""
    event = {"metadata": {"mailengine_id": str(message.pk)}, **event}
    event = AnymailTrackingEvent(event_type=event_type, message_id=message_id, **event)
    return tracking.send(sender=object, event=event, esp_name=esp_name)


def lost(clock, *, window: float | None = 600, provider: str = "mailgun", **fields) -> Message:
    """A message that is uncertain, since the worker that handed it to this provider died."""
    message, lease = make_message(**fields), new_lease()
    claim(lease)
    begin(message, lease, provider=provider)
    clock.advance(seconds=LEASE_SECONDS + 1)
    rescue(window)
    message.refresh_from_db()
    assert message.status == "uncertain"
    return message


def ledger(message) -> list[tuple[str, str, str]]:
    return list(message.attempts.order_by("number").values_list("provider", "outcome", "code"))


def assert_proven(message) -> None:
    message.refresh_from_db()
    assert (message.status, message.provider, message.provider_message_id) == ("sent", "mailgun", "<1@mailgun.test>")
    assert (message.lease, message.leased_until, message.available_at) == (None, None, None)
    assert message.sent_at is not None


@pytest.mark.parametrize("window", [600, None], ids=["waiting", "kept for a person"])
def test_uncertain_mail_is_sent_by_proof(clock, window):
    """P28."""
    message = lost(clock, window=window)

    report(message)

    assert_proven(message)
    attempt = message.attempts.get()
    assert (attempt.outcome, attempt.code, attempt.detail) == ("accepted", "webhook", "Mailgun reported: delivered")
    assert message.reason == "proven: webhook Mailgun reported: delivered"


@pytest.mark.parametrize("event_type", PROOFS)
def test_whatever_became_of_it_the_esp_took_it(clock, event_type):
    message = lost(clock)
    report(message, event_type)
    assert_proven(message)


@pytest.mark.parametrize("event_type", ["unknown", "subscribed", "inbound", "inbound_failed", "new in Anymail", None])
def test_other_events_prove_nothing(clock, event_type):
    message = lost(clock)
    report(message, event_type)
    message.refresh_from_db()
    assert message.status == "uncertain"


def test_every_kind_of_event_was_thought_of():
    kinds = {value for name, value in vars(EventType).items() if name.isupper()}
    assert kinds == {*PROOFS, "unknown", "subscribed", "inbound", "inbound_failed"}


def test_what_a_dead_worker_had_begun_is_sent_before_its_rescue(clock):
    """F-P05: the webhook comes first."""
    message, lease = make_message(), new_lease()
    claim(lease)
    begin(message, lease, provider="mailgun")

    report(message)

    assert_proven(message)
    clock.advance(seconds=LEASE_SECONDS + 1)
    assert rescue() == 0
    assert_proven(message)
    assert not Attempt.objects.open().exists()


def test_what_was_claimed_again_is_not_begun(clock):
    message = lost(clock)
    clock.advance(seconds=601)
    lease = new_lease("mail4:1")
    [claimed] = claim(lease, status=Status.UNCERTAIN)

    report(message)

    assert_proven(message)
    with transaction.atomic():
        assert Message.objects.held([claimed.pk])[claimed.pk].lease is None


def test_what_a_person_requeued_is_not_sent_again(clock):
    message = lost(clock, window=None)
    Message.objects.filter(pk=message.pk).requeue()
    report(message)
    assert_proven(message)


def test_what_was_given_up_stays_so_and_the_ledger_knows(clock):
    message = lost(clock, window=None)
    Message.objects.filter(pk=message.pk).bury()

    report(message)

    message.refresh_from_db()
    assert (message.status, ledger(message)) == ("dead", [("mailgun", "accepted", "webhook")])


def test_a_second_handover_under_way_is_not_left_open(clock):
    """Its worker may be dead: nobody would end it."""
    message = lost(clock)
    clock.advance(seconds=601)
    lease = new_lease("mail4:1")
    claim(lease, status=Status.UNCERTAIN)
    begin(message, lease, number=2, provider="mailgun")

    report(message)

    assert_proven(message)
    assert ledger(message) == [("mailgun", "accepted", "webhook"), ("mailgun", "uncertain", "webhook")]
    clock.advance(seconds=LEASE_SECONDS + 1)
    assert rescue() == 0


def test_what_another_esp_has_sent_meanwhile_is_known_to_be_twice(clock):
    """Urgent mail goes elsewhere after its window; the ledger shows both copies."""
    message = lost(clock, priority=0)
    clock.advance(seconds=31)
    lease = new_lease("mail4:1")
    claim(lease, status=Status.UNCERTAIN)
    begin(message, lease, number=2, provider="postmark")
    report(message, esp_name="Postmark", message_id="from-postmark")
    report(message)

    message.refresh_from_db()
    assert (message.provider, message.provider_message_id) == ("postmark", "from-postmark")
    assert ledger(message) == [("mailgun", "accepted", "webhook"), ("postmark", "accepted", "webhook")]


def test_an_event_of_the_second_copy_says_nothing_of_the_first(clock):
    message = lost(clock)
    clock.advance(seconds=601)
    lease = new_lease("mail4:1")
    claim(lease, status=Status.UNCERTAIN)
    begin(message, lease, number=2, provider="mailgun")
    Attempt.objects.filter(number=2).update(outcome="accepted", code="HTTP 200", ended_at=now())

    report(message)

    assert ledger(message) == [("mailgun", "uncertain", "worker lost"), ("mailgun", "accepted", "HTTP 200")]


@pytest.mark.parametrize("outcome", ["refused", "unavailable", "deferred", "misconfigured", "throttled"])
def test_what_the_provider_said_no_to_is_not_proven(clock, outcome):
    message = make_message()
    Attempt.objects.create(
        message=message, number=1, provider="mailgun", begun_at=now(), ended_at=now(), outcome=outcome
    )
    report(message)
    message.refresh_from_db()
    assert (message.status, ledger(message)) == ("queued", [("mailgun", outcome, "")])


@pytest.mark.parametrize("provider", ["postmark", "relay", "gone"])
def test_only_the_esp_that_was_tried_is_believed(clock, provider, caplog):
    """SW3: and a backend that is none of an ESP, or is configured no more, is nobody's."""
    message = lost(clock, provider=provider)

    report(message)

    message.refresh_from_db()
    assert (message.status, ledger(message)) == ("uncertain", [(provider, "uncertain", "worker lost")])
    assert "Mailgun" in caplog.text


def test_a_retired_provider_is_believed_while_its_entry_is_there(clock, settings):
    message = lost(clock)
    settings.MAILENGINE = {**settings.MAILENGINE, "PROVIDERS": ["postmark"]}
    report(message)
    assert_proven(message)


def test_all_addresses_of_a_message_were_handed_over(clock):
    entries = [
        {"address": "ann@example.org", "name": "", "kind": "to", "outcome": ""},
        {"address": "bob@example.org", "name": "", "kind": "cc", "outcome": "refused"},
        {"address": "eve@example.org", "name": "", "kind": "bcc", "outcome": ""},
    ]
    message = lost(clock, other_recipients=entries)
    report(message)
    message.refresh_from_db()
    assert [entry["outcome"] for entry in message.recipients] == ["accepted", "refused", "accepted"]


def test_a_replay_has_one_effect(clock):
    """F-W01."""
    message = lost(clock)
    report(message)
    message.refresh_from_db()
    attempt, sent_at = message.attempts.values().get(), message.sent_at
    clock.advance(hours=1)

    for _ in range(1_000):
        report(message)

    message.refresh_from_db()
    assert message.sent_at == sent_at
    assert message.attempts.values().get() == attempt


def test_a_replay_takes_no_lock(clock, django_assert_num_queries):
    """Nearly all events are about mail that is known to be sent."""
    message = lost(clock)
    report(message)
    with django_assert_num_queries(1):
        report(message, "opened")


def test_the_order_of_events_does_not_matter(clock):
    """F-W03: all 120 of five."""
    for events in itertools.permutations(["queued", "delivered", "opened", "bounced", "complained"]):
        message = lost(clock)
        for event_type in events:
            report(message, event_type)
        assert_proven(message)
        assert ledger(message) == [("mailgun", "accepted", "webhook")]


@pytest.mark.parametrize(
    "metadata",
    [
        None, {}, [], "mailengine_id", ["mailengine_id"], {"mailengine_id": None}, {"mailengine_id": 7},
        {"mailengine_id": ["0190"]}, {"mailengine_id": "\ud800"}, {"mailengine_id": "0" * 100_000},
        {"mailengine_id": "ffffffff-ffff-ffff-ffff-ffffffffffff"}, 7,
    ],
)  # fmt: skip
def test_garbage_is_passed_over(clock, metadata):
    message = lost(clock)
    report(message, metadata=metadata)
    message.refresh_from_db()
    assert message.status == "uncertain"


@pytest.mark.parametrize("message_id", [None, "", "\x00<1@mailgun.test>\ud800", "x" * 10_000, 7, ["a"]])
def test_whatever_the_esp_calls_its_message(clock, message_id):
    message = lost(clock)
    report(message, message_id=message_id)
    message.refresh_from_db()
    assert message.status == "sent"


@pytest.mark.django_db(transaction=True)
def test_events_at_the_same_time_have_one_effect(clock):
    """And the rescue is at it too."""
    for _ in range(5):
        message, lease = make_message(available_at=now() - timedelta(days=1)), new_lease()
        claim(lease)
        begin(message, lease, provider="mailgun")
        clock.advance(seconds=LEASE_SECONDS + 1)
        work = iter([rescue, *[lambda message=message: report(message)] * 4])
        at_the_same_time(5, lambda work=work: next(work)())
        assert_proven(message)
        assert ledger(message) == [("mailgun", "accepted", "webhook")]
