"""How much mail a provider may be given: values in, values out, no Django.

A rate counts over a window that moves: at most 14 in any second, 50,000 in any 24 hours. It counts in twentieths of
its window and looks at twenty-two of them, so that mail which takes a moment to arrive stays within it, too. What a
warm-up allows is counted by the day, in UTC.

Callers keep a `Usage` in the database, lock it, ask how many are `left()`, and store what `taken()` gives back.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

Usage = Mapping[str, Mapping[str, int]]
"""By the name of a window: how many were begun in each of its slices, by the number of the slice since 1970."""

SLICES = 20
DAY = 86_400
WINDOWS = {"s": 1, "min": 60, "h": 3_600, "day": DAY}
"""Seconds, by the unit of a rate."""
_RATE = re.compile(r"(\d{1,9})\s*/\s*(s|min|h|day)")

LONGEST_MOMENT_SECONDS = 5.0
"""A run waits for a provider that may be given nothing for no longer than this; what takes longer is the next run's."""
RECOVERY_SECONDS = 120.0
"""How long it takes until a provider that was slowed down is given twice as much."""
FORGOTTEN_SECONDS = 3_600.0
"""After which that is forgotten."""


@dataclass(frozen=True)
class Limit:
    """At most so many handovers begun within its window, which is the last `slice_count` slices."""

    most: int
    name: str
    slice_seconds: float
    slice_count: int

    def __str__(self) -> str:
        return f"{self.most:,}/{self.name}" if self.slice_count > 1 else f"{self.most:,} on this day"

    def used(self, usage: Usage, *, now: datetime) -> int:
        return sum(self._slices(usage, now=now).values())

    def left(self, usage: Usage, *, now: datetime, share: float = 1.0) -> int:
        """How many more may begin now, by those who may use so much of the limit."""
        return max(self._allowed(share) - self.used(usage, now=now), 0)

    def free_at(self, usage: Usage, *, now: datetime, share: float = 1.0) -> datetime:
        """When the next one may begin: `now`, or when enough of the slices have left the window."""
        slices = self._slices(usage, now=now)
        excess = sum(slices.values()) - self._allowed(share) + 1
        for number in sorted(slices):
            if excess <= 0:
                break
            excess -= slices[number]
            now = _instant((number + self.slice_count) * self.slice_seconds)
        return now

    def taken(self, usage: Usage, *, now: datetime, count: int) -> Mapping[str, int]:
        """Its slices with so many more, and without those that no longer count."""
        slices, current = self._slices(usage, now=now), self._slice(now)
        return {str(number): n for number, n in {**slices, current: slices.get(current, 0) + count}.items()}

    def _slices(self, usage: Usage, *, now: datetime) -> dict[int, int]:
        """How many were begun in each slice that counts. What nobody can read, for a hand wrote it, is none."""
        try:
            slices = {int(number): int(count) for number, count in usage.get(self.name, {}).items()}
        except (AttributeError, TypeError, ValueError):
            return {}
        current = self._slice(now)
        # Those of a future farther away than the window were written by a clock that was wrong, or by hand.
        return {n: count for n, count in slices.items() if abs(n - current) < self.slice_count}

    def _allowed(self, share: float) -> int:
        return max(math.floor(self.most * share + 1e-6), 1)  # 1 - 0.9 is a little less than a tenth

    def _slice(self, now: datetime) -> int:
        # A microsecond more, lest the instant at which a slice begins be rounded to before it.
        return math.floor((now.timestamp() + 1e-6) / self.slice_seconds)


def per(most: int, unit: str) -> Limit:
    """So many in any second ("s"), minute ("min"), hour ("h") or 24 hours ("day")."""
    # One more since a slice may be filled at its very end, and one for mail that takes as long as a slice to arrive.
    return Limit(most, unit, WINDOWS[unit] / SLICES, SLICES + 2)


def limits_of(text: str) -> tuple[Limit, ...]:
    """The limits of a rate as people write it: "14/s", "200/min", or "14/s, 50000/day". Raises ValueError."""
    limits = []
    for part in text.split(","):
        found = _RATE.fullmatch(part.strip())
        if found is None or int(found[1]) < 1:
            raise ValueError(f"{text!r} is no rate. Write it like '14/s', '200/min', '1000/h' or '14/s, 50000/day'.")
        limits.append(per(int(found[1]), found[2]))
    return tuple(limits)


def of_the_day(schedule: Sequence[int], *, since: datetime | None, now: datetime) -> tuple[Limit, ...]:
    """What a warm-up that began at `since` allows on the day of `now`, both by UTC; after its last day, anything."""
    day = 0 if since is None else (_day(now) - _day(since)).days
    return (Limit(schedule[day], "today", DAY, 1),) if 0 <= day < len(schedule) else ()


def after_slowing(slowed_to: int, *, since: datetime, now: datetime) -> tuple[Limit, ...]:
    """What may be given in a second to a provider that asked us to slow down at `since`: more as time goes on."""
    seconds = (now - since).total_seconds()
    if seconds > FORGOTTEN_SECONDS:
        return ()
    # By doubling: where too little was known and it was slowed down far below its limit, a sum would take an hour.
    return (per(math.floor(slowed_to * 2 ** (max(seconds, 0) / RECOVERY_SECONDS)), "s"),)


def busiest_second(instants: Iterable[datetime]) -> int:
    """How many of them lie within one second, at most."""
    ordered = sorted(instants)
    ends = (bisect_left(ordered, first + timedelta(seconds=1)) for first in ordered)
    return max((end - number for number, end in enumerate(ends)), default=0)


def left(limits: Iterable[Limit], usage: Usage, *, now: datetime, share: float = 1.0) -> int | None:
    """How many more may begin now under all of these limits; None: as many as you like."""
    return min((limit.left(usage, now=now, share=share) for limit in limits), default=None)


def free_at(limits: Iterable[Limit], usage: Usage, *, now: datetime, share: float = 1.0) -> datetime:
    """When the next one may begin under all of these limits."""
    return max((limit.free_at(usage, now=now, share=share) for limit in limits), default=now)


def taken(limits: Iterable[Limit], usage: Usage, *, now: datetime, count: int = 1) -> Usage:
    """The usage when so many more have begun: what these limits count, and nothing that they don't."""
    return {limit.name: limit.taken(usage, now=now, count=count) for limit in limits}


def _instant(timestamp: float) -> datetime:
    return datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=timestamp)


def _day(instant: datetime) -> datetime:
    return instant.astimezone(timezone.utc).replace(hour=0, minute=0, second=0, microsecond=0)
