"""Kicks: mail of a stream that has `KICK` is sent at once by the process that queued it, in a thread of its own.

For sites without a `mail_worker`. What a kick does not send, cron does; so it may fail, and never fails its caller.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from uuid import UUID

from django.db import connections, transaction

from ..conf import get_settings
from ..models import Message
from ..models.waking import AfterCommit, planned
from ..models.workers import is_mail_worker_at_work
from .dispatch import Dispatcher

MOST_SECONDS = 20
"""How long a run begins something new."""
MOST_MESSAGES = 500
"""In one run; the rest is left to cron."""
APART_SECONDS = 1.0
"""From the beginning of one run to that of the next: what is queued meanwhile goes together."""

logger = logging.getLogger("mailengine.kicks")


def kick(message: Message, *, using: str) -> None:
    """Have this message sent as soon as the caller's transaction has committed, if its stream wants that."""
    if not get_settings().policy_for(message.stream).kick:
        return
    kicks = planned(_Kicks, using=using)
    if kicks is None:
        kicks = _Kicks(using)
        kicks.ids.append(message.pk)
        transaction.on_commit(kicks, using=using, robust=True)  # without a transaction, it is done by now
    else:
        kicks.ids.append(message.pk)


class _Kicks(AfterCommit):
    """The kicks of one transaction. Mail that a savepoint took back is not there to be sent."""

    def __init__(self, using: str) -> None:
        super().__init__(using)
        self.ids: list[UUID] = []

    def do(self) -> None:
        _kicker.kick(self.ids, using=self.using)


class Kicker:
    """Sends what it was kicked for, and nothing else: by one thread at a time, which ends when it has nothing to do."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[UUID] = []
        self._thread: threading.Thread | None = None
        self._next_run_at = float("-inf")

    def kick(self, ids: Sequence[UUID], *, using: str) -> None:
        if is_mail_worker_at_work(using):
            return
        with self._lock:
            self._waiting += ids[: MOST_MESSAGES - len(self._waiting)]
            if self._thread is None:
                # No daemon: a process that ends lets what is in flight end first.
                thread = threading.Thread(target=self._work, name="mailengine-kick")
                thread.start()
                self._thread = thread

    def _work(self) -> None:
        while ids := self._next():
            try:
                Dispatcher("kick", only=ids, max_time=MOST_SECONDS, limit=len(ids)).run()
            except Exception:
                # Whatever it is, it is no business of whoever queued the mail; cron sends it, and says what is wrong.
                logger.exception("mail could not be sent at once; it is left to send_mail")
            finally:
                connections.close_all()

    def _next(self) -> list[UUID]:
        """The messages of the next run, when it is time for that; with none the thread ends, until the next kick."""
        with self._lock:
            if not self._waiting:
                self._thread = None
                return []
        time.sleep(max(self._next_run_at - time.monotonic(), 0))
        self._next_run_at = time.monotonic() + APART_SECONDS
        with self._lock:
            ids, self._waiting = self._waiting, []
            return ids


_kicker = Kicker()
if hasattr(os, "register_at_fork"):
    # In a new process the thread does not exist, and the lock may be held by nobody.
    os.register_at_fork(after_in_child=lambda: _kicker.__init__())  # type: ignore[misc]
