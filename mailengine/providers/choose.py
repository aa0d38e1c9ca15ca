"""Which provider carries the next message: values in, an alias out.

`"ordered"` takes the first in the order of the settings, `"sticky"` the one that worked last; either passes over those
that can't be used now. What a message has tried already in this claim is passed over too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from ..circuit import Circuit


@dataclass(frozen=True)
class Candidate:
    """A provider as the choice sees it."""

    alias: str
    circuit: Circuit
    took_over_at: datetime | None = None
    """When it last became the one that works, for `"sticky"`."""


@dataclass(frozen=True)
class Choice:
    """A provider, and whether the message would be its probe."""

    alias: str
    is_probe: bool = False


def in_preference(aliases: Sequence[str], *, strategy: str, known: Mapping[str, Candidate]) -> list[Candidate]:
    """The candidates for one stream, best first."""
    candidates = [known[alias] for alias in aliases if alias in known]
    if strategy != "sticky":
        return candidates
    took_over = {c.took_over_at: c for c in candidates if c.took_over_at is not None}
    if not took_over:
        return candidates
    current = took_over[max(took_over)]
    return [current, *(candidate for candidate in candidates if candidate is not current)]


def choose(
    candidates: Sequence[Candidate], *, now: datetime, tried: Collection[str] = (), probing: bool = True
) -> Choice | None:
    """Where the next message goes, or None when nothing can be used now.

    A probe that is due comes first: it is how an open circuit is ever closed again, and costs one message a second
    choice at worst. `probing=False`: this message must not be a probe.
    """
    if probing:
        for candidate in candidates:
            if candidate.alias not in tried and candidate.circuit.probe_is_due(now=now):
                return Choice(candidate.alias, is_probe=True)
    for candidate in candidates:
        if candidate.alias not in tried and candidate.circuit.is_usable(now=now):
            return Choice(candidate.alias)
    return None
