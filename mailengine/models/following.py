"""The messages of a job: written as it is expanded, and following it when it is paused, resumed or cancelled."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import transaction

from ..clock import db_now
from ..ids import uuid7s
from ..outcomes import one_line
from .bulk import insert_copies
from .fields import document_of
from .jobs import MessageJob
from .settling import REASON_LENGTH
from .states import StateQuerySet, Status


class FollowQuerySet(StateQuerySet):
    def insert_many(self, job: MessageJob, rows: Iterable[tuple[str, Any, Any]], *, now: datetime) -> int:
        """Write the messages of a piece of a job, queued and due; how many were new.

        `rows` gives (normalised address, `other_recipients`, merge data). An address that has a message of this job
        already gets no second one.
        """
        alike = self.model(
            job=job,
            content_id=job.content_id,
            stream=job.stream,
            priority=job.priority,
            client=job.client,
            available_at=now,
            expires_at=job.expires_at,
            created_at=now,
        )
        recipients, others, data = list(zip(*rows, strict=True)) or ((), (), ())
        columns = {
            "id": uuid7s(len(recipients)),
            "recipient": recipients,
            "other_recipients": [document_of(value) for value in others],
            "merge_data": [document_of(value) for value in data],
        }
        return insert_copies(alike, columns, unique=["recipient", "job"], using=self._home)

    def follow(self, job: MessageJob, *, limit: int = 1_000) -> int:
        """Let the unsent messages of a cancelled, paused or resumed job follow it; how many of at most `limit` did.

        A paused job's have no due time, so that a claim doesn't even see them. Those deferred keep theirs until a Begin
        meets them.
        """
        unsent = self.model.objects.filter(job=job, status__in=[Status.QUEUED, Status.DEFERRED])
        change: dict[str, Any]
        if job.status == MessageJob.Status.CANCELLED:
            change = {"status": Status.CANCELLED, "reason": "cancelled: with its job", "available_at": None}
        elif job.status == MessageJob.Status.PAUSED:
            unsent = unsent.filter(status=Status.QUEUED, available_at__isnull=False)
            change = {"reason": "its job is paused", "available_at": None}
        else:
            self._wait_for_begins(job)
            unsent = unsent.filter(available_at=None)
            change = {"reason": "", "available_at": db_now()}
        ids = list(unsent.values_list("pk", flat=True)[:limit])
        return unsent.filter(pk__in=ids).update(**change)

    def unbury(self, reason: str, *, struck: Collection[UUID]) -> int:
        """Let what was set aside for this reason, and what was struck for it, wait for its job instead; how many.

        They follow the job when it is resumed. To be called for its messages, in the transaction that pauses it.
        """
        aside = self.filter(status=Status.DEAD, reason=one_line(reason, length=REASON_LENGTH))
        waiting = self.filter(status=Status.QUEUED, pk__in=struck)
        change = {"status": Status.QUEUED, "reason": "its job is paused", "available_at": None, "claim_count": 0}
        return aside.update(**change) + waiting.update(**change)

    def _wait_for_begins(self, job: MessageJob) -> None:
        """Let every Begin end that may have seen the job as it was before, and is setting a message of it aside."""
        claimed = self.model.objects.filter(job=job, status=Status.SENDING).values_list("pk", flat=True)
        with transaction.atomic(using=self._home):
            # By their ids: MariaDB would lock the index by which it finds them too, which a Begin is about to change.
            self.model.objects.held(list(claimed))
