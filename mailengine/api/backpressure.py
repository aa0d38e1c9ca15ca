"""When the queue is too long: what can wait is refused first, so that it stays short for what can't."""

from __future__ import annotations

import threading
import time

from django.db import router

from ..conf import get_settings
from ..models import Message, Priority
from .refusals import Refusal

KNOWN_SECONDS = 5.0
"""How long a process believes what it has last counted, at least."""
SHARE = 0.02
"""Of a process's time, the most that goes into counting."""
RETRY_SECONDS = 60


def check_room(priority: int) -> None:
    """Raise `Refusal`, 503, where the queue is too long for mail of this priority.

    Above `QUEUE` waiting messages for what is less urgent than NORMAL, above twice as many for NORMAL; what is more
    urgent is always taken. A process learns of it within seconds.
    """
    if priority < Priority.NORMAL:
        return
    most = get_settings().api.queue * (1 if priority > Priority.NORMAL else 2)
    if _depth.known(at_most=2 * get_settings().api.queue + 1) > most:
        raise Refusal(503, "The queue is full for mail that can wait. Send it later.", retry_after=RETRY_SECONDS)


class _Depth:
    """How many messages wait, as it was counted last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._until = float("-inf")

    def known(self, *, at_most: int) -> int:
        with self._lock:
            if (now := time.monotonic()) < self._until:
                return self._count
            self._until = now + KNOWN_SECONDS  # the others need not count, too
        waiting = Message.objects.using(router.db_for_read(Message)).waiting().order_by()
        count = waiting.values("pk")[:at_most].count()
        took = time.monotonic() - now
        with self._lock:
            self._count, self._until = count, time.monotonic() + max(KNOWN_SECONDS, took / SHARE)
        return count

    def forget(self) -> None:
        self._until = float("-inf")


_depth = _Depth()
forget_depth = _depth.forget
