"""The ledger: one row for one handover, whose late result counts until the next has begun."""

from __future__ import annotations

import threading
from concurrent.futures import wait

import pytest
from django.db import IntegrityError, connection, transaction

from mailengine.models import Attempt, Message
from mailengine.models.attempts import Record
from mailengine.models.messages import Status, Verdict
from mailengine.outcomes import Kind, Outcome

from .helpers import (
    ACCEPTED,
    DEFERRED,
    LEASE_SECONDS,
    after_a_lost_handover,
    at_the_same_time,
    begin,
    claim,
    in_another_process,
    make_message,
    make_messages,
    new_lease,
    now,
    rescue,
    settle_late,
)

pytestmark = pytest.mark.django_db
SENT = Verdict(Status.SENT)


def test_an_attempt_is_entered_before_and_after_the_handover():
    """G18, P26"""
    lease, message = new_lease(), make_message()
    begin(message, lease)
    attempt = Attempt.objects.get()
    assert (attempt.number, attempt.provider, attempt.worker) == (1, "relay", lease.worker)
    assert (attempt.ended_at, attempt.result) == (None, None)
    Attempt.objects.end(message.pk, 1, Outcome(Kind.REFUSED, code="550 5.2.1", detail="Disabled", sha256=b"x" * 32))
    attempt.refresh_from_db()
    assert attempt.result == Outcome(Kind.REFUSED, code="550 5.2.1", detail="Disabled")
    assert attempt.ended_at >= attempt.begun_at
    assert bytes(attempt.sha256) == b"x" * 32


def test_many_attempts_begin_in_one_statement(django_assert_num_queries):
    lease, messages = new_lease(), make_messages(8)
    instant = now()
    with django_assert_num_queries(1):
        Attempt.objects.begin({message.pk: (1, "relay") for message in messages}, worker=lease.worker, now=instant)
    assert Attempt.objects.open().count() == 8


def test_what_was_accepted_is_recorded_as_by_one_settle_each():
    """The short way for many says the same as `end()` and `settle()` for one."""
    lease, messages = new_lease(), make_messages(3)
    claim(lease)
    for message in messages:
        message.provider = "relay"
        message.other_recipients = [{"address": message.recipient, "name": "", "kind": "to", "outcome": "accepted"}]
        begin(message, lease)
    one, *several = messages
    Attempt.objects.end(one.pk, 1, ACCEPTED)
    Message.objects.settle(one, SENT, lease=lease, outcome=ACCEPTED)
    with transaction.atomic():
        instant = next(iter(Message.objects.held([message.pk for message in several]).values())).now
        Attempt.objects.end_many([(message.pk, 1, ACCEPTED) for message in several], now=instant)
        Message.objects.settle_sent([(message, ACCEPTED) for message in several], now=instant)
    own = ("id", "recipient", "other_recipients", "sent_at", "created_at")
    rows = [{k: v for k, v in row.items() if k not in own} for row in Message.objects.order_by("id").values()]
    assert rows == [rows[0]] * 3
    assert list(Message.objects.filter(pk__gt=one.pk).values_list("sent_at", flat=True)) == [instant] * 2
    assert {row.recipients[0]["outcome"] for row in Message.objects.all()} == {"accepted"}
    attempts = list(Attempt.objects.order_by("message_id").values("outcome", "code", "detail", "sha256"))
    assert attempts == [attempts[0]] * 3
    assert not Attempt.objects.open().exists()


def test_the_ledger_is_asked_about_many_messages_in_one_statement(django_assert_num_queries):
    """P25: what it knows as accepted need not be sent again."""
    lease = new_lease()
    fresh, tried, gone = make_messages(3)
    for message, number, outcome in [
        (tried, 1, DEFERRED),
        (tried, 2, DEFERRED),
        (gone, 1, DEFERRED),
        (gone, 2, ACCEPTED),
    ]:
        begin(message, lease, number=number)
        Attempt.objects.end(message.pk, number, outcome)
    with django_assert_num_queries(1):
        records = Attempt.objects.records([fresh.pk, tried.pk, gone.pk])
    assert records == {tried.pk: Record(2, accepted=False), gone.pk: Record(2, accepted=True)}


def test_an_attempt_can_not_be_begun_twice():
    """P26: the ledger has a unique key."""
    lease, message = new_lease(), make_message()
    begin(message, lease)
    with pytest.raises(IntegrityError), transaction.atomic():
        begin(message, lease)


@pytest.mark.django_db(transaction=True)
def test_two_processes_can_not_both_begin():
    """P25"""
    lease, message = new_lease(), make_message()

    def try_to_begin():
        try:
            with transaction.atomic():
                begin(message, lease)
        except IntegrityError:
            return False
        return True

    assert sorted(at_the_same_time(2, try_to_begin)) == [False, True]


def test_a_late_acceptance_counts(clock):
    """F-P14: the frozen process wakes up, and nobody has sent it again."""
    message = after_a_lost_handover(clock)
    assert settle_late(message, SENT)
    message.refresh_from_db()
    assert (message.status, message.provider_message_id) == ("sent", "from-the-provider")


def test_a_late_acceptance_replaces_what_the_rescue_entered(clock):
    message = after_a_lost_handover(clock)
    Attempt.objects.end(message.pk, 1, ACCEPTED)
    assert message.attempts.get().outcome == "accepted"


def test_a_late_acceptance_wins_over_a_claim_that_has_not_begun(clock):
    message, second = after_a_lost_handover(clock), new_lease("other:1")
    clock.advance(seconds=601)
    assert claim(second, status=Status.UNCERTAIN) == [message]
    assert settle_late(message, SENT)
    assert not Message.objects.settle(message, Verdict(Status.DEAD), lease=second)
    message.refresh_from_db()
    assert message.status == "sent"


def test_a_late_acceptance_changes_nothing_once_the_next_attempt_has_begun(clock):
    message, second = after_a_lost_handover(clock), new_lease("other:1")
    clock.advance(seconds=601)
    claim(second, status=Status.UNCERTAIN)
    begin(message, second, number=2)
    assert not settle_late(message, SENT)
    message.refresh_from_db()
    assert (message.status, message.lease) == ("sending", second.id)


def test_a_late_refusal_for_now_is_a_proof_too(clock):
    message = after_a_lost_handover(clock)
    assert settle_late(message, Verdict(Status.DEFERRED, available_at=now(), spends_attempt=True), outcome=DEFERRED)
    message.refresh_from_db()
    assert (message.status, message.attempt_count) == ("deferred", 1)


@pytest.mark.parametrize(("outcome", "before", "after"), [(DEFERRED, 1, 0), (DEFERRED, 2, 1), (ACCEPTED, 1, 1)])
def test_a_late_result_that_it_did_not_go_takes_its_doubt_away_and_no_other(clock, outcome, before, after):
    message = after_a_lost_handover(clock)
    Message.objects.update(uncertain_count=before)
    settle_late(message, Verdict(Status.DEFERRED, available_at=now()), outcome=outcome)
    message.refresh_from_db()
    assert message.uncertain_count == after


def test_a_message_that_a_person_requeued_is_not_settled_late(clock):
    """Its next Begin asks the ledger, see P25."""
    message = after_a_lost_handover(clock)
    Message.objects.update(available_at=None)
    Message.objects.all().requeue()
    assert not settle_late(message, SENT)


def test_held_rows_say_what_they_are_now_and_what_time_it_is(django_assert_num_queries):
    lease, (first, second) = new_lease(), make_messages(2)
    claim(lease, limit=1)
    with django_assert_num_queries(2 if connection.vendor == "postgresql" else 1):  # one for the limit of its wait
        rows = Message.objects.held([first.pk, second.pk])
    assert (rows[first.pk].lease, rows[second.pk].lease) == (lease.id, None)
    assert abs((rows[first.pk].now - now()).total_seconds()) < 5


@pytest.mark.skipif(connection.vendor == "sqlite", reason="a transaction on SQLite locks the whole file")
@pytest.mark.django_db(transaction=True)
def test_a_late_result_waits_for_a_begin_under_way_and_then_changes_nothing(clock):
    message, second = after_a_lost_handover(clock), new_lease("other:1")
    clock.advance(seconds=601)
    claim(second, status=Status.UNCERTAIN)
    begun, asked = threading.Event(), threading.Event()

    def settle():
        begun.wait(timeout=10)
        asked.set()
        return settle_late(message, SENT)

    with in_another_process(settle) as late:
        with transaction.atomic():
            Message.objects.held([message.pk])
            begin(message, second, number=2)
            begun.set()
            assert asked.wait(timeout=10)
            wait([late], timeout=0.5)
            assert not late.done()
        assert late.result(timeout=10) is False
    message.refresh_from_db()
    assert message.status == "sending"


def test_who_lost_the_lease_changes_nothing(clock):
    """P19: neither by settling nor by giving back what another holds by now."""
    message, first, second = make_message(), new_lease("slow:1"), new_lease("quick:1")
    claim(first)
    clock.advance(seconds=LEASE_SECONDS + 1)
    rescue()
    claim(second)
    assert not Message.objects.settle(message, SENT, lease=first, outcome=ACCEPTED)
    assert Message.objects.release([message.pk], first) == 0
    message.refresh_from_db()
    assert (message.status, message.lease) == ("sending", second.id)
