"""Expansion that is killed, stopped, or run twice at once: every recipient gets one message nevertheless."""

import signal
import threading

import pytest
from django.db import connections

import mailengine
from mailengine import queue_job
from mailengine.models import MessageJob
from mailengine.pipeline.expand import expand_jobs
from tests.commands.programs import run_script

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
