"""C5, limits, switches, shares: a provider that counts what it is given, and operators who change their minds."""

from __future__ import annotations

import time
from collections import deque
from datetime import datetime, timedelta
from random import Random

from django.db import connection
from django.db.models import Min

from mailengine.clock import read_now
from mailengine.models import Attempt, Message, ProviderState
from mailengine.testing.esp_server import Answer, Mail

from .case import Missed, case
from .cases_esp import fails
from .providers import THRESHOLD, assert_circuit_held, attempts_spent, expect, outcomes_at, provider_case
from .sinks import ESPSink
from .world import UNHURRIED, World

LIMIT = 10
"""What the provider takes in any second; what comes beyond it is answered with 429."""
STORM_SECONDS = 100
SETTLED_SECONDS = 60
"""After which it has to be found out."""
FOLLOWS_WITHIN = timedelta(seconds=3)
"""A worker the switches of an operator."""


@provider_case("F-E04b", "a storm of 429 at 10 messages a second, eight workers; `RATE` names the limit")
def storm_at_a_known_limit(world: World, random: Random) -> None:
    storm(world, rate=f"{LIMIT}/s")


@provider_case("F-E04c", "the same, and nobody has told us the limit")
def storm_at_an_unknown_limit(world: World, random: Random) -> None:
    storm(world)


def storm(world: World, *, rate: str = "") -> None:
    """Eight workers at once, more mail than they can send; from the 60th second on hardly a call is one too many."""
    server = world.esp("mailgun")
    calls = limited(server)
    world.queue(3 * LIMIT * STORM_SECONDS)
    ProviderState.objects.update_or_create(alias="mailgun", defaults={"rate": rate})
    started_at = time.monotonic()
    crew = [world.worker("send_mail", f"--max-time={STORM_SECONDS}") for _ in range(8)]
    for worker in crew:
        assert worker.wait(seconds=2 * STORM_SECONDS) == 0, worker.err
    seconds = time.monotonic() - started_at
    early = [is_taken for at, is_taken in calls if at < started_at + SETTLED_SECONDS]
    late = [is_taken for at, is_taken in calls if at >= started_at + SETTLED_SECONDS]
    world.fault_count += early.count(False) + late.count(False)
    rates = sum(early) / SETTLED_SECONDS, sum(late) / (seconds - SETTLED_SECONDS)
    world.note(
        f"429 was {share(early)} of the calls in the first {SETTLED_SECONDS} s and {share(late)} of those after that; "
        f"{rates[0]:.1f} messages a second were taken, then {rates[1]:.1f}"
    )
    assert late.count(False) < len(late) / 20, f"{late.count(False)} of {len(late)} calls were too many"
    expect(attempts_spent(), 0)
    # What is left may go as fast as it can.
    server.heal()
    ProviderState.objects.update(rate="", slowed_to=None, throttled_until=None)
    world.drain(seconds=300)


def limited(server: ESPSink) -> list[tuple[float, bool]]:
    """Let the server take no more than its limit in any second; when each call came, and whether it was taken."""
    calls: list[tuple[float, bool]] = []
    window: deque[float] = deque(maxlen=LIMIT)

    def behave(mail: Mail) -> Answer | None:
        now = time.monotonic()
        is_taken = len(window) < LIMIT or now - window[0] >= 1
        calls.append((now, is_taken))
        if not is_taken:
            return Answer(429, headers={"Retry-After": "1"})
        window.append(now)
        return None

    server.behave = behave
    return calls


def share(taken: list[bool]) -> str:
    return f"{taken.count(False) / len(taken):.1%}" if taken else "none"


# Operators change their minds


@case("F-E22", "a provider is added, another drained and retired while 10,000 messages flow, by two workers")
def switched_in_mid_flow(world: World, random: Random) -> None:
    """P12: nothing fails, nobody is started anew, and both workers follow within three seconds, says the ledger."""
    world.configure(**UNHURRIED, STRATEGY="weighted", PROVIDERS={"old": {}, "other": {}})
    sinks = [world.smtp(alias) for alias in ("old", "other", "new")]
    count = 10_000
    world.queue(count)
    crew = [world.worker("send_mail", "--max-time=600") for _ in range(2)]

    def switch(alias: str, *, after: int, **switches: object) -> datetime:
        """Turn it when so many have arrived; the instant of it, by the database's clock."""
        world.wait_until(lambda: sum(sink.accepted_count for sink in sinks) >= after, seconds=300, what="mail to flow")
        ProviderState.objects.update_or_create(alias=alias, defaults=switches)
        world.fault_count += 1
        return read_now(connection.alias)

    added_at = switch("new", after=2_000, is_added=True)
    drained_at = switch("old", after=4_000, mode="draining")
    switch("old", after=7_000, mode="retired")
    expect([worker.wait(seconds=300) for worker in crew], [0, 0])
    expect(world.statuses(), {"sent": count})
    expect(world.outcomes(), {"accepted": count}, "attempts")
    first_at_new = Attempt.objects.filter(provider="new").values("worker").annotate(at=Min("begun_at"))
    followed = [row["at"] - added_at for row in first_at_new]
    expect(len(followed), 2, "workers that gave mail to the new one")
    last = Attempt.objects.filter(provider="old").latest("begun_at").begun_at - drained_at
    world.note(
        f"both workers had given mail to the new provider {max(followed).total_seconds():.1f} s after it was added; "
        f"the drained one got its last {last.total_seconds():.1f} s after it was"
    )
    for late in (*followed, last):
        assert late <= FOLLOWS_WITHIN, f"a worker followed a switch after {late}"


# Shares


@case("F-E23", "two workers at once share 1,000 messages between two equal providers")
def shared_by_two_workers(world: World, random: Random) -> None:
    """G16: 500 each, give or take 2 %, though each worker counts by itself."""
    world.configure(**UNHURRIED, STRATEGY="weighted")
    sinks = [world.smtp("a"), world.smtp("b")]
    world.queue(1_000)
    crew = [world.worker("send_mail") for _ in range(2)]
    expect([worker.wait() for worker in crew], [0, 0])
    if Attempt.objects.values("worker").distinct().count() < len(crew):
        raise Missed("one of them had done it all")
    world.note(f"{sinks[0].accepted_count} and {sinks[1].accepted_count}")
    for sink in sinks:
        assert abs(sink.accepted_count - 500) <= 10, f"{sink.accepted_count} of 1,000 by {sink.alias}"


# One is dead


@provider_case("F-E24", "one of two is dead for five probe intervals, with four workers at work all the time")
def dead_for_five_intervals(world: World, random: Random) -> None:
    """G27: it costs one failed attempt in each interval, of all workers together, and no message waits for it."""
    crew, intervals, interval_seconds = 4, 5, 3
    world.configure(PROBE_INTERVAL_SECONDS=interval_seconds)
    dead, alive = world.esp("mailgun", "dead"), world.esp("postmark", "alive")
    fails(world, dead, Answer(503))
    ends_at = time.monotonic() + intervals * interval_seconds + 1

    def has_lasted() -> bool:
        if Message.objects.filter(status="queued").count() < 50:
            world.queue(50)
        return time.monotonic() > ends_at

    world.keep_working(crew, until=has_lasted)
    calls = dead.calls
    # Each worker begins with one handover at a time.
    assert_circuit_held("dead", most=THRESHOLD + crew - 1)
    probes = Attempt.objects.filter(provider="dead", begun_at__gte=ProviderState.objects.get(pk="dead").opened_at)
    assert probes.count() >= intervals - 1, f"only {probes.count()} probes"
    world.note(
        f"{calls} failed attempts, {probes.count()} of them probes, while the other took {alive.accepted_count:,}"
    )
    expect(set(outcomes_at("dead")), {"unavailable"})
    expect(attempts_spent(), 0)
