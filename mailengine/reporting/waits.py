"""Why the mail of a stream can't go now: its providers are switched off, can't be used, or have had their limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from ..conf import Mode
from ..providers.choose import Candidate, in_preference
from ..rate import DAY, SLICES, Limit
from .providers import BROKEN, SWITCHED_OFF, Picture, ProviderReport
from .traffic import counts_since

PACE_SECONDS = 600
"""How long we look back for how fast mail goes."""
PACE = 0.5
"""From this part of what a limit allows in that time on, it is the limit that mail waits for: runs pause, too."""


class Reason(str, Enum):
    """Why mail waits."""

    SWITCHED_OFF = "switched off"  # nobody may be given new mail
    BROKEN = "broken"  # who may be given some can't be used
    LIMITED = "limited"  # who can be used has had its limit


@dataclass(frozen=True)
class Wait:
    """Why none of a stream's mail can go at this moment, or no faster than it does."""

    reason: Reason
    providers: Sequence[ProviderReport]
    """Those that it is about, by preference."""
    until: datetime | None = None
    """When the first limit lets some through; None: some goes all the time."""


def wait_of(stream: str, seen: Picture, *, is_bulk: bool, begun: Mapping[str, int] | None = None) -> Wait | None:
    """Why mail of this stream waits; None where nothing is in its way.

    `is_bulk`: mail of priority BULK, which leaves a part of each limit to other mail. `begun`: how many handovers to
    each provider began within `PACE_SECONDS`.
    """
    carriers = carriers_of(stream, seen)
    on = [report for report in carriers if report.state not in SWITCHED_OFF]
    if not on:
        return Wait(Reason.SWITCHED_OFF, carriers)
    usable = [report for report in on if report.state not in BROKEN]
    if not usable:
        return Wait(Reason.BROKEN, on)
    ends = {report.alias: report.bulk_until if is_bulk else report.until for report in usable}
    instants = [end for end in ends.values() if end is not None]
    if len(instants) == len(usable):
        return Wait(Reason.LIMITED, sorted(usable, key=lambda r: ends[r.alias] or seen.now), min(instants))
    free = [report for report in usable if ends[report.alias] is None]
    if all(_is_at_its_pace(report.alias, seen, begun=(begun or {}).get(report.alias, 0)) for report in free):
        return Wait(Reason.LIMITED, free)
    return None


def switched_off(seen: Picture) -> list[str]:
    """The streams that no provider may be given new mail of."""
    return [
        stream
        for stream in seen.settings.streams
        if all(report.state in SWITCHED_OFF for report in carriers_of(stream, seen))
    ]


def begun_lately(now: datetime) -> dict[str, int]:
    """How many handovers to each provider began within `PACE_SECONDS`."""
    return counts_since(now - timedelta(seconds=PACE_SECONDS))


def carriers_of(stream: str, seen: Picture) -> list[ProviderReport]:
    """The providers of a stream, by preference, as they would be if nobody had switched one off."""
    policy = seen.settings.policy_for(stream)
    named = [alias for alias, report in seen.reports.items() if report.is_named or report.is_added]
    aliases = named if policy.providers is None else [alias for alias in policy.providers if alias in named]
    strategy = seen.settings.strategy_for(stream)
    if not policy.failover and strategy in ("ordered", "sticky"):
        # The first that is left takes the place of one that is retired, and of no other.
        alive = [alias for alias in aliases if seen.reports[alias].mode is not Mode.RETIRED]
        known = {
            alias: Candidate(alias, took_over_at=state.took_over_at if (state := seen.states.get(alias)) else None)
            for alias in alive
        }
        aliases = [c.alias for c in in_preference(alive, strategy=strategy, known=known)[:1]] or aliases
    elif not policy.failover and strategy == "weighted":
        aliases = [alias for alias in aliases if seen.reports[alias].weight] or aliases
    return [seen.reports[alias] for alias in aliases]


def _is_at_its_pace(alias: str, seen: Picture, *, begun: int) -> bool:
    """Whether this provider is given about as much as its limits allow."""
    policy, state = seen.settings.providers[alias], seen.states.get(alias)
    limits = state.limits(policy, now=seen.now) if state else policy.rate
    return any(begun >= PACE * limit.most * PACE_SECONDS / _window_seconds(limit) for limit in limits)


def _window_seconds(limit: Limit) -> float:
    return limit.slice_seconds * SLICES if limit.slice_count > 1 else DAY
