"""Message: one mail to one recipient, one row, one handover.

The row owns its state: `status` is assigned only by the verbs of its queryset, which have a module for each occasion.
Each is a conditional UPDATE, so that who lost the lease changes nothing. The states and who may move a message where
are in docs/explanation/delivery.md.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from django.core.serializers.json import DjangoJSONEncoder
from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from ..clock import db_now
from ..ids import uuid7
from .claiming import ClaimQuerySet, Hold, Lease
from .content import Content
from .fields import JSONField
from .following import FollowQuerySet
from .indexes import OpenIndex
from .jobs import MessageJob
from .rescuing import EXPIRY_BATCH, POISON_CLAIMS, RESCUE_BATCH, SUSPECT_CLAIMS, RescueQuerySet
from .settling import SettleQuerySet, Verdict
from .states import Priority, Status
from .waking import wake_workers
from .workers import Worker

__all__ = [
    "EXPIRY_BATCH",
    "POISON_CLAIMS",
    "RESCUE_BATCH",
    "Hold",
    "Lease",
    "Message",
    "MessageQuerySet",
    "Priority",
    "Status",
    "Verdict",
]


# django-stubs gives each queryset an `as_manager()` of its own, so several bases never agree.
class MessageQuerySet(FollowQuerySet, ClaimQuerySet, SettleQuerySet, RescueQuerySet):  # type: ignore[override]
    """All verbs: of a job, of workers, of time; and here what a person may do."""

    def requeue(self) -> int:
        """Send again what was given up on or kept for a person, with all its attempts before it; how many there were.

        Not for mail that is sent, in flight or waiting already.
        """
        again = self.filter(Q(status=Status.DEAD) | Q(status=Status.UNCERTAIN, available_at=None))
        count = again.update(
            status=Status.QUEUED,
            reason="",
            available_at=db_now(),
            attempt_count=0,
            uncertain_count=0,
            claim_count=0,
            deferred_since=None,
        )
        wake_workers(self._home)
        return count

    def cancel(self, reason: str = "cancelled: by a person") -> int:
        """Withdraw messages not yet handed over; how many there were. Those in flight are not touched."""
        unsent = self.filter(status__in=[Status.QUEUED, Status.DEFERRED])
        return unsent.update(status=Status.CANCELLED, reason=reason, available_at=None)

    def mark_sent(self) -> int:
        """A person says that these messages, kept as uncertain, did arrive; how many there were."""
        kept = self.kept_for_a_person()
        return kept.update(status=Status.SENT, reason="marked as sent by a person", sent_at=db_now())

    def bury(self) -> int:
        """A person gives up on messages kept as uncertain; how many there were."""
        return self.kept_for_a_person().update(status=Status.DEAD, reason="refused: buried by a person")


class Message(models.Model):
    """One mail: whom it is for, when it is due, and what became of it."""

    Status = Status

    OPEN_STATUSES = (Status.QUEUED, Status.SENDING, Status.DEFERRED, Status.UNCERTAIN)
    FINAL_STATUSES = (Status.SENT, Status.DEAD, Status.SUPPRESSED, Status.CANCELLED, Status.EXPIRED)

    class Delivery(models.TextChoices):
        """What the world reported after a provider took it."""

        DELIVERED = "delivered", _("delivered")
        BOUNCED = "bounced", _("bounced")
        COMPLAINED = "complained", _("complained")
        OPENED = "opened", _("opened")
        CLICKED = "clicked", _("clicked")

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    job = models.ForeignKey(
        MessageJob, on_delete=models.CASCADE, null=True, blank=True, related_name="messages", db_index=False
    )
    content = models.ForeignKey(Content, on_delete=models.PROTECT, related_name="messages", db_constraint=False)
    """Without a constraint, a quarter of what an expansion costs: its job has one, or both rows came together."""
    recipient = models.CharField(_("recipient"), max_length=254, help_text=_("The first To, normalised."))
    other_recipients = JSONField(
        null=True, blank=True, editable=False, help_text="Every recipient, where `recipient` alone doesn't say it all."
    )
    merge_data = JSONField(_("merge data"), null=True, blank=True, encoder=DjangoJSONEncoder)
    stream = models.CharField(_("stream"), max_length=64)
    priority = models.SmallIntegerField(_("priority"))
    status = models.CharField(_("status"), max_length=10, choices=Status.choices, default=Status.QUEUED)
    reason = models.TextField(_("reason"), blank=True, default="")
    available_at = models.DateTimeField(_("due"), null=True, blank=True)
    send_at = models.DateTimeField(_("not before"), null=True, blank=True)
    expires_at = models.DateTimeField(_("not after"), null=True, blank=True)
    attempt_count = models.PositiveSmallIntegerField(_("attempts spent"), default=0)
    uncertain_count = models.PositiveSmallIntegerField(_("uncertain handovers"), default=0)
    claim_count = models.PositiveSmallIntegerField(default=0, editable=False)
    deferred_since = models.DateTimeField(_("first deferred"), null=True, blank=True)
    claimed_from = models.CharField(max_length=10, blank=True, default="", editable=False)
    lease = models.UUIDField(null=True, blank=True, editable=False)
    leased_until = models.DateTimeField(_("leased until"), null=True, blank=True)
    worker = models.ForeignKey(
        Worker, on_delete=models.DO_NOTHING, null=True, related_name="+", db_index=False, db_constraint=False
    )
    provider = models.CharField(_("provider"), max_length=64, blank=True, default="")
    provider_message_id = models.CharField(_("provider's id"), max_length=255, blank=True, default="")
    sent_at = models.DateTimeField(_("sent"), null=True, blank=True)
    delivery = models.CharField(_("delivery"), max_length=10, choices=Delivery.choices, blank=True, default="")
    client = models.CharField(_("client"), max_length=50, blank=True, default="", help_text=_("Who queued it by HTTP."))
    created_at = models.DateTimeField(_("queued"))

    objects = MessageQuerySet.as_manager()

    if TYPE_CHECKING:
        now: datetime  # annotated by held()

    class Meta:
        verbose_name = _("message")
        verbose_name_plural = _("messages")
        constraints = [
            # One mail for an address in a job, however often it is expanded. The recipient comes first, so that the
            # same index finds all mail to an address.
            models.UniqueConstraint(fields=["recipient", "job"], name="mailengine_one_recipient"),
        ]
        indexes = [
            models.Index(fields=["job", "status"], name="mailengine_job_progress"),
            models.Index(fields=["client", "id"], condition=~Q(client=""), name="mailengine_client"),
            # The stream and the status make it answer for what waits, see `reporting/depth.py`, without the rows.
            OpenIndex(
                fields=["priority", "available_at", "id", "stream", "status"],
                statuses=[Status.QUEUED, Status.UNCERTAIN],
                name="mailengine_due",
            ),
            OpenIndex(
                fields=["priority", "available_at", "stream"],
                statuses=[Status.DEFERRED],
                name="mailengine_deferred",
                is_covered_by="mailengine_due",
            ),
            OpenIndex(fields=["leased_until"], statuses=[Status.SENDING], name="mailengine_leased"),
            OpenIndex(
                fields=["expires_at"],
                statuses=[Status.QUEUED, Status.DEFERRED],
                name="mailengine_expiring",
                is_sparse=True,
            ),
            OpenIndex(
                fields=["id", "stream"],
                statuses=[Status.DEAD],
                name="mailengine_dead",
                is_covered_by="mailengine_due",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.recipient} ({self.id})"

    @property
    def recipients(self) -> list[dict[str, str]]:
        """Every address with its `name`, its `kind` (to, cc, bcc) and its own `outcome`, in the order of the mail.

        `outcome` is empty while the address is still to be served, then that of the handover ("accepted", "refused",
        "deferred": it goes on as a message of its own) or "suppressed".
        """
        if self.other_recipients is not None:
            return list(self.other_recipients)
        outcome = "accepted" if self.status == Status.SENT else ""
        return [{"address": self.recipient, "name": "", "kind": "to", "outcome": outcome}]

    @property
    def worker_name(self) -> str:
        """Host and process of the worker that had it last, for people."""
        try:
            return self.worker.name if self.worker else "unknown"
        except Worker.DoesNotExist:
            return "unknown"

    @property
    def was_in_doubt(self) -> bool:
        """Whether a handover of it was left uncertain: it may be there already, and not every provider will do."""
        return self.uncertain_count > 0 or self.claimed_from == Status.UNCERTAIN

    @property
    def is_suspect(self) -> bool:
        """Whether this claim of it had better be made alone: workers died that held it before, one in its handover."""
        was_in_flight = self.claimed_from == Status.UNCERTAIN and self.claim_count > 1
        return was_in_flight or self.claim_count > SUSPECT_CLAIMS

    def withdraw(self) -> bool:
        """Cancel this message if it has not been handed over; whether that was so."""
        return Message.objects.filter(pk=self.pk).cancel("cancelled: by its caller") > 0
