"""Attempts: the ledger, to be searched for what providers said."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.contrib import admin
from django.db.models import OuterRef, QuerySet, Subquery
from django.http import HttpRequest
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from ..models import Attempt, Message, Worker
from .base import ProviderFilter, ReadOnlyAdmin, link_to, with_address


@admin.register(Attempt)
class AttemptAdmin(ReadOnlyAdmin):
    """Every handover, newest first."""

    list_display = ("begun_at", "message_link", "number", "provider", "outcome", "code", "detail", "ended_at")
    list_display_links = ("begun_at",)
    list_filter = ("outcome", ProviderFilter)
    search_fields = ("provider", "code", "detail")
    search_help_text = _("What the provider said, its code or alias; an address; or the id of a message")
    ordering = ("-id",)
    fields = ("message_link", "number", "provider", "worker_name", "begun_at", "ended_at", "outcome", "code", "detail")
    readonly_fields = ("message_link", "worker_name")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Attempt]:
        rows: QuerySet[Attempt] = super().get_queryset(request)
        # Not by a join: the count of all rows would join them too.
        recipient = Message.objects.filter(pk=OuterRef("message")).values("recipient")
        return rows.annotate(recipient=Subquery(recipient))

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        term = search_term.strip()
        try:
            return queryset.filter(message=UUID(term)), False
        except ValueError:
            pass
        if "@" in term and " " not in term:
            to_it = with_address(Message.objects.all(), "recipient", term)
            return queryset.filter(message__in=to_it.values("pk")), False
        return super().get_search_results(request, queryset, search_term)

    @admin.display(description=_("message"))
    def message_link(self, attempt: Any) -> str:
        return link_to(self, Message(pk=attempt.message_id), attempt.recipient)

    @admin.display(description=_("worker"))
    def worker_name(self, attempt: Attempt) -> str:
        worker = Worker.objects.filter(pk=attempt.worker_id or 0).first()  # may be purged already
        return worker.name if worker else gettext("unknown")
