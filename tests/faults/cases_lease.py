"""C2, leases, concurrency, clocks: many at work on the same rows, with clocks and zones of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from random import Random
from zoneinfo import ZoneInfo

from django.db import OperationalError, connection, transaction
from django.db.models import Min

import mailengine
from mailengine.clock import read_now
from mailengine.models import Attempt, Message, MessageJob

from .case import MARIADB, POSTGRESQL, SQLITE, Missed, Skipped, case
from .cases_process import assert_no_doubt
from .points import CLAIMED, RESCUING
from .sinks import Pause, Step
from .world import UNHURRIED, World


@case("F-L01", "two hosts with 4 workers each, 10,000 messages, all healthy", databases=(POSTGRESQL,))
def two_hosts(world: World, random: Random) -> None:
    world.configure(**UNHURRIED)
    world.smtp()
    world.queue(10_000)
    crew = [
        world.worker("send_mail", "--max-time=300", before=f"import socket; socket.gethostname = lambda: {host!r}")
        for host in ("east", "west")
        for _ in range(4)
    ]
    assert [worker.wait(seconds=300) for worker in crew] == [0] * 8
    assert_no_doubt()
    hosts = {name.partition(":")[0] for name in Attempt.objects.values_list("worker__name", flat=True).distinct()}
    assert hosts == {"east", "west"}, hosts


@case("F-L02", "a lease of 6 s, and sends that may take 4.5 s of it")
def leases_hardly_longer_than_sends(world: World, random: Random) -> None:
    """No lease is outlived: what can't be begun in time is given back."""
    world.configure(LEASE_SECONDS=6, SEND_DEADLINE_SECONDS=4.5)
    sink = world.smtp()
    sink.on(Step.DOT, Pause(2.5))
    world.queue(24)
    crew = [world.worker("send_mail") for _ in range(3)]
    for worker in crew:
        assert worker.wait() == 0, worker.err
    assert_no_doubt()


@case("F-L03", "a send may take longer than the lease", quick=True)
def a_lease_shorter_than_a_send(world: World, random: Random) -> None:
    """The commands refuse to run, and say what would do."""
    world.smtp()
    world.queue(3)
    world.configure(LEASE_SECONDS=5, SEND_DEADLINE_SECONDS=10)
    worker = world.run("send_mail")
    worker.may_fail = True
    assert worker.returncode == 2, worker.returncode
    assert "a send may outlive its lease" in worker.err
    assert "Make it at least SEND_DEADLINE_SECONDS + 0.5" in worker.err
    world.configure(LEASE_SECONDS=3, SEND_DEADLINE_SECONDS=1.5)


@case(
    "F-L04",
    "five hosts rescue the same lost messages at once",
    duplicates="4 connections of the killed worker",
    bound=lambda run: 4 * run.kills,
)
def rescued_at_once(world: World, random: Random) -> None:
    """Each is rescued by one of them."""
    world.configure(CLAIM_BATCH=100)
    world.smtp()
    world.queue(400)
    for _ in range(4):
        world.kill_at(CLAIMED, nth=1)
    lost_count = Message.objects.filter(status="sending").count()
    world.wait_until(lambda: Message.objects.overdue_leases().count() == lost_count, what="the leases to be over")
    crew = [world.worker("send_mail", "--json", before=_start_together(world.folder)) for _ in range(5)]
    (world.folder / "go").touch()
    for worker in crew:
        assert worker.wait() == 0, worker.err
    rescued = [json.loads(worker.out)["rescued"] for worker in crew]
    assert sum(rescued) == lost_count, f"{lost_count} were lost, and rescued by each: {rescued}"


def _start_together(folder: Path) -> str:
    return f"""
import os, time
while not os.path.exists({str(folder / "go")!r}):
    time.sleep(0.001)
"""


@case("F-L04b", "kill -9 in a rescue")
def killed_in_the_rescue(world: World, random: Random) -> None:
    world.configure(CONNECTIONS=1, CLAIM_BATCH=10)
    world.smtp()
    world.queue(20)
    world.kill_at(CLAIMED, nth=1)
    world.wait_until(lambda: Message.objects.overdue_leases().exists(), what="the lease to be over")
    for _ in world.times(5):
        world.kill_at(RESCUING, nth=1)
    assert Message.objects.overdue_leases().count() == 10
    world.drain()
    assert_no_doubt()


CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
static long shift(void) { const char *by = getenv("CLOCK_SHIFT"); return by ? atol(by) : 0; }
int clock_gettime(clockid_t id, struct timespec *t) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(id, t);
    if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) t->tv_sec += shift();
    return failed;
}
time_t time(time_t *t) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (t) *t = now.tv_sec;
    return now.tv_sec;
}
int gettimeofday(struct timeval *t, void *zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    t->tv_sec = now.tv_sec;
    t->tv_usec = now.tv_nsec / 1000;
    return 0;
}
"""


@case(
    "F-L05",
    "hosts whose clocks are an hour fast and an hour slow",
    leaves_waiting=True,
    duplicates="4 connections of the killed worker",
    bound=lambda run: 4 * run.kills,
)
def clocks_that_differ(world: World, random: Random) -> None:
    """No effect: nothing goes too soon or too late, and no lease ends before its time."""
    library = _clock_library(world.folder)
    sink = world.smtp()
    now = read_now(connection.alias)
    later = world.queue(10, send_at=now + timedelta(minutes=30))
    ripe = world.queue(10, send_at=now - timedelta(minutes=30))
    world.queue(200)
    expiring = world.queue(10, expires_at=now + timedelta(minutes=30))
    world.configure(LEASE_SECONDS=20)
    lost = world.kill_at(CLAIMED, nth=3)
    held = Message.objects.filter(status="sending", worker__name__endswith=f":{lost.pid}")
    lost_count = held.count()
    leases_end_at = held.aggregate(at=Min("leased_until"))["at"]
    sink.on(Step.DOT, Pause(0.02))
    crew = []
    for hours in (1, -1):
        shift = str(hours * 3_600)
        check = f"import time; assert abs(time.time() - {shift} - {time.time()}) < 60, time.time()"
        environment = {"LD_PRELOAD": str(library), "CLOCK_SHIFT": shift}
        crew.append(world.worker("send_mail", before=check, environment=environment, fresh=True))
    for worker in crew:
        assert worker.wait() == 0, worker.err
    kept_count = held.count()
    if read_now(connection.alias) > leases_end_at:
        raise Missed("the leases were over before the workers were through")
    assert (kept_count, lost_count > 0) == (lost_count, True), f"{kept_count} of {lost_count} leases were kept"
    world.drain()
    by_id = {str(pk): status for pk, status in Message.objects.values_list("id", "status")}
    assert {by_id[message_id] for message_id in later} == {"queued"}
    assert {by_id[message_id] for message_id in [*ripe, *expiring]} == {"sent"}


def _clock_library(folder: Path) -> Path:
    """A library that shifts the clock of a process that loads it first, as a wrong clock of its host would."""
    compiler = shutil.which("cc")
    if compiler is None or not os.path.exists("/proc/self/maps"):
        raise Skipped("no C compiler to make a wrong clock with")
    source, library = folder / "clock.c", folder / "clock.so"
    source.write_text(CLOCK)
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


@case("F-L08", "workers in other time zones; the project's zone is changed", leaves_waiting=True)
def zones_that_differ(world: World, random: Random) -> None:
    """Due times are instants: they stay what they were."""
    world.smtp()
    now = datetime.now(timezone.utc)
    zones = ["UTC", "America/New_York", "Asia/Kolkata", "Pacific/Auckland"]
    due, later = [], []
    for zone in zones:
        world.django(TIME_ZONE=zone)
        local = now.astimezone(ZoneInfo(zone))
        due += world.queue(3, send_at=local - timedelta(minutes=20))
        later += world.queue(3, send_at=local + timedelta(minutes=20))
        due += world.queue(3, expires_at=local + timedelta(minutes=20))
    for zone in random.sample(zones, len(zones)):
        world.django(TIME_ZONE=random.choice(zones))
        world.queue(3)
        world.run("send_mail", environment={"TZ": zone, "TIME_ZONE": zone}, fresh=True)
    by_id = {str(pk): status for pk, status in Message.objects.values_list("id", "status")}
    assert {by_id[message_id] for message_id in later} == {"queued"}
    assert {by_id[message_id] for message_id in due} == {"sent"}


@case("F-L10", "4 writers, a caller and an operator at once", databases=(SQLITE,))
def one_file_for_all(world: World, random: Random) -> None:
    """Nobody is told that the database is locked."""
    world.configure(**UNHURRIED)
    world.smtp()
    seeds = random.randint(0, 999), random.randint(0, 999)
    with _meanwhile(lambda: _call(world, Random(seeds[0])), lambda: _operate(Random(seeds[1]))):
        ends_at = time.monotonic() + 45
        world.keep_working(4, "send_mail", until=lambda: time.monotonic() > ends_at)
    assert len(world.acked) > 200, len(world.acked)


def _call(world: World, random: Random) -> None:
    """One request of a caller, 20 in a second."""
    world.queue(1, priority=random.choice([0, 20, 40]))
    time.sleep(0.05)


def _operate(random: Random) -> None:
    """What an operator's clicks do."""
    rows = Message.objects.order_by("-id")
    list(rows.values("status", "recipient")[:100])
    with transaction.atomic():
        some = [message.pk for message in rows.filter(status__in=["dead", "uncertain"])[:20]]
        Message.objects.filter(pk__in=some).requeue()
    Message.objects.filter(job__in=MessageJob.objects.filter(status="cancelled")).cancel()
    time.sleep(0.05)


@contextmanager
def _meanwhile(*works: Callable[[], None]) -> Iterator[None]:
    """Do these over and over, in a thread each; AssertionError afterwards if a database said no to one of them."""
    stop = threading.Event()
    errors: list[OperationalError] = []

    def repeat(work: Callable[[], None]) -> None:
        try:
            while not stop.is_set():
                try:
                    work()
                except OperationalError as error:
                    errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=repeat, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors, errors[0]


@case("F-L12", "a long transaction holds 500 rows (somebody edits them)", databases=(POSTGRESQL, MARIADB), quick=True)
def rows_held(world: World, random: Random) -> None:
    """The others are sent without waiting for them."""
    world.configure(**UNHURRIED)
    world.smtp()
    ids = world.queue(60 if world.is_quick else 1_000)
    held = random.sample(ids, len(ids) // 2)
    is_held, release = threading.Event(), threading.Event()

    def edit() -> None:
        with transaction.atomic():
            list(Message.objects.filter(pk__in=held).select_for_update())
            is_held.set()
            release.wait(60)
        connection.close()

    editor = threading.Thread(target=edit)
    editor.start()
    try:
        world.wait_until(is_held.is_set, what="the rows to be held")
        worker = world.run("send_mail", seconds=45)
        assert worker.returncode == 0, worker.err
        assert world.statuses() == {"sent": len(ids) - len(held), "queued": len(held)}, world.statuses()
    finally:
        release.set()
        editor.join()


@case("F-L13", "an operator acts on rows that a worker is sending", quick=True)
def acted_on_in_flight(world: World, random: Random) -> None:
    """Requeue, cancel, mark as sent and give up change no row that is in flight."""
    world.configure(**UNHURRIED)
    sink = world.smtp()
    sink.on(Step.DOT, Pause(0.1))
    world.queue(20 if world.is_quick else 200)
    worker = world.worker("send_mail")
    tried = 0
    while worker.is_alive:
        begun = list(Attempt.objects.filter(ended_at=None).values_list("message_id", flat=True))
        for verb in ("requeue", "cancel", "mark_sent", "bury"):
            with transaction.atomic():
                mine = Message.objects.filter(pk__in=begun).select_for_update()
                in_flight = [message.pk for message in mine if message.status == "sending"]
                changed = getattr(Message.objects.filter(pk__in=in_flight), verb)()
            tried += len(in_flight)
            assert changed == 0, f"{verb} changed {changed} rows that were in flight"
        time.sleep(0.02)  # SQLite has one lock for all: the worker is to have it, too
    if not tried:
        raise Missed("nothing was in flight when the operator came")
    assert_no_doubt()


@case("F-L14", "several process_mail_jobs on the same job")
def expanded_at_once(world: World, random: Random) -> None:
    """One message for each address."""
    world.configure(**UNHURRIED)
    world.smtp()
    count = 10_000
    job = mailengine.queue_job(
        "Hello", "Good morning.", "desk@example.org", [f"u{number}@example.org" for number in range(count)]
    )
    crew = [world.worker("process_mail_jobs", before=_start_together(world.folder)) for _ in range(4)]
    (world.folder / "go").touch()
    for worker in crew:
        assert worker.wait() == 0, worker.err
    job.refresh_from_db()
    assert (job.status, job.message_count, job.messages.count()) == ("sending", count, count)
    # The sending has cases of its own.
    Message.objects.filter(pk__in=list(job.messages.order_by("id").values_list("pk", flat=True)[500:])).cancel()
