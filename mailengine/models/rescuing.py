"""Messages whose time was over while nobody looked: their lease, since a worker was lost, or their `expires_at`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django.db import transaction
from django.db.models import F

from ..clock import db_now
from ..outcomes import Kind, Outcome
from .locks import limit_locks
from .states import StateQuerySet, Status

if TYPE_CHECKING:
    from .attempts import Attempt
    from .messages import Message

SUSPECT_CLAIMS = 2
"""Claims that ended with the death of their worker, from which on a message is suspected to be the cause."""
POISON_CLAIMS = 3
"""The same, from which on it is set aside."""
RESCUE_BATCH = 500
EXPIRY_BATCH = 1_000


class RescueQuerySet(StateQuerySet):
    def rescue(
        self,
        *,
        window: Callable[[Message], float | None],
        batch: int = RESCUE_BATCH,
        must_stop: Callable[[], bool] = lambda: False,
    ) -> int:
        """Take back messages whose lease is over, since their worker was lost; how many there were.

        Without an open attempt a message goes back to what it was, at no cost, or is set aside when it was claimed
        for the third time. With one it may have gone: it becomes uncertain, for `window(message)` seconds or, when
        that is None or it went in one call with others, until a person decides. Each batch has a short transaction
        of its own, and none begins once the run `must_stop`.
        """
        return self._in_batches(lambda: self._rescue(window, batch), batch, must_stop)

    def _in_batches(self, work: Callable[[], int], batch: int, must_stop: Callable[[], bool]) -> int:
        """Do this work, each time in a transaction, until it finds fewer than `batch`; how many it found in all."""
        total = 0
        while True:
            with transaction.atomic(using=self._home):
                limit_locks(self._home)
                count = work()
            total += count
            if count < batch or must_stop():
                return total

    def _rescue(self, window: Callable[[Message], float | None], batch: int) -> int:
        from .attempts import Attempt

        # In the order of the index: by id, a planner may prefer to walk through all the rows there ever were.
        lost = self.overdue_leases().order_by("leased_until").prefetch_related("worker")
        rows = list(lost.select_for_update(skip_locked=True)[:batch])
        begun = {a.message_id: a for a in Attempt.objects.open().filter(message_id__in=[row.pk for row in rows])}
        for row in rows:
            attempt = begun.get(row.pk)
            values = self._rescued(row, attempt, window)
            self.model.objects.filter(pk=row.pk, lease=row.lease).update(lease=None, leased_until=None, **values)
            if attempt is not None:
                detail = f"its worker {row.worker_name} was lost after the handover began"
                Attempt.objects.end(row.pk, attempt.number, Outcome(Kind.UNCERTAIN, code="worker lost", detail=detail))
        return len(rows)

    def _rescued(
        self, row: Message, attempt: Attempt | None, window: Callable[[Message], float | None]
    ) -> dict[str, Any]:
        if attempt is not None:
            seconds = window(row) if attempt.call_size == 1 else None
            reason = f"its worker {row.worker_name} was lost after the handover to {attempt.provider} began"
            return {
                "status": Status.UNCERTAIN,
                "reason": reason,
                "available_at": None if seconds is None else db_now(seconds),
                "uncertain_count": F("uncertain_count") + 1,
                "provider": attempt.provider,
            }
        if row.claim_count >= POISON_CLAIMS:
            reason = f"poison: worker died {row.claim_count} times, last {row.worker_name}"
            # What may have gone is never given up on without a person.
            status = Status.UNCERTAIN if row.uncertain_count else Status.DEAD
            return {"status": status, "reason": reason, "available_at": None, "claim_count": 0}
        return {"status": F("claimed_from"), "reason": f"its worker {row.worker_name} was lost before the handover"}

    def expire(self, *, batch: int = EXPIRY_BATCH, must_stop: Callable[[], bool] = lambda: False) -> int:
        """Close messages whose `expires_at` passed unsent; how many there were.

        Those that may have gone, by a handover before, are kept for a person. Each batch has a short transaction of
        its own, and none begins once the run `must_stop`.
        """
        return self._in_batches(lambda: self._expire(batch), batch, must_stop)

    def _expire(self, batch: int) -> int:
        rows = self.expired().select_for_update(skip_locked=True)
        late = self.model.objects.filter(pk__in=list(rows.values_list("pk", flat=True)[:batch]))
        kept = late.filter(uncertain_count__gt=0).update(
            status=Status.UNCERTAIN,
            reason="it expired after an uncertain handover; kept for a person to decide",
            available_at=None,
        )
        closed = late.filter(uncertain_count=0).update(
            status=Status.EXPIRED, reason="expired: not sent before its expires_at", available_at=None
        )
        return kept + closed
