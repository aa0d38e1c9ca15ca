"""C6, expansion: jobs that are killed, paused or cancelled while they are expanded or sent."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from random import Random

from django.db import connection

import mailengine
from mailengine.clock import read_now
from mailengine.models import Attempt, MessageJob

from .case import Missed, case
from .jobs import WORDS, addresses, crowd, cursor_of, withdraw
from .points import KILL, at
from .sinks import CLOSE, Pause, Step, every, once_each
from .world import UNHURRIED, World

INSERTED = ("mailengine.models.messages:MessageQuerySet.insert_many", "after")
"""The messages of a piece are written; its job's cursor is not yet moved."""
MOVED = ("mailengine.models.jobs:MessageJob.advance", "after")
"""The cursor is moved, too, and nothing is committed."""
COMMITTED = ("mailengine.pipeline.expand:Expander._write", "after")
"""The piece is committed."""


@case("F-X01", "kill -9 in the middle of expanding a list of 100,000, 20 times", quick=True)
def killed_while_expanding(world: World, random: Random) -> None:
    count = 12_000 if world.is_quick else 100_000
    job = mailengine.queue_job(*WORDS, addresses(count))
    _kill_while_expanding(world, random, job, count=count)


@case("F-X01b", "the same with an audience that is read anew each time")
def killed_while_expanding_an_audience(world: World, random: Random) -> None:
    count = 100_000
    exec(crowd(count), {})  # noqa: S102 (our own words)
    _kill_while_expanding(world, random, mailengine.queue_job(*WORDS, "crowd"), count=count, before=crowd(count))


def _kill_while_expanding(world: World, random: Random, job: MessageJob, *, count: int, before: str = "") -> None:
    """However often it is killed, and wherever: each recipient has one message."""
    world.smtp()
    for number in world.times(20):
        if number % 2:
            _kill_between_pieces(world, random, job, before=before)
        else:
            point = random.choice([INSERTED, MOVED, COMMITTED])
            worker = world.worker("process_mail_jobs", before=before + at(point, KILL, nth=random.randint(1, 2)))
            world.until_killed(worker)
        job.refresh_from_db()
        assert job.status == "expanding", f"the kill came too late: {job.status}"
    worker = world.run("process_mail_jobs", before=before, seconds=120)
    assert worker.returncode == 0, worker.err
    assert_expanded(job, addresses(count))
    world.run("send_mail", "--limit=100")
    withdraw(world, job)  # that the others would arrive, too, is for other cases to show


def _kill_between_pieces(world: World, random: Random, job: MessageJob, *, before: str) -> None:
    """At any instant: a little after it has done a piece."""
    job.refresh_from_db()
    start = job.cursor
    worker = world.worker("process_mail_jobs", before=before)
    world.wait_until(lambda: cursor_of(job) > start or not worker.is_alive, what="a piece to be done")
    time.sleep(random.uniform(0, 0.1))
    worker.kill()
    world.until_killed(worker)


def assert_expanded(job: MessageJob, expected: Sequence[str]) -> None:
    """One message for each of these, and the job says so."""
    job.refresh_from_db()
    recipients = list(job.messages.order_by("recipient").values_list("recipient", flat=True))
    assert len(recipients) == len(expected), f"{len(recipients)} messages for {len(expected)} recipients"
    assert recipients == sorted(expected)
    counted = (job.status, job.message_count, job.recipient_count, job.duplicate_count)
    assert counted == ("sending", len(expected), len(expected), 0), counted


@case("F-X03", "a job is paused or cancelled in mid-expansion", quick=True)
def stopped_while_expanding(world: World, random: Random) -> None:
    """No message of it is made after the commit; resumed, it goes on where it was."""
    world.configure(**UNHURRIED)
    world.smtp()
    for _ in world.times(8, quick=1):
        count = 8_000 if world.is_quick else 20_000
        job = mailengine.queue_job(*WORDS, addresses(count))
        worker = world.worker("process_mail_jobs")
        enough = random.randint(1, count // 4)
        world.wait_until(lambda: cursor_of(job) >= enough or not worker.is_alive, what="pieces to be done")  # noqa: B023
        time.sleep(random.uniform(0, 0.1))
        is_pause = random.random() < 0.5
        mine = MessageJob.objects.filter(pk=job.pk, status="expanding")
        if not (mine.pause() if is_pause else mine.cancel()):
            raise Missed("the expansion was through")
        world.fault_count += 1
        made_count = job.messages.count()
        assert worker.wait() == 0, worker.err
        world.run("process_mail_jobs")
        assert job.messages.count() == made_count, f"{job.messages.count() - made_count} were made after the commit"
        world.run("send_mail")
        assert not Attempt.objects.filter(message__job=job).exists()
        if is_pause:
            MessageJob.objects.filter(pk=job.pk).resume()
            assert world.run("process_mail_jobs").returncode == 0
            assert_expanded(job, addresses(count))
        withdraw(world, job)


@case(
    "F-X03b",
    "a job is paused or cancelled in mid-send; some of its mail is deferred, some in doubt",
    duplicates="1 for each mail taken in silence",
    bound=lambda run: run.faults,
)
def stopped_while_sending(world: World, random: Random) -> None:
    """No handover of it begins after the commit, by the clock of the database; resumed, all of it goes."""
    world.configure(**UNHURRIED, UNHEALTHY_THRESHOLD=50)
    sink = world.smtp()
    hits = 0
    for _ in range(20):
        sink.heal()
        sink.on(Step.DOT, Pause(0.05))
        is_first = once_each()
        sink.on(Step.DOT, CLOSE, when=lambda moment: is_first(moment) and moment.count % 19 == 0, accepts=True)  # noqa: B023
        sink.on(Step.RCPT, "450 4.2.1 Not now", when=every(7))
        before = sink.accepted_count
        world.queue(150, job=True)
        job = MessageJob.objects.latest("id")
        crew = [world.worker(command) for command in ("send_mail", "send_mail", "retry_deferred")]
        enough = before + random.randint(5, 25)
        world.wait_until(lambda: sink.accepted_count >= enough, what="mail to be under way")  # noqa: B023
        time.sleep(random.uniform(0, 0.05))
        is_pause = random.random() < 0.5
        jobs = MessageJob.objects.filter(pk=job.pk)
        assert jobs.pause() if is_pause else jobs.cancel()
        stopped_at = read_now(connection.alias)
        for worker in crew:
            worker.wait()
        hits += job.messages.filter(attempts=None).exists()
        for command in ("send_mail", "process_mail_jobs", "send_mail", "retry_deferred"):
            world.run(command)
        assert_none_begun(job, after=stopped_at)
        if is_pause:
            jobs.resume()
            world.run("process_mail_jobs")
            world.drain()
            assert set(job.messages.values_list("status", flat=True)) == {"sent"}, world.statuses()
    if hits < 10:
        raise Missed("nearly all had begun before their job was stopped")
    world.drain()
    assert world.reckon().duplicates <= world.outcomes().get("uncertain", 0)


def assert_none_begun(job: MessageJob, *, after: datetime) -> None:
    late = Attempt.objects.filter(message__job=job, begun_at__gt=after).values_list("begun_at", "message__status")
    assert not late, f"{len(late)} handovers began after {after}: {list(late)}"
