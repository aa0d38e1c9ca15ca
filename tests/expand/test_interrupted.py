"""Expansion that is killed, stopped, or run twice at once: every recipient gets one message nevertheless."""

import signal
import threading
import time

import pytest
from django.db import OperationalError, connection, connections, transaction

import mailengine
from mailengine import queue_job
from mailengine.models import MessageJob
from mailengine.pipeline.expand import expand_jobs
from tests.commands.programs import run_script
from tests.database_faults import at, servers_only, terminate_own_connection, through_a_proxy, wait_for

pytestmark = pytest.mark.django_db(transaction=True)

READERS = [f"reader{number}@example.org" for number in range(5_000)]

EXPAND_AND_DIE = """
import os, signal
from django.db import connection
import mailengine
from mailengine.pipeline.expand import expand_jobs

pieces = 0

@mailengine.audience("killed")
def killed():
    return [f"reader{number}@example.org" for number in range(5_000)]

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def die_after_the_second_insert(execute, sql, params, many, context):
    global pieces
    result = execute(sql, params, many, context)
    pieces += sql.startswith("INSERT") and "mailengine_message" in sql
    if pieces == 2:
        die()
    return result

"""
BETWEEN_PIECES = "expand_jobs(on_progress=die)"
BEFORE_A_COMMIT = "with connection.execute_wrapper(die_after_the_second_insert): expand_jobs()"


@mailengine.audience("killed")
def killed():
    return READERS


@pytest.mark.parametrize("when", [BETWEEN_PIECES, BEFORE_A_COMMIT], ids=["between pieces", "before a commit"])
def test_a_second_run_completes_what_a_killed_one_began(when):
    """C13, F-X01"""
    job = queue_job("News", "Hello", "news@example.org", "killed")

    ended = run_script(EXPAND_AND_DIE + when)
    made_before = job.messages.count()
    expand_jobs()

    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert made_before == 2_000
    assert sorted(job.messages.values_list("recipient", flat=True)) == sorted(READERS)
    job.refresh_from_db()
    assert (job.status, job.message_count, job.duplicate_count) == ("sending", 5_000, 0)


def test_two_runs_at_once_double_nothing_and_neither_fails():
    """C13, C18"""
    job = queue_job("News", "Hello", "news@example.org", READERS)
    start, reports = threading.Barrier(2), []

    def expand():
        start.wait()
        try:
            reports.append(expand_jobs())
        finally:
            connections.close_all()

    threads = [threading.Thread(target=expand) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(report.messages for report in reports) == job.messages.count() == 5_000
    assert [report.postponed + report.paused for report in reports] == [0, 0]
    job.refresh_from_db()
    assert (job.status, job.message_count, job.duplicate_count) == ("sending", 5_000, 0)


def test_a_stopped_run_ends_at_the_next_piece_and_the_next_run_goes_on():
    stop = threading.Event()
    job = queue_job("News", "Hello", "news@example.org", READERS)

    report = expand_jobs(stop=stop, on_progress=lambda _report: stop.set())

    assert (report.stopped, job.messages.count()) == ("signal", 2_000)
    expand_jobs()
    assert job.messages.count() == 5_000


def test_a_cancel_in_the_middle_ends_the_expansion():
    """F-X03"""
    job = queue_job("News", "Hello", "news@example.org", READERS)

    expand_jobs(on_progress=lambda _report: MessageJob.objects.filter(pk=job.pk).cancel())
    expand_jobs()

    job.refresh_from_db()
    assert job.status == "cancelled"
    assert job.messages.count() == job.messages.filter(status="cancelled").count() == 2_000


def test_a_pause_in_the_middle_holds_the_expansion_until_the_job_is_resumed():
    """F-X03"""
    job = queue_job("News", "Hello", "news@example.org", READERS)

    expand_jobs(on_progress=lambda _report: MessageJob.objects.filter(pk=job.pk).pause())
    assert expand_jobs().messages == 0
    MessageJob.objects.filter(pk=job.pk).resume()
    report = expand_jobs()

    assert (report.messages, job.messages.count()) == (3_000, 5_000)


def test_the_messages_of_a_cancelled_job_follow_in_batches_within_the_time_of_a_run():
    job = queue_job("News", "Hello", "news@example.org", READERS[:1_500])
    expand_jobs()
    MessageJob.objects.filter(pk=job.pk).cancel()

    first, second = expand_jobs(max_time=0), expand_jobs()

    assert (first.followed, second.followed) == (1_000, 500)
    assert job.messages.filter(status="cancelled").count() == 1_500


STEPS = [
    ("mailengine.models.jobs:JobQuerySet.due", "after", 1),
    ("mailengine.models.jobs:MessageJob.start", "before", 1),
    ("mailengine.models.jobs:MessageJob.hold", "before", 2),
    ("mailengine.models.messages:MessageQuerySet.insert_many", "after", 2),
    ("mailengine.models.jobs:MessageJob.advance", "after", 3),
    ("mailengine.models.jobs:JobQuerySet.finish", "before", 1),
]


@servers_only
@pytest.mark.parametrize(("target", "when", "call"), STEPS, ids=lambda value: str(value).rpartition(".")[2])
def test_a_connection_that_is_terminated_at_any_step_costs_nothing(monkeypatch, target, when, call):
    """F-D02: the piece is made again, in the same run."""
    job = queue_job("News", "Hello", "news@example.org", READERS)
    hits = at(monkeypatch, target, terminate_own_connection, when=when, times=(call,))

    report = expand_jobs()

    assert hits == [call]
    assert (report.messages, report.duplicates, report.postponed) == (5_000, 0, 0)
    assert_whole(job)


@servers_only
@pytest.mark.parametrize("fate", ["arrived", "did not arrive"])
@pytest.mark.parametrize("piece", [1, 3])
def test_a_piece_whose_commit_may_have_arrived_is_made_once(monkeypatch, piece, fate):
    """F-D02: and counted once. The third is the last."""
    job = queue_job("News", "Hello", "news@example.org", [*READERS, READERS[0]])
    advance = "mailengine.models.jobs:MessageJob.advance"
    with through_a_proxy() as proxy:
        at(monkeypatch, advance, lambda: setattr(proxy, "next_commit", fate), when="after", times=(piece,))
        report = expand_jobs()

    assert proxy.cut_count == 1
    assert (report.messages, report.duplicates, report.postponed) == (5_000, 1, 0)
    assert_whole(job, duplicates=1)


@servers_only
def test_a_commit_that_is_still_on_its_way_is_waited_for(monkeypatch):
    """F-D02: its piece is counted, and what comes behind it is made in the same run."""
    job = queue_job("News", "Hello", "news@example.org", READERS)

    def commit_slowly():
        with transaction.atomic():  # waits for the row until the run has lost its connection
            MessageJob.objects.filter(pk=job.pk).update(cursor=2_000, message_count=2_000)
            time.sleep(0.5)
        connections.close_all()

    slow = threading.Thread(target=commit_slowly)

    def lose_the_answer():
        slow.start()
        wait_for(somebody_waits_for_a_lock)
        fail()

    at(monkeypatch, INSERT, lose_the_answer, when="after", times=(1,))

    report = expand_jobs()

    slow.join()
    assert (report.messages, report.duplicates, report.postponed) == (5_000, 0, 0)
    assert job.messages.count() == 3_000


def somebody_waits_for_a_lock():
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SELECT 'LOCK WAIT' FROM pg_locks WHERE NOT granted")
        else:  # information_schema.innodb_trx says what it said the last time, when it is asked often
            cursor.execute("SHOW ENGINE INNODB STATUS")
        return "LOCK WAIT" in str(cursor.fetchall())


@servers_only
def test_the_messages_of_a_cancelled_job_follow_though_the_connection_is_lost(monkeypatch):
    job = queue_job("News", "Hello", "news@example.org", READERS[:1_500])
    expand_jobs()
    MessageJob.objects.filter(pk=job.pk).cancel()
    follow = "mailengine.models.messages:MessageQuerySet.follow"
    at(monkeypatch, follow, terminate_own_connection, times=(2,))

    assert expand_jobs().followed == 1_500
    assert job.messages.filter(status="cancelled").count() == 1_500


def fail():
    raise OperationalError("could not extend file: no space left on device")


INSERT = "mailengine.models.messages:MessageQuerySet.insert_many"


@pytest.mark.parametrize("to", ["killed", READERS], ids=["audience", "list"])
def test_a_database_that_takes_nothing_for_long_is_waited_for(monkeypatch, to):
    monkeypatch.setattr("mailengine.pipeline.outage.FIRST_WAIT_SECONDS", 0.001)
    job = queue_job("News", "Hello", "news@example.org", to)
    hits = at(monkeypatch, INSERT, fail, when="after", times=range(2, 12))

    report = expand_jobs()

    assert (len(hits), report.messages, report.postponed) == (10, 5_000, 0)
    assert_whole(job)


@servers_only
@pytest.mark.parametrize("to", ["killed", READERS], ids=["audience", "list"])
def test_a_database_that_is_away_for_long_is_waited_for(monkeypatch, caplog, to):
    """F-D01"""
    monkeypatch.setattr("mailengine.pipeline.outage.FIRST_WAIT_SECONDS", 0.01)
    job = queue_job("News", "Hello", "news@example.org", to)
    with through_a_proxy() as proxy:
        at(monkeypatch, INSERT, proxy.down, times=(2,))
        watch = threading.Thread(target=lambda: (wait_for(lambda: len(caplog.records) >= 9), proxy.up()))
        watch.start()
        report = expand_jobs()
        watch.join()

    assert (report.messages, report.postponed) == (5_000, 0)
    assert_whole(job)


@pytest.mark.parametrize("end", ["max_time", "signal"])
def test_a_run_that_is_over_waits_for_no_database(monkeypatch, end):
    job, stop = queue_job("News", "Hello", "news@example.org", READERS), threading.Event()
    tries = at(monkeypatch, INSERT, fail, times=range(1, 1_000))
    if end == "signal":
        at(monkeypatch, INSERT, stop.set, times=(2,))

    report = expand_jobs(max_time=1 if end == "max_time" else None, stop=stop)

    assert (report.stopped, report.messages) == (end, 0)
    assert len(tries) > 1
    job.refresh_from_db()
    assert (job.status, job.cursor) == ("expanding", 0)


def test_an_audience_whose_own_database_stays_away_holds_up_no_other_job(monkeypatch):
    monkeypatch.setattr("mailengine.pipeline.outage.FIRST_WAIT_SECONDS", 0.001)
    asked = []

    @mailengine.audience("away")
    def away():
        asked.append(None)
        raise OperationalError("could not connect to the archive")

    job, other = (queue_job("News", "Hello", "news@example.org", to) for to in ("away", READERS[:10]))

    report = expand_jobs()

    assert (len(asked), report.postponed, report.paused) == (6, 1, 0)
    assert (job.messages.count(), other.messages.count()) == (0, 10)


@servers_only
def test_a_job_is_paused_with_its_reason_though_the_connection_is_lost(monkeypatch):
    @mailengine.audience("wrong")
    def wrong():
        return [None]

    job = queue_job("News", "Hello", "news@example.org", "wrong")
    hits = at(monkeypatch, "mailengine.models.jobs:JobQuerySet.pause", terminate_own_connection, times=(1,))

    report = expand_jobs()

    job.refresh_from_db()
    assert (hits, report.paused, job.status) == ([1], 1, "paused")
    assert job.reason.startswith("paused: entry 1 of the audience is None")


def assert_whole(job, *, duplicates=0):
    assert sorted(job.messages.values_list("recipient", flat=True)) == sorted(READERS)
    job.refresh_from_db()
    assert (job.status, job.message_count, job.duplicate_count) == ("sending", 5_000, duplicates)
