"""Messages in the hands of a worker: claimed under a lease, locked while it enters something, and given back."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from django.core.exceptions import EmptyResultSet
from django.db import connections
from django.db.models import Exists, F, OuterRef
from django.db.models.expressions import RawSQL

from ..clock import db_now, now_sql
from ..ids import uuid7
from .bulk import Asked, instances, read, select_among
from .locks import limit_locks
from .states import StateQuerySet, Status
from .workers import Worker

if TYPE_CHECKING:
    from .messages import Message

ORDER = ("priority", "available_at", "id")
"""In which messages are claimed."""


@dataclass(frozen=True)
class Lease:
    """The time-limited right of one worker to send the messages of one claim."""

    worker: Worker
    trusted_until: float
    """On this process's monotonic clock: the last instant at which a handover may still begin."""
    id: UUID = field(default_factory=uuid7)

    @property
    def is_trusted(self) -> bool:
        return time.monotonic() < self.trusted_until


class Hold(NamedTuple):
    """What `held()` says of a message, which it has locked."""

    lease: UUID | None
    """Whose it is."""
    now: datetime


class ClaimQuerySet(StateQuerySet):
    def claim(self, lease: Lease, *, statuses: Sequence[Status], seconds: float, limit: int) -> list[Message]:
        """Take up to `limit` due messages in these states for `lease`, which ends after so many seconds.

        By priority, then due time, then age. Messages that another worker is taking at this moment are passed over,
        not waited for. To be called in a transaction that is committed before anything is sent.
        """
        if connections[self._home].vendor == "postgresql":
            return self._claim_at_once(lease, statuses, seconds=seconds, limit=limit)
        rows = self._next_due(statuses, limit)
        if rows:
            self.model.objects.filter(pk__in=[row.pk for row in rows], status__in=statuses).update(
                claimed_from=F("status"),  # before status: MariaDB assigns from left to right
                status=Status.SENDING,
                lease=lease.id,
                leased_until=db_now(seconds),
                worker=lease.worker,
                claim_count=F("claim_count") + 1,
            )
        for row in rows:
            row.claimed_from, row.status, row.lease, row.worker = row.status, Status.SENDING, lease.id, lease.worker
            row.claim_count += 1
        return rows

    def _claim_at_once(self, lease: Lease, statuses: Sequence[Status], *, seconds: float, limit: int) -> list[Message]:
        """The same in one statement."""
        connection, table = connections[self._home], self.model._meta.db_table
        fields = self.model._meta.concrete_fields
        first, params = self._first_due(statuses, limit, locked=True)
        with connection.cursor() as cursor:
            # As an array, which is made once: a join may look for the first due rows again and again.
            cursor.execute(
                f"UPDATE {table} SET claimed_from = status, status = %s, lease = %s, worker_id = %s,"  # noqa: S608
                f" leased_until = {now_sql(connection, seconds)}, claim_count = claim_count + 1"
                f" WHERE id = ANY(ARRAY({first})) RETURNING {', '.join(str(field.column) for field in fields)}",
                [Status.SENDING, lease.id, lease.worker.pk, *params],
            )
            rows = read(cursor.fetchall(), fields, connection)
        return sorted(instances(self.model, fields, rows, using=self._home), key=_place_in_the_queue)

    def _first_due(self, statuses: Sequence[Status], limit: int, *, locked: bool = False) -> tuple[str, list[Any]]:
        """SQL, on PostgreSQL, for the ids of the first due messages in these states, and its parameters.

        It looks into one priority after the other. In the order of the index alone, it would walk past all that is not
        due yet of the more urgent ones.
        """
        table = self.model._meta.db_table
        due = self.filter(status__in=statuses).due().filter(priority=RawSQL("level.priority", ())).order_by(*ORDER)
        first = due.select_for_update(skip_locked=True) if locked else due
        ids, params = first.values_list("pk")[:limit].query.get_compiler(self._home).as_sql()
        open_rows = f"FROM {table} WHERE status IN ({', '.join(['%s'] * len(statuses))})"
        sql = f"""
            WITH RECURSIVE level(priority) AS (
                (SELECT priority {open_rows} ORDER BY priority LIMIT 1)
                UNION ALL
                SELECT (SELECT priority {open_rows} AND priority > level.priority ORDER BY priority LIMIT 1)
                FROM level WHERE level.priority IS NOT NULL
            )
            SELECT first.id FROM level CROSS JOIN LATERAL ({ids}) AS first(id) LIMIT {limit:d}"""  # noqa: S608
        return sql, [*statuses, *statuses, *params]

    def whether_due(self, statuses: Sequence[Status]) -> Asked:
        """The question whether any of these messages is due and in one of these states, to be asked again and again."""
        query = self.filter(status__in=statuses).due().order_by().values_list("pk")[:1].query
        try:
            if connections[self._home].vendor == "postgresql":
                return Asked(*self._first_due(statuses, 1), using=self._home)
            return Asked(*query.get_compiler(self._home).as_sql(), using=self._home)
        except EmptyResultSet:  # it asks for one of no streams, say
            return Asked("", (), using=self._home)

    def _next_due(self, statuses: Sequence[Status], limit: int) -> list[Message]:
        """The first due messages in these states, locked."""
        due = self.due().order_by(*ORDER).select_for_update(skip_locked=True)
        # Their indexes begin with the status, see OpenIndex: in the order of the index only one can be read at a time.
        rows = [row for status in statuses for row in due.filter(status=status)[:limit]]
        return sorted(rows, key=_place_in_the_queue)[:limit]

    def held(self, ids: Collection[UUID]) -> dict[UUID, Hold]:
        """These messages, locked: whose each is now, and the instant it was read at.

        Whatever their state is: a late result, too, is entered in a row that nobody else can begin meanwhile. Nothing
        else of them is read: while a lease lasts, its holder knows the rest from the claim.
        """
        limit_locks(self._home)
        ending = "ORDER BY id" if connections[self._home].vendor == "sqlite" else "ORDER BY id FOR UPDATE"
        rows = select_among(
            self.model, ["id", "lease"], key="id", values=ids, using=self._home, with_now=True, ending=ending
        )
        return {pk: Hold(lease, now) for pk, lease, now in rows}

    def release(self, ids: Collection[UUID], *leases: Lease) -> int:
        """Give messages back unbegun, as they were before the claim."""
        return self.filter(pk__in=ids, lease__in=[lease.id for lease in leases])._release()

    def release_all(self, worker: Worker) -> int:
        """Give back whatever this worker has claimed and not begun. To be called in a transaction."""
        from .attempts import Attempt

        limit_locks(self._home)
        begun = Attempt.objects.open().filter(message=OuterRef("pk"))
        return self.filter(~Exists(begun), worker=worker)._release()

    def _release(self) -> int:
        return self.filter(status=Status.SENDING).update(
            status=F("claimed_from"), lease=None, leased_until=None, worker=None, claim_count=F("claim_count") - 1
        )


def _place_in_the_queue(message: Message) -> tuple[int, datetime, UUID]:
    """What `ORDER` goes by, of a message that is due."""
    if message.available_at is None:
        raise ValueError(f"message {message.pk} has no due time")
    return message.priority, message.available_at, message.pk
