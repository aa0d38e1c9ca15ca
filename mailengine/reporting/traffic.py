"""What each provider was given in the last 24 hours, hour by hour, as the ledger has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

from django.db.models import Count

from ..models import Attempt
from ..outcomes import Kind

HOURS = 24
"""The present one, which goes on, is the last of them."""
HOUR = timedelta(hours=1)

MAILS_FAULT = frozenset({Kind.REFUSED, Kind.DEFERRED})


@dataclass(frozen=True)
class Hour:
    """The handovers to one provider that began within an hour, by their outcome."""

    begins_at: datetime
    outcomes: Mapping[str, int] = field(default_factory=dict)

    @property
    def accepted(self) -> int:
        return self.outcomes.get(Kind.ACCEPTED, 0)

    @property
    def refused(self) -> int:
        """For what the mail or its address is, for good or for now."""
        return sum(self.outcomes.get(kind, 0) for kind in MAILS_FAULT)

    @property
    def failed(self) -> int:
        """For what the provider, the way there or our configuration is."""
        return self.total - self.accepted - self.refused

    @property
    def total(self) -> int:
        return sum(self.outcomes.values())


@dataclass(frozen=True)
class Traffic:
    """What one provider was given."""

    hours: Sequence[Hour]
    """The last 24, the oldest first, by the clock in UTC."""
    now: datetime

    @property
    def accepted(self) -> int:
        return sum(hour.accepted for hour in self.hours)

    @property
    def refused(self) -> int:
        return sum(hour.refused for hour in self.hours)

    @property
    def failed(self) -> int:
        return sum(hour.failed for hour in self.hours)

    @property
    def total(self) -> int:
        return sum(hour.total for hour in self.hours)

    @property
    def sent_today(self) -> int:
        """What it has accepted since midnight in UTC."""
        return sum(hour.accepted for hour in self.hours if hour.begins_at.date() == self.now.date())


class ByProvider(dict[str, Traffic]):
    """The traffic of each provider; of those that the ledger doesn't know, too."""

    def __init__(self, counts: Mapping[str, Mapping[datetime, Mapping[str, int]]], *, now: datetime) -> None:
        self.now = now.astimezone(timezone.utc)
        super().__init__({alias: self._traffic(by_hour) for alias, by_hour in counts.items()})
        self._accepted = sum(traffic.accepted for traffic in self.values())

    def __missing__(self, alias: str) -> Traffic:
        return self._traffic({})

    def share(self, alias: str) -> float | None:
        """Its part of all that was accepted, from 0 to 1; None where nothing was."""
        return self[alias].accepted / self._accepted if self._accepted else None

    def _traffic(self, by_hour: Mapping[datetime, Mapping[str, int]]) -> Traffic:
        first = _first_hour(self.now)
        hours = [first + number * HOUR for number in range(HOURS)]
        return Traffic([Hour(hour, by_hour.get(hour, {})) for hour in hours], self.now)


def traffic_by_provider(now: datetime) -> ByProvider:
    """The last 24 hours. What is under way has no outcome yet, and is left out.

    A query an hour: grouped by the hour, a million rows make PostgreSQL expect a million groups, sort them on disk, and
    compile the query, which takes longer than all the rest.
    """
    counts: dict[str, dict[datetime, dict[str, int]]] = {}
    first = _first_hour(now)
    for begins_at in (first + number * HOUR for number in range(HOURS)):
        within = Attempt.objects.filter(begun_at__gte=begins_at, begun_at__lt=begins_at + HOUR)
        rows = within.values_list("provider", "outcome").annotate(count=Count("*")).order_by()
        for provider, outcome, count in rows:
            if outcome:  # looked at here: for a million rows the database would take a tenth longer
                counts.setdefault(provider, {}).setdefault(begins_at, {})[outcome] = count
    return ByProvider(counts, now=now)


def counts_since(instant: datetime) -> dict[str, int]:
    """How many handovers to each provider began since then."""
    rows = Attempt.objects.filter(begun_at__gte=instant).values_list("provider").annotate(count=Count("*")).order_by()
    return dict(rows)


def _first_hour(now: datetime) -> datetime:
    this = now.astimezone(timezone.utc).replace(minute=0, second=0, microsecond=0)
    return this - (HOURS - 1) * HOUR
