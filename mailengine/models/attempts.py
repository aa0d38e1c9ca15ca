"""The ledger: one row for one try at one provider."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from django.db import models, router
from django.utils.translation import gettext_lazy as _

from ..clock import db_now
from ..outcomes import CODE_LENGTH, Kind, Outcome
from .bulk import insert_rows, select_among, update_rows
from .indexes import TimeIndex
from .messages import Message
from .workers import Worker


@dataclass(frozen=True)
class Record:
    """What the ledger says of one message."""

    last_number: int = 0
    accepted: bool = False


@dataclass(frozen=True)
class Series:
    """The handovers of a message to one provider since the first of which it may have arrived there.

    None of them was accepted or refused; with an idempotency key they all count as one.
    """

    number: int
    """Of the first attempt of it."""
    begun_at: datetime
    ended_at: datetime
    """When the latest that may have arrived ended."""


class AttemptQuerySet(models.QuerySet["Attempt"]):
    def records(self, message_ids: Collection[UUID]) -> dict[UUID, Record]:
        """What the ledger says of each of these messages; those it does not know are left out."""
        found: dict[UUID, Record] = {}
        columns = ["message", "number", "outcome"]
        for pk, number, outcome in select_among(
            Attempt, columns, key="message", values=message_ids, using=router.db_for_write(Attempt)
        ):
            known = found.get(pk, Record())
            found[pk] = Record(max(known.last_number, number), known.accepted or outcome == Kind.ACCEPTED)
        return found

    def series(self, message_ids: Iterable[UUID]) -> dict[tuple[UUID, str], Series]:
        """By (message, provider): what is still open there; most have none."""
        found: dict[tuple[UUID, str], Series] = {}
        rows = self.filter(message_id__in=list(message_ids)).exclude(ended_at=None).order_by("message_id", "number")
        for row in rows:
            key, ended_at = (row.message_id, row.provider), row.ended_at or row.begun_at
            if row.outcome in {Kind.ACCEPTED, Kind.REFUSED, Kind.DEFERRED}:
                found.pop(key, None)
            elif row.outcome == Kind.UNCERTAIN:
                first = found.get(key)
                found[key] = replace(first, ended_at=ended_at) if first else Series(row.number, row.begun_at, ended_at)
        return found

    def deferrals(self, message_ids: Iterable[UUID]) -> dict[UUID, list[Attempt]]:
        """The attempts of these messages that ended deferred: number, provider and code of each."""
        found: dict[UUID, list[Attempt]] = {}
        rows = self.filter(message_id__in=list(message_ids), outcome=Kind.DEFERRED)
        for row in rows.only("message_id", "number", "provider", "code"):
            found.setdefault(row.message_id, []).append(row)
        return found

    def begin(
        self,
        numbers: Mapping[UUID, tuple[int, str]],
        *,
        worker: Worker,
        now: datetime,
        together: Mapping[UUID, int] | None = None,
    ) -> None:
        """Enter that these messages are about to be handed over: id → (number of the attempt, provider).

        `together` are those that go in one call with others, with how many messages it carries.
        """
        sizes = together or {}
        insert_rows(
            Attempt,
            [(number, provider, sizes.get(pk, 1), pk) for pk, (number, provider) in numbers.items()],
            columns=["number", "provider", "call_size", "message"],
            constants={
                "worker": worker.pk,
                "begun_at": now,
                "outcome": "",
                "code": "",
                "detail": "",
            },
            using=router.db_for_write(Attempt),
        )

    def end_many(self, ended: Iterable[tuple[UUID, int, Outcome]], *, now: datetime) -> None:
        """Enter what came of these: (message, number of the attempt, outcome) each; see `end()`.

        What a provider has said that it has, see `prove()`, stays accepted, whatever its connection came to.
        """
        ended = list(ended)
        doubtful = [pk for pk, _number, o in ended if o.kind is not Kind.ACCEPTED]
        proven: set[tuple[UUID, int]] = set()
        if doubtful:
            accepted = self.filter(message_id__in=doubtful, outcome=Kind.ACCEPTED)
            proven.update(accepted.values_list("message_id", "number"))
        update_rows(
            Attempt,
            [
                (str(o.kind), o.code, o.detail, o.sha256 or None, pk, number)
                for pk, number, o in ended
                if o.kind is Kind.ACCEPTED or (pk, number) not in proven
            ],
            columns=["outcome", "code", "detail", "sha256"],
            keys=["message", "number"],
            constants={"ended_at": now},
            using=router.db_for_write(Attempt),
        )

    def end(self, message_id: UUID, number: int, outcome: Outcome) -> None:
        """Enter what came of it. A late result of an attempt that was given up as lost replaces that entry."""
        self.filter(message_id=message_id, number=number).update(
            ended_at=db_now(),
            outcome=outcome.kind,
            code=outcome.code,
            detail=outcome.detail,
            sha256=outcome.sha256 or None,
        )

    def prove(self, message_id: UUID, outcome: Outcome, *, at: Collection[str]) -> str | None:
        """Enter that one of the providers `at` has this message, as it said by another way; which one, or None.

        That goes to the first attempt there that may have arrived. None: there is none, or one of them was accepted
        already, and this may be said of that one. Any other handover under way is uncertain until its own result
        comes. To be called in a transaction that has locked the message.
        """
        attempts = list(self.filter(message_id=message_id).order_by("number"))
        there = [attempt for attempt in attempts if attempt.provider in at]
        doubtful = [attempt for attempt in there if attempt.outcome in ("", Kind.UNCERTAIN)]
        if not doubtful or any(attempt.outcome == Kind.ACCEPTED for attempt in there):
            return None
        proven, *_ = doubtful
        self.end(message_id, proven.number, outcome)
        for attempt in attempts:
            if attempt.ended_at is None and attempt != proven:
                detail = f"attempt {proven.number} was proven to have arrived while this one was under way"
                self.end(message_id, attempt.number, Outcome(Kind.UNCERTAIN, code=outcome.code, detail=detail))
        return proven.provider

    def taken_since(self, instant: datetime, *, provider: str, but: Collection[UUID]) -> list[datetime]:
        """When each handover began that this provider has accepted since then, or is about to, as far as is known.

        `but` those of these messages, which are known to have come to nothing.
        """
        begun = self.filter(provider=provider, begun_at__gt=instant, outcome__in=[Kind.ACCEPTED, ""])
        return list(begun.exclude(message__in=but).order_by().values_list("begun_at", flat=True))

    def open(self) -> AttemptQuerySet:
        return self.filter(ended_at=None)


OUTCOMES = [(kind.value, _(kind.value)) for kind in Kind]


class Attempt(models.Model):
    """One handover of one message to one provider, begun before its first byte and ended by its outcome."""

    message = models.ForeignKey(Message, on_delete=models.CASCADE, related_name="attempts", db_index=False)
    number = models.PositiveIntegerField(_("number"))
    provider = models.CharField(_("provider"), max_length=64)
    worker = models.ForeignKey(
        Worker, on_delete=models.DO_NOTHING, null=True, related_name="+", db_index=False, db_constraint=False
    )
    call_size = models.PositiveIntegerField(_("messages in the call"), default=1)
    begun_at = models.DateTimeField(_("begun"))
    ended_at = models.DateTimeField(_("ended"), null=True)
    outcome = models.CharField(_("outcome"), max_length=14, blank=True, choices=OUTCOMES)
    code = models.CharField(_("code"), max_length=CODE_LENGTH, blank=True)
    detail = models.TextField(_("detail"), blank=True)
    sha256 = models.BinaryField(_("SHA-256 of the bytes sent"), max_length=32, null=True)

    objects = AttemptQuerySet.as_manager()

    class Meta:
        verbose_name = _("attempt")
        verbose_name_plural = _("attempts")
        ordering = ["message", "number"]
        constraints = [
            # Two workers that both think a message theirs can't both begin it.
            models.UniqueConstraint(fields=["message", "number"], name="mailengine_one_attempt"),
        ]
        indexes = [TimeIndex(field="begun_at", name="mailengine_begun")]

    def __str__(self) -> str:
        return f"{self.number}. {self.provider} {self.outcome or '…'}"

    @property
    def result(self) -> Outcome | None:
        """The outcome as a value, once there is one."""
        return Outcome(Kind(self.outcome), code=self.code, detail=self.detail) if self.outcome else None
