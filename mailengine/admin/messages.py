"""Messages: find one, see where it stands and what was tried, and decide about those kept for a person."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from typing import Any
from uuid import UUID

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.urls import URLPattern, path
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from ..clock import db_now
from ..models import Attempt, Message, MessageJob, Priority
from ..models.messages import MessageQuerySet
from ..reporting.standing import standing_of
from .base import BannerMixin, ChoiceFilter, OperatedAdmin, ProviderFilter, StreamFilter, link_to, with_address
from .compose import ComposeLinkMixin, Kind, compose

_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|[0-9a-f]{32}", re.IGNORECASE)


class PriorityFilter(ChoiceFilter):
    title = _("priority")
    parameter_name = "priority"

    def choices_known(self) -> Iterable[tuple[Any, Any]]:
        return Priority.choices


class KeptFilter(admin.SimpleListFilter):
    """The lists that a person works through (G38)."""

    title = _("what is left to a person")
    parameter_name = "kept"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [
            ("dead", _("Dead letters: given up on")),
            ("uncertain", _("Kept: it may have gone")),
            ("all", _("Both")),
        ]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        dead = Q(status=Message.Status.DEAD)
        uncertain = Q(status=Message.Status.UNCERTAIN, available_at=None)
        chosen = {"dead": dead, "uncertain": uncertain, "all": dead | uncertain}.get(self.value() or "")
        return queryset if chosen is None else queryset.filter(chosen)


class AttemptInline(admin.TabularInline):
    """The message's entries in the ledger."""

    model = Attempt
    fields = ("number", "provider", "begun_at", "ended_at", "outcome", "code", "detail", "worker_name")
    readonly_fields = fields
    ordering = ("number",)
    extra = 0
    can_delete = False

    def get_queryset(self, request: HttpRequest) -> QuerySet[Attempt]:
        return super().get_queryset(request).select_related("worker")

    @admin.display(description=_("worker"))
    def worker_name(self, attempt: Attempt) -> str:
        """Host and process; workers long gone are purged, and their attempts stay."""
        return attempt.worker.name if attempt.worker else gettext("unknown")

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return True  # whoever may see the message may see what became of it

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Message)
class MessageAdmin(ComposeLinkMixin, BannerMixin, OperatedAdmin):
    """Every message, newest first. Words are on the pages of jobs only: other mail may hold a link to log in with."""

    list_display = (
        "recipient", "status", "created_at", "reason", "available_at", "provider", "job_link", "stream",
        "shown_priority",
    )  # fmt: skip
    list_filter = (KeptFilter, "status", StreamFilter, PriorityFilter, ProviderFilter)
    search_fields = ("recipient",)  # shows the field; what it finds is in get_search_results()
    search_help_text = _("An address, the beginning of one, or the id of a message")
    ordering = ("-id",)
    actions = ("requeue", "cancel", "mark_sent", "give_up")
    final_verbs = ("cancel", "mark_sent")
    inlines = (AttemptInline,)
    compose_kind = Kind.MAIL
    compose_label = _("Write a mail")
    fieldsets = (
        (None, {"fields": ("standing", ("status", "reason", "delivery"), "everybody")}),
        (_("Mail"), {"fields": ("id", ("subject", "job_link"), ("stream", "shown_priority"))}),
        (
            _("Times"),
            {"fields": (("created_at", "available_at", "sent_at"), ("send_at", "expires_at", "leased_until"))},
        ),
        (_("Handovers"), {"fields": (("attempt_count", "uncertain_count"), ("provider", "provider_message_id"))}),
    )
    readonly_fields = ("standing", "everybody", "subject", "job_link", "shown_priority")

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(partial(compose, pages=self))
        return [path("compose/", view, name="mailengine_message_compose"), *super().get_urls()]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Message]:
        return super().get_queryset(request).defer("merge_data", "other_recipients")

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        return lookup == "job" or super().lookup_allowed(lookup, value, request)  # type: ignore[arg-type]

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        term = search_term.strip()
        if not term:
            return queryset, False
        if found := _UUID.search(term):
            return queryset.filter(pk=UUID(found[0])), False
        return with_address(queryset, "recipient", term), False

    @admin.display(description=_("priority"), ordering="priority")
    def shown_priority(self, message: Message) -> str:
        return str(dict(Priority.choices).get(message.priority, message.priority))

    @admin.display(description=_("job"), ordering="job")
    def job_link(self, message: Message) -> str:
        if message.job_id is None:
            return ""
        return link_to(self, MessageJob(pk=message.job_id), gettext("Job %(job)s") % {"job": message.job_id})

    @admin.display(description=_("subject"))
    def subject(self, message: Message) -> str:
        return message.content.subject

    @admin.display(description=_("where it stands"))
    def standing(self, message: Message) -> str:
        now = Message.objects.filter(pk=message.pk).values_list(db_now(), flat=True).get()
        return standing_of(message, now=now)

    @admin.display(description=_("recipients"))
    def everybody(self, message: Message) -> SafeString:
        """Every address with its own outcome."""
        rows = format_html_join(
            "",
            "<tr><td>{}</td><td>{}</td><td>{}</td></tr>",
            (
                (
                    f"{recipient['name']} <{recipient['address']}>" if recipient["name"] else recipient["address"],
                    recipient["kind"],
                    recipient["outcome"] or message.get_status_display(),
                )
                for recipient in message.recipients
            ),
        )
        head = (gettext("Address"), gettext("As"), gettext("Outcome"))
        return format_html(
            '<table><thead><tr><th scope="col">{}</th><th scope="col">{}</th><th scope="col">{}</th></tr></thead>'
            "<tbody>{}</tbody></table>",
            *head,
            rows,
        )

    @admin.action(description=_("Requeue: send again"), permissions=["operate"])
    def requeue(self, request: HttpRequest, queryset: MessageQuerySet) -> None:
        why = gettext("Only dead letters, and mail kept because it may have gone, can be requeued.")
        self.operate(request, queryset, "requeue", MessageQuerySet.requeue, why=why)

    @admin.action(description=_("Cancel: withdraw unsent"), permissions=["operate"])
    def cancel(self, request: HttpRequest, queryset: MessageQuerySet) -> None:
        why = gettext("Only mail that is queued or deferred can be cancelled.")
        self.operate(request, queryset, "cancel", MessageQuerySet.cancel, why=why)

    @admin.action(description=_("Mark as sent: it did arrive"), permissions=["operate"])
    def mark_sent(self, request: HttpRequest, queryset: MessageQuerySet) -> None:
        why = gettext("Only mail kept because it may have gone can be marked as sent.")
        self.operate(request, queryset, "mark_sent", MessageQuerySet.mark_sent, why=why)

    @admin.action(description=_("Give up: never send it again"), permissions=["operate"])
    def give_up(self, request: HttpRequest, queryset: MessageQuerySet) -> None:
        why = gettext("Only mail kept because it may have gone can be given up on here.")
        self.operate(request, queryset, "give_up", MessageQuerySet.bury, why=why)

    def verbs_for(self, obj: Message) -> list[str]:
        if obj.status == Message.Status.DEAD:
            return ["requeue"]
        if obj.status == Message.Status.UNCERTAIN and obj.available_at is None:
            return ["requeue", "mark_sent", "give_up"]
        return ["cancel"] if obj.status in (Message.Status.QUEUED, Message.Status.DEFERRED) else []
