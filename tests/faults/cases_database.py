"""C3, the database: servers that crash, fill up, refuse, are slow or fall behind; connections cut at every point."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from random import Random
from typing import Any

from django.db import Error as DatabaseFault
from django.db import connection, transaction

import mailengine
from mailengine import Priority
from mailengine.clock import read_now
from mailengine.models import Attempt, Message, MessageJob
from mailengine.models import Worker as WorkerRow

from ..database_faults import DatabaseProxy, execute, raw_connection, through_a_proxy
from .case import MARIADB, POSTGRESQL, SQLITE, Missed, Skipped, case, not_built
from .log import Log
from .points import BEGINNING, BEGUN, CLAIMED, COMPOSED, ENDED, ENDING, RESCUING, SETTLED, THROUGH, at
from .postgres import Cluster
from .providers import expect
from .servers import Server, copy_tree
from .sinks import SMTPSink
from .standby import Standby
from .workers import Worker
from .world import UNHURRIED, World

SERVERS = (POSTGRESQL, MARIADB)
CRASHES = 20
DROP = {"do": "terminate_own_connection()", "imports": "from tests.database_faults import terminate_own_connection"}
"""For `at()`: the server closes this process's connection, as an administrator's KILL does."""
LOUD = "from django.conf import settings\nsettings.LOGGING['loggers']['mailengine']['level'] = 'INFO'\n"
"""For workers that are to say so: one error of the database alone is no warning."""


# The server crashes


@case("F-D01", "the server crashes in mid-run and is back within seconds", databases=SERVERS)
def server_crashes(world: World, random: Random) -> None:
    """Workers wait for it and go on by themselves; with the lease still theirs, nobody sends anything twice."""
    world.configure(**UNHURRIED)
    sink = busy_sink(world)
    waits = []
    for _ in world.times(CRASHES):
        waits.append(crash_in_mid_run(world, sink, random, away_seconds=random.uniform(0, 3)))
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
    rounds = random.sample(POINTS, 2) if world.is_quick else POINTS * 5
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
    for _ in world.times(CRASHES):
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


def enqueue(number: int, **options: Any) -> Message:
    words = "Hello", "Good morning.", "desk@example.org"
    return mailengine.queue_mail(*words, [f"k{number:05d}@example.org"], idempotency_key=f"{number}", **options)


not_built("F-D04b", "the same at the HTTP API: 503, and once more with the same key", "The API comes later.")


# It has no room


@case("F-D06", "the volume of the server is full, to its last byte", databases=(POSTGRESQL,))
def disk_full(world: World, random: Random) -> None:
    """Callers see an error, workers wait, and all goes on when there is room: no PostgreSQL loses what it committed."""
    world.configure(**UNHURRIED)
    sink = busy_sink(world)
    connection.close()
    with small_volume(world.cluster) as volume:
        for _ in world.times(CRASHES // 4):
            world.queue(100)
            crew = crew_at_work(world, 2)
            enough = sink.accepted_count + random.randint(1, 30)
            world.wait_until(lambda: sink.accepted_count >= enough, what="mail to arrive")  # noqa: B023
            fill(volume / "ballast")
            refusal = queue_until_refused(world)
            world.wait_until(
                lambda: all(noticed(worker) or not worker.is_alive for worker in crew),  # noqa: B023
                what="the workers to notice",
            )
            world.fault_count += 1
            (volume / "ballast").unlink()
            connection.close()
            bring_back(world.cluster)
            for worker in crew:
                assert worker.wait() == 0, worker.err
            if not any("No space left" in worker.err or "53100" in worker.err for worker in crew):
                world.note(f"the workers saw the server go away, the caller: {refusal}")
            world.drain()
            expect(world.statuses(), {"sent": len(world.acked)})
        connection.close()


def queue_until_refused(world: World) -> str:
    """Queue long mails until the database has no room for one; what the caller sees then."""
    for number in range(2_000):
        text = "".join(map(chr, Random(number).choices(range(33, 0x2000), k=20_000)))  # which nothing can compress
        try:
            row = mailengine.queue_mail("Long", text, "desk@example.org", [f"l{time.monotonic_ns()}@example.org"])
        except DatabaseFault as error:
            connection.close()
            return str(error).splitlines()[0]
        world.acked.append(str(row.pk))
    raise Missed("the volume was not full")


@contextmanager
def small_volume(cluster: Server | None) -> Iterator[Path]:
    """The server's data on a file system of its own with 100 MB to spare, in memory: it is space that we are after."""
    assert cluster is not None
    volume, before = cluster.folder / "volume", cluster.folder / "data-before"
    cluster.stop()
    volume.mkdir()
    used = sum(path.stat().st_blocks * 512 for path in cluster.data.rglob("*") if path.is_file())
    mount = ["mount", "-t", "tmpfs", "-o", f"size={used + 100_000_000}", "tmpfs", str(volume)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        cluster.start()
        raise Skipped("needs the right to mount a volume")
    try:
        copy_tree(cluster.data, volume / "data")
        cluster.data.rename(before)
        cluster.data.symlink_to(volume / "data")
        cluster.start()
        yield volume
        cluster.stop()
        cluster.data.unlink()
        copy_tree(volume / "data", cluster.data)
        shutil.rmtree(before)
        cluster.start()
    finally:
        subprocess.run(["umount", "--lazy", str(volume)], check=True)


def fill(path: Path) -> None:
    with suppress(OSError), path.open("wb", buffering=0) as ballast:
        while ballast.write(bytes(4_096)):
            pass


def bring_back(cluster: Server | None) -> None:
    """What an operator does: start it, if it went down for want of room."""
    assert cluster is not None
    for _ in range(2):
        with suppress(DatabaseFault):
            connection.ensure_connection()
            return
        with suppress(subprocess.CalledProcessError):
            cluster.stop("immediate")
        cluster.start()


# It is slow


@case("F-D08", "every answer of the database is late by more than a lease may be trusted", databases=SERVERS)
def latency(world: World, random: Random) -> None:
    """Nothing begins that was claimed too long ago: what the slow worker touches, others send, and once."""
    # A turn of the loop then takes longer than the second for which a lease is trusted, and less than the deadline.
    world.configure(SEND_DEADLINE_SECONDS=5, LEASE_SECONDS=6)
    sink = busy_sink(world)
    wire = world.proxy(int(connection.settings_dict["PORT"]))
    for _ in world.times(3):
        world.queue(40)
        slow = world.worker("send_mail", "--max-time=5", via=wire)
        enough = sink.accepted_count + random.randint(1, 15)
        world.wait_until(lambda: sink.accepted_count >= enough or not slow.is_alive, what="mail to arrive")  # noqa: B023
        wire.to_client.delay_seconds = 0.35
        delayed_at = read_now(connection.alias)
        world.fault_count += 1
        world.wait_until(lambda: not slow.is_alive, seconds=120, what="its end")  # noqa: B023
        wire.heal()
        if not Message.objects.exclude(status="sent").exists():
            raise Missed("it was through")
        late = Attempt.objects.filter(begun_at__gte=delayed_at)
        assert not late.filter(outcome="accepted").exists(), "sent, though nobody could know that it was still ours"
        world.note(f"{late.count()} attempts begun while answers were late; none was handed over")
        world.drain()
        expect(world.statuses(), {"sent": len(world.acked)})


@case("F-D08b", "statements are cancelled by a timeout while somebody holds the tables", databases=SERVERS)
def statement_timeout(world: World, random: Random) -> None:
    world.configure(**UNHURRIED)
    sink = busy_sink(world)
    impatient = {
        POSTGRESQL: "OPTIONS['options'] = '-c statement_timeout=300'",
        MARIADB: "OPTIONS['init_command'] += ', max_statement_time=0.3'",
    }[connection.vendor]
    before = f"from django.db import connection\nOPTIONS = connection.settings_dict['OPTIONS']\n{impatient}"
    for _ in world.times(CRASHES // 2):
        world.queue(80)
        crew = crew_at_work(world, 2, before=before)
        enough = sink.accepted_count + random.randint(1, 40)
        world.wait_until(lambda: sink.accepted_count >= enough, what="mail to arrive")  # noqa: B023
        with raw_connection() as other:
            if connection.vendor == POSTGRESQL:
                execute(other, "BEGIN")
                execute(other, "LOCK TABLE mailengine_message, mailengine_attempt IN ACCESS EXCLUSIVE MODE")
            else:
                execute(other, "LOCK TABLES mailengine_message WRITE, mailengine_attempt WRITE")
            time.sleep(random.uniform(0.5, 2))
        world.fault_count += sum(map(noticed, crew))
        for worker in crew:
            assert worker.wait() == 0, worker.err
        world.drain()
    if not world.fault_count:
        raise Missed("no statement took that long")
    expect(world.statuses(), {"sent": len(world.acked)})


# It has no connection to give


@case("F-D09", "all connections of the server are taken by others while workers have to reconnect", databases=SERVERS)
def no_connection_left(world: World, random: Random) -> None:
    """They wait for one and go on; who starts meanwhile says in one line why it can't."""
    world.configure(**UNHURRIED)
    sink = busy_sink(world)
    for _ in world.times(CRASHES // 4):
        world.queue(120)
        crew = crew_at_work(world, 2)
        enough = sink.accepted_count + random.randint(1, 40)
        world.wait_until(lambda: sink.accepted_count >= enough, what="mail to arrive")  # noqa: B023
        connection.close()
        with raw_connection() as admin, Hoarder() as hoarder:
            world.wait_until(lambda: hoarder.was_refused, what="the server to be full")
            for session in sessions(admin):
                if session not in hoarder.sessions:
                    terminate(admin, session)
            world.wait_until(
                lambda: all(refused_for_want_of_room(worker) or not worker.is_alive for worker in crew),  # noqa: B023
                what="the workers to find no room",
            )
            newcomer = world.worker("send_mail")
            newcomer.may_fail = True
            newcomer.wait()
            assert_turned_away(newcomer)
        world.fault_count += 1
        for worker in crew:
            assert worker.wait() == 0, worker.err
        if not any(map(refused_for_want_of_room, crew)):
            raise Missed("they were through")
        world.drain()
        expect(world.statuses(), {"sent": len(world.acked)})


class Hoarder:
    """Opens connections as fast as it can, and keeps them, within the `with` block."""

    def __init__(self) -> None:
        self.was_refused = False
        self.sessions: set[int] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._hoard, daemon=True)

    def __enter__(self) -> Hoarder:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()

    def _hoard(self) -> None:
        with ExitStack() as stack:
            while not self._stop.is_set():
                try:
                    other = stack.enter_context(raw_connection())
                except drivers_errors():
                    self.was_refused = True
                    self._stop.wait(0.005)
                else:
                    self.sessions.add(own_session(other))


def refused_for_want_of_room(worker: Worker) -> bool:
    return any(words in worker.err.lower() for words in ("too many clients", "too many connections", "reserved for"))


# It falls behind


@case(
    "F-D12",
    "failover to a replica that is 5 s behind",
    duplicates="what was sent in those 5 s, noted below; and 4 connections of each of 2 workers when they began",
    bound=lambda run: 8,
    databases=(POSTGRESQL,),
    seeds=3,
)
def failover(world: World, random: Random) -> None:
    """Workers go on against the replica. What it has, it sends; what it never heard of can't be known to it.

    Its link stands still for those seconds: with `recovery_min_apply_delay` it would have all records, and would
    apply them when it is promoted. What is taken in the meantime goes into a log of its own, since the ledger that the
    oracle compares it with is gone.
    """
    # What was claimed when it fell behind waits for the end of its lease.
    world.configure(LEASE_SECONDS=15, SEND_DEADLINE_SECONDS=5)
    sink = busy_sink(world)
    assert isinstance(world.cluster, Cluster)
    wire = world.proxy(world.cluster.port)
    world.queue(1_500)
    connection.close()
    with Standby(world.cluster, through=wire.port) as standby:
        crew = crew_at_work(world, 2)
        enough = sink.accepted_count + random.randint(20, 100)
        world.wait_until(lambda: sink.accepted_count >= enough, what="mail to arrive")
        standby.wait_until_level()
        wire.stall()
        sink.log = lag = Log(world.folder / "lag.jsonl")
        late = [enqueue(number, priority=random.choice([Priority.HIGH, Priority.NORMAL])) for number in range(20)]
        connection.close()
        time.sleep(5)
        standby.take_over()
        world.fault_count += 1
        if not all(worker.is_alive for worker in crew):
            raise Missed("they were through")
        sink.log = world.log
        wire.down()
        for worker in crew:
            assert worker.wait() == 0, worker.err
            assert noticed(worker), f"{worker} should have noticed: {worker.err}"
        world.drain(seconds=120)
    sent_in_lag = [copy.message_id for copy in lag.copies()]
    lag.close()
    late_ids = {str(message.pk) for message in late}
    known = {str(pk) for pk in Message.objects.values_list("pk", flat=True)}
    assert set(world.acked) <= known, "what was replicated is gone"
    assert not late_ids & known, "the replica was not behind"
    sent_again = [message_id for message_id in sent_in_lag if message_id in known]
    assert len(set(sent_again)) == len(sent_again), "sent twice within those seconds"
    world.note(
        f"{len(sent_in_lag)} sent in the lag, {len(sent_again)} of them once more, "
        f"{len(late_ids & set(sent_in_lag))} unexpected; {len(late_ids - set(sent_in_lag))} of {len(late)} enqueued "
        "in the lag are gone with it"
    )
    expect(world.statuses(), {"sent": len(world.acked)})


# It is a file


@case(
    "F-D13",
    "kill -9 of all processes in the middle of sending, expanding and queueing; the disk keeps its cache",
    duplicates="4 connections of each killed worker",
    bound=lambda run: 4 * run.kills,
    databases=(SQLITE,),
    quick=True,
)
def sqlite_processes_killed(world: World, random: Random) -> None:
    """The file stays whole, and what was committed is in it.

    Processes die here, the kernel lives: what it had not written yet it writes later. A loss of power would need a
    machine to switch off; for that there is `synchronous=FULL`, which is asserted.
    """
    sink = busy_sink(world)
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA synchronous")
        assert cursor.fetchone() == (2,), "FULL"
    rounds = world.times(CRASHES, quick=1)
    for number in rounds:
        world.queue(30)
        addresses = [f"r{number}-{n}@example.org" for n in range(50)]
        mailengine.queue_job("Hello", "Good morning.", "desk@example.org", addresses, stream="transactional")
        crew = [world.worker("send_mail") for _ in range(2)]
        crew.append(world.worker("process_mail_jobs"))
        enough = sink.accepted_count + random.randint(1, 25)
        world.wait_until(lambda: sink.accepted_count >= enough, what="mail to arrive")  # noqa: B023
        time.sleep(random.uniform(0, 0.05))
        for worker in crew:
            worker.kill()
        if all(worker.wait() != -9 for worker in crew):
            raise Missed("they were through")
        connection.close()
        assert integrity() == "ok"
        world.drain()  # or the same mail would meet its third death, and look like poison
    expect(world.statuses(), {"sent": len(world.acked) + 50 * len(rounds)})


not_built(
    "F-D13b",
    "loss of power: what the kernel had not written yet is gone",
    "It needs a machine to switch off; F-D13 asserts synchronous=FULL, which is the promise for it.",
)


def integrity() -> str:
    """What SQLite says of the file, read by itself."""
    with raw_connection() as other:
        assert isinstance(other, sqlite3.Connection)
        return str(execute(other, "PRAGMA integrity_check").fetchone()[0])


# Others hold its rows


@case(
    "F-D14",
    "deadlocks and lock timeouts: somebody locks attempts, then their messages, and holds them",
    databases=(MARIADB, POSTGRESQL),
)
def deadlocks(world: World, random: Random) -> None:
    world.configure(**UNHURRIED)
    busy_sink(world)
    impatient = {
        POSTGRESQL: "OPTIONS['options'] = '-c lock_timeout=1000 -c deadlock_timeout=20'",
        MARIADB: "OPTIONS['init_command'] += ', innodb_lock_wait_timeout=1'",
    }[connection.vendor]
    before = f"from django.db import connection\nOPTIONS = connection.settings_dict['OPTIONS']\n{impatient}"
    for _ in world.times(5):
        world.queue(200)
        crew = crew_at_work(world, 3, before=before)
        crossed = 0
        with raw_connection() as other:
            if connection.vendor == MARIADB:
                execute(other, "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")  # no locks on gaps
            while crossed < 15 and any(worker.is_alive for worker in crew):
                crossed += cross(other, random)
        for worker in crew:
            assert worker.wait() == 0, worker.err
    said = "".join(worker.err.lower() for worker in world.workers)
    victims, waited = said.count("deadlock"), said.count("lock wait timeout") + said.count("lock timeout")
    world.note(f"workers were the victims of {victims} deadlocks and {waited} lock timeouts")
    world.fault_count = victims + waited
    if not victims or not waited:
        raise Missed(f"{victims} deadlocks, {waited} lock timeouts")
    world.drain()
    expect(world.statuses(), {"sent": len(world.acked)})


def cross(other: object, random: Random) -> int:
    """Lock what is in flight in the other order than a worker does; 1 if something was there to be locked."""
    execute(other, "BEGIN")
    try:
        sql = "SELECT id, message_id FROM mailengine_attempt WHERE ended_at IS NULL LIMIT 4 FOR UPDATE"
        found = execute(other, sql).fetchall()
        if found:
            # With much to undo it is the other one that InnoDB takes for the victim.
            execute(other, "UPDATE mailengine_content SET subject = subject")
            time.sleep(random.uniform(0, 0.1))
            ids = ", ".join(f"'{row[1].hex if hasattr(row[1], 'hex') else row[1]}'" for row in found)
            execute(other, f"SELECT id FROM mailengine_message WHERE id IN ({ids}) FOR UPDATE")  # noqa: S608
            time.sleep(random.choice([0, 0.1, 1.5]))
    except drivers_errors():
        found = []
    execute(other, "ROLLBACK")
    return bool(found)


# What they share

BIG = 20_000


def busy_sink(world: World) -> SMTPSink:
    """A server behind a slow network, so that a run is long enough to be disturbed."""
    sink = world.smtp()
    wire = world.proxy(sink.port)
    wire.to_client.delay_seconds = 0.005
    world.route("relay", wire.port)
    return sink


def crew_at_work(world: World, count: int, before: str = "") -> list[Worker]:
    """So many workers, each of which has had its first answer from the database."""
    crew = [world.worker("send_mail", before=LOUD + before) for _ in range(count)]
    for worker in crew:
        mine = WorkerRow.objects.filter(name__endswith=f":{worker.pid}")
        world.wait_until(lambda: mine.exists() or not worker.is_alive, what=f"{worker} to be at work")  # noqa: B023
    return crew


def noticed(worker: Worker) -> bool:
    """Whether it has met an error of the database, and said so."""
    return "the database failed" in worker.err or "after a database error" in worker.err


def assert_turned_away(worker: Worker) -> None:
    """It said in one line what is wrong, and ended."""
    assert worker.returncode == 1, f"{worker} ended with {worker.returncode}: {worker.err}"
    assert "the database does not answer" in worker.err, worker.err
    assert "Traceback" not in worker.err, worker.err


def expect_no_doubt(world: World) -> None:
    """All is sent, and no handover was ever uncertain: the worker lived, and knows what it has done."""
    expect(world.statuses(), {"sent": len(world.acked)})
    expect(world.outcomes().get("uncertain", 0), 0, "uncertain attempts")


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


def terminate_one(random: Random) -> int:
    """Let the server drop one connection that isn't ours; 1 if there was one."""
    with raw_connection() as admin:
        found = sessions(admin)
        if found:
            terminate(admin, random.choice(found))
        return bool(found)


def sessions(admin: object) -> list[int]:
    """Of others, in this database."""
    sql = {
        POSTGRESQL: "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()",
        MARIADB: "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()",
    }[connection.vendor]
    return [row[0] for row in execute(admin, sql).fetchall()]


def terminate(admin: object, session: int) -> None:
    sql = {POSTGRESQL: f"SELECT pg_terminate_backend({session})", MARIADB: f"KILL CONNECTION {session}"}
    with suppress(*drivers_errors()):  # it has gone by itself
        execute(admin, sql[connection.vendor])


def own_session(other: object) -> int:
    sql = {POSTGRESQL: "SELECT pg_backend_pid()", MARIADB: "SELECT CONNECTION_ID()"}
    return int(execute(other, sql[connection.vendor]).fetchone()[0])


def drivers_errors() -> tuple[type[Exception], ...]:
    """Of a raw connection."""
    return (connection.Database.Error,)
