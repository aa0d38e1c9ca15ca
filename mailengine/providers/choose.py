"""Which provider carries the next message: values in, an alias out.

`"ordered"` takes the first in the order of the settings, `"sticky"` the one that worked last, `"spread"` one that each
run draws for itself, `"weighted"` the one that is furthest behind its share. All pass over those that can't be used
now, and over those that a message has tried already in this claim.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Candidate:
    """A provider as the choice sees it, at one instant."""

    alias: str
    is_usable: bool = True
    """Whether any mail may go there."""
    probe_is_due: bool = False
    """Whether one message may, to see if it works again."""
    takes_new_mail: bool = True
    """Whether more than what only it may carry."""
    is_limited: bool = False
    """Whether nothing but its limits keeps it from being usable."""
    took_over_at: datetime | None = None
    """When it last became the one that works, for `"sticky"`."""
    weight: int = 1
    """Its share, for `"weighted"`; with 0 it only stands in for others."""


@dataclass(frozen=True)
class Choice:
    """A provider, and whether the message would be its probe."""

    alias: str
    is_probe: bool = False


class Shares:
    """How many messages one process has given to each provider, and who is next by weight.

    Each set of providers that can be used together has its own count, so that one that comes back after an outage
    makes up for nothing. A process begins at a random place of the cycle: many that send one message each share, too.
    """

    def __init__(self, *, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()  # noqa: S311  not a secret
        self._given: dict[frozenset[tuple[str, int]], Counter[str]] = {}

    def note(self, alias: str, candidates: Iterable[Candidate]) -> None:
        """This provider, one of these candidates, was given a message."""
        self._count(_sharing(candidates))[alias] += 1

    def in_turn(self, candidates: Sequence[Candidate], *, planned: Mapping[str, int]) -> list[Candidate]:
        """The candidates, the next one first; `planned` are messages that each is about to be given."""
        sharing = _sharing(candidates)
        given = self._count(sharing)
        following = sorted(sharing, key=lambda c: (given[c.alias] + planned.get(c.alias, 0) + 1) / c.weight)
        return [*following, *(candidate for candidate in candidates if candidate not in sharing)]

    def _count(self, sharing: Sequence[Candidate]) -> Counter[str]:
        key = frozenset((candidate.alias, candidate.weight) for candidate in sharing)
        if key not in self._given:
            whole = sum(candidate.weight for candidate in sharing)
            place = self._rng.randrange(whole // math.gcd(*(c.weight for c in sharing))) if sharing else 0
            # At the least; weights may be large, and few are left to be given one by one.
            given = self._given[key] = Counter({c.alias: place * c.weight // whole for c in sharing})
            for _ in range(place - given.total()):
                given[min(sharing, key=lambda c: (given[c.alias] + 1) / c.weight).alias] += 1
        return self._given[key]


def _sharing(candidates: Iterable[Candidate]) -> list[Candidate]:
    return [c for c in candidates if c.weight > 0 and c.is_usable]


def in_preference(
    aliases: Sequence[str], *, strategy: str, known: Mapping[str, Candidate], lead: str = ""
) -> list[Candidate]:
    """The candidates for one stream, best first; `lead` is the one that this run has drawn for `"spread"`."""
    candidates = [known[alias] for alias in aliases if alias in known]
    if strategy == "spread":
        return sorted(candidates, key=lambda candidate: candidate.alias != lead)
    if strategy != "sticky":
        return candidates
    took_over = {c.took_over_at: c for c in candidates if c.took_over_at is not None}
    if not took_over:
        return candidates
    current = took_over[max(took_over)]
    return [current, *(candidate for candidate in candidates if candidate is not current)]


def choose(candidates: Sequence[Candidate], *, tried: Collection[str] = ()) -> Choice | None:
    """Where the next message goes, or None when nothing can be used now.

    A probe that is due comes first: it is how an open circuit is ever closed again, and costs one message a second
    choice at worst.
    """
    left = [candidate for candidate in candidates if candidate.alias not in tried]
    for candidate in left:
        if candidate.probe_is_due:
            return Choice(candidate.alias, is_probe=True)
    for candidate in left:
        if candidate.is_usable:
            return Choice(candidate.alias)
    return None
