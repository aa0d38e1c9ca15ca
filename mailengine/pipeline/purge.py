"""Retention: remove what is final and old, in small batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from django.db import connections, router, transaction
from django.db.models import Exists, OuterRef, Q, QuerySet

from ..clock import db_now, read_now
from ..ids import first_id_of
from ..models import Attachment, Content, IdempotencyKey, Message, MessageJob, Worker

BATCH = 1_000
DAY = 86_400
KEPT_DAYS = 1
"""For so long at least a client that repeats a request by HTTP is given the same answer."""
OLDEST_DAYS = 20_000
"""More than anything can be old: dates begin in 1970."""


@dataclass
class PurgeReport:
    """How many rows and files were removed."""

    messages: int = 0
    jobs: int = 0
    contents: int = 0
    attachments: int = 0


def purge(*, days: float, must_stop: Callable[[], bool] = lambda: False) -> PurgeReport:
    """Remove final messages more than `days` old with their attempts, then the jobs, words and files left over.

    A sent message is as old as its sending, any other as its queueing.

    Each batch is a transaction of its own, so that the queue goes on beside it.
    """
    report = PurgeReport()
    before = db_now(-DAY * days)
    final = Message.objects.filter(_made_by(days), status__in=Message.FINAL_STATUSES, created_at__lt=before)
    report.messages = _delete(final.filter(Q(sent_at=None) | Q(sent_at__lt=before)), must_stop)
    ended = [MessageJob.Status.DONE, MessageJob.Status.CANCELLED]
    left = Message.objects.filter(job=OuterRef("pk"))
    jobs = MessageJob.objects.filter(~Exists(left), status__in=ended, created_at__lt=before)
    report.jobs = _delete(jobs, must_stop)
    unused = Content.objects.filter(
        ~Exists(Message.objects.filter(content=OuterRef("pk"))),
        ~Exists(MessageJob.objects.filter(content=OuterRef("pk"))),
        created_at__lt=before,
    )
    report.contents = _delete(unused, must_stop)
    # Those of other rows go with them.
    answered = IdempotencyKey.objects.filter(message=None, job=None, created_at__lt=db_now(-DAY * max(days, KEPT_DAYS)))
    _delete(answered, must_stop)
    while not must_stop() and (removed := Attachment.objects.purge(unused_days=days, limit=BATCH)):
        report.attachments += removed
    Worker.objects.filter(seen_at__lt=before).delete()
    return report


def _made_by(days: float) -> Q:
    """All that can be so old, by its id: the last batch would otherwise read through everything that is younger."""
    using = router.db_for_read(Message)
    if connections[using].vendor == "mysql":
        return Q()  # older versions of MariaDB sort ids by other bytes than those of their time
    # A day more than that: ids have the time of hosts' clocks.
    return Q(pk__lt=first_id_of(read_now(using) - timedelta(days=min(days, OLDEST_DAYS) - 1)))


def _delete(rows: QuerySet, must_stop: Callable[[], bool]) -> int:  # type: ignore[type-arg]
    """Delete these rows in batches, each in a transaction that waits for nobody; how many there were."""
    removed, last = 0, None
    while not must_stop():
        # Each goes on behind the one before it, and does not walk past all that is deleted already.
        left = rows if last is None else rows.filter(pk__gt=last)
        with transaction.atomic(using=router.db_for_write(rows.model)):
            # Locked, so that a person can't requeue a dead message between these two statements. What somebody else
            # has locked is left to the next purge.
            locked = left.order_by("pk").select_for_update(skip_locked=True)
            ids = list(locked.values_list("pk", flat=True)[:BATCH])
            rows.model._default_manager.filter(pk__in=ids).delete()
        removed += len(ids)
        if len(ids) < BATCH:
            break
        last = ids[-1]
    return removed
