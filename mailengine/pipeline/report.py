"""What a run did, as values: commands print it, processes add theirs together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Report:
    """What a run did. The counts are of messages."""

    command: str
    outcomes: Counter[str] = field(default_factory=Counter)
    """By the status that a message was left in: sent, deferred, dead, …"""
    sent_by: Counter[str] = field(default_factory=Counter)
    """Sent, by provider."""
    rescued: int = 0
    expired: int = 0
    jobs_done: int = 0
    seconds: float = 0.0
    stopped: str = "done"
    """Why it ended: done, limit, max_time, signal."""
    is_blocked: bool = False
    """Mail is due, and no provider can take it now."""

    @property
    def is_empty(self) -> bool:
        return not (self.outcomes or self.rescued or self.expired or self.is_blocked)

    def add(self, other: Mapping[str, Any]) -> None:
        """Add the counts of another process's report, as its `as_dict()` gave them."""
        self.outcomes.update(other["outcomes"])
        self.sent_by.update(other["providers"])
        self.rescued += other["rescued"]
        self.expired += other["expired"]
        self.jobs_done += other["jobs_done"]
        self.is_blocked = self.is_blocked or other["is_blocked"]
        if other["stopped"] != "done":
            self.stopped = other["stopped"]

    def as_dict(self) -> dict[str, Any]:
        return {
            "outcomes": dict(self.outcomes),
            "providers": dict(self.sent_by),
            "rescued": self.rescued,
            "expired": self.expired,
            "jobs_done": self.jobs_done,
            "seconds": round(self.seconds, 3),
            "stopped": self.stopped,
            "is_blocked": self.is_blocked,
        }
