"""MessageJob: one request to write to many."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.conf import settings
from django.core.serializers.json import DjangoJSONEncoder
from django.db import models, router
from django.db.models import Exists, F, OuterRef, Q
from django.utils.translation import gettext_lazy as _

from ..clock import db_now
from ..ids import uuid7
from .content import Content
from .fields import JSONField
from .waking import wake_workers

PROBLEMS_KEPT = 1_000
"""How many malformed entries a job remembers one by one; all are counted."""


class JobQuerySet(models.QuerySet["MessageJob"]):
    def due(self) -> JobQuerySet:
        """Jobs that have messages to be made now, the most urgent first."""
        started = Q(status=MessageJob.Status.EXPANDING)
        due = Q(status=MessageJob.Status.QUEUED) & (Q(send_at=None) | Q(send_at__lte=db_now()))
        return self.filter(started | due).order_by("priority", "id")

    def finish(self) -> int:
        """Close the jobs whose last message has left queued, sending, deferred and uncertain; how many there were."""
        from .messages import Message

        left = Message.objects.filter(job=OuterRef("pk"), status__in=Message.OPEN_STATUSES)
        return self.filter(~Exists(left), status=MessageJob.Status.SENDING).update(
            status=MessageJob.Status.DONE, finished_at=db_now()
        )

    def reopen(self) -> int:
        """Let jobs that were done go on, since messages of theirs were put back; how many there were."""
        return self.filter(status=MessageJob.Status.DONE).update(status=MessageJob.Status.SENDING, finished_at=None)

    def cancel(self) -> int:
        """Withdraw jobs; their unsent messages follow. How many could still be cancelled."""
        return self.filter(status__in=MessageJob.UNFINISHED).update(
            status=MessageJob.Status.CANCELLED, finished_at=db_now(), reason="", unsettled=True
        )

    def pause(self, reason: str = "") -> int:
        """Hold jobs: nothing of theirs begins after the commit. How many could still be paused."""
        # In this order: MariaDB assigns from left to right, and would find "paused" to remember. So in resume().
        return self.filter(status__in=MessageJob.RUNNING).update(
            paused_from=F("status"), status=MessageJob.Status.PAUSED, reason=reason, unsettled=True
        )

    def resume(self) -> int:
        """Let paused jobs go on where they stopped; how many there were."""
        count = self.filter(status=MessageJob.Status.PAUSED).update(
            status=F("paused_from"), paused_from="", reason="", unsettled=True
        )
        wake_workers(router.db_for_write(MessageJob))
        return count


class MessageJob(models.Model):
    """One request to write to many: the words, whom they are for, and how far it has come."""

    class Status(models.TextChoices):
        QUEUED = "queued", _("queued")
        EXPANDING = "expanding", _("expanding")
        SENDING = "sending", _("sending")
        PAUSED = "paused", _("paused")
        DONE = "done", _("done")
        CANCELLED = "cancelled", _("cancelled")

    RUNNING = (Status.QUEUED, Status.EXPANDING, Status.SENDING)
    UNFINISHED = (*RUNNING, Status.PAUSED)

    content = models.ForeignKey(Content, on_delete=models.PROTECT, related_name="jobs", verbose_name=_("content"))
    stream = models.CharField(_("stream"), max_length=64)
    priority = models.SmallIntegerField(_("priority"))
    status = models.CharField(_("status"), max_length=10, choices=Status.choices, default=Status.QUEUED)
    paused_from = models.CharField(max_length=10, blank=True, default="", editable=False)
    reason = models.TextField(_("reason"), blank=True, default="")
    audience = models.CharField(_("audience"), max_length=100, blank=True, default="")
    merge_data = JSONField(_("merge data by address"), null=True, blank=True, encoder=DjangoJSONEncoder)
    source = models.CharField(_("made from"), max_length=200, blank=True, default="")
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="+",
        verbose_name=_("queued by"),
    )
    client = models.CharField(_("client"), max_length=50, blank=True, default="", help_text=_("Who queued it by HTTP."))
    public_id = models.UUIDField(default=uuid7, unique=True, editable=False)
    """What it is called by HTTP: it tells nobody how many jobs there are."""
    send_at = models.DateTimeField(_("not before"), null=True, blank=True)
    expires_at = models.DateTimeField(_("not after"), null=True, blank=True)
    cursor = models.PositiveBigIntegerField(default=0, editable=False)
    """How far expansion has come: entries of the audience or of the list that are done with."""
    unsettled = models.BooleanField(default=False, editable=False)
    """Its messages have yet to follow a change of its status."""
    recipient_count = models.PositiveIntegerField(_("recipients"), null=True, blank=True)
    message_count = models.PositiveIntegerField(_("messages"), default=0)
    duplicate_count = models.PositiveIntegerField(_("duplicates"), default=0)
    malformed_count = models.PositiveIntegerField(_("malformed"), default=0)
    problems = JSONField(_("malformed addresses"), default=list, blank=True)
    created_at = models.DateTimeField(_("queued"))
    started_at = models.DateTimeField(_("started"), null=True, blank=True)
    finished_at = models.DateTimeField(_("finished"), null=True, blank=True)

    objects = JobQuerySet.as_manager()

    class Meta:
        verbose_name = _("job")
        verbose_name_plural = _("jobs")
        ordering = ["-id"]
        indexes = [models.Index(fields=["status", "priority"], name="mailengine_job_status")]

    def __str__(self) -> str:
        return self.content.subject

    @property
    def subject(self) -> str:
        return self.content.subject

    @property
    def text(self) -> str:
        return self.content.text

    @property
    def html(self) -> str:
        return self.content.html

    @property
    def from_email(self) -> str:
        """The sender; for a job that names none the project's own, as it is now."""
        return self.content.from_email or settings.DEFAULT_FROM_EMAIL

    def hold(self) -> bool:
        """Lock the row while a piece is written; False when another run has done that piece, or the job was stopped.

        A twin waits here until the transaction commits, and then finds the cursor moved.
        """
        here = MessageJob.objects.filter(pk=self.pk, cursor=self.cursor, status=MessageJob.Status.EXPANDING)
        return here.select_for_update().values_list("pk", flat=True).first() is not None

    def advance(self, *, to: int, made: int, duplicates: int, problems: list[dict[str, Any]], finished: bool) -> None:
        """Record one piece of the expansion, under `hold()`."""
        MessageJob.objects.filter(pk=self.pk).update(
            cursor=to,
            message_count=F("message_count") + made,
            duplicate_count=F("duplicate_count") + duplicates,
            malformed_count=F("malformed_count") + len(problems),
            problems=[*self.problems, *problems][:PROBLEMS_KEPT],
            status=MessageJob.Status.SENDING if finished else MessageJob.Status.EXPANDING,
            recipient_count=to if finished else None,
        )

    def start(self) -> bool:
        """Begin to expand; False when it was stopped meanwhile."""
        startable = (MessageJob.Status.QUEUED, MessageJob.Status.EXPANDING)
        started = MessageJob.objects.filter(pk=self.pk, status__in=startable)
        return started.update(status=MessageJob.Status.EXPANDING, started_at=self.started_at or db_now()) > 0


class JobRecipientsQuerySet(models.QuerySet["JobRecipients"]):
    def store(self, job: MessageJob, pieces: Iterable[list[Any]]) -> None:
        """Keep the recipients of a job, in pieces of one chunk each."""
        # One by one: a piece is large, and all of them together may be too much for memory or for one statement.
        for position, entries in enumerate(pieces):
            self.create(job=job, position=position, entries=entries)


class JobRecipients(models.Model):
    """A piece of the list of recipients that a job was given.

    `entries` is a list of [line, address] or [line, address, merge data], as they were given.
    """

    job = models.ForeignKey(MessageJob, on_delete=models.CASCADE, related_name="recipients")
    position = models.PositiveIntegerField()
    entries = JSONField(encoder=DjangoJSONEncoder)

    objects = JobRecipientsQuerySet.as_manager()

    class Meta:
        verbose_name = _("recipients of a job")
        verbose_name_plural = _("recipients of a job")
        constraints = [models.UniqueConstraint(fields=["job", "position"], name="mailengine_one_piece")]

    def __str__(self) -> str:
        return f"{self.job_id}.{self.position}"
