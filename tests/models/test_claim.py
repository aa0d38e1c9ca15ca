"""Claim: who gets which messages, in which order, and for how long."""

from __future__ import annotations

from itertools import chain

import pytest
from django.db import connection, transaction

from mailengine.models import Message
from mailengine.models.messages import Status

from .helpers import (
    LEASE_SECONDS,
    at_the_same_time,
    claim,
    in_another_process,
    make_message,
    make_messages,
    new_lease,
    now,
    rescue,
)

ROW_LOCKS = pytest.mark.skipif(connection.vendor == "sqlite", reason="a transaction on SQLite locks the whole file")


@pytest.mark.django_db
def test_the_order_is_priority_then_due_time_then_age():
    make_message(recipient="bulk", priority=40, available_at=now(hours=-9))
    make_message(recipient="later", available_at=now(hours=-1))
    due_at = now(hours=-2)
    make_message(recipient="older", available_at=due_at)
    make_message(recipient="younger", available_at=due_at)
    make_message(recipient="urgent", priority=0)
    order = [message.recipient for message in claim(new_lease())]
    assert order == ["urgent", "older", "younger", "later", "bulk"]


@pytest.mark.django_db
def test_no_more_than_the_limit_is_claimed():
    make_messages(5)
    assert len(claim(new_lease(), limit=3)) == 3
    assert len(claim(new_lease(), limit=3)) == 2


@pytest.mark.django_db
def test_mail_is_not_claimed_before_it_is_due(clock):
    make_message(available_at=now(minutes=10))
    clock.advance(minutes=9)
    assert claim(new_lease()) == []
    clock.advance(minutes=2)
    assert len(claim(new_lease())) == 1


@pytest.mark.django_db
def test_mail_without_a_due_time_is_not_claimed():
    make_message(available_at=None)
    make_message(Status.UNCERTAIN, available_at=None)
    assert claim(new_lease()) == []
    assert claim(new_lease(), status=Status.UNCERTAIN) == []


@pytest.mark.django_db
def test_a_claim_says_whose_it_is_and_until_when():
    lease = new_lease()
    make_message(Status.DEFERRED)
    (claimed,) = claim(lease, status=Status.DEFERRED)
    row = Message.objects.get()
    assert (row.status, row.claimed_from, row.lease, row.worker, row.claim_count) == (
        "sending", "deferred", lease.id, lease.worker, 1,
    )  # fmt: skip
    assert abs((row.leased_until - now(seconds=LEASE_SECONDS)).total_seconds()) < 5
    assert (claimed.status, claimed.claimed_from, claimed.lease, claimed.claim_count) == (
        row.status, row.claimed_from, row.lease, row.claim_count,
    )  # fmt: skip


@pytest.mark.django_db
def test_a_claim_is_one_statement_on_postgresql_and_two_elsewhere_however_many_it_takes(django_assert_num_queries):
    """G14"""
    make_messages(20)
    lease = new_lease()
    with django_assert_num_queries(1 if connection.vendor == "postgresql" else 2):
        assert len(Message.objects.claim(lease, statuses=[Status.QUEUED], seconds=LEASE_SECONDS, limit=16)) == 16


@pytest.mark.django_db
def test_a_claim_that_finds_nothing_takes_one_statement(django_assert_num_queries):
    lease = new_lease()
    with django_assert_num_queries(1):
        assert Message.objects.claim(lease, statuses=[Status.QUEUED], seconds=LEASE_SECONDS, limit=16) == []


@pytest.mark.django_db
def test_a_message_is_claimable_again_after_its_lease_and_not_before(clock):
    """G29: a dead node's messages come back after the lease."""
    message = make_message()
    claim(new_lease("dead:1"))
    clock.advance(seconds=LEASE_SECONDS - 5)
    assert (rescue(), claim(new_lease())) == (0, [])
    clock.advance(seconds=10)
    assert rescue() == 1
    assert claim(new_lease("alive:1")) == [message]


@pytest.mark.django_db(transaction=True)
def test_no_message_is_claimed_by_two_processes():
    """P19: what one process has claimed is invisible to the others; F-L01 in small."""
    make_messages(40)
    lease = new_lease()

    def claim_until_dry():
        mine = []
        while claimed := claim(lease, limit=3):
            mine += [message.pk for message in claimed]
        return mine

    claimed = list(chain.from_iterable(at_the_same_time(4, claim_until_dry)))
    # A claim may find all that is left locked by others, so some may be left; nothing is taken twice.
    assert len(claimed) == len(set(claimed))
    left = Message.objects.filter(status=Status.QUEUED).count()
    assert len(claimed) + left == 40


@ROW_LOCKS
@pytest.mark.django_db(transaction=True)
def test_a_locked_row_is_passed_over_without_waiting():
    """F-L12: an admin's long transaction holds rows; workers take the others."""
    locked, free = make_message(priority=0), make_message(priority=40)
    lease = new_lease()
    with transaction.atomic():
        Message.objects.filter(pk=locked.pk).update(reason="being edited")
        with in_another_process(lambda: claim(lease)) as claimed:
            assert claimed.result(timeout=10) == [free]


@ROW_LOCKS
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("verb", ["rescue", "expire"])
def test_housekeeping_passes_over_locked_rows_too(verb, clock):
    """F-L12"""
    make_messages(2, expires_at=now(hours=-1))
    if verb == "rescue":
        claim(new_lease())
        clock.advance(seconds=LEASE_SECONDS + 1)
    first = Message.objects.earliest("id")

    def keep_house():
        with transaction.atomic():
            return Message.objects.expire() if verb == "expire" else rescue()

    with transaction.atomic():
        Message.objects.filter(pk=first.pk).update(reason="being edited")
        with in_another_process(keep_house) as moved:
            assert moved.result(timeout=10) == 1
