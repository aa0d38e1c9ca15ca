"""Rescue: what a lost worker held comes back, and what it may have sent is in doubt."""

from __future__ import annotations

import pytest
from django.db import connection

from mailengine.models import Attempt, Message, Worker
from mailengine.models.messages import POISON_CLAIMS, Status

from .helpers import (
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
)

pytestmark = pytest.mark.django_db


def claim_and_die(clock, *, status: Status = Status.QUEUED, name: str = "mail3:4711") -> None:
    claim(new_lease(name), status=status)
    clock.advance(seconds=LEASE_SECONDS + 1)


@pytest.mark.parametrize("status", [Status.QUEUED, Status.DEFERRED, Status.UNCERTAIN])
def test_what_was_not_begun_goes_back_to_what_it_was(status, clock):
    """G28, P20: at no cost, and the history names the dead worker."""
    message = make_message(status)
    claim_and_die(clock, status=status)
    assert rescue() == 1
    message.refresh_from_db()
    assert (message.status, message.attempt_count, message.lease) == (status, 0, None)
    assert "mail3:4711" in message.reason


def test_what_was_begun_is_uncertain_for_its_window(clock):
    """P20: the message and the ledger name the dead worker."""
    message = after_a_lost_handover(clock)
    attempt = message.attempts.get()
    assert (message.status, message.uncertain_count, message.provider) == ("uncertain", 1, "relay")
    assert 590 < (message.available_at - now()).total_seconds() <= 600
    assert (attempt.outcome, attempt.code) == ("uncertain", "worker lost")
    assert attempt.ended_at is not None
    assert "mail3:4711" in message.reason
    assert "mail3:4711" in attempt.detail


def test_what_was_begun_is_kept_where_the_stream_says_so(clock):
    lease, message = new_lease(), make_message()
    claim(lease)
    begin(message, lease)
    clock.advance(seconds=LEASE_SECONDS + 1)
    rescue(window=None)
    assert list(Message.objects.kept_for_a_person()) == [message]


def test_an_attempt_that_has_ended_leaves_nothing_in_doubt(clock):
    """A worker that asks the next provider has ended its first attempt, and dies before the second."""
    lease, message = new_lease(), make_message()
    claim(lease)
    begin(message, lease)
    Attempt.objects.end(message.pk, 1, DEFERRED)
    clock.advance(seconds=LEASE_SECONDS + 1)
    rescue()
    message.refresh_from_db()
    assert (message.status, message.uncertain_count) == ("queued", 0)


def test_what_kills_its_worker_three_times_is_poison(clock):
    """P21: dead-lettered, with the reason; before that it goes back."""
    message = make_message()
    for _ in range(POISON_CLAIMS - 1):
        claim_and_die(clock)
        rescue()
    message.refresh_from_db()
    assert message.status == "queued"
    claim_and_die(clock, name="mail9:1")
    rescue()
    message.refresh_from_db()
    assert (message.status, message.reason) == ("dead", "poison: worker died 3 times, last mail9:1")


def test_poison_that_may_have_gone_is_kept_for_a_person(clock):
    message = make_message(Status.UNCERTAIN, uncertain_count=1)
    for _ in range(POISON_CLAIMS):
        claim_and_die(clock, status=Status.UNCERTAIN)
        rescue()
    message.refresh_from_db()
    assert list(Message.objects.kept_for_a_person()) == [message]
    assert message.reason.startswith("poison")


def test_who_was_in_flight_when_a_worker_died_is_claimed_alone_the_next_time(clock):
    """It may have been the cause, and must take nobody along a second time."""
    message = after_a_lost_handover(clock)
    assert (message.status, message.claim_count) == ("uncertain", 1)
    clock.advance(seconds=601)

    (again,) = claim(new_lease(), status=Status.UNCERTAIN)

    assert again.is_suspect


def test_a_worker_whose_row_was_purged_is_unknown(clock):
    message = make_message()
    claim_and_die(clock)
    Worker.objects.all().delete()
    rescue()
    message.refresh_from_db()
    assert message.reason == "its worker unknown was lost before the handover"


@pytest.mark.django_db(transaction=True)
def test_a_rescue_takes_all_in_short_transactions_the_longest_lost_first(clock):
    messages = [make_message() for _ in range(5)]
    for _ in messages:
        claim(new_lease(), limit=1)
        clock.advance(seconds=1)
    clock.advance(seconds=LEASE_SECONDS)
    for message in messages:
        begin(message, new_lease())
    seen = []

    def window(message):
        with in_another_process(Message.objects.filter(status=Status.UNCERTAIN).count) as others:
            seen.append((message.pk, others.result(timeout=20)))

    assert Message.objects.rescue(window=window, batch=2) == 5
    assert seen == list(zip([message.pk for message in messages], [0, 0, 2, 2, 4], strict=True))


@pytest.mark.parametrize("count", [3, 4])
def test_whatever_has_expired_is_closed_in_batches(count):
    make_messages(count, expires_at=now(minutes=-1))
    assert Message.objects.expire(batch=2) == count
    assert Message.objects.filter(status=Status.EXPIRED).count() == count


def test_a_run_that_must_stop_begins_no_further_batch(clock):
    make_messages(3)
    claim_and_die(clock)
    make_messages(3, expires_at=now(minutes=-1))
    assert Message.objects.expire(batch=2, must_stop=lambda: True) == 2
    assert Message.objects.rescue(window=lambda message: None, batch=2, must_stop=lambda: True) == 2


def test_many_messages_of_one_worker_need_one_look_at_it(clock, django_assert_num_queries):
    make_messages(5)
    claim_and_die(clock)
    # A transaction, and on PostgreSQL its limits; the messages, their worker, their open attempts; an update each.
    with django_assert_num_queries(2 + (connection.vendor == "postgresql") + 3 + 5):
        Message.objects.rescue(window=lambda message: None)


@pytest.mark.django_db(transaction=True)
def test_rescues_at_the_same_time_move_each_message_once(clock):
    """F-L04: on five hosts at once, one transition each."""
    lease, messages = new_lease(), make_messages(20)
    claim(lease)
    for message in messages[:10]:
        begin(message, lease)
    clock.advance(seconds=LEASE_SECONDS + 1)
    assert sum(at_the_same_time(5, rescue)) == 20
    assert Message.objects.filter(status=Status.QUEUED, uncertain_count=0).count() == 10
    assert Message.objects.filter(status=Status.UNCERTAIN, uncertain_count=1).count() == 10
