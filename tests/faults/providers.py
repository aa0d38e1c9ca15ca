"""What cases about providers share: times that a busy machine keeps, and what they look at beside the reckoning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import wraps
from random import Random
from typing import Any

from mailengine.conf import get_settings
from mailengine.models import Attempt, Message, ProviderState

from .case import case
from .world import SHORT, World

THRESHOLD = 3
"""Bad rounds until a circuit opens."""
AT_ONCE = THRESHOLD + SHORT["CONNECTIONS"] - 1
"""Handovers that may have begun before it is open: B + C - 1."""

IN_DOUBT: dict[str, Any] = {
    "duplicates": "1 for each mail taken in doubt: 3 + C - 1 until its circuit is open, then 1 a probe",
    "bound": lambda run: run.faults,
}
"""Options of a case in which servers take mail and nobody is told."""

Play = Callable[[World, Random], None]


def provider_case(code: str, title: str, *, deadline_seconds: float = 5.0, **options: Any) -> Callable[[Play], Play]:
    """`@case` with a longer deadline, and a lease that outlasts several of them.

    Nobody is killed here, so no lease has to end; but an attempt that a busy machine cut short would spoil the figures.
    """

    def register(play: Play) -> Play:
        @wraps(play)
        def in_peace(world: World, random: Random) -> None:
            world.configure(SEND_DEADLINE_SECONDS=deadline_seconds, LEASE_SECONDS=max(20, 4 * deadline_seconds))
            play(world, random)

        return case(code, title, **options)(in_peace)

    return register


def a_stream_for_each(world: World, aliases: Iterable[str], *, backup: bool) -> None:
    """Streams of these providers' names, whose mail goes there, or else to the provider `backup`."""
    after = ["backup"] if backup else []
    world.configure(STREAMS={alias: {"PROVIDERS": [alias, *after]} for alias in aliases})


def run_until(world: World, condition: Callable[[], bool], *, workers: int = 1, seconds: float = 60) -> list[int]:
    """Run send_mail again and again, as cron does, until the condition holds afterwards; the exit codes."""
    codes: list[int] = []

    def run() -> bool:
        codes.extend(worker.wait() for worker in [world.worker() for _ in range(workers)])
        return condition()

    world.wait_until(run, seconds=seconds, what="runs of send_mail to do it")
    return codes


def expect(found: object, wanted: object, what: str = "") -> None:
    """Raise AssertionError, with both, unless they are equal."""
    assert found == wanted, f"{what}{': ' if what else ''}{found}, and not {wanted}"


def outcomes_at(alias: str) -> dict[str, int]:
    """How many attempts at this provider came to what."""
    return dict(Counter(Attempt.objects.filter(provider=alias).values_list("outcome", flat=True)))


def messages_at(alias: str) -> int:
    """How many were ever handed to this provider."""
    return Attempt.objects.filter(provider=alias).values("message_id").distinct().count()


def most_tries() -> int:
    """Of one message."""
    return max(Counter(Attempt.objects.values_list("message_id", flat=True)).values(), default=0)


def attempts_spent() -> int:
    """By all messages together."""
    return sum(Message.objects.values_list("attempt_count", flat=True))


def at_several_providers(world: World) -> set[str]:
    """The messages of which more than one provider has a copy."""
    places: dict[str, set[str]] = {}
    for copy in world.log.copies():
        places.setdefault(copy.message_id, set()).add(copy.provider)
    return {message_id for message_id, aliases in places.items() if len(aliases) > 1}


def assert_circuit_held(alias: str, *, most: int) -> None:
    """It is open, at most so many handovers began before it was, and since then one in each probe interval."""
    state = ProviderState.objects.get(alias=alias)
    assert state.opened_at is not None, f"the circuit of {alias} is closed"
    begun = list(Attempt.objects.filter(provider=alias).order_by("begun_at").values_list("begun_at", flat=True))
    before = [at for at in begun if at < state.opened_at]
    assert len(before) <= most, f"{len(before)} handovers to {alias} before its circuit was open; at most {most}"
    probes = begun[len(before) :]
    if probes:
        # Begin is dated a moment before the probe is taken: there may be one more than whole intervals.
        intervals = (probes[-1] - state.opened_at).total_seconds() / get_settings().probe_interval_seconds
        assert len(probes) <= intervals + 1, f"{len(probes)} probes of {alias} in {intervals:.1f} intervals"
