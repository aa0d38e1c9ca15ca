"""C1, process death: workers killed at each step and at any instant, told to stop, frozen, cut off, out of memory."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from random import Random

from django.db.models import Count

import mailengine
from mailengine.models import Attempt, Message
from mailengine.models.messages import MessageQuerySet

from .case import POSTGRESQL, Missed, case
from .points import BEGUN, CLAIMED, COMPOSED, ENDING, KILL, SETTLED, THROUGH, at
from .sinks import Fuse, Pause, Step, freeze_worker, kill_worker
from .world import UNHURRIED, World

KILLS = 20
"""In one run, each at another instant."""


@case("F-P01", "kill -9 after the claim, before Begin")
def killed_after_the_claim(world: World, random: Random) -> None:
    """No attempt is made for what it had claimed, and none is spent."""
    # A lease long enough that no message is claimed by the first victims and the last: it would look like poison.
    world.configure(CONNECTIONS=1, CLAIM_BATCH=20, LEASE_SECONDS=10)
    world.smtp()
    world.queue(20 * KILLS)
    for _ in range(KILLS // 4):
        crew = [world.worker(before=at(random.choice([CLAIMED, COMPOSED]), KILL)) for _ in range(4)]
        for worker in crew:
            world.until_killed(worker)
    world.configure(CLAIM_BATCH=4)
    world.drain()
    assert_no_doubt()
    assert not Message.objects.filter(attempt_count__gt=0).exists()


@case("F-P02", "kill -9 after Begin, before the connection is made")
def killed_after_begin(world: World, random: Random) -> None:
    """Nobody can know that it never left: it is uncertain, and goes once more."""
    world.configure(CONNECTIONS=1)
    world.smtp()
    world.queue(20 * len(world.times(KILLS)))
    for _ in world.times(KILLS):
        world.kill_at(random.choice([SETTLED, BEGUN]), nth=random.randint(3, 10))
    world.drain()
    assert world.outcomes()["uncertain"] == world.kills


@case("F-P02b", "kill -9 at each step of the dialogue up to DATA")
def killed_in_the_dialogue(world: World, random: Random) -> None:
    world.configure(CONNECTIONS=1)
    sink = world.smtp(credentials=("desk", "secret"), options={"username": "desk", "password": "secret"})
    steps = [Step.CONNECT, Step.GREETING, Step.EHLO, Step.AUTH, Step.MAIL, Step.RCPT, Step.DATA]
    fuses = {step: Fuse() for step in steps}
    for step, fuse in fuses.items():
        sink.on(step, kill_worker, when=fuse)
    for step in steps * 3:
        world.queue(5)
        fuses[step].light(random.randint(1, 5) if step in {Step.MAIL, Step.RCPT, Step.DATA} else 1)
        world.until_killed(world.worker("send_mail"))


@case("F-P03", "kill -9 in the middle of the body")
def killed_in_the_body(world: World, random: Random) -> None:
    """As much of it as the buffers of both hosts hold arrives, and without its final dot no server may keep it."""
    world.configure(CONNECTIONS=1)
    sink = world.smtp(buffer_bytes=16_384)
    world.queue(4 * len(world.times(KILLS)), text=f"{'Good morning. ' * 5}\n" * 60_000, job=True)
    sink.on(Step.BODY, kill_worker, when=(fuse := Fuse()), after_bytes=random.randint(20_000, 1_000_000))
    for _ in world.times(KILLS):
        fuse.light(random.randint(1, 3))
        world.until_killed(world.worker("send_mail"))


@case(
    "F-P04",
    "kill -9 after the final dot, before the 250; the server has taken the mail",
    duplicates="1 for each connection of a killed process",
    bound=lambda run: 4 * run.kills,
    quick=True,
)
def killed_after_the_dot(world: World, random: Random) -> None:
    sink = world.smtp()
    sink.on(Step.DOT, kill_worker, when=(fuse := Fuse()))
    for _ in world.times(KILLS):
        world.queue(20)
        fuse.light(random.randint(1, 20))
        world.until_killed(world.worker("send_mail"))


@case(
    "F-P05",
    "kill -9 after the 250, before End",
    duplicates="1 for each connection of a killed process",
    bound=lambda run: run.kills,
)
def killed_before_end(world: World, random: Random) -> None:
    world.configure(CONNECTIONS=1)
    world.smtp()
    world.queue(20 * len(world.times(KILLS)))
    for _ in world.times(KILLS):
        world.kill_at(ENDING, nth=random.randint(1, 10))
    world.drain()
    assert world.reckon().duplicates == world.kills, "a kill at this point leaves a copy that nobody can know of"


@case("F-P05b", "the same, and a webhook says so first")
def killed_before_end_with_a_webhook(world: World, random: Random) -> None:
    from anymail.signals import AnymailTrackingEvent, EventType, tracking

    world.configure(CONNECTIONS=1)
    esp = world.esp("mailgun")
    world.queue(10 * KILLS)
    told = 0
    for _ in world.times(KILLS):
        world.kill_at(ENDING, nth=random.randint(1, 6))
        for mail in esp.accepted[told:]:
            event = AnymailTrackingEvent(
                event_type=EventType.DELIVERED, metadata={"mailengine_id": mail.mailengine_id}, message_id="1"
            )
            tracking.send(sender=None, event=event, esp_name="Mailgun")
        told = len(esp.accepted)


@case("F-P06", "kill -9 after the commit of End", quick=True)
def killed_after_end(world: World, random: Random) -> None:
    sink = world.smtp()
    world.queue(20 * len(world.times(KILLS)))
    for _ in world.times(KILLS):
        before, limit = sink.accepted_count, random.randint(1, 10)
        world.kill_at(THROUGH, "send_mail", f"--limit={limit}", nth=1)
        assert sink.accepted_count == before + limit
    world.drain()
    assert world.outcomes() == {"accepted": len(world.acked)}


@case(
    "F-P07",
    "kill -9 at a random instant, 100 times in a run of 10,000, 8 connections",
    duplicates="8 for each kill",
    bound=lambda run: 8 * run.kills,
    databases=(POSTGRESQL,),
)
def killed_at_any_instant(world: World, random: Random) -> None:
    world.configure(CONNECTIONS=8)
    sink = world.smtp()
    world.queue(10_000)
    for _ in range(100):
        worker = world.worker("send_mail")
        enough = sink.accepted_count + random.randint(0, 160)
        world.wait_until(lambda: sink.accepted_count >= enough or not worker.is_alive, what="mail to arrive")  # noqa: B023
        time.sleep(random.uniform(0, 0.02))  # not just after an acceptance
        worker.kill()
        worker.wait()
    assert world.kills == 100
    world.drain(seconds=300)
    copies = Counter(copy.message_id for copy in world.log.copies())
    twice = [message_id for message_id, count in copies.items() if count > 1]
    lost_by = Attempt.objects.filter(message__in=twice, outcome="uncertain").values("worker")
    for row in lost_by.annotate(count=Count("id")).order_by():
        assert row["count"] <= 8, f"{row['count']} duplicates by one kill"


@case(
    "F-P09",
    "kill -9 of 4 workers at once: their host lost power",
    duplicates="4 connections of each",
    bound=lambda run: 4 * run.kills,
    databases=(POSTGRESQL,),
)
def power_lost(world: World, random: Random) -> None:
    sink = world.smtp()
    for _ in world.times(KILLS // 4):
        world.queue(600)
        crew = [world.worker("send_mail") for _ in range(4)]
        enough = sink.accepted_count + random.randint(20, 400)
        world.wait_until(lambda: sink.accepted_count >= enough, what="mail to arrive")  # noqa: B023
        time.sleep(random.uniform(0, 0.02))
        for worker in crew:
            worker.kill()
        if all(worker.wait() != -signal.SIGKILL for worker in crew):
            raise Missed("all of them were through")


@case("F-P10", "SIGTERM while a slow server is taking mail", quick=True)
def told_to_stop(world: World, random: Random) -> None:
    _stop_in_flight(world, [signal.SIGTERM], random)


@case("F-P12", "SIGTERM five times; SIGINT, then SIGTERM")
def told_to_stop_again_and_again(world: World, random: Random) -> None:
    for signals in ([signal.SIGTERM] * 5, [signal.SIGINT, signal.SIGTERM], [signal.SIGINT] * 2):
        _stop_in_flight(world, signals, random)


def _stop_in_flight(world: World, signals: list[signal.Signals], random: Random) -> None:
    """It finishes what it has begun, gives back the rest, and ends well."""
    world.configure(**UNHURRIED)
    sink = world.sinks[0] if world.sinks else world.smtp()
    before = sink.accepted_count
    sink.on(Step.DOT, Pause(0.5))
    world.queue(30)
    worker = world.worker("send_mail")
    enough = before + random.randint(1, 6)
    world.wait_until(lambda: sink.accepted_count >= enough, what="mail to be under way")
    for number in signals:
        worker.signal(number)
        time.sleep(random.uniform(0, 0.05))
    assert worker.wait() == 0
    assert "Traceback" not in worker.err
    statuses = world.statuses()
    assert set(statuses) == {"sent", "queued"}, statuses
    assert world.outcomes() == {"accepted": sink.accepted_count}
    assert not Message.objects.exclude(lease=None).exists()
    sink.heal()
    world.drain()
    assert not world.reckon().duplicates


@case(
    "F-P14",
    "SIGSTOP in AWAIT for longer than the lease, then SIGCONT (a paused machine)",
    duplicates="1 for each connection of the frozen process",
    bound=lambda run: run.faults,
    quick=True,
)
def frozen_while_waiting(world: World, random: Random) -> None:
    """Thawed before a resend began, its late result counts; after, the ledger shows both copies."""
    world.configure(CONNECTIONS=1)
    sink = world.smtp()
    sink.on(Step.DOT, freeze_worker, when=(fuse := Fuse()))
    for number in world.times(4, quick=1):
        is_resent_first = number % 2 == 0
        world.configure(UNCERTAIN_WINDOW_SECONDS=0.5 if is_resent_first else 20)
        world.queue(10)
        fuse.light(random.randint(1, 10))
        frozen = world.worker("send_mail")
        world.wait_until(lambda: frozen.is_frozen, what="the worker to freeze")  # noqa: B023
        doubtful = {*Message.objects.filter(status="sending", attempts__ended_at=None).values_list("pk", flat=True)}
        doubtful &= {*Attempt.objects.filter(ended_at=None).values_list("message", flat=True)}
        world.wait_until(lambda: _rescued(world), what="the others to take its mail back")
        if is_resent_first:
            world.drain()
        frozen.thaw()
        assert frozen.wait() == 0, frozen.err
        world.drain()
        assert Message.objects.filter(pk__in=doubtful, status="sent").count() == len(doubtful)


def _rescued(world: World) -> bool:
    world.run("send_mail")
    return not Message.objects.filter(status="sending").exists()


@case("F-P16", "cron overlap: ten runs of send_mail side by side, each longer than the interval")
def overlapping_runs(world: World, random: Random) -> None:
    world.configure(**UNHURRIED)
    sink = world.smtp()
    sink.on(Step.DOT, Pause(0.05))
    world.queue(400)
    crew = []
    for _ in range(10):
        crew.append(world.worker("send_mail"))
        time.sleep(random.uniform(0, 0.3))
    assert [worker.wait() for worker in crew] == [0] * len(crew)
    assert_no_doubt()


@case(
    "F-P18",
    "killed for want of memory by one message of 300, when it is composed",
    duplicates="4 connections at each of the first two deaths",
    bound=lambda run: 8,
)
def out_of_memory(world: World, random: Random) -> None:
    """At the third death it is dead, and all others are sent."""
    big = _play_out_of_memory(world, random, most_bytes=130_000_000)
    assert (big.status, world.kills) == ("dead", 3), f"{big.status} after {world.kills} deaths: {big.reason}"
    assert big.reason.startswith("poison: worker died 3 times")
    assert world.statuses() == {"dead": 1, "sent": len(world.acked) - 1}


@case(
    "F-P18b",
    "the same, when it is rendered, after Begin",
    duplicates="4 connections at each of the first two deaths",
    bound=lambda run: 8,
)
def out_of_memory_in_flight(world: World, random: Random) -> None:
    """It may have gone, as far as anybody knows: kept for a person after the second death, and all others are sent."""
    big = _play_out_of_memory(world, random, most_bytes=280_000_000)
    assert world.kills <= 3, f"{world.kills} deaths"
    assert big.status in {"dead", "uncertain"}, f"{big.status}: {big.reason}"
    assert world.statuses()["sent"] == len(world.acked) - 1, f"{world.kills} deaths hurt others: {world.statuses()}"


def _play_out_of_memory(world: World, random: Random, *, most_bytes: int) -> Message:
    world.smtp()
    world.queue(random.randint(0, 200))
    big = mailengine.queue_mail(
        "Big", "See there.", "desk@example.org", ["big@example.org"], attachments=[("big.bin", b"x" * 100_000_000)]
    )
    world.acked.append(str(big.pk))
    world.queue(300 - len(world.acked))
    with _MemoryKiller(world, most_bytes=most_bytes):
        world.keep_working(1, "send_mail", until=lambda: not _unfinished().exists())
    big.refresh_from_db()
    return big


def _unfinished() -> MessageQuerySet:
    return Message.objects.filter(status__in=Message.OPEN_STATUSES).exclude(status="uncertain", available_at=None)


def assert_no_doubt() -> None:
    """Every attempt was accepted, or never began: a busy machine may be too late for what it has claimed."""
    doubtful = Attempt.objects.exclude(outcome="accepted").exclude(outcome="unavailable", code="too late")
    found = Counter(doubtful.values_list("outcome", "code", "detail"))
    assert not found, found


class _MemoryKiller:
    """Kills a worker that has more memory than it may, as systemd-oomd does."""

    def __init__(self, world: World, *, most_bytes: int) -> None:
        self.world, self.most_bytes = world, most_bytes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            for worker in list(self.world.workers):
                if worker.is_alive and worker.pid and worker.used_bytes > self.most_bytes:
                    worker.kill()
                    worker.wait()


@case(
    "F-P20",
    "a worker's host loses the network, database and servers alike; the others have theirs",
    duplicates="4 connections of the lost worker",
    bound=lambda run: 4 * run.faults,
    databases=(POSTGRESQL,),
)
def cut_off(world: World, random: Random) -> None:
    """They take over while it is away; when it is back, it learns what has become of its mail."""
    sink = world.smtp()
    sink_wire, database_wire = world.proxy(sink.port), world.proxy(world.cluster.port)
    for _ in world.times(5):
        world.queue(200)
        world.route("relay", sink_wire.port)
        far = world.worker("send_mail", via=database_wire)
        enough = sink.accepted_count + random.randint(5, 120)
        world.wait_until(lambda: sink.accepted_count >= enough or not far.is_alive, what="mail to arrive")  # noqa: B023
        if not far.is_alive:
            raise Missed("it was through")
        world.fault_count += 1
        sink_wire.stall()
        database_wire.stall()
        world.route("relay", sink.port)
        world.drain()
        assert world.statuses() == {"sent": len(world.acked)}, "the others should have taken over"
        far.may_fail = True  # its database is gone for longer than its lease
        for wire in (sink_wire, database_wire):
            wire.heal()
            wire.cut()
        far.wait()
