"""How fast this process goes, by what it has seen itself: shared with no other, and forgotten at its end."""

from __future__ import annotations

import logging
import time
from collections import defaultdict

from ..conf import Settings
from ..outcomes import Outcome

FIRST_LOCAL_PAUSE_SECONDS = 1.0
"""How long nothing begins after a fault of this host (it is out of sockets, say); twice as long each time in a row."""
LONGEST_LOCAL_PAUSE_SECONDS = 30.0
LOCAL_FAULTS_TO_TELL = 3

logger = logging.getLogger("mailengine.dispatch")


class Pace:
    """One handover at a time at each provider, then two, four, eight; and none for a while when this host fails."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._steps: dict[str, int] = defaultdict(lambda: 1)
        self._local_faults = 0
        """In a row."""
        self._paused_until = 0.0

    def note(self, alias: str, outcome: Outcome) -> None:
        """Go on by what this handover came to."""
        if outcome.is_good_round:
            self._steps[alias] = min(2 * self._steps[alias], max(self.settings.connections, 2))
        elif outcome.is_bad_round:
            self._steps[alias] = 1
        if not outcome.is_local:
            self._local_faults = 0
        elif not self.pause_seconds:  # else it was under way already: eight connections that fail at once fail once
            self._pause(outcome)

    def room(self, alias: str, *, most: int | None) -> int:
        """How many handovers may be under way at this provider, which has `most` connections; None: as many as any."""
        return min(self._steps[alias], most or self.settings.connections)

    def has_accepted(self, alias: str) -> bool:
        """Whether this provider took something in this run, and hasn't failed since."""
        return self._steps[alias] > 1

    @property
    def pause_seconds(self) -> float:
        """For how long nothing may begin yet; 0 when all is well."""
        return max(self._paused_until - time.monotonic(), 0.0)

    def _pause(self, outcome: Outcome) -> None:
        self._local_faults += 1
        self._paused_until = time.monotonic() + local_pause_seconds(self._local_faults)
        if self._local_faults == LOCAL_FAULTS_TO_TELL:
            logger.error("this host can't send, %s times in a row: %s", self._local_faults, outcome.code)


def local_pause_seconds(faults: int) -> float:
    """How long nothing begins after so many faults of this host in a row."""
    return float(min(FIRST_LOCAL_PAUSE_SECONDS * 2 ** min(faults - 1, 10), LONGEST_LOCAL_PAUSE_SECONDS))
