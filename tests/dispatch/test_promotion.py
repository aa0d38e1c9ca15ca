"""Refusals that are really ours: one after the other in the same words, whomever they are for."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from threading import Event
from uuid import uuid4

import pytest
from django.utils import timezone

from mailengine import queue_job
from mailengine.conf import get_settings
from mailengine.models import Attempt, Message, MessageJob, ProviderState, Suppression
from mailengine.outcomes import Kind, Outcome
from mailengine.pipeline import promotion
from mailengine.pipeline.health import Health
from mailengine.pipeline.rounds import Result

from .helpers import ledger, queue, send, statuses

ACCEPTED = Outcome(Kind.ACCEPTED)
REFUSED = Outcome(Kind.REFUSED, code="550 5.7.0", detail="Not from you to bob@example.org", phase="rcpt")
RELAY_DENIED = Outcome(Kind.DEFERRED, code="554 5.7.1", detail="Relay denied", phase="rcpt", tries=2)
BAD_ADDRESS = Outcome(Kind.REFUSED, code="550 5.1.1", detail="No such user", phase="rcpt", address_is_bad=True)


def streak_of(outcomes, *, is_open=False, domains=None):
    """The streak after these outcomes, one after the other, each for another domain or for the given ones."""
    streak, now = [], timezone.now()
    for number, outcome in enumerate(outcomes):
        streak = promotion.after(
            streak,
            outcome,
            recipient=f"u@{domains[number] if domains else f'd{number}.example'}",
            message_id=uuid4(),
            begun_at=now + timedelta(seconds=number),
            ended_at=now + timedelta(seconds=number + 1),
            is_open=is_open,
        )
    return streak


class TestRule:
    @pytest.mark.parametrize(
        ("outcomes", "is_ours"),
        [
            ([REFUSED] * 4, False),
            ([REFUSED] * 5, True),
            ([REFUSED] * 4 + [ACCEPTED] + [REFUSED], False),
            ([REFUSED] * 4 + [Outcome(Kind.UNAVAILABLE)] + [REFUSED], True),
            ([REFUSED] * 4 + [BAD_ADDRESS] + [REFUSED], False),
            ([BAD_ADDRESS] * 24, False),
            ([BAD_ADDRESS] * 25, True),
            ([RELAY_DENIED] * 5, True),
            ([Outcome(Kind.DEFERRED, code="450 4.2.1", phase="rcpt")] * 9, False),
            ([Outcome(Kind.REFUSED, code="552", phase="await", elsewhere=True)] * 9, False),
            ([Outcome(Kind.REFUSED, code="cancelled", phase="http", cancelled=True)] * 9, False),
            ([Outcome(Kind.REFUSED, code="ValueError")] * 9, False),
        ],
    )
    def test_five_alike_refusals_with_nothing_accepted_between_are_ours(self, outcomes, is_ours):
        assert promotion.is_ours(streak_of(outcomes), outcomes[-1]) is is_ours

    def test_an_acceptance_of_what_was_begun_before_the_first_refusal_ends_no_streak(self):
        streak = streak_of([REFUSED] * 4)
        first_at = datetime.fromisoformat(streak[0][3])

        def after_acceptance(begun_at):
            return promotion.after(
                streak,
                ACCEPTED,
                recipient="u@example.org",
                message_id=uuid4(),
                begun_at=begun_at,
                ended_at=first_at + timedelta(minutes=1),
                is_open=False,
            )

        assert after_acceptance(first_at - timedelta(microseconds=1)) == streak
        assert after_acceptance(first_at) == []

    def test_one_domain_that_refuses_everything_is_that_domain_s_business(self):
        streak = streak_of([REFUSED] * 500, domains=["example.org"] * 500)

        assert not promotion.is_ours(streak, REFUSED)
        assert len(streak) == promotion.MOST_KEPT

    def test_in_an_open_circuit_other_words_do_not_end_the_streak(self):
        assert promotion.is_ours(streak_of([REFUSED] * 4 + [BAD_ADDRESS] + [REFUSED], is_open=True), REFUSED)

    def test_the_probes_of_a_circuit_that_stays_open_leave_no_more_than_the_latest(self):
        streak = streak_of([REFUSED] * 250 + [BAD_ADDRESS] * 50, is_open=True)

        assert len(streak) == promotion.MOST_KEPT
        assert promotion.is_ours(streak, BAD_ADDRESS)

    def test_the_more_stand_the_fewer_may_be_under_way(self):
        assert [promotion.room(streak_of([REFUSED] * count)) for count in range(7)] == [None, 4, 3, 2, 1, 1, 1]

    def test_nobody_s_address_is_told(self):
        assert promotion.problem(streak_of([REFUSED] * 5), REFUSED) == (
            "the last 5 refusals were alike: 550 5.7.0 Not from you to …"
        )


def queue_for(count: int, **options) -> list[Message]:
    """Messages for as many domains."""
    return [queue(f"u@d{number:04d}.example", **options) for number in range(count)]


def result(outcome, number):
    """What a handover came to that took no time, to a domain of this number."""
    now = timezone.now()
    return Result("relay", outcome, "bulk", False, f"u@d{number}.example", uuid4(), begun_at=now, ended_at=now)


def run(command="send_mail", **options):
    try:
        send(command, **options)
    except SystemExit:
        return


@pytest.mark.django_db
class TestProvider:
    @pytest.fixture(autouse=True)
    def _one_connection(self, configure, settings):
        configure(CONNECTIONS=1)
        settings.ADMINS = []

    def test_a_refused_sender_touches_five_messages_and_buries_none(self, handed_over, clock):
        """F-S22: stopped, put back, and all of it sent after the repair without another step."""
        is_broken = True
        handovers = handed_over(lambda alias, email: REFUSED if is_broken else ACCEPTED)
        queue_for(50)
        run()
        assert len(handovers) == 5
        assert statuses() == {"queued": 50}
        assert set(Message.objects.values_list("attempt_count", flat=True)) == {0}
        state = ProviderState.objects.get()
        assert (state.is_open, state.misconfigured) == (True, True)
        assert state.last_error.startswith("misconfigured: the last 5 refusals were alike: 550 5.7.0")

        clock.advance(seconds=61)
        run()
        assert (len(handovers), statuses()) == (6, {"queued": 50})

        is_broken = False
        clock.advance(seconds=61)
        run()
        clock.advance(seconds=61)
        run()
        assert statuses() == {"sent": 50}
        assert ProviderState.objects.get().refusals == []

    def test_a_provider_that_begins_to_refuse_us_in_full_use_buries_nothing(self, configure, handed_over, monkeypatch):
        """Nor do the acceptances that come after the first refusals, of mail that was handed over before them."""
        configure(CONNECTIONS=8)
        is_refused, write = Event(), ProviderState.write

        def noting(state, changes):
            write(state, changes)
            if state.refusals:
                is_refused.set()

        def play(_alias, email):
            if email.to[0] >= "u@d0012":
                return REFUSED
            if email.to[0] >= "u@d0007":  # with which all eight connections are in use
                assert is_refused.wait(timeout=10)
            return ACCEPTED

        monkeypatch.setattr(ProviderState, "write", noting)
        handed_over(play)
        queue_for(40)

        run()

        assert statuses() == {"sent": 12, "queued": 28}

    def test_refusals_that_come_in_together_are_all_taken_as_ours(self, configure):
        configure()
        health = Health(get_settings())
        health.refresh()
        results = [result(REFUSED, number) for number in range(8)]

        judgement = health.note(results)

        assert {outcome.kind for outcome in judgement.outcomes} == {Kind.MISCONFIGURED}
        assert judgement.put_back == {"relay": {each.message_id for each in results[:5]}}

    def test_acceptances_from_before_close_the_circuit_but_what_is_refused_then_is_still_ours(self, configure):
        configure()
        health = Health(get_settings())
        health.refresh()
        before, refused = timezone.now(), [result(REFUSED, number) for number in range(5)]
        health.note(refused)
        health.note([replace(result(ACCEPTED, number), begun_at=before) for number in range(2)])
        assert not ProviderState.objects.get().is_open

        judgement = health.note(refused[:1])

        assert [outcome.kind for outcome in judgement.outcomes] == [Kind.MISCONFIGURED]
        assert ProviderState.objects.get().is_open

    def test_an_acceptance_by_a_healthy_provider_asks_the_database_nothing(self, configure, django_assert_num_queries):
        configure()
        health = Health(get_settings())
        health.refresh()

        with django_assert_num_queries(0):
            health.note([result(ACCEPTED, number) for number in range(8)])

    def test_relay_denied_spends_no_attempt_after_all(self, handed_over):
        handed_over(lambda alias, email: RELAY_DENIED)
        queue_for(7)

        run()

        assert statuses() == {"queued": 7}
        assert set(Message.objects.values_list("attempt_count", "deferred_since")) == {(0, None)}

    def test_addresses_that_such_refusals_have_suppressed_get_mail_again(self, handed_over):
        Suppression.objects.create(address="other@example.org", reason="refused")
        handed_over(lambda alias, email: BAD_ADDRESS)
        queue_for(30)

        run()

        assert statuses() == {"queued": 30}
        assert [row.address for row in Suppression.objects.all()] == ["other@example.org"]

    def test_each_address_of_such_a_mail_is_served_after_all(self, handed_over):
        """Of one with several addresses, some of which were refused for good and one for now."""
        partly = replace(RELAY_DENIED, refusals={"a@d0.example": REFUSED, "b@d0.example": RELAY_DENIED})
        handed_over(lambda alias, email: partly if email.cc else RELAY_DENIED)
        both = queue("a@d0.example", cc=["b@d0.example"])
        others = [queue(f"u@d{number}.example") for number in range(1, 5)]

        run()

        both.refresh_from_db()
        assert [entry["outcome"] for entry in both.recipients] == ["", ""]
        assert statuses() == {"queued": 1 + len(others)}

    def test_a_rotten_list_is_no_fault_of_ours(self, handed_over):
        handed_over(lambda alias, email: BAD_ADDRESS if "d001" in email.to[0] else ACCEPTED)
        queue_for(30)

        send()

        assert statuses() == {"sent": 20, "dead": 10}
        assert Suppression.objects.count() == 10
        assert not ProviderState.objects.get().is_open

    def test_content_that_one_provider_dislikes_stops_no_provider(self, handed_over):
        handed_over(lambda alias, email: Outcome(Kind.REFUSED, code="554 5.7.1", phase="await", elsewhere=True))
        queue_for(9, stream="bulk")

        send()

        assert not ProviderState.objects.get().is_open

    def test_where_another_provider_works_all_goes_there_in_the_same_run(self, configure, handed_over):
        configure({"relay": {}, "spare": {}}, CONNECTIONS=1)
        handed_over(lambda alias, email: REFUSED if alias == "relay" else ACCEPTED)
        messages = queue_for(20)

        send()

        assert statuses() == {"sent": 20}
        assert max(len(ledger(message)) for message in messages) == 2
        assert Attempt.objects.filter(provider="relay").count() == 5

    def test_a_probe_that_is_refused_in_other_words_is_that_message_s_own_business(self, handed_over, clock):
        handed_over(lambda alias, email: BAD_ADDRESS if "d0009" in email.to[0] else REFUSED)
        queue_for(9)
        run()
        bad = queue("u@d0009.example", priority=0)
        clock.advance(seconds=61)

        run()

        bad.refresh_from_db()
        assert bad.status == "dead"
        assert statuses() == {"queued": 9, "dead": 1}
        assert ProviderState.objects.get().is_open

    def test_a_repair_that_only_changes_the_words_buries_nothing_either(self, handed_over, clock):
        words = ["550 5.7.0"]
        handed_over(lambda alias, email: Outcome(Kind.REFUSED, code=words[0], phase="rcpt"))
        queue_for(9)
        run()
        words[0] = "550 5.7.9"
        for _ in range(3):
            clock.advance(seconds=121)
            run()

        assert statuses() == {"queued": 9}

    def test_what_a_person_has_decided_meanwhile_stays(self, handed_over):
        handed_over(lambda alias, email: REFUSED)
        messages = queue_for(4)
        run()
        assert statuses() == {"dead": 4}
        Message.objects.filter(pk=messages[0].pk).requeue()
        Message.objects.filter(pk=messages[0].pk).cancel()
        queue("u@last.example")

        run()

        assert statuses() == {"cancelled": 1, "queued": 4}

    def test_a_job_that_was_done_goes_on(self, handed_over):
        handed_over(lambda alias, email: REFUSED)
        queue_job("News", "Hello", "desk@example.org", [f"u@d{number}.example" for number in range(4)])
        run("process_mail_jobs")
        run()
        assert MessageJob.objects.get().status == "done"
        queue("u@last.example")

        run()

        job = MessageJob.objects.get()
        assert (job.status, job.finished_at) == ("sending", None)

    def test_what_was_sent_directly_is_not_sent_later(self, handed_over):
        from mailengine import send_direct_email
        from mailengine.errors import NotSent

        handed_over(lambda alias, email: REFUSED)
        for number in range(5):
            with pytest.raises(NotSent):
                send_direct_email("Hello", "Now.", "desk@example.org", [f"u@d{number}.example"])

        assert statuses() == {"dead": 5}

    def test_what_may_have_gone_before_goes_back_to_uncertain(self, handed_over):
        handed_over(lambda alias, email: REFUSED)
        messages = queue_for(5)
        Message.objects.filter(pk=messages[0].pk).update(uncertain_count=1, provider="relay")

        run()

        assert statuses() == {"queued": 4, "uncertain": 1}

    def test_the_report_counts_what_was_put_back_as_waiting(self, handed_over):
        from mailengine.pipeline.dispatch import dispatch_slice

        handed_over(lambda alias, email: REFUSED)
        queue_for(6)

        assert dispatch_slice().outcomes == {}

    def test_only_a_refusal_or_the_end_of_a_streak_writes_the_provider_s_row(self, handed_over, monkeypatch):
        writes = []
        write = ProviderState.write

        def noting(state, changes):
            writes.append(changes)
            write(state, changes)

        monkeypatch.setattr(ProviderState, "write", noting)
        handed_over(lambda alias, email: REFUSED if "d0003" in email.to[0] else ACCEPTED)
        queue_for(20)

        send()

        assert [list(changes) for changes in writes if changes] == [["refusals"]] * 2


@pytest.mark.django_db
def test_a_server_that_relays_for_nobody_is_found_out(server, clock):
    """F-S22 with a real server: what it refuses to relay for five domains is sent once it is repaired."""
    server.answer = lambda step: "550 5.7.1 Relaying denied" if step.verb == "RCPT" else None
    queue_for(12)
    run()
    assert statuses() == {"queued": 12}
    assert Attempt.objects.count() == 5
    server.answer = None
    clock.advance(seconds=61)

    run()
    clock.advance(seconds=61)
    run()

    assert statuses() == {"sent": 12}
    assert len(server.accepted) == 12
