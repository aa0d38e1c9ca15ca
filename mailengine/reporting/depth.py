"""How much mail there is of each stream that is not done with, by what it waits for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import Count, Min, Q

from ..models import Message, Priority
from ..models.messages import Status

COUNTED_TOGETHER = ((Status.QUEUED, Status.UNCERTAIN), (Status.DEFERRED,), (Status.SENDING,), (Status.DEAD,))
"""Each by one index that holds all that is asked for, so that millions of rows are not read for it."""


@dataclass(frozen=True)
class StreamDepth:
    """One stream, by the state of its unfinished mail."""

    stream: str
    due: int = 0
    scheduled: int = 0
    sending: int = 0
    deferred: int = 0
    uncertain: int = 0
    kept: int = 0
    """Uncertain, and kept for a person."""
    held: int = 0
    """With a paused job."""
    dead: int = 0
    oldest_seconds: float | None = None
    """How long the oldest has been due that `send_mail` is for."""
    oldest_deferred_seconds: float | None = None
    """How long the oldest has been due that `retry_deferred` is for."""
    oldest_bulk_seconds: float | None = None
    """The same of what is queued with priority BULK, which leaves a part of each limit to what goes before it."""
    oldest_other_seconds: float | None = None
    """The same of what is queued with another priority."""
    oldest_deferred_bulk_seconds: float | None = None
    oldest_deferred_other_seconds: float | None = None


@dataclass(frozen=True)
class _Count:
    """The messages of a stream in one status."""

    total: int = 0
    due: int = 0
    timeless: int = 0
    """Without a due time."""
    oldest_bulk_seconds: float | None = None
    oldest_other_seconds: float | None = None

    @property
    def oldest_seconds(self) -> float | None:
        return longest(self.oldest_bulk_seconds, self.oldest_other_seconds)


def depths(now: datetime) -> list[StreamDepth]:
    """All streams that have mail which is not done with or dead, by name; a query for each of `COUNTED_TOGETHER`."""
    counts = {key: count for statuses in COUNTED_TOGETHER for key, count in _counts(statuses, now)}
    return [
        _depth(stream, {status: counts.get((stream, status), _Count()) for status in Status})
        for stream in sorted({stream for stream, _status in counts})
    ]


def longest(*seconds: float | None) -> float | None:
    return max((each for each in seconds if each is not None), default=None)


def seconds_since(instant: datetime | None, *, now: datetime) -> float | None:
    """How long ago that was; None when it is still to come."""
    if instant is None or instant > now:
        return None
    return round((now - instant).total_seconds(), 1)


def _depth(stream: str, of: dict[Status, _Count]) -> StreamDepth:
    queued, deferred, uncertain = of[Status.QUEUED], of[Status.DEFERRED], of[Status.UNCERTAIN]
    return StreamDepth(
        stream,
        due=queued.due,
        scheduled=queued.total - queued.due - queued.timeless,
        sending=of[Status.SENDING].total,
        deferred=deferred.total - deferred.timeless,
        uncertain=uncertain.total - uncertain.timeless,
        kept=uncertain.timeless,
        held=queued.timeless + deferred.timeless,
        dead=of[Status.DEAD].total,
        oldest_seconds=longest(queued.oldest_seconds, uncertain.oldest_seconds),
        oldest_deferred_seconds=deferred.oldest_seconds,
        oldest_bulk_seconds=queued.oldest_bulk_seconds,
        oldest_other_seconds=queued.oldest_other_seconds,
        oldest_deferred_bulk_seconds=deferred.oldest_bulk_seconds,
        oldest_deferred_other_seconds=deferred.oldest_other_seconds,
    )


def _counts(statuses: Sequence[Status], now: datetime) -> Iterator[tuple[tuple[str, str], _Count]]:
    """By (stream, status), which is asked for only where there are several: an index on one alone doesn't hold it."""
    keys = ["stream", "status"] if len(statuses) > 1 else ["stream"]
    rows = Message.objects.filter(status__in=statuses).values(*keys).order_by().annotate(total=Count("*"))
    if Status.SENDING not in statuses and Status.DEAD not in statuses:
        is_bulk = Q(priority__gte=Priority.BULK)
        rows = rows.annotate(
            timed=Count("available_at"),
            oldest_bulk=Min("available_at", filter=is_bulk),
            oldest_other=Min("available_at", filter=~is_bulk),
        )
    if Status.QUEUED in statuses:  # of the others nobody asks
        rows = rows.annotate(due=Count("available_at", filter=Q(available_at__lte=now)))
    for row in rows:
        figures: dict[str, Any] = dict(row)
        stream, status = figures.pop("stream"), figures.pop("status", statuses[0])
        figures["timeless"] = figures["total"] - figures.pop("timed", 0)
        for kind in ("bulk", "other"):
            figures[f"oldest_{kind}_seconds"] = seconds_since(figures.pop(f"oldest_{kind}", None), now=now)
        yield (stream, status), _Count(**figures)
