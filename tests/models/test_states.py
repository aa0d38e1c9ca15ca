"""Who may move a message where: every verb from every state. P22: the same suite runs on every database."""

from __future__ import annotations

import pytest

from mailengine.models import Message
from mailengine.models.messages import Status, Verdict
from mailengine.outcomes import Kind, Outcome

from .helpers import ACCEPTED, LEASE_SECONDS, claim, make_message, new_lease, now, rescue, settle_late

pytestmark = pytest.mark.django_db

STATES = [*Status.values, "kept"]
"""`kept` is an uncertain message without a due time: it waits for a person."""


def message_in(state: str) -> Message:
    if state == "kept":
        return make_message(Status.UNCERTAIN, available_at=None, expires_at=now(hours=-1))
    message = make_message(Status.QUEUED if state == "sending" else Status(state), expires_at=now(hours=-1))
    if state == "sending":
        claim(new_lease())
    return message


def state_of(message: Message) -> str:
    message.refresh_from_db()
    return "kept" if message.status == Status.UNCERTAIN and message.available_at is None else str(message.status)


def settle_with_another_lease(message: Message) -> None:
    Message.objects.settle(message, Verdict(Status.SENT), lease=new_lease("other:1"), outcome=ACCEPTED)


def rescue_when_the_lease_is_over(clock) -> int:
    clock.advance(seconds=LEASE_SECONDS + 1)
    return rescue()


VERBS = {
    "claim queued": lambda message, clock: claim(new_lease(), status=Status.QUEUED),
    "claim deferred": lambda message, clock: claim(new_lease(), status=Status.DEFERRED),
    "claim uncertain": lambda message, clock: claim(new_lease(), status=Status.UNCERTAIN),
    "settle with another lease": lambda message, clock: settle_with_another_lease(message),
    "settle late": lambda message, clock: settle_late(message, Verdict(Status.SENT)),
    "release another lease": lambda message, clock: Message.objects.release([message.pk], new_lease("other:1")),
    "rescue within the lease": lambda message, clock: rescue(),
    "rescue": lambda message, clock: rescue_when_the_lease_is_over(clock),
    "expire": lambda message, clock: Message.objects.expire(),
    "requeue": lambda message, clock: Message.objects.all().requeue(),
    "cancel": lambda message, clock: Message.objects.all().cancel(),
    "mark sent": lambda message, clock: Message.objects.all().mark_sent(),
    "bury": lambda message, clock: Message.objects.all().bury(),
}

MOVES = {
    "claim queued": {"queued": "sending"},
    "claim deferred": {"deferred": "sending"},
    "claim uncertain": {"uncertain": "sending"},
    "settle late": {"uncertain": "sent", "kept": "sent"},
    "rescue": {"sending": "queued"},
    "expire": {"queued": "expired", "deferred": "expired"},
    "requeue": {"kept": "queued", "dead": "queued"},
    "cancel": {"queued": "cancelled", "deferred": "cancelled"},
    "mark sent": {"kept": "sent"},
    "bury": {"kept": "dead"},
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_moves_what_the_table_says_and_nothing_else(verb, state, clock):
    """P22, F-L13: whoever comes second, a person or a worker, changes nothing."""
    message = message_in(state)
    VERBS[verb](message, clock)
    assert state_of(message) == MOVES.get(verb, {}).get(state, state)


@pytest.mark.parametrize("status", [s for s in Status if s not in {Status.QUEUED, Status.SENDING}])
def test_the_holder_of_the_lease_moves_it_anywhere(status):
    message, lease = make_message(), new_lease()
    claim(lease)
    assert Message.objects.settle(message, Verdict(status, "why", available_at=now()), lease=lease)
    message.refresh_from_db()
    assert (message.status, message.reason, message.lease, message.leased_until) == (status, "why", None, None)


def test_settling_as_sent_says_when_and_by_whom():
    lease = new_lease()
    make_message()
    (message,) = claim(lease)
    message.provider = "relay"
    Message.objects.settle(message, Verdict(Status.SENT), lease=lease, outcome=ACCEPTED)
    message.refresh_from_db()
    assert abs((now() - message.sent_at).total_seconds()) < 5
    assert (message.provider, message.provider_message_id, message.available_at) == ("relay", "from-the-provider", None)


def test_settling_twice_counts_once():
    message, lease = make_message(), new_lease()
    claim(lease)
    verdict = Verdict(Status.DEFERRED, available_at=now(), spends_attempt=True)
    assert Message.objects.settle(message, verdict, lease=lease)
    assert not Message.objects.settle(message, verdict, lease=lease)
    message.refresh_from_db()
    assert message.attempt_count == 1


def test_a_second_deferral_does_not_move_the_first_ones_time(clock):
    message, lease = make_message(), new_lease()
    for _ in range(2):
        clock.advance(hours=1)
        Message.objects.filter(pk=message.pk).update(status=Status.SENDING, lease=lease.id)
        verdict = Verdict(Status.DEFERRED, available_at=now(), spends_attempt=True)
        Message.objects.settle(message, verdict, lease=lease)
    message.refresh_from_db()
    assert message.attempt_count == 2
    assert 3_590 < (now() - message.deferred_since).total_seconds() < 3_610


def test_going_back_keeps_the_due_time():
    message, lease = make_message(), new_lease()
    claim(lease)
    Message.objects.settle(message, Verdict(Status.QUEUED, keeps_due_time=True), lease=lease)
    due_at = message.available_at
    message.refresh_from_db()
    assert (message.available_at, message.attempt_count) == (due_at, 0)


def test_an_uncertain_handover_is_counted():
    message, lease = make_message(), new_lease()
    claim(lease)
    outcome = Outcome(Kind.UNCERTAIN)
    Message.objects.settle(message, Verdict(Status.UNCERTAIN, is_uncertain_handover=True), lease=lease, outcome=outcome)
    message.refresh_from_db()
    assert message.uncertain_count == 1


def test_a_reason_is_one_short_line():
    message, lease = make_message(), new_lease()
    claim(lease)
    Message.objects.settle(message, Verdict(Status.DEAD, "refused:\n" + "x" * 1_000), lease=lease)
    message.refresh_from_db()
    assert len(message.reason) == 500
    assert message.reason.startswith("refused: xxx")


def test_a_released_message_is_as_it_was_before_the_claim():
    message, lease = make_message(Status.DEFERRED, claim_count=1), new_lease()
    before = Message.objects.values().get(pk=message.pk)
    claim(lease, status=Status.DEFERRED)
    assert Message.objects.release([message.pk], lease) == 1
    assert Message.objects.values().get(pk=message.pk) == {**before, "claimed_from": "deferred"}


def test_a_requeued_message_has_all_its_attempts_before_it():
    message = make_message(
        Status.DEAD,
        reason="attempts: given up after 35",
        available_at=None,
        attempt_count=35,
        uncertain_count=2,
        claim_count=2,
        deferred_since=now(),
    )
    assert Message.objects.all().requeue() == 1
    message.refresh_from_db()
    assert (message.reason, message.deferred_since) == ("", None)
    assert (message.attempt_count, message.uncertain_count, message.claim_count) == (0, 0, 0)
    assert message in Message.objects.waiting().due()


def test_an_expired_message_that_may_have_gone_is_kept_for_a_person():
    message = make_message(Status.DEFERRED, uncertain_count=1, expires_at=now(hours=-1))
    assert Message.objects.expire() == 1
    assert state_of(message) == "kept"


def test_mail_does_not_expire_before_its_time(clock):
    message = make_message(expires_at=now(minutes=10))
    clock.advance(minutes=9)
    assert Message.objects.expire() == 0
    clock.advance(minutes=2)
    assert Message.objects.expire() == 1
    assert state_of(message) == "expired"


def test_its_caller_withdraws_a_message_until_it_is_claimed():
    withdrawn, claimed = make_message(), make_message(priority=0)
    claim(new_lease(), limit=1)
    assert withdrawn.withdraw()
    assert not claimed.withdraw()
