"""What becomes of a message by the outcome of its handover, as its owner sees it."""

from __future__ import annotations

import logging
from datetime import timedelta

import pytest
from django.utils import timezone

from mailengine import Priority
from mailengine.models import Attempt, Message, ProviderState, Suppression
from mailengine.outcomes import Kind, Outcome
from mailengine.pipeline.pace import local_pause_seconds

from .helpers import ledger, queue, queue_many, send, statuses

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


def test_what_only_needs_a_new_transaction_is_tried_again_at_once_but_once(configure, handed_over):
    configure()
    handovers = handed_over(lambda alias, email: Outcome(Kind.DEFERRED, code="452 4.5.3", retry_after_seconds=0))
    message = queue()
    send()

    send("retry_deferred")

    message.refresh_from_db()
    assert (message.status, message.attempt_count, len(handovers)) == ("deferred", 2, 2)


def test_what_may_be_the_provider_s_fault_too_spends_an_attempt_and_is_a_bad_round(configure, handed_over):
    configure(CONNECTIONS=1)
    handed_over(lambda alias, email: Outcome(Kind.DEFERRED, code="ConnectionResetError", counts_as_bad=True))
    queue_many(9)

    with pytest.raises(SystemExit):
        send()

    assert statuses() == {"queued": 6, "deferred": 3}
    assert ProviderState.objects.get().is_open


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


def test_each_outcome_is_logged_with_the_id_of_its_message(provider, caplog):
    message = queue()

    with caplog.at_level(logging.INFO, logger="mailengine.dispatch"):
        send()

    record = next(record for record in caplog.records if "sent" in record.getMessage())
    assert (record.message_id, record.provider) == (str(message.pk), "relay")


class TestRepeated:
    """What is refused for now, until it has come back so often that it says something else."""

    RELAY_DENIED = Outcome(Kind.DEFERRED, code="554 5.7.1", detail="Relay denied", phase="rcpt", tries=2)
    OUT_OF_STEP = Outcome(Kind.DEFERRED, code="503 5.5.1", phase="mail", tries=2, then=Kind.MISCONFIGURED)
    OUR_BUG = Outcome(Kind.DEFERRED, code="ZeroDivisionError", detail="division by zero", tries=3)

    def test_the_second_alike_refusal_is_final(self, configure, handed_over, clock):
        configure()
        handed_over(lambda alias, email: self.RELAY_DENIED)
        message = queue()
        send()
        assert statuses() == {"deferred": 1}

        clock.advance(minutes=5)
        send("retry_deferred")

        message.refresh_from_db()
        assert (message.status, message.reason) == ("dead", "refused: 554 5.7.1 Relay denied")
        assert ledger(message) == [("relay", "deferred"), ("relay", "refused")]

    def test_tries_that_were_not_alike_are_not_counted(self, configure, handed_over, clock):
        configure()
        answers = [self.RELAY_DENIED, Outcome(Kind.DEFERRED, code="450 4.2.1"), self.OUT_OF_STEP]
        handed_over(lambda alias, email: answers.pop(0))
        queue()
        send()
        for _ in range(2):
            clock.advance(minutes=5)
            send("retry_deferred")

        assert statuses() == {"deferred": 1}

    def test_a_person_who_requeues_it_gives_it_all_its_tries_again(self, configure, handed_over, clock):
        configure()
        handed_over(lambda alias, email: self.RELAY_DENIED)
        queue()
        send()
        clock.advance(minutes=5)
        send("retry_deferred")
        Message.objects.requeue()

        send()

        assert statuses() == {"deferred": 1}

    def test_what_turns_into_our_fault_opens_the_circuit(self, configure, handed_over, clock):
        configure({"relay": {}, "spare": {}})
        handed_over(lambda alias, email: self.OUT_OF_STEP if alias == "relay" else Outcome(Kind.ACCEPTED))
        message = queue()
        send()
        clock.advance(minutes=5)
        send("retry_deferred")

        assert ledger(message) == [("relay", "deferred"), ("relay", "misconfigured"), ("spare", "accepted")]
        assert ProviderState.objects.get(pk="relay").misconfigured

    def test_what_one_provider_said_is_not_held_against_another(self, configure, handed_over, clock):
        configure({"relay": {}, "spare": {}})
        handed_over(lambda alias, email: self.OUT_OF_STEP)
        message = queue()
        send()
        ProviderState.objects.filter(pk="relay").update(throttled_until=timezone.now() + timedelta(hours=1))
        clock.advance(minutes=5)
        send("retry_deferred")

        assert ledger(message) == [("relay", "deferred"), ("spare", "deferred")]

    def test_a_bug_that_one_message_meets_time_and_again_ends_it_and_is_logged(
        self, configure, handed_over, clock, caplog
    ):
        configure()
        handed_over(lambda alias, email: self.OUR_BUG if "bad" in email.to[0] else Outcome(Kind.ACCEPTED))
        bad, good = queue("bad@example.org"), queue("good@example.org")
        send()
        for _ in range(2):
            clock.advance(hours=1)
            send("retry_deferred")

        bad.refresh_from_db(), good.refresh_from_db()
        assert (bad.status, bad.reason) == ("dead", "unclassified: ZeroDivisionError division by zero")
        assert good.status == "sent"
        assert [r.levelname for r in caplog.records if "ZeroDivisionError" in r.getMessage()] == ["ERROR"] * 3
        assert not any("bad@example.org" in r.getMessage() for r in caplog.records)


class TestLocal:
    """Our own host is at fault: no provider, and no message."""

    NO_SOCKETS = Outcome(Kind.UNAVAILABLE, code="EMFILE", detail="Too many open files", is_local=True)

    @pytest.fixture(autouse=True)
    def _quick(self, monkeypatch):
        monkeypatch.setattr("mailengine.pipeline.pace.LONGEST_LOCAL_PAUSE_SECONDS", 0.01)

    def test_it_costs_no_attempt_and_no_provider_is_blamed(self, configure, handed_over):
        configure({"relay": {}, "spare": {}}, CONNECTIONS=1)
        answers = [self.NO_SOCKETS] * 4
        handovers = handed_over(lambda alias, email: answers.pop() if answers else Outcome(Kind.ACCEPTED))
        message = queue()

        send()
        Message.objects.update(available_at=message.created_at)
        send()

        message.refresh_from_db()
        assert (message.status, message.attempt_count) == ("sent", 0)
        assert ledger(message) == [("relay", "unavailable")] * 4 + [("relay", "accepted")]
        assert {alias for alias, _, _ in handovers} == {"relay"}
        state = ProviderState.objects.get(pk="relay")
        assert (state.bad_rounds, state.is_open, state.last_error) == (0, False, "")

    def test_it_takes_no_due_time_from_the_probe(self, configure, handed_over, clock):
        configure(CONNECTIONS=1)
        answers = [Outcome(Kind.UNAVAILABLE)] * 3 + [self.NO_SOCKETS]
        handed_over(lambda alias, email: answers.pop(0) if answers else Outcome(Kind.ACCEPTED))
        queue_many(3)
        with pytest.raises(SystemExit):
            send()
        Message.objects.update(available_at=timezone.now())
        clock.advance(seconds=61)

        send()

        assert statuses() == {"sent": 3}

    def test_the_third_in_a_row_is_logged(self, configure, handed_over, caplog):
        configure(CONNECTIONS=1)
        answers = [self.NO_SOCKETS] * 2 + [Outcome(Kind.ACCEPTED)] + [self.NO_SOCKETS] * 2 + [Outcome(Kind.ACCEPTED)]
        handed_over(lambda alias, email: answers.pop(0) if answers else self.NO_SOCKETS)
        queue_many(2)
        send()
        assert not [record for record in caplog.records if record.levelname == "ERROR"]

        queue()
        send(max_time=0.5)

        assert [r.levelname for r in caplog.records if "this host" in r.getMessage()] == ["ERROR"]

    def test_each_time_in_a_row_it_waits_twice_as_long(self, monkeypatch):
        monkeypatch.undo()
        assert [local_pause_seconds(count) for count in (1, 2, 3, 6, 99)] == [1, 2, 4, 30, 30]


class TestLasting:
    """A provider that can't be reached, till that has lasted for so long that our own settings must be the cause."""

    NO_SUCH_NAME = Outcome(Kind.UNAVAILABLE, code="gaierror", ours_after_seconds=600)
    NO_HANDSHAKE = Outcome(Kind.UNAVAILABLE, code="SSLError", ours_after_seconds=0)

    @pytest.fixture
    def probe(self, clock):
        def probe_it(*, minutes=0):
            clock.advance(minutes=minutes)
            Message.objects.update(available_at=timezone.now())
            with pytest.raises(SystemExit):
                send()
            return ProviderState.objects.get().misconfigured

        return probe_it

    def test_it_is_ours_once_the_circuit_has_been_open_for_so_long(self, configure, handed_over, probe):
        configure(CONNECTIONS=1)
        handed_over(lambda alias, email: self.NO_SUCH_NAME)
        queue_many(3)
        assert not probe()
        assert not probe(minutes=9)

        assert probe(minutes=2)

        assert Attempt.objects.order_by("id").last().outcome == "misconfigured"
        assert set(Message.objects.values_list("attempt_count", flat=True)) == {0}

    def test_it_may_be_ours_as_soon_as_the_circuit_opens(self, configure, handed_over, probe):
        configure(CONNECTIONS=1)
        handed_over(lambda alias, email: self.NO_HANDSHAKE)
        queue_many(3)

        assert probe()

        assert list(Attempt.objects.order_by("id").values_list("outcome", flat=True)) == [
            "unavailable", "unavailable", "misconfigured",
        ]  # fmt: skip

    def test_what_may_be_the_provider_s_fault_stays_that(self, configure, handed_over, probe):
        configure(CONNECTIONS=1)
        handed_over(lambda alias, email: Outcome(Kind.UNAVAILABLE))
        queue_many(3)
        probe()

        assert not probe(minutes=60)


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

    @pytest.fixture
    def moved(self, configure, clock):
        """`moved(priority)`: an uncertain message, and relay, which had it, carries its stream no more."""

        def move(priority=None):
            options = {"relay": {"script": ["uncertain"]}, "spare": {}}
            configure(options)
            message = queue(**({} if priority is None else {"priority": priority}))
            send()
            configure(options, STREAMS={"transactional": {"PROVIDERS": ["spare"]}})
            clock.advance(days=1)
            return message

        return move

    @pytest.mark.parametrize("status", ["uncertain", "deferred"])
    def test_when_its_provider_carries_its_stream_no_more_it_is_kept_for_a_person(self, provider, moved, status):
        message = moved()
        Message.objects.update(status=status)

        send("retry_deferred" if status == "deferred" else "send_mail")

        message.refresh_from_db()
        assert (message.status, message.available_at) == ("uncertain", None)
        assert (
            message.reason == "its provider 'relay' carries no transactional mail any more; kept for a person to decide"
        )
        assert ledger(message) == [("relay", "uncertain")]

    def test_urgent_mail_goes_by_another_then(self, provider, moved):
        message = moved(Priority.URGENT)

        send()

        assert ledger(message)[-1] == ("spare", "accepted")

    @pytest.mark.parametrize(("priority", "last"), [(Priority.URGENT, "spare"), (Priority.NORMAL, "relay")])
    def test_when_its_provider_is_gone_only_urgent_mail_goes_by_another(
        self, configure, provider, clock, priority, last
    ):
        configure({"relay": {"script": ["uncertain"]}, "spare": {}})
        message = queue(priority=priority)
        send()
        configure({"spare": {}})
        clock.advance(hours=1)

        send()

        message.refresh_from_db()
        assert ledger(message)[-1][0] == last
        assert message.status == "sent" or "is no longer configured" in message.reason

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
