"""C3, the database in need: full, slow, crowded, behind, locked; and SQLite, which is a file."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from random import Random

from django.db import Error as DatabaseFault
from django.db import connection

import mailengine
from mailengine import Priority
from mailengine.clock import read_now
from mailengine.models import Attempt, Message

from ..database_faults import execute, raw_connection
from .case import MARIADB, POSTGRESQL, SQLITE, Missed, Skipped, case, not_built
from .databases import (
    CRASHES,
    SERVERS,
    assert_turned_away,
    busy_sink,
    crew_at_work,
    drivers_errors,
    enqueue,
    noticed,
    own_session,
    sessions,
    terminate,
)
from .log import Log
from .postgres import Cluster
from .providers import expect
from .servers import Server, copy_tree
from .sinks import SMTPSink
from .standby import Standby
from .workers import Worker
from .world import UNHURRIED, World

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
            time.sleep(random.uniform(0.4, 1))
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
    world.configure(LEASE_SECONDS=12, SEND_DEADLINE_SECONDS=4)
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
        world.cluster.stop("immediate")
        world.fault_count += 1
        _wait_until_quiet(sink)
        sink.log = world.log
        standby.take_over()
        if not all(worker.is_alive for worker in crew):
            raise Missed("they were through")
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


def _wait_until_quiet(sink: SMTPSink) -> None:
    """Until it has taken what was under way: without the database nothing begins."""
    before = -1
    while before != sink.accepted_count:
        before = sink.accepted_count
        time.sleep(0.5)


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
    rounds = world.times(CRASHES // 2, quick=1)  # three processes die in each
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
