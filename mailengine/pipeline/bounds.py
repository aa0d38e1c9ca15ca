"""How long a run may go on, and how many messages it may take in hand."""

from __future__ import annotations

import time
from threading import Event

from .report import Report


class Bounds:
    """The end of a run: by a signal, by its time, by its number of messages. Its report says which of them it was."""

    def __init__(self, report: Report, *, max_time: float | None, limit: int | None, stop: Event) -> None:
        self.report = report
        self.limit = limit
        self.stop = stop
        self.started_at = time.monotonic()
        self.ends_at = float("inf") if max_time is None else self.started_at + max_time
        self.stopped_at = float("inf")
        """When it found that it was told to stop."""

    def must_stop(self) -> bool:
        """Whether this run may begin nothing more."""
        if self.stop.is_set():
            self.report.stopped = "signal"
            self.stopped_at = min(self.stopped_at, time.monotonic())
        elif time.monotonic() >= self.ends_at:
            self.report.stopped = "max_time"
        else:
            return False
        return True

    def left(self, *, in_hand: int) -> int | None:
        """How many more messages it may take, with so many in hand that are not done with; None: all there are."""
        if self.limit is None:
            return None
        return max(self.limit - self.report.outcomes.total() - in_hand, 0)

    def close(self, *, in_hand: int) -> None:
        """It has ended: enter in the report how long it took, and whether its number of messages was reached."""
        if self.left(in_hand=in_hand) == 0 and self.report.stopped == "done":
            self.report.stopped = "limit"
        self.report.seconds = time.monotonic() - self.started_at
