"""`mail_worker` as an operator runs it: real processes, signals, and deaths."""

import os
import signal
import time

import pytest
from django.db import connection

from mailengine import queue_job
from mailengine.models import Attempt, Message, Worker
from mailengine.pipeline.worker import SURE_SECONDS
from tests.commands.programs import relay, run, start
from tests.dispatch.helpers import queue, queue_many

pytestmark = pytest.mark.django_db(transaction=True)


def pids():
    """Of the workers that have not said goodbye."""
    names = Worker.objects.filter(stopped_at=None).values_list("name", flat=True)
    return [int(name.rpartition(":")[2]) for name in names]


def lives(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def sent():
    return Message.objects.filter(status="sent").count()


def test_mail_leaves_while_a_worker_waits(work, smtp, wait_until):
    """S01, G25: it looks each interval, whatever the database."""
    work("--interval", "0.2")

    queue()

    wait_until(lambda: smtp.accepted)


def test_a_job_is_expanded_and_sent_without_cron(work, smtp, wait_until):
    """C20"""
    work("--interval", "0.2")

    job = queue_job("Hi", "Hello", "desk@example.org", [f"u{number}@example.org" for number in range(50)])

    wait_until(lambda: len(smtp.accepted) == 50)
    wait_until(lambda: type(job).objects.get(pk=job.pk).status == "done")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once_when_it_waits(number, work):
    """G25"""
    process = work("--interval", "60")

    process.send_signal(number)
    out, err = process.communicate(timeout=20)

    assert (process.returncode, out, err) == (0, "", "")
    assert Worker.objects.get().stopped_at is not None


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_signal_lets_what_is_in_flight_end_and_gives_the_rest_back(workers, work, smtp, wait_until):
    """G25"""
    queue_many(40)
    smtp.delay_seconds = 0.3
    process = work("--workers", workers)
    wait_until(lambda: smtp.accepted)

    process.terminate()
    out, err = process.communicate(timeout=20)

    assert (process.returncode, err) == (0, "")
    assert sent() == len(smtp.accepted) < 40
    assert Message.objects.filter(status="queued", lease=None).count() == 40 - sent()
    assert not Attempt.objects.open().exists()
    assert out.startswith(f"mail_worker: {sent()} sent in ")


def test_workers_share_the_mail_and_each_is_sent_once(work, smtp, wait_until):
    """G26"""
    smtp.delay_seconds = 0.02
    work("--workers", "2", "--interval", "0.2")
    wait_until(lambda: len(pids()) == 2)

    queue_job("Hi", "Hello", "desk@example.org", [f"u{number}@example.org" for number in range(100)])

    wait_until(lambda: sent() == 100)
    assert len({mail.mailengine_id for mail in smtp.accepted}) == len(smtp.accepted) == 100
    assert len(set(Message.objects.values_list("worker", flat=True))) == 2


def test_one_that_dies_is_replaced_and_the_mail_goes_on(work, smtp, wait_until):
    process = work("--workers", "2", "--interval", "0.2")
    wait_until(lambda: len(pids()) == 2)
    victim = pids()[0]

    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: Worker.objects.count() == 3)
    queue_many(20)
    wait_until(lambda: sent() == 20)
    process.terminate()
    _out, err = process.communicate(timeout=20)

    assert process.returncode == 0
    assert "was killed by signal 9 (Killed); another starts in 1 s" in err
    assert len(err.splitlines()) == 1


def test_one_that_is_told_to_stop_by_itself_is_replaced_too(work, smtp, wait_until):
    """The first keeps house: without another one, this host would expand no job any more."""
    process = work("--workers", "2", "--interval", "0.2")
    wait_until(lambda: len(pids()) == 2)
    for pid in pids():
        os.kill(pid, signal.SIGTERM)
    wait_until(lambda: Worker.objects.count() == 4)

    queue_job("Hi", "Hello", "desk@example.org", [f"u{number}@example.org" for number in range(5)])

    wait_until(lambda: sent() == 5)
    process.terminate()
    _out, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert err.count("was told to stop; another starts in 1 s") == 2


def test_they_end_well_when_their_supervisor_is_killed(work, smtp, wait_until):
    process = work("--workers", "2")
    wait_until(lambda: len(pids()) == 2)
    orphans = pids()

    process.kill()

    wait_until(lambda: not any(lives(pid) for pid in orphans))
    assert not Worker.objects.filter(stopped_at=None).exists()


def test_it_ends_after_its_time_or_its_limit(smtp):
    queue_many(5)

    ended = run("mail_worker", "--workers", "2", "--limit", "4", **relay(smtp))
    timed = run("mail_worker", "--max-time", "0.1", "--json", **relay(smtp))

    assert (ended.returncode, timed.returncode) == (0, 0), ended.stderr + timed.stderr
    assert ended.stdout.startswith("mail_worker: 4 sent in ")
    assert '"stopped": "max_time"' in timed.stdout


def test_cron_and_workers_share_the_queue_and_send_nothing_twice(work, smtp, wait_until):
    """C18"""
    work("--workers", "2", "--interval", "0.1")
    started = []
    for number in range(2):
        queue_many(10)
        queue_job("Hi", f"Hello {number}", "desk@example.org", [f"r{n}@example.org" for n in range(40)])
        started += [start(command, **relay(smtp)) for command in ("process_mail_jobs", "send_mail", "retry_deferred")]
    ended = [(process.communicate(timeout=60), process.returncode) for process in started]

    wait_until(lambda: sent() == 100)

    assert {code for _streams, code in ended} == {0}
    assert [err for (_out, err), _code in ended if err] == []
    assert len({mail.mailengine_id for mail in smtp.accepted}) == len(smtp.accepted) == 100


@pytest.mark.skipif(connection.vendor == "sqlite", reason="it needs a database that can cut a connection")
def test_it_outlives_its_connections(work, smtp, wait_until):
    work("--interval", "0.2")
    queue()
    wait_until(lambda: sent() == 1)

    cut_all_others()
    queue()

    wait_until(lambda: sent() == 2)


def cut_all_others():
    """Cut every other connection to this database."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
            return
        cursor.execute("SELECT id FROM information_schema.processlist WHERE db = database() AND id <> connection_id()")
        for (number,) in cursor.fetchall():
            cursor.execute(f"KILL {number}")


@pytest.mark.skipif(connection.vendor != "postgresql", reason="only PostgreSQL wakes workers")
class TestWaking:
    """Commits wake a worker that would not look by itself for a minute."""

    @pytest.fixture
    def waiting(self, work, wait_until):
        """A worker that waits, and would for a minute; it may look by itself in its first seconds."""
        process = work("--interval", "60")
        wait_until(lambda: listeners() == 1)
        time.sleep(SURE_SECONDS)
        return process

    def test_what_is_committed_is_sent_at_once_and_after_a_lost_connection_too(self, waiting, smtp, wait_until):
        """S01"""
        queue()
        wait_until(lambda: len(smtp.accepted) == 1, seconds=20)

        queue_job("Hi", "Hello", "desk@example.org", ["ann@example.org"])
        wait_until(lambda: len(smtp.accepted) == 2, seconds=20)

        cut_all_others()
        wait_until(lambda: listeners() == 1)
        queue()
        wait_until(lambda: len(smtp.accepted) == 3, seconds=20)


def listeners():
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query = 'LISTEN mailengine'"
        )
        return cursor.fetchone()[0]
