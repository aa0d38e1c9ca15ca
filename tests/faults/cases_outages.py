"""C3, the database goes away: servers that crash, connections that are cut at every point."""

from __future__ import annotations

import time
from contextlib import nullcontext
from random import Random

from django.db import Error as DatabaseFault
from django.db import connection, transaction

import mailengine
from mailengine.models import Attempt, Message, MessageJob

from ..database_faults import DatabaseProxy, through_a_proxy
from .case import MARIADB, POSTGRESQL, Missed, case
from .databases import (
    CRASHES,
    LOUD,
    SERVERS,
    assert_turned_away,
    busy_sink,
    crew_at_work,
    enqueue,
    expect_no_doubt,
    noticed,
    terminate_one,
)
from .points import BEGINNING, BEGUN, CLAIMED, COMPOSED, ENDED, ENDING, RESCUING, SETTLED, THROUGH, at
from .sinks import SMTPSink
from .world import UNHURRIED, World

DROP = {"do": "terminate_own_connection()", "imports": "from tests.database_faults import terminate_own_connection"}
"""For `at()`: the server closes this process's connection, as an administrator's KILL does."""
BIG = 20_000


# The server crashes


@case("F-D01", "the server crashes in mid-run and is back within seconds", databases=SERVERS)
def server_crashes(world: World, random: Random) -> None:
    """Workers wait for it and go on by themselves; with the lease still theirs, nobody sends anything twice."""
    world.configure(**UNHURRIED)
    sink = busy_sink(world)
    waits = []
    for _ in world.times(CRASHES):
        waits.append(crash_in_mid_run(world, sink, random, away_seconds=random.uniform(0, 1.5)))
        world.drain()
        expect_no_doubt(world)
    world.note(f"mail flowed again {max(waits):.1f} s after the server was back, at the latest")


@case("F-D01b", "the same", databases=(MARIADB, POSTGRESQL))
def mariadb_crashes(world: World, random: Random) -> None:
    server_crashes(world, random)


@case("F-D01c", "the same, away for the whole 30 s", databases=SERVERS)
def server_away_for_long(world: World, random: Random) -> None:
    world.configure(**UNHURRIED)
    seconds = crash_in_mid_run(world, busy_sink(world), random, away_seconds=30)
    world.note(f"mail flowed again {seconds:.1f} s after the server was back")


@case(
    "F-D01d",
    "the server is away for longer than the lease",
    duplicates="4 connections of each of 2 workers, for each crash",
    bound=lambda run: 8 * run.faults,
    databases=SERVERS,
)
def away_for_longer_than_the_lease(world: World, random: Random) -> None:
    """Others may have taken back what was in flight before its outcome could be written."""
    sink = busy_sink(world)
    for _ in world.times(CRASHES // 4):
        crash_in_mid_run(world, sink, random, away_seconds=4)
        world.drain()


@case("F-D01e", "the server crashes five times while a job of 20,000 is expanded", databases=SERVERS)
def crash_in_an_expansion(world: World, random: Random) -> None:
    """A run goes on where the job stands, or leaves it, after three seconds without an answer, to the next one."""
    job = queue_big_job(world)
    worker = world.worker("process_mail_jobs")
    for _ in range(5):
        enough = Message.objects.count() + random.randint(1, 2_500)
        world.wait_until(lambda: Message.objects.count() >= enough or not worker.is_alive)  # noqa: B023
        if not worker.is_alive:
            assert worker.returncode == 0, worker.err
            worker = world.worker("process_mail_jobs")
        server_restarts(world, away_seconds=random.uniform(0, 1))
    worker.wait()
    assert_expanded_exactly(world, job)


def crash_in_mid_run(world: World, sink: SMTPSink, random: Random, *, away_seconds: float) -> float:
    """How long after the server was back mail flowed again, by workers that had been at work when it crashed."""
    world.queue(150)
    crew = crew_at_work(world, 2)
    enough = sink.accepted_count + random.randint(1, 80)
    world.wait_until(lambda: sink.accepted_count >= enough, what="mail to arrive")
    were_busy = all(worker.is_alive for worker in crew)
    server_restarts(world, away_seconds=away_seconds)
    if not were_busy:
        raise Missed("they were through")
    back_at, before = time.monotonic(), sink.accepted_count
    world.wait_until(lambda: sink.accepted_count > before, what="mail to flow again")
    seconds = time.monotonic() - back_at
    for worker in crew:
        assert worker.wait() == 0, worker.err
        assert noticed(worker), f"{worker} should have noticed: {worker.err}"
    return seconds


def server_restarts(world: World, *, away_seconds: float) -> None:
    """It crashes, turns away a worker that cron starts meanwhile, and is back."""
    assert world.cluster is not None
    connection.close()
    world.cluster.stop("immediate")
    world.fault_count += 1
    try:
        time.sleep(away_seconds)
        newcomer = world.worker("send_mail")
        newcomer.may_fail = True
        newcomer.wait()
        assert_turned_away(newcomer)
    finally:
        world.cluster.start()


# Connections are cut

POINTS = (CLAIMED, COMPOSED, BEGINNING, BEGUN, ENDING, ENDED, SETTLED, THROUGH)


@case("F-D02", "a worker's connection is terminated at each point of a run", databases=SERVERS, quick=True)
def connection_terminated(world: World, random: Random) -> None:
    """It makes a new one, looks up what it does not know to be committed, and goes on."""
    world.configure(**UNHURRIED)
    world.smtp()
    rounds = random.sample(POINTS, 2) if world.is_quick else POINTS * 3
    for point in rounds:
        world.queue(40)
        nth = 1 if point in {THROUGH, CLAIMED, COMPOSED} else random.randint(1, 12)
        worker = world.run("send_mail", before=LOUD + at(point, nth=nth, **DROP))
        assert worker.returncode == 0, f"{point[0]} for the {nth}. time: {worker.err}"
        if not noticed(worker):
            raise Missed(f"{point[0]} was not reached {nth} times")
        world.fault_count += 1
    world.drain()
    expect_no_doubt(world)


@case("F-D02b", "the same in the rescue of what a killed worker left", databases=SERVERS)
def connection_terminated_in_the_rescue(world: World, random: Random) -> None:
    world.smtp()
    for _ in world.times(CRASHES // 4):
        world.queue(10)
        world.kill_at(CLAIMED, nth=1)
        left = Message.objects.overdue_leases()
        world.wait_until(left.exists, what="its lease to end")
        worker = world.run("send_mail", before=LOUD + at(RESCUING, **DROP))
        assert worker.returncode == 0, worker.err
        assert noticed(worker), "the rescue was not reached"
        world.fault_count += 1
    assert not Attempt.objects.exclude(outcome="accepted").exists()


@case("F-D02c", "connections are terminated at random instants, 100 times", databases=(MARIADB, POSTGRESQL))
def connections_terminated(world: World, random: Random) -> None:
    world.configure(**UNHURRIED)
    busy_sink(world)
    for _ in world.times(CRASHES):
        world.queue(150)
        crew = crew_at_work(world, 3)
        connection.close()
        for _ in range(5):
            time.sleep(random.uniform(0, 0.2))
            world.fault_count += terminate_one(random)
        for worker in crew:
            assert worker.wait() == 0, worker.err
    assert world.fault_count >= 50, f"only {world.fault_count} hit"
    world.drain()
    expect_no_doubt(world)


@case("F-D02e", "the connection is cut at a worker's COMMIT, which arrives or doesn't", databases=SERVERS, quick=True)
def cut_at_a_workers_commit(world: World, random: Random) -> None:
    """It looks up which: what has begun is in the ledger once, and nothing is sent twice."""
    world.configure(**UNHURRIED)
    sink = busy_sink(world)
    in_clear = {"PGSSLMODE": "disable", "PGGSSENCMODE": "disable"}
    for _ in world.times(CRASHES // 2):
        world.queue(40)
        with DatabaseProxy() as proxy:
            crew = [world.worker("send_mail", via=proxy, environment=in_clear) for _ in range(2)]
            for _ in range(3):
                enough = sink.accepted_count + random.randint(1, 8)
                world.wait_until(
                    lambda: sink.accepted_count >= enough or not any(worker.is_alive for worker in crew)  # noqa: B023
                )
                proxy.next_commit = random.choice(["arrived", "arrived", "did not arrive"])
            for worker in crew:
                assert worker.wait() == 0, worker.err
            world.fault_count += proxy.cut_count
    if not world.fault_count:
        raise Missed("no commit was cut")
    world.drain()
    expect_no_doubt(world)


@case("F-D02d", "the same, again and again, while a job of 20,000 is expanded by two", databases=SERVERS)
def connections_terminated_in_an_expansion(world: World, random: Random) -> None:
    job = queue_big_job(world)
    crew = [world.worker("process_mail_jobs") for _ in range(2)]
    for _ in range(30):
        count = Message.objects.count()
        connection.close()
        time.sleep(random.uniform(0, 0.2))
        world.fault_count += terminate_one(random)
        # One piece that is cut six times is left to the next run: that is another matter.
        world.wait_until(lambda: Message.objects.count() > count or not any(w.is_alive for w in crew))  # noqa: B023
    for worker in crew:
        worker.wait()
        if worker.returncode != 0:  # it was still starting: a connection that it never used has no second try
            worker.may_fail = True
            assert_turned_away(worker)
    if not world.fault_count:
        raise Missed("the job was expanded")
    assert_expanded_exactly(world, job)


@case("F-D04", "the connection is cut at the COMMIT of an enqueue with a key", databases=SERVERS, quick=True)
def cut_at_the_commit(world: World, random: Random) -> None:
    """One row, whether that COMMIT arrived or not, and whether the caller asks again with the same key or we do.

    A caller whose own block it was sees the error; otherwise there is nothing to see.
    """
    world.smtp()
    with through_a_proxy() as proxy:
        for number in world.times(2 * CRASHES):
            fate = random.choice(["arrived", "did not arrive"])
            has_block = random.choice([True, False])
            connection.ensure_connection()
            proxy.next_commit = fate
            try:
                with transaction.atomic() if has_block else nullcontext():
                    enqueue(number)
            except DatabaseFault:
                connection.close()
            else:
                assert not has_block, "nobody but the caller can know what else was in that block"
                fate = "arrived"  # it has asked again by itself
            wanted = number + (fate == "arrived")
            # The server may still be at the commit that its client has lost.
            world.wait_until(lambda: Message.objects.count() == wanted, what=f"{wanted} rows, since it {fate}")  # noqa: B023
            row = enqueue(number)
            assert enqueue(number).pk == row.pk
            assert Message.objects.count() == number + 1, "a key is for one row"
            world.acked.append(str(row.pk))
        world.fault_count += proxy.cut_count
    assert world.fault_count == len(world.acked)


def queue_big_job(world: World) -> MessageJob:
    world.smtp()  # without a provider no command does anything
    recipients = [f"u{number:05d}@example.org" for number in range(BIG)]
    return mailengine.queue_job("Hello", "Good morning.", "desk@example.org", recipients)


def assert_expanded_exactly(world: World, job: MessageJob) -> None:
    """Each recipient has one message, whatever happened; then it is cancelled, since sending it shows nothing more."""
    connection.close()
    world.wait_until(lambda: _is_expanded(world, job), seconds=300, what="the job to be expanded")
    found = Message.objects.filter(job=job)
    assert found.count() == BIG, f"{found.count():,} messages"
    assert found.values("recipient").distinct().count() == BIG
    job.refresh_from_db()
    assert (job.message_count, job.duplicate_count, job.malformed_count, job.reason) == (BIG, 0, 0, "")
    MessageJob.objects.filter(pk=job.pk).cancel()
    world.run("process_mail_jobs")


def _is_expanded(world: World, job: MessageJob) -> bool:
    job.refresh_from_db()
    if job.status in {"queued", "expanding"}:
        world.run("process_mail_jobs")
        return False
    return True
