"""Workers that do far less than the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from statistics import median

from ..models import Worker

SLOW = 0.25
"""Of the rate that the middle one of them has: below it a worker is slow."""
LEAST_SECONDS = 60
"""How long a worker must have been at work before its rate says anything."""
LEAST_WORKERS = 3
"""Of two nobody knows which one is as it should be."""


def slow_workers(workers: Sequence[Worker], *, now: datetime) -> Iterator[str]:
    """A sentence for each of these that handles far less in a minute than the middle one of those with its command."""
    for command in sorted({worker.command for worker in workers}):
        rates = {
            worker.name: worker.handled_count / seconds * 60
            for worker in workers
            if worker.command == command and (seconds := (now - worker.started_at).total_seconds()) >= LEAST_SECONDS
        }
        if len(rates) < LEAST_WORKERS:
            continue
        usual = median(rates.values())
        for name, rate in rates.items():
            if rate < SLOW * usual:
                yield (
                    f"worker {name} ({command}) handles {rate:,.0f} messages a minute, where {usual:,.0f} are usual; "
                    "is its host busy, or its way to the providers slow?"
                )
