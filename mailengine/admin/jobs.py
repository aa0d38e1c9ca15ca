"""Jobs: how far each has come, what it says, and Pause, Resume and Cancel."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib import admin
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import URLPattern, path, reverse
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from ..models import MessageJob
from ..models.jobs import JobQuerySet
from ..reporting.progress import progress_of
from .base import BannerMixin, OperatedAdmin, StreamFilter
from .compose import ComposeLinkMixin, Kind
from .figures import grouped
from .preview import preview_response


@admin.register(MessageJob)
class MessageJobAdmin(ComposeLinkMixin, BannerMixin, OperatedAdmin):
    """Every job, newest first. New ones come from `queue_job()`, "Send email update" and "Write to many" alone."""

    list_display = (
        "shown_subject", "status", "recipients_so_far", "created_at", "created_by", "audience", "stream",
    )  # fmt: skip
    list_filter = ("status", StreamFilter, "created_at")
    list_select_related = ("content", "created_by")
    search_fields = ("content__subject",)
    search_help_text = _("Words of the subject")
    ordering = ("-id",)
    actions = ("pause", "resume", "cancel")
    final_verbs = ("cancel",)
    compose_kind = Kind.JOB
    compose_label = _("Write to many")
    fieldsets = (
        (None, {"fields": (("status", "reason"), ("stream", "priority"), ("audience", "source", "created_by"))}),
        (_("Times"), {"fields": (("created_at", "started_at", "finished_at"), ("send_at", "expires_at"))}),
        (_("Recipients"), {"fields": (("recipient_count", "message_count", "duplicate_count", "malformed_count"),)}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[MessageJob]:
        # A job's words, merge data and malformed lines can be large; lists do without.
        return super().get_queryset(request).defer("merge_data", "problems", "content__text", "content__html")

    @admin.display(description=_("subject"), ordering="content__subject")
    def shown_subject(self, job: MessageJob) -> str:
        return job.subject or gettext("(no subject)")

    @admin.display(description=_("recipients"), ordering="message_count")
    def recipients_so_far(self, job: MessageJob) -> str:
        """Messages made so far; of how many, once the expansion has counted them."""
        made = grouped(job.message_count)
        if job.recipient_count is None or job.recipient_count == job.message_count:
            return made
        return gettext("%(made)s of %(recipients)s") % {"made": made, "recipients": grouped(job.recipient_count)}

    @admin.action(description=_("Pause"), permissions=["operate"])
    def pause(self, request: HttpRequest, queryset: JobQuerySet) -> None:
        why = gettext("Only jobs that are queued, expanding or sending can be paused.")
        self.operate(request, queryset, "pause", JobQuerySet.pause, why=why)

    @admin.action(description=_("Resume"), permissions=["operate"])
    def resume(self, request: HttpRequest, queryset: JobQuerySet) -> None:
        self.operate(request, queryset, "resume", JobQuerySet.resume, why=gettext("Only paused jobs can be resumed."))

    @admin.action(description=_("Cancel: withdraw what is not sent yet, for good"), permissions=["operate"])
    def cancel(self, request: HttpRequest, queryset: JobQuerySet) -> None:
        why = gettext("Only jobs that are not done or cancelled can be cancelled.")
        self.operate(request, queryset, "cancel", JobQuerySet.cancel, why=why)

    def verbs_for(self, obj: MessageJob) -> list[str]:
        if obj.status == MessageJob.Status.PAUSED:
            return ["resume", "cancel"]
        return ["pause", "cancel"] if obj.status in MessageJob.RUNNING else []

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        job = self.get_object(request, unquote(object_id))
        context: dict[str, Any] = {}
        if job is not None and self.has_view_permission(request, job):
            name = self.admin_site.name
            messages_url = reverse(f"{name}:mailengine_message_changelist") + f"?job={job.pk}"
            context = {
                "title": gettext("Job %(job)s") % {"job": job.pk},
                "subtitle": job.subject,
                "job": job,
                "progress": [(share, f"{messages_url}&status__exact={share.status}") for share in progress_of(job)],
                "messages_url": messages_url,
                "from_email": job.from_email or settings.DEFAULT_FROM_EMAIL,
                "preview_url": reverse(f"{name}:mailengine_messagejob_preview", args=[job.pk]),
            }
        return super().change_view(request, object_id, form_url, {**context, **(extra_context or {})})

    def preview_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """The HTML of a job's mail as it is stored, for the frame on its page."""
        job = self.get_object(request, unquote(object_id))
        if job is None:
            raise Http404
        if not self.has_view_permission(request, job):
            raise PermissionDenied
        return preview_response(job.html)

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.preview_view)
        return [path("<path:object_id>/preview/", view, name="mailengine_messagejob_preview"), *super().get_urls()]
