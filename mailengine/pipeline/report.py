"""What a run did, as values: commands print it, processes add theirs together."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass
class Report:
    """What a run did. The counts are of messages."""

    command: str
    outcomes: Counter[str] = field(default_factory=Counter)
    """By the status that a message was left in: sent, deferred, dead, …"""
    sent_by: Counter[str] = field(default_factory=Counter)
    """Sent, by provider."""
    longest_waits: dict[str, float] = field(default_factory=dict)
    """By stream: seconds from when a message was due to its first handover, of the one that waited longest."""
    rescued: int = 0
    expired: int = 0
    jobs_done: int = 0
    seconds: float = 0.0
    stopped: str = "done"
    """Why it ended: done, limit, max_time, signal."""
    is_blocked: bool = False
    """Mail is due, and no provider can take it now."""
    is_limited: bool = False
    """Mail is due, and nothing but limits keeps providers from taking it now."""
    failed: list[str] = field(default_factory=list)
    """The processes that did not end well, and how each ended."""

    @property
    def is_empty(self) -> bool:
        return not (self.outcomes or self.rescued or self.expired or self.is_blocked)

    def add(self, other: Report) -> None:
        """Add the counts of another process."""
        self.outcomes.update(other.outcomes)
        self.sent_by.update(other.sent_by)
        for stream, seconds in other.longest_waits.items():
            self.note_wait(stream, seconds)
        self.rescued += other.rescued
        self.expired += other.expired
        self.jobs_done += other.jobs_done
        self.is_blocked = self.is_blocked or other.is_blocked
        self.is_limited = self.is_limited or other.is_limited
        if other.stopped != "done":
            self.stopped = other.stopped

    def note_wait(self, stream: str, seconds: float) -> None:
        """A message of this stream was handed over for the first time, so long after it was due."""
        if seconds > self.longest_waits.get(stream, -1.0):
            self.longest_waits[stream] = seconds

    def copy(self) -> Report:
        return replace(self, outcomes=self.outcomes.copy(), sent_by=self.sent_by.copy())

    def as_dict(self) -> dict[str, Any]:
        return {
            "outcomes": dict(self.outcomes),
            "providers": dict(self.sent_by),
            "longest_waits": {stream: round(seconds, 3) for stream, seconds in self.longest_waits.items()},
            "rescued": self.rescued,
            "expired": self.expired,
            "jobs_done": self.jobs_done,
            "seconds": round(self.seconds, 3),
            "stopped": self.stopped,
            "is_blocked": self.is_blocked,
            "is_limited": self.is_limited,
        }
