"""`mail_worker` does all that the commands of cron do, in one thread that works inside a test's transaction, too."""

import time
from datetime import timedelta

import pytest
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from mailengine import Priority, queue_job
from mailengine.models import Message, MessageJob, Worker
from mailengine.pipeline import dispatch, expand, worker
from mailengine.pipeline.worker import MailWorker
from mailengine.testing import FakeProvider
from tests.dispatch.helpers import queue, queue_many, statuses
from tests.models.helpers import claim, new_lease

pytestmark = pytest.mark.django_db


class Until:
    """A stop event that is set once a condition is met; asked between the turns of a worker."""

    def __init__(self, condition):
        self.condition = condition

    def is_set(self):
        return bool(self.condition())


def work_until(condition, **options):
    """Let a worker go on until then, and for no more than a minute."""
    worker = MailWorker(stop=Until(condition), max_time=60, interval=0.01, **options)
    worker.run()
    return worker


def test_it_sends_what_is_queued_and_says_what_it_did(provider, capsys):
    """C20, S01"""
    queue_many(3)

    call_command("mail_worker", limit=3)

    assert len(provider.accepted) == 3
    assert capsys.readouterr().out.startswith("mail_worker: 3 sent in ")


def test_it_goes_on_until_its_time_is_over_and_is_silent_when_there_was_nothing_to_do(provider, capsys):
    """C20"""
    call_command("mail_worker", max_time=0.1)

    assert capsys.readouterr().out == ""
    assert Worker.objects.get().stopped_at is not None


def test_it_expands_jobs_and_closes_them(provider):
    """C20"""
    job = queue_job("Hi", "Hello", "desk@example.org", ["ann@example.org", "bob@example.org"])

    work_until(lambda: len(provider.accepted) == 2 and not Message.objects.filter(status="sending").exists())

    job.refresh_from_db()
    assert (job.status, job.message_count) == ("done", 2)


def test_a_job_is_closed_as_soon_as_nothing_is_left_to_send(provider, monkeypatch):
    monkeypatch.setattr(worker, "HOUSE_SECONDS", 60)
    queue_job("Hi", "Hello", "desk@example.org", ["ann@example.org"])

    work_until(lambda: MessageJob.objects.get().status == "done")

    assert len(provider.accepted) == 1


def test_it_retries_what_was_deferred(configure, clock):
    """S02"""
    configure({"relay": {"script": ["deferred"]}}, BACKOFF_FIRST_SECONDS=60)
    queue()
    work_until(lambda: statuses() == {"deferred": 1})
    clock.advance(seconds=100)

    work_until(lambda: statuses() == {"sent": 1})

    assert Message.objects.get().attempts.count() == 2


def test_it_rescues_what_a_lost_worker_left(provider, clock):
    queue()
    claim(new_lease())
    clock.advance(seconds=241)

    done = work_until(lambda: statuses() == {"sent": 1})

    assert done.dispatcher.report.rescued == 1


def test_it_closes_what_has_expired(provider, clock):
    now = timezone.now()
    queue(send_at=now + timedelta(hours=2), expires_at=now + timedelta(hours=3))
    clock.advance(hours=4)

    work_until(lambda: statuses() == {"expired": 1})

    assert provider.accepted == []


def test_it_lets_messages_follow_a_job_that_was_cancelled(provider):
    job = queue_job("Hi", "Hello", "desk@example.org", ["ann@example.org"])
    expand.expand_jobs()
    MessageJob.objects.filter(pk=job.pk).cancel()

    work_until(lambda: statuses() == {"cancelled": 1})

    assert provider.accepted == []


def test_urgent_mail_waits_for_no_more_than_a_piece_of_an_expansion(provider, monkeypatch):
    """C21"""
    monkeypatch.setattr(expand, "PIECE", 2)
    queue_job("Hi", "Hello", "desk@example.org", [f"u{number}@example.org" for number in range(40)])
    made = []

    def note_then_queue():
        made.append(Message.objects.filter(job__isnull=False).count())
        if made[-1] == 4 and not Message.objects.filter(priority=Priority.URGENT).exists():
            queue("urgent@example.org", priority=Priority.URGENT)
        return Message.objects.filter(priority=Priority.URGENT, status="sent").exists()

    work_until(note_then_queue)

    assert made[-1] < 40


def test_a_more_urgent_job_goes_before_the_rest_of_another(provider, monkeypatch):
    monkeypatch.setattr(expand, "PIECE", 2)
    monkeypatch.setattr("mailengine.pipeline.enqueue.PIECE", 2)
    slow = queue_job("Hi", "Hello", "desk@example.org", [f"u{number}@example.org" for number in range(40)])
    urgent = []

    def both_are_expanded():
        if Message.objects.filter(job=slow).exists() and not urgent:
            urgent.append(queue_job("Hi", "Now", "desk@example.org", ["a@example.org"], priority="urgent"))
        return urgent and MessageJob.objects.get(pk=urgent[0].pk).status != "queued"

    work_until(both_are_expanded)

    slow.refresh_from_db()
    assert slow.status == "expanding"


def test_a_job_that_can_not_go_on_holds_up_no_other(provider):
    lost = queue_job("Hi", "Hello", "desk@example.org", ["ann@example.org"], priority="high")
    MessageJob.objects.filter(pk=lost.pk).update(audience="gone")
    queue_job("Hi", "Hello", "desk@example.org", ["bob@example.org"])

    work_until(lambda: len(provider.accepted) == 1)

    lost.refresh_from_db()
    assert lost.status == "paused"


def test_an_idle_worker_asks_the_database_next_to_nothing(provider, monkeypatch):
    """S03"""
    monkeypatch.setattr(worker, "HOUSE_SECONDS", 60)
    rounds = []
    idle = MailWorker(stop=Until(lambda: len(rounds) >= 20), interval=0.01)
    rest = idle.dispatcher._rest

    def counted_rest(seconds):
        rounds.append(seconds)
        rest(seconds)

    monkeypatch.setattr(idle.dispatcher, "_rest", counted_rest)

    with CaptureQueriesContext(connection) as asked:
        idle.run()

    asked = [query["sql"] for query in asked if "SAVEPOINT" not in query["sql"]]
    once = 14  # at its start and at its end
    assert len(asked) <= 20 * 3 + once


def test_it_keeps_nothing_of_the_jobs_that_it_has_sent(provider):
    for number in range(5):
        queue_job("Hi", f"Hello {number}", "desk@example.org", ["ann@example.org"])
    done = work_until(lambda: len(provider.accepted) == 5)
    composer = done.dispatcher.composer
    assert len(composer._good_jobs) == 5

    done.dispatcher.begin_anew()

    assert not composer._good_jobs


class TestDeferredMail:
    """S06, S11: at most half of the senders, however much of it is due."""

    @pytest.fixture
    def deferred(self, configure, clock):
        configure(CONNECTIONS=8)
        messages = queue_many(20, priority="urgent")
        Message.objects.update(status="deferred", attempt_count=1)
        return {message.recipient for message in messages}

    @pytest.fixture
    def most_at_once(self, deferred):
        """The most deferred messages that were in hand at once, and whether new ones were beside them."""
        seen = []

        def watch(run):
            items = [*run.stock, *run.handovers.in_flight.values()]
            retried = sum(item.message.recipient in deferred for item in items)
            seen.append((retried, len(items) - retried))

        return seen, watch

    def test_it_takes_no_more_while_new_mail_is_due(self, deferred, most_at_once):
        for number in range(40):
            queue(f"new{number}@example.org")
        seen, watch = most_at_once
        run = MailWorker(max_time=60, limit=60).dispatcher
        run.on_progress = lambda report: watch(run)

        run.run_on(Idle())

        assert statuses() == {"sent": 60}
        assert max(retried for retried, _new in seen) <= 4
        assert any(retried and new for retried, new in seen)

    def test_all_of_it_goes_where_there_is_nothing_else(self, deferred):
        MailWorker(max_time=60, limit=20).run()

        assert statuses() == {"sent": 20}

    def test_what_is_not_due_is_not_tried(self, configure):
        """S06"""
        configure()
        messages = queue_many(5)
        Message.objects.update(status="deferred", available_at=Message.objects.first().created_at.replace(year=2999))
        new = queue("new@example.org")

        MailWorker(max_time=60, limit=1).run()

        new.refresh_from_db()
        assert new.status == "sent"
        assert not any(message.attempts.exists() for message in messages)


class Idle:
    """Nothing to do besides."""

    interval = 0.01

    def do_some(self, *, is_idle):
        return False


def test_a_dry_run_does_nothing(provider, capsys):
    """C29"""
    queue_many(2)
    queue_job("Hi", "Hello", "desk@example.org", ["ann@example.org"])

    call_command("mail_worker", dry_run=True)

    said = capsys.readouterr().out
    assert said == "mail_worker: would expand 1 job and send 2 of 2 due; nothing was done\n"
    assert (statuses(), FakeProvider.named("relay").accepted) == ({"queued": 2}, [])


class TestRest:
    """What it does while there is nothing to send, however long its interval."""

    @pytest.fixture
    def resting(self, provider, monkeypatch):
        """A function that lets a worker with a long interval rest until a condition holds."""
        monkeypatch.setattr(worker, "SURE_SECONDS", 0)

        def rest(condition, *, interval):
            resting = MailWorker(stop=Until(condition), max_time=60, interval=interval)
            resting.run()

        return rest

    def test_it_says_that_it_lives(self, resting, monkeypatch):
        """Or those who queue mail would believe that nobody is there to be woken."""
        monkeypatch.setattr(dispatch, "HEARTBEAT_SECONDS", 0.1)
        began_at = timezone.now()

        resting(
            lambda: Worker.objects.filter(seen_at__gt=began_at + timedelta(seconds=0.5)).exists(),
            interval=60,
        )

        assert Worker.objects.get().seen_at > began_at + timedelta(seconds=0.5)

    def test_without_an_interval_it_does_not_look_without_end(self, resting):
        rests_at_most = 10
        ends_at = time.monotonic() + rests_at_most * dispatch.SHORTEST_REST_SECONDS
        with CaptureQueriesContext(connection) as queries:
            resting(lambda: time.monotonic() >= ends_at, interval=0)

        looks = [q for q in queries.captured_queries if "mailengine_message" in q["sql"]]
        assert len(looks) < 10 * rests_at_most
