"""Message: one mail to one recipient, one row, one handover.

The row owns its state: `status` is assigned only here, by the queryset's verbs. Each is a conditional UPDATE, so that
who lost the lease changes nothing. The states and who may move a message where are in docs/explanation/delivery.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from django.core.exceptions import EmptyResultSet
from django.core.serializers.json import DjangoJSONEncoder
from django.db import connections, models, router, transaction
from django.db.models import Exists, F, OuterRef, Q
from django.db.models.expressions import RawSQL
from django.db.models.functions import Coalesce, Greatest
from django.utils.translation import gettext_lazy as _

from ..clock import db_now, now_sql
from ..ids import uuid7, uuid7s
from ..outcomes import Kind, Outcome, one_line
from .bulk import Asked, insert_copies, instances, read, select_among, update_rows
from .content import Content
from .fields import JSONField, document_of
from .indexes import OpenIndex
from .jobs import MessageJob
from .locks import limit_lock_waits
from .waking import wake_workers
from .workers import Worker

if TYPE_CHECKING:
    from .attempts import Attempt

SUSPECT_CLAIMS = 2
"""Claims that ended with the death of their worker, from which on a message is suspected to be the cause."""
POISON_CLAIMS = 3
"""The same, from which on it is set aside."""
REASON_LENGTH = 500
ORDER = ("priority", "available_at", "id")
"""In which messages are claimed."""
RESCUE_BATCH = 500
EXPIRY_BATCH = 1_000


class Priority(models.IntegerChoices):
    """How soon a message is sent, before others: smaller is sooner."""

    URGENT = 0, _("urgent")
    HIGH = 10, _("high")
    NORMAL = 20, _("normal")
    LOW = 30, _("low")
    BULK = 40, _("bulk")


class Status(models.TextChoices):
    """What we still have to do about a message."""

    QUEUED = "queued", _("queued")
    SENDING = "sending", _("sending")
    DEFERRED = "deferred", _("deferred")
    UNCERTAIN = "uncertain", _("uncertain")
    SENT = "sent", _("sent")
    DEAD = "dead", _("dead")
    SUPPRESSED = "suppressed", _("suppressed")
    CANCELLED = "cancelled", _("cancelled")
    EXPIRED = "expired", _("expired")


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


class MessageQuerySet(models.QuerySet["Message"]):
    @property
    def _home(self) -> str:
        """The database that all of this is written to, and read from where it is about to be written."""
        return router.db_for_write(Message)

    # What to look for

    def due(self, *, since_seconds: float = 0) -> MessageQuerySet:
        """Messages whose time has come, or had come so many seconds ago; below 0: will have come by then."""
        return self.filter(available_at__lte=db_now(-since_seconds))

    def waiting(self) -> MessageQuerySet:
        """What `send_mail` still has to hand over, due or not."""
        return self.filter(status__in=[Status.QUEUED, Status.UNCERTAIN])

    def kept_for_a_person(self) -> MessageQuerySet:
        """It may have gone, and nobody but a person can say what to do."""
        return self.filter(status=Status.UNCERTAIN, available_at=None)

    def overdue_leases(self) -> MessageQuerySet:
        """Messages whose worker was lost."""
        return self.filter(status=Status.SENDING, leased_until__lt=db_now())

    def expired(self) -> MessageQuerySet:
        return self.filter(status__in=[Status.QUEUED, Status.DEFERRED], expires_at__lte=db_now())

    # Expansion

    def insert_many(self, job: MessageJob, rows: Iterable[tuple[str, Any, Any]], *, now: datetime) -> int:
        """Write the messages of a piece of a job, queued and due; how many were new.

        `rows` gives (normalised address, `other_recipients`, merge data). An address that has a message of this job
        already gets no second one.
        """
        alike = Message(
            job=job,
            content_id=job.content_id,
            stream=job.stream,
            priority=job.priority,
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

    # Claim, begin, settle

    def claim(self, lease: Lease, *, statuses: Sequence[Status], seconds: float, limit: int) -> list[Message]:
        """Take up to `limit` due messages in these states for `lease`, which ends after so many seconds.

        By priority, then due time, then age. Messages that another worker is taking at this moment are passed over,
        not waited for. To be called in a transaction that is committed before anything is sent.
        """
        if connections[self._home].vendor == "postgresql":
            return self._claim_at_once(lease, statuses, seconds=seconds, limit=limit)
        rows = self._next_due(statuses, limit)
        if rows:
            Message.objects.filter(pk__in=[row.pk for row in rows], status__in=statuses).update(
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
        connection, table = connections[self._home], Message._meta.db_table
        fields = Message._meta.concrete_fields
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
        return sorted(instances(Message, fields, rows, using=self._home), key=_place_in_the_queue)

    def _first_due(self, statuses: Sequence[Status], limit: int, *, locked: bool = False) -> tuple[str, list[Any]]:
        """SQL, on PostgreSQL, for the ids of the first due messages in these states, and its parameters.

        It looks into one priority after the other. In the order of the index alone, it would walk past all that is not
        due yet of the more urgent ones.
        """
        table = Message._meta.db_table
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
        limit_lock_waits(self._home)
        ending = "ORDER BY id" if connections[self._home].vendor == "sqlite" else "ORDER BY id FOR UPDATE"
        rows = select_among(
            Message, ["id", "lease"], key="id", values=ids, using=self._home, with_now=True, ending=ending
        )
        return {pk: Hold(lease, now) for pk, lease, now in rows}

    def settle(self, message: Message, verdict: Verdict, *, lease: Lease, outcome: Outcome | None = None) -> bool:
        """Record what became of a message; False when it was no longer ours, and nothing was changed."""
        ours = Message.objects.filter(pk=message.pk, status=Status.SENDING, lease=lease.id)
        return self._apply(ours, message, verdict, outcome) > 0

    def settle_sent(self, accepted: Iterable[tuple[Message, Outcome]], *, now: datetime) -> None:
        """Record that these messages were accepted, all in one go: what nearly every handover comes to.

        For messages that `held()` has locked under a lease of ours. `message.provider` is who took it.
        """
        update_rows(
            Message,
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
        ours = Message.objects.filter(
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
        ours = Message.objects.filter(pk=message.pk, status__in=Message.OPEN_STATUSES)
        return self._apply(ours, message, Verdict(Status.SENT, f"proven: {outcome}"), outcome) > 0

    def _apply(
        self, ours: MessageQuerySet, message: Message, verdict: Verdict, outcome: Outcome | None, **changes: Any
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

    def release(self, ids: Collection[UUID], *leases: Lease) -> int:
        """Give messages back unbegun, as they were before the claim."""
        return self.filter(pk__in=ids, lease__in=[lease.id for lease in leases])._release()

    def release_all(self, worker: Worker) -> int:
        """Give back whatever this worker has claimed and not begun. To be called in a transaction."""
        from .attempts import Attempt

        limit_lock_waits(self._home)
        begun = Attempt.objects.open().filter(message=OuterRef("pk"))
        return self.filter(~Exists(begun), worker=worker)._release()

    def _release(self) -> int:
        return self.filter(status=Status.SENDING).update(
            status=F("claimed_from"), lease=None, leased_until=None, worker=None, claim_count=F("claim_count") - 1
        )

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
            with transaction.atomic(using=router.db_for_write(Message)):
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
            Message.objects.filter(pk=row.pk, lease=row.lease).update(lease=None, leased_until=None, **values)
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
        late = Message.objects.filter(pk__in=list(rows.values_list("pk", flat=True)[:batch]))
        kept = late.filter(uncertain_count__gt=0).update(
            status=Status.UNCERTAIN,
            reason="it expired after an uncertain handover; kept for a person to decide",
            available_at=None,
        )
        closed = late.filter(uncertain_count=0).update(
            status=Status.EXPIRED, reason="expired: not sent before its expires_at", available_at=None
        )
        return kept + closed

    def follow(self, job: MessageJob, *, limit: int = 1_000) -> int:
        """Let the unsent messages of a cancelled, paused or resumed job follow it; how many of at most `limit` did.

        A paused job's have no due time, so that a claim doesn't even see them. Those deferred keep theirs until a Begin
        meets them.
        """
        unsent = Message.objects.filter(job=job, status__in=[Status.QUEUED, Status.DEFERRED])
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
        claimed = Message.objects.filter(job=job, status=Status.SENDING).values_list("pk", flat=True)
        with transaction.atomic(using=self._home):
            # By their ids: MariaDB would lock the index by which it finds them too, which a Begin is about to change.
            self.held(list(claimed))

    # What a person may do

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
        wake_workers(router.db_for_write(Message))
        return count

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


def _place_in_the_queue(message: Message) -> tuple[int, datetime, UUID]:
    """What `ORDER` goes by, of a message that is due."""
    if message.available_at is None:
        raise ValueError(f"message {message.pk} has no due time")
    return message.priority, message.available_at, message.pk


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
    def is_suspect(self) -> bool:
        """Whether this claim of it had better be made alone: workers died that held it before, one in its handover."""
        was_in_flight = self.claimed_from == Status.UNCERTAIN and self.claim_count > 1
        return was_in_flight or self.claim_count > SUSPECT_CLAIMS

    def withdraw(self) -> bool:
        """Cancel this message if it has not been handed over; whether that was so."""
        return Message.objects.filter(pk=self.pk).cancel("cancelled: by its caller") > 0
