"""Who is at work, and when last seen."""

from __future__ import annotations

import os
import socket

from django.db import models
from django.utils.translation import gettext_lazy as _

from ..clock import db_now

SEEN_SECONDS = 120
"""A worker not seen for so long is not shown as being at work any more."""


class WorkerQuerySet(models.QuerySet["Worker"]):
    def register(self, command: str) -> Worker:
        """A row for this process, made when it first finds something to do."""
        name = f"{socket.gethostname()}:{os.getpid()}"[:100]
        return self.create(name=name, command=command, started_at=db_now(), seen_at=db_now())

    def at_work(self) -> WorkerQuerySet:
        return self.filter(stopped_at=None, seen_at__gt=db_now(-SEEN_SECONDS))


class Worker(models.Model):
    """One process that sends mail; leases and attempts name it, so that the history says who it was."""

    name = models.CharField(_("host and process"), max_length=100)
    command = models.CharField(_("command"), max_length=40)
    started_at = models.DateTimeField(_("started"))
    seen_at = models.DateTimeField(_("last seen"), db_index=True)
    stopped_at = models.DateTimeField(_("stopped"), null=True)
    handled_count = models.PositiveIntegerField(_("messages handled"), default=0)

    objects = WorkerQuerySet.as_manager()

    class Meta:
        verbose_name = _("worker")
        verbose_name_plural = _("workers")

    def __str__(self) -> str:
        return self.name

    def heartbeat(self, *, handled_count: int, stopping: bool = False) -> None:
        """Say that this worker lives, and how much it has done so far."""
        stopped = {"stopped_at": db_now()} if stopping else {}
        Worker.objects.filter(pk=self.pk).update(seen_at=db_now(), handled_count=handled_count, **stopped)
