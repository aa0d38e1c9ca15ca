"""C6, long queues: 100,000 deferred, a million in one job; and urgent mail beside them."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import Any

from django.contrib.auth.models import User
from django.db import connection
from django.db.backends.utils import CursorWrapper
from django.test import Client

import mailengine
from mailengine.clock import read_now
from mailengine.models import Attempt, Message, MessageJob

from .case import POSTGRESQL, Missed, case
from .jobs import WORDS, addresses, crowd, cursor_of, withdraw
from .sinks import Pause, Step
from .workers import MemoryWatch
from .world import UNHURRIED, World


@dataclass(frozen=True)
class Cost:
    """What was done to the table of messages meanwhile, as PostgreSQL counts it."""

    rows: int
    """Read, by a scan or from an index."""
    blocks: int
    updates: int

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.rows - other.rows, self.blocks - other.blocks, self.updates - other.updates)


def _cost_so_far(world: World) -> Cost:
    connection.close()  # a server process hands in its figures when it ends, ours too
    with connection.cursor() as cursor:
        others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        world.wait_until(lambda: _value(cursor, others) == 0, what="the connections of others to be closed")
        cursor.execute(
            "SELECT seq_tup_read + idx_tup_fetch, "
            "heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit, n_tup_upd"
            " FROM pg_stat_user_tables JOIN pg_statio_user_tables USING (relid)"
            " WHERE relid = 'mailengine_message'::regclass"
        )
        return Cost(*cursor.fetchone())


def _value(cursor: CursorWrapper, sql: str) -> Any:
    cursor.execute(sql)
    return cursor.fetchone()[0]


def _defer(world: World, *, minutes: int) -> MessageJob:
    """100,000 messages deferred by now, due in so many minutes."""
    job = mailengine.queue_job(*WORDS, addresses(100_000))
    assert world.run("process_mail_jobs", "--max-time=600", seconds=600).returncode == 0
    now = read_now(connection.alias)
    job.messages.update(
        status="deferred", attempt_count=1, deferred_since=now, available_at=now + timedelta(minutes=minutes)
    )
    return job


@case("F-X19", "one new message behind 100,000 that are deferred and not due", databases=(POSTGRESQL,))
def one_behind_many_deferred(world: World, random: Random) -> None:
    """One is sent, none of the others is touched, and to find it costs what it costs without them."""
    world.configure(**UNHURRIED)
    sink = world.smtp()
    with connection.cursor() as cursor:
        # It would be counted, too; and without it we see what there is until it has come by.
        cursor.execute("ALTER TABLE mailengine_message SET (autovacuum_enabled = false)")
    alone = _cost_of_one(world)
    job = _defer(world, minutes=600)
    at_once = [_cost_of_one(world) for _ in range(2)]  # past what 100,000 updates have left behind in the indexes
    costs = []
    for command in ("VACUUM", "ANALYZE"):  # a planner that knows nothing yet, and one that does
        with connection.cursor() as cursor:
            cursor.execute(f"{command} mailengine_message")
        costs.append(_cost_of_one(world))
    figures = (
        f"{alone} on an empty table; behind 100,000 {at_once[0]}, the next {at_once[1]}, "
        f"after VACUUM {costs[0]}, after ANALYZE {costs[1]}"
    )
    world.note(f"what one message costs: {figures}")
    assert sink.accepted_count == 5
    for cost in (*at_once, *costs):
        assert cost.updates == alone.updates, figures
        assert cost.rows <= 2 * alone.rows + 10, figures
    for cost in costs:
        assert cost.blocks <= 5 * alone.blocks, figures
    withdraw(world, job)


def _cost_of_one(world: World) -> Cost:
    """Of sending one message, with the run of `retry_deferred` beside it; no other row is even locked by it."""
    [message_id] = world.queue(1)
    versions = _versions(message_id)
    before = _cost_so_far(world)
    for command in ("send_mail", "retry_deferred"):
        assert world.run(command).returncode == 0
    cost = _cost_so_far(world) - before
    assert _versions(message_id) == versions, "a row of another message was changed or locked"
    assert Message.objects.get(pk=message_id).status == "sent"
    return cost


def _versions(message_id: str) -> object:
    """What changes with any write to the other rows, and any lock on them."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*), md5(string_agg(ctid::text || xmin::text || xmax::text, ',' ORDER BY ctid))"
            " FROM mailengine_message WHERE id <> %s",
            [message_id],
        )
        return cursor.fetchone()


class Hurry:
    """Somebody who queues an urgent mail each second. As a condition: whether all of them are sent."""

    def __init__(self, world: World, count: int) -> None:
        self.world, self.count = world, count
        self.committed: dict[str, datetime] = {}
        self._next_at = time.monotonic()

    def __call__(self) -> bool:
        if len(self.committed) == self.count:
            return not Message.objects.filter(pk__in=self.committed).exclude(status="sent").exists()
        if time.monotonic() >= self._next_at:
            self._next_at += 1
            [message_id] = self.world.queue(1, priority=mailengine.Priority.URGENT)
            self.committed[message_id] = read_now(connection.alias)
        time.sleep(0.05)  # leaves the processors to the workers
        return False

    def waits(self) -> list[float]:
        """How long each had to wait for its handover to begin, in seconds; the shortest first."""
        return sorted((begun_at - at).total_seconds() for at, begun_at in self._times())

    def overtaken(self) -> int:
        """How many others began while one of these waited, at most."""
        others = Attempt.objects.exclude(message__in=self.committed)
        return max(others.filter(begun_at__gt=at, begun_at__lt=begun).count() for at, begun in self._times())

    def _times(self) -> list[tuple[datetime, datetime]]:
        begun = Attempt.objects.filter(message__in=self.committed, number=1).values_list("message", "begun_at")
        by_id = {str(message_id): begun_at for message_id, begun_at in begun}
        return [(at, by_id[message_id]) for message_id, at in self.committed.items()]

    def __str__(self) -> str:
        waits = self.waits()
        return f"median {statistics.median(waits):.2f} s, at most {waits[-1]:.2f} s, {self.overtaken()} before one"


@case("F-X20", "100,000 that were deferred are due at once, and urgent mail comes each second", databases=(POSTGRESQL,))
def urgent_beside_many_deferred(world: World, random: Random) -> None:
    """It doesn't wait for a hundredth of them: they are sent by `retry_deferred`, in a process of its own."""
    world.configure(**UNHURRIED)
    sink = world.smtp()
    sink.on(Step.DOT, Pause(0.02))
    before = Hurry(world, 15)
    world.keep_working(1, "send_mail", until=before)
    job = _defer(world, minutes=-1)
    retries = world.worker("retry_deferred", "--max-time=600")
    world.wait_until(lambda: sink.accepted_count > 100, what="the retries to begin")
    taken = sink.accepted_count
    beside = Hurry(world, 30)
    world.keep_working(1, "send_mail", until=beside)
    taken = sink.accepted_count - taken - 30
    world.note(f"urgent mail alone waits {before}; beside {taken} of 100,000 retries {beside}")
    assert retries.is_alive, "the retries were through before the urgent mail was"
    assert beside.overtaken() < 1_000, str(beside)
    retries.terminate()
    assert retries.wait() == 0, retries.err
    withdraw(world, job)


@case("F-X04", "a job of a million, and urgent mail meanwhile", databases=(POSTGRESQL,))
def a_million(world: World, random: Random) -> None:
    """The expander keeps its memory and its pace, the admin's pages open, and urgent mail goes before all of it."""
    world.configure(**UNHURRIED)
    sink = world.smtp()
    sink.on(Step.DOT, Pause(0.05))
    exec(crowd(1_000_000), {})  # noqa: S102 (our own words)
    before = Hurry(world, 15)
    world.keep_working(1, "send_mail", until=before)
    queued = _seconds_of(lambda: mailengine.queue_job(*WORDS, "crowd"))
    job = MessageJob.objects.get()
    expander = world.worker("process_mail_jobs", "--max-time=3000", before=crowd(1_000_000))
    memory, progress = MemoryWatch(expander), _Progress(job)
    meanwhile = Hurry(world, 10)
    world.wait_until(lambda: cursor_of(job) > 0, what="the first piece")
    still_expanding = False

    def is_sent() -> bool:
        nonlocal still_expanding
        still_expanding = expander.is_alive
        return progress.look() and meanwhile()

    world.keep_working(1, "send_mail", until=is_sent, seconds=900)  # the last of them goes on with other mail
    if not still_expanding:
        assert expander.wait() == 0, expander.err
        raise Missed("the expansion was through before the urgent mail was")
    while expander.is_alive:
        progress.look()
        time.sleep(0.2)
    assert expander.wait() == 0, expander.err
    job.refresh_from_db()
    assert (job.status, job.message_count, job.messages.count()) == ("sending", 1_000_000, 1_000_000)
    pages = _pages(job)
    world.note(f"{progress}, {memory.peak_mb:.0f} MB; to queue it {queued:.2f} s; {pages}")
    world.note(f"urgent mail alone waits {before}; while a million is expanded {meanwhile}")
    assert memory.peak_mb < 200, f"{memory.peak_mb:.0f} MB"
    quarter = len(memory.samples) // 4
    grown = max(memory.samples[-quarter:]) / max(memory.samples[quarter : 2 * quarter])
    assert grown < 1.1, f"its memory grew by {grown:.2f}"
    assert progress.slowdown < 3, f"the last fifth took {progress.slowdown:.1f} times as long as the second"
    # What one process has begun when the mail comes, and what another claims that starts just then.
    assert meanwhile.overtaken() <= 4 * 4, str(meanwhile)
    # The oracle holds all there is in memory: a hundred of those that weren't sent will do.
    unsent = job.messages.filter(status="queued")
    kept = list(unsent.values_list("pk", flat=True)[:100])
    unsent.exclude(pk__in=kept)._raw_delete(connection.alias)


class _Progress:
    """When each piece of a job was done."""

    def __init__(self, job: MessageJob) -> None:
        self.job = job
        self.times: list[tuple[int, float]] = [(0, time.monotonic())]

    def look(self) -> bool:
        cursor = cursor_of(self.job)
        if cursor > self.times[-1][0]:
            self.times.append((cursor, time.monotonic()))
        return True

    @property
    def slowdown(self) -> float:
        """How much longer the last fifth took than the second."""
        return self._seconds(0.8, 1) / self._seconds(0.2, 0.4)

    def _seconds(self, start: float, end: float) -> float:
        return self._instant(end) - self._instant(start)

    def _instant(self, part: float) -> float:
        """When this part of it was done: between two looks, as if all the time at the same pace."""
        wanted = part * self.times[-1][0]
        for (cursor, at), (next_cursor, next_at) in itertools.pairwise(self.times):
            if next_cursor >= wanted:
                return at + (next_at - at) * (wanted - cursor) / (next_cursor - cursor)
        return self.times[-1][1]

    def __str__(self) -> str:
        return f"{self.times[-1][0] / self._seconds(0, 1):,.0f} rows a second"


def _seconds_of(work: Callable[[], object]) -> float:
    started_at = time.monotonic()
    work()
    return time.monotonic() - started_at


def _pages(job: MessageJob) -> str:
    """How long the admin takes for the pages of this job."""
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    found = []
    for path in ("messagejob/", f"messagejob/{job.pk}/change/", f"message/?job={job.pk}"):
        seconds = _seconds_of(lambda: client.get(f"/admin/mailengine/{path}", headers={"host": "localhost"}))  # noqa: B023
        found.append(f"{path} {seconds:.2f} s")
    return ", ".join(found)
