"""What becomes of a message by the outcome of its handover, as its owner sees it."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from mailengine import Priority
from mailengine.models import Attempt, Message, ProviderState, Suppression

from .helpers import ledger, queue, send

pytestmark = pytest.mark.django_db


def test_accepted_mail_is_sent_once_and_its_ledger_says_by_whom(provider):
    """S18 and C14: what is queued goes out, with an attempt logged."""
    message = queue()

    send()

    message.refresh_from_db()
    assert (message.status, message.provider, message.attempt_count) == ("sent", "relay", 0)
    assert message.sent_at is not None
    assert ledger(message) == [("relay", "accepted")]
    assert [email.to for email in provider.accepted] == [["ann@example.org"]]


def test_a_refused_address_is_dead_with_the_reason_and_suppressed(configure, provider):
    configure({"relay": {"script": ["bad_address"]}})
    message = queue()

    send()

    message.refresh_from_db()
    assert message.status == "dead"
    assert message.reason.startswith("refused: 550 5.1.1")
    assert Suppression.objects.get().address == "ann@example.org"


def test_a_refused_message_leaves_the_circuit_alone(configure, provider):
    configure({"relay": {"script": ["refused"] * 10}})
    for number in range(10):
        queue(f"u{number}@example.org")

    send()

    assert Message.objects.filter(status="dead").count() == 10
    assert ProviderState.objects.get().bad_rounds == 0


def test_mail_refused_for_now_is_retried_without_a_person_and_delivered(configure, provider, clock):
    """S02 and C15: deferred, then sent by retry_deferred once it is due."""
    configure({"relay": {"script": ["deferred"]}})
    message = queue()

    send()
    message.refresh_from_db()
    assert (message.status, message.attempt_count) == ("deferred", 1)
    assert 48 <= (message.available_at - message.deferred_since).total_seconds() <= 72  # 60 s, give or take 20 %

    send("retry_deferred")
    assert len(provider.accepted) == 0  # not due yet
    clock.advance(seconds=73)
    send()
    assert len(provider.accepted) == 0  # not send_mail's business
    send("retry_deferred")
    message.refresh_from_db()
    assert (message.status, len(provider.accepted)) == ("sent", 1)


def test_a_greylisted_message_waits_five_minutes(configure, provider, clock):
    configure({"relay": {"script": ["greylisted"]}})
    message = queue()

    send()

    message.refresh_from_db()
    assert (message.available_at - message.deferred_since).total_seconds() >= 299


def test_a_message_past_its_attempts_is_a_dead_letter_that_a_person_can_requeue(configure, provider, clock):
    """G38: dead with its last error; requeued it is sent."""
    configure({"relay": {"script": ["deferred"] * 3}}, MAX_ATTEMPTS=3)
    message = queue()
    send()
    for _ in range(2):
        clock.advance(hours=5)
        send("retry_deferred")
    message.refresh_from_db()
    assert message.status == "dead"
    assert message.reason.startswith("attempts: given up after 3; the last: 450 4.2.1")

    assert Message.objects.filter(pk=message.pk).requeue() == 1
    send()

    message.refresh_from_db()
    assert message.status == "sent"
    assert [outcome for _, outcome in ledger(message)] == ["deferred"] * 3 + ["accepted"]


def test_a_message_past_its_lifetime_is_dead(configure, provider, clock):
    configure({"relay": {"script": ["deferred"] * 99}}, STREAMS={"transactional": {"LIFETIME_SECONDS": 3600}})
    message = queue()
    send()
    for _ in range(3):
        clock.advance(hours=1)
        send("retry_deferred")

    message.refresh_from_db()
    assert (message.status, message.reason.split(":")[0]) == ("dead", "lifetime")


def test_a_throttled_message_waits_until_retry_after_and_spends_no_attempt(configure, provider, clock):
    configure({"relay": {"script": ["throttled"]}})
    message = queue()

    send()
    message.refresh_from_db()
    assert (message.status, message.attempt_count) == ("queued", 0)
    send()
    assert provider.calls == 1  # left alone for as long as it asked
    clock.advance(seconds=31)
    send()

    message.refresh_from_db()
    assert message.status == "sent"
    assert ProviderState.objects.get().bad_rounds == 0


def test_urgent_mail_does_not_wait_for_a_throttled_provider(configure, provider):
    configure({"relay": {"script": ["throttled"]}, "spare": {}})
    message = queue(priority=Priority.URGENT)

    send()

    assert ledger(message) == [("relay", "throttled"), ("spare", "accepted")]


class TestUncertain:
    def test_it_is_offered_to_no_other_provider(self, configure, provider):
        configure({"relay": {"script": ["uncertain"]}, "spare": {}})
        message = queue()

        send()

        message.refresh_from_db()
        assert message.status == "uncertain"
        assert ledger(message) == [("relay", "uncertain")]
        assert (message.available_at - message.attempts.get().ended_at).total_seconds() == pytest.approx(600, abs=5)

    def test_it_is_sent_once_more_by_the_same_provider_when_its_window_is_over(self, configure, provider, clock):
        configure({"relay": {"script": ["uncertain"]}, "spare": {}})
        message = queue()
        send()

        clock.advance(seconds=590)
        send()
        assert provider.calls == 1
        clock.advance(seconds=20)
        send()

        message.refresh_from_db()
        assert message.status == "sent"
        assert ledger(message) == [("relay", "uncertain"), ("relay", "accepted")]
        assert {email.extra_headers["Message-ID"] for email in provider.accepted} == {f"<{message.pk}@example.org>"}

    def test_after_a_second_time_it_is_kept_for_a_person(self, configure, provider, clock):
        configure({"relay": {"script": ["uncertain"] * 9}})
        message = queue()
        for _ in range(4):
            send()
            clock.advance(hours=2)

        message.refresh_from_db()
        assert (message.status, message.available_at) == ("uncertain", None)
        assert len(ledger(message)) == 2
        assert Message.objects.kept_for_a_person().get() == message

    def test_a_stream_that_holds_never_sends_it_again_by_itself(self, configure, provider, clock):
        configure({"relay": {"script": ["uncertain"]}}, STREAMS={"bulk": {"UNCERTAIN": "hold"}})
        message = queue(stream="bulk")
        send()
        clock.advance(days=1)
        send()

        message.refresh_from_db()
        assert (message.status, message.available_at, provider.calls) == ("uncertain", None, 1)

    def test_urgent_mail_may_go_by_another_provider_after_thirty_seconds(self, configure, provider, clock):
        configure({"relay": {"script": ["uncertain"] + ["unavailable"] * 9}, "spare": {}})
        message = queue(priority=Priority.URGENT)
        send()
        clock.advance(seconds=31)

        send()

        assert ledger(message)[-1] == ("spare", "accepted")

    def test_when_its_provider_cannot_be_reached_it_stays_uncertain(self, configure, provider, clock):
        configure({"relay": {"script": ["uncertain"] + ["unavailable"] * 9}, "spare": {}})
        message = queue()
        send()
        clock.advance(seconds=601)

        send()

        message.refresh_from_db()
        assert message.status == "uncertain"
        assert "spare" not in dict(ledger(message))

    def test_one_that_expires_is_kept_for_a_person(self, configure, provider, clock):
        configure({"relay": {"script": ["uncertain"]}})
        message = queue(expires_at=timezone.now() + timedelta(minutes=1))
        send()
        clock.advance(hours=2)
        send()

        message.refresh_from_db()
        assert (message.status, message.available_at, provider.calls) == ("uncertain", None, 1)


def test_mail_that_expired_unsent_is_not_sent(provider, clock):
    message = queue(expires_at=timezone.now() + timedelta(minutes=1))
    clock.advance(minutes=2)

    send()

    message.refresh_from_db()
    assert (message.status, provider.calls) == ("expired", 0)


def test_an_address_suppressed_after_queueing_gets_nothing(provider):
    """C28: looked up at Begin, and logged."""
    message = queue("Bob@Example.org")
    Suppression.objects.create(address="bob@example.org", reason="complained")

    send()

    message.refresh_from_db()
    assert message.status == "suppressed"
    assert message.reason.startswith("suppressed: complained about our mail")
    assert (provider.calls, Attempt.objects.count()) == (0, 0)


def test_a_newsletter_opt_out_never_blocks_a_password_reset(provider):
    Suppression.objects.create(address="ann@example.org", stream="bulk", reason="unsubscribed")
    newsletter, reset = queue(stream="bulk"), queue()

    send()

    newsletter.refresh_from_db(), reset.refresh_from_db()
    assert (newsletter.status, reset.status) == ("suppressed", "sent")


def test_a_message_already_accepted_by_the_ledger_is_closed_without_calling_a_provider(provider):
    """P25: the ledger is consulted before sending."""
    message = queue()
    Attempt.objects.create(
        message=message, number=1, provider="relay", begun_at=message.created_at, ended_at=message.created_at,
        outcome="accepted",
    )  # fmt: skip

    send()

    message.refresh_from_db()
    assert (message.status, provider.calls) == ("sent", 0)


def test_each_failed_attempt_is_logged_with_its_class_code_text_and_time(configure, provider):
    """S22."""
    configure({"relay": {"script": ["refused"]}})
    message = queue()

    send()

    attempt = message.attempts.get()
    assert (attempt.outcome, attempt.code) == ("refused", "550 5.2.1")
    assert "Mailbox disabled" in attempt.detail
    assert attempt.begun_at <= attempt.ended_at


def test_a_hundred_that_always_fail_delay_a_good_message_by_less_than_one_run(configure, provider, clock):
    """S06 and S11 in small: old failures are retry_deferred's business alone."""
    configure({"relay": {"script": ["deferred"] * 100}})
    for number in range(100):
        queue(f"bad{number}@example.org")
    send()
    good = queue("good@example.org")

    send()

    good.refresh_from_db()
    assert good.status == "sent"
    assert provider.calls == 101
