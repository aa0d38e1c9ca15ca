"""Workers: who sends mail, and when each was last seen."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from ..clock import db_now
from ..models import Worker
from ..models.workers import SEEN_SECONDS
from .base import ReadOnlyAdmin


@admin.register(Worker)
class WorkerAdmin(ReadOnlyAdmin):
    """Every process that has sent mail lately, newest first."""

    list_display = ("name", "command", "state", "started_at", "seen_at", "handled_count")
    fields = (*list_display, "stopped_at")
    readonly_fields = ("state",)
    ordering = ("-id",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Worker]:
        rows: QuerySet[Worker] = super().get_queryset(request)
        return rows.annotate(now=db_now())

    @admin.display(description=_("state"))
    def state(self, worker: Any) -> str:
        if worker.stopped_at is not None:
            return gettext("stopped")
        if worker.seen_at > worker.now - timedelta(seconds=SEEN_SECONDS):
            return gettext("at work")
        return gettext("not seen any more: killed, or its host is gone")
