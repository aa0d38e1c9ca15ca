"""What became of messages: entered by the holder of the lease, by a late result, or by proof; and undone."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db.models import Exists, F, OuterRef, Q
from django.db.models.functions import Coalesce, Greatest

from ..clock import db_now
from ..outcomes import Kind, Outcome, one_line
from .bulk import update_rows
from .claiming import Lease
from .jobs import MessageJob
from .states import StateQuerySet, Status

if TYPE_CHECKING:
    from .messages import Message

REASON_LENGTH = 500


@dataclass(frozen=True)
class Verdict:
    """What becomes of a message: its next status, and what goes with it."""

    status: Status
    reason: str = ""
    available_at: datetime | None = None
    """When it is due next, where it isn't done with. None with `UNCERTAIN`: it is kept for a person."""
    keeps_due_time: bool = False
    """It goes back as it was, due when it was."""
    spends_attempt: bool = False
    is_strike: bool = False
    """Its claim stays counted, as that of a worker that died of it."""
    is_uncertain_handover: bool = False
    is_asked_again: bool = False
    """An uncertain handover that is repeated with its idempotency key: however often, it counts as one."""


class SettleQuerySet(StateQuerySet):
    def settle(self, message: Message, verdict: Verdict, *, lease: Lease, outcome: Outcome | None = None) -> bool:
        """Record what became of a message; False when it was no longer ours, and nothing was changed."""
        ours = self.model.objects.filter(pk=message.pk, status=Status.SENDING, lease=lease.id)
        return self._apply(ours, message, verdict, outcome) > 0

    def settle_sent(self, accepted: Iterable[tuple[Message, Outcome]], *, now: datetime) -> None:
        """Record that these messages were accepted, all in one go: what nearly every handover comes to.

        For messages that `held()` has locked under a lease of ours. `message.provider` is who took it.
        """
        update_rows(
            self.model,
            ((m.provider, o.provider_message_id[:255], m.other_recipients, m.pk) for m, o in accepted),
            columns=["provider", "provider_message_id", "other_recipients"],
            keys=["id"],
            constants={
                "status": Status.SENT,
                "reason": "",
                "available_at": None,
                "lease": None,
                "leased_until": None,
                "claim_count": 0,
                "sent_at": now,
            },
            using=self._home,
        )

    def settle_late(self, message: Message, verdict: Verdict, *, number: int, outcome: Outcome) -> bool:
        """Record the late result of attempt `number`, whose lease was over: it counts while no later one has begun.

        The message is uncertain by this very attempt then, or claimed again but not begun; whoever claimed it finds
        at its Begin that it isn't theirs any more. A result that it did not go takes away the doubt that this attempt
        has left. To be called in a transaction that has locked it, see `held()`.
        """
        from .attempts import Attempt

        later = Attempt.objects.filter(message=OuterRef("pk"), number__gt=number)
        ours = self.model.objects.filter(
            Q(status=Status.UNCERTAIN) | Q(status=Status.SENDING, claimed_from=Status.UNCERTAIN),
            ~Exists(later),
            pk=message.pk,
        )
        doubts = {} if outcome.kind is Kind.ACCEPTED else {"uncertain_count": Greatest("uncertain_count", 1) - 1}
        return self._apply(ours, message, verdict, outcome, **doubts) > 0

    def settle_proven(self, message: Message, outcome: Outcome) -> bool:
        """Record that `message.provider` has this message, as it said by another way; False when it was done with.

        Whoever holds it finds at its Begin or End that it isn't theirs any more. To be called in a transaction that
        has locked it.
        """
        ours = self.model.objects.filter(pk=message.pk, status__in=self.model.OPEN_STATUSES)
        return self._apply(ours, message, Verdict(Status.SENT, f"proven: {outcome}"), outcome) > 0

    def _apply(
        self, ours: StateQuerySet, message: Message, verdict: Verdict, outcome: Outcome | None, **changes: Any
    ) -> int:
        values: dict[str, Any] = {
            "status": verdict.status,
            "reason": one_line(verdict.reason, length=REASON_LENGTH),
            "lease": None,
            "leased_until": None,
        }
        if not verdict.is_strike:
            values["claim_count"] = 0
        if not verdict.keeps_due_time:
            values["available_at"] = verdict.available_at
        if verdict.spends_attempt:
            values["attempt_count"] = F("attempt_count") + 1
            values["deferred_since"] = Coalesce("deferred_since", db_now())
        if verdict.is_uncertain_handover:
            values["uncertain_count"] = F("uncertain_count") + 1
        if verdict.is_asked_again:
            values["uncertain_count"] = Greatest("uncertain_count", 1)
        if outcome is not None:
            values["provider"] = message.provider
            values["other_recipients"] = message.other_recipients
            if outcome.kind is Kind.ACCEPTED:
                values["provider_message_id"] = outcome.provider_message_id[:255]
        if verdict.status == Status.SENT:
            values["sent_at"] = db_now()
        return ours.update(**values, **changes)

    def put_back(self, ids: Collection[UUID], *, provider: str) -> list[Message]:
        """Send again, with no attempt spent, what this provider refused by a fault of ours; the rows as they were.

        Only those that still are as the refusal left them, and not what was sent directly: its caller was told. To be
        called in a transaction.
        """
        dead = Q(status=Status.DEAD, reason__regex=r"^(refused|attempts|lifetime): ")
        left = self.filter(dead | Q(status=Status.DEFERRED, reason__startswith="deferred: "), provider=provider)
        # Whom somebody else has locked is being requeued or tried again already.
        rows = left.filter(pk__in=ids).exclude(claimed_from=Status.DEAD).select_for_update(skip_locked=True)
        found: list[Message] = list(rows)
        for row in found:
            count = max(row.attempt_count - (row.status == Status.DEFERRED), 0)
            self.filter(pk=row.pk).update(
                status=Status.UNCERTAIN if row.uncertain_count else Status.QUEUED,
                reason=f"put back: {provider} refused us, not this message",
                available_at=db_now(),
                attempt_count=count,
                deferred_since=row.deferred_since if count else None,
                other_recipients=row.other_recipients
                and [
                    {**entry, "outcome": ""} if entry["outcome"] == Kind.REFUSED else entry for entry in row.recipients
                ],
            )
        MessageJob.objects.filter(pk__in={row.job_id for row in found if row.job_id}).reopen()
        return found
