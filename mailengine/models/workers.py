"""Who is at work, and when last seen."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

from django.db import models, router, transaction
from django.utils.translation import gettext_lazy as _

from ..clock import db_now
from .bulk import update_rows
from .locks import limit_locks

SEEN_SECONDS = 120
"""A worker not seen for so long is not shown as being at work any more."""
LIVE_SECONDS = 30
"""A `mail_worker` not seen for so long is not relied upon: it says that it lives three times as often."""
KNOWN_SECONDS = 1.0
"""How long a process believes what it has last seen of that."""
MOST_HANDLED = 2**31 - 1
"""What the column holds; some that go on for months may handle more."""
MAIL_WORKER = "mail_worker"
"""The command of those that go on for ever."""


class WorkerQuerySet(models.QuerySet["Worker"]):
    def register(self, command: str) -> Worker:
        """A row for this process, made when it first finds something to do."""
        name = f"{socket.gethostname()}:{os.getpid()}"[:100]
        return self.create(name=name, command=command, started_at=db_now(), seen_at=db_now())

    def at_work(self, *, seen_seconds: float = SEEN_SECONDS) -> WorkerQuerySet:
        return self.filter(stopped_at=None, seen_at__gt=db_now(-seen_seconds))


class Worker(models.Model):
    """One process that sends mail; leases and attempts name it, so that the history says who it was."""

    name = models.CharField(_("host and process"), max_length=100)
    command = models.CharField(_("command"), max_length=40)
    started_at = models.DateTimeField(_("started"))
    seen_at = models.DateTimeField(_("last seen"))
    stopped_at = models.DateTimeField(_("stopped"), null=True, db_index=True)  # who is at work has none
    handled_count = models.PositiveIntegerField(_("messages handled"), default=0)
    turn = models.PositiveIntegerField(default=0, editable=False, help_text="The last one of its loop to be committed.")

    objects = WorkerQuerySet.as_manager()

    class Meta:
        verbose_name = _("worker")
        verbose_name_plural = _("workers")

    def __str__(self) -> str:
        return self.name

    def heartbeat(self, *, handled_count: int, turn: int | None = None, stopping: bool = False) -> None:
        """Say that this worker lives, and how much it has done so far; in the commit of a turn, also which that is."""
        values: dict[str, Any] = {"seen_at": db_now(), "handled_count": min(handled_count, MOST_HANDLED)}
        if turn is not None:
            values["turn"] = turn
        if stopping:
            values["stopped_at"] = db_now()
        update_rows(Worker, [(self.pk,)], columns=[], keys=["id"], constants=values, using=router.db_for_write(Worker))

    def last_turn(self) -> int | None:
        """The last turn of this worker that was committed. None: the row is gone.

        Should the server still be at such a commit, this waits for it, within limits.
        """
        using = router.db_for_write(Worker)
        with transaction.atomic(using=using):
            limit_locks(using)
            row = Worker.objects.using(using).filter(pk=self.pk).select_for_update()
            return row.values_list("turn", flat=True).first()


class _Known:
    """What this process has last seen, by database: whether a `mail_worker` is at work, and when that was."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[bool, float]] = {}

    def is_any_at_work(self, using: str) -> bool:
        is_any, seen_at = self._seen.get(using, (False, float("-inf")))
        if time.monotonic() - seen_at >= KNOWN_SECONDS:
            workers = Worker.objects.using(using).at_work(seen_seconds=LIVE_SECONDS)
            is_any = workers.filter(command=MAIL_WORKER).exists()
            self._seen[using] = is_any, time.monotonic()
        return is_any

    def forget(self) -> None:
        self._seen.clear()


_known = _Known()
is_mail_worker_at_work = _known.is_any_at_work
"""Whether a `mail_worker` serves the queue in this database: asked once in a second, however often it is called."""
forget_who_is_at_work = _known.forget
