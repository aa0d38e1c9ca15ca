"""What a run may claim: which mail is its business, how much of it, and in which order."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from uuid import UUID

from django.db import router
from django.db.models import Q

from ..models import Lease, Message, Priority
from ..models.bulk import Asked
from ..models.locks import limit_locks
from ..models.messages import MessageQuerySet, Status
from .health import Health
from .items import Claim

LOOK_AGAIN_SECONDS = 1.0
"""How long after finding none of something a run that goes on for other reasons looks again."""


class Claims:
    """The queue as one run sees it. `deferred`, `retries`, `streams` and `only` as for the `Dispatcher`."""

    def __init__(
        self,
        health: Health,
        *,
        deferred: bool = False,
        retries: bool = False,
        streams: Collection[str] | None = None,
        only: Collection[UUID] | None = None,
    ) -> None:
        self.health = health
        self.streams = None if streams is None else set(streams)
        self.only = only
        self.statuses = [Status.DEFERRED] if deferred else [Status.QUEUED, Status.UNCERTAIN]
        self.lanes = [self.statuses, [Status.DEFERRED]] if retries else [self.statuses]
        """Each with an index of its own: one question about both would be answered by none."""
        self.suspects: list[Message] = []
        """What may have killed its workers: claimed alone, once this process has nothing else in hand."""
        self._urgent_mail: dict[tuple[object, ...], Asked] = {}
        self._asked_at: dict[str, float] = {}
        """When there was no mail of a stream that is owed some."""

    def begin_anew(self) -> None:
        """Forget the questions that it has asked."""
        self._urgent_mail.clear()
        self._asked_at.clear()

    def has_mail(self) -> bool:
        """Whether anything is due that is this run's business."""
        mine = self._of_our_streams()
        return any(mine.whether_due(lane).is_any() for lane in self.lanes)

    def is_blocked(self, *, in_seconds: float = 0, whatever_the_limits: bool = False) -> bool:
        """Whether mail is due, or will be then, that no provider can take now.

        `whatever_the_limits`: nor could it, had no provider a limit.
        """
        can_go = self._can_go(whatever_the_limits=whatever_the_limits)
        return can_go is not None and any(due.exclude(can_go).exists() for due in self._due(in_seconds=in_seconds))

    def batch(self, *, most: int | None) -> int:
        """How many to claim at once, and no more than `most`."""
        if not self.health.can_send():
            return 0
        batch = 1 if self.health.only_probes() else self.health.settings.rows_in_a_claim
        return batch if most is None else min(batch, most)

    def take(self, lease: Lease, *, limit: int, but: Collection[str] = ()) -> Claim | None:
        """The next messages, the most urgent first; none of the streams in `but`."""
        candidates = self._candidates()
        return self._take(candidates.exclude(stream__in=but) if but else candidates, lease, limit=limit)

    def take_owed(self, stream: str, lease: Lease, *, limit: int) -> Claim | None:
        """Mail of a stream that has a share, and whose turn it is not yet; asked for once in a while if there is none.

        What of it goes before the mail of others is claimed with theirs; so the index is read from its own place on.
        """
        if time.monotonic() < self._asked_at.get(stream, float("-inf")) + LOOK_AGAIN_SECONDS:
            return None
        least = self.health.settings.policy_for(stream).priority
        claim = self._take(self._candidates().filter(stream=stream, priority__gte=least), lease, limit=limit)
        if claim is None:
            self._asked_at[stream] = time.monotonic()
        return claim

    def take_more_urgent(self, lease: Lease, *, than: int, limit: int) -> Claim | None:
        """Messages that go before those of priority `than`."""
        question = (than, repr(self._can_go()), *(message.pk for message in self.suspects))
        if question not in self._urgent_mail:
            urgent = self._candidates().filter(priority__lt=than)
            self._urgent_mail[question] = urgent.whether_due(self.statuses)
        if not self._urgent_mail[question].is_any():
            return None
        return self._take(self._candidates().filter(priority__lt=than), lease, limit=limit)

    def take_retries(self, lease: Lease, *, limit: int) -> Claim | None:
        """The next that were deferred before, where they are this run's business beside the others."""
        return self._take(self._candidates(), lease, limit=limit, statuses=[Status.DEFERRED])

    def take_suspect_or_more_urgent(self, lease: Lease, *, limit: int) -> Claim | None:
        """The most urgent of those that may have killed their workers; or first what goes before it."""
        suspect = min(self.suspects, key=lambda message: message.priority)
        if claim := self.take_more_urgent(lease, than=suspect.priority, limit=limit):
            return claim
        self.suspects.remove(suspect)
        any_lane = [status for lane in self.lanes for status in lane]
        return self._take(Message.objects.filter(pk=suspect.pk), lease, limit=1, is_suspect=True, statuses=any_lane)

    def set_suspects_aside(self, claim: Claim) -> list[Message]:
        """The messages of the claim, but for suspects: they are given back, to be taken alone later."""
        if claim.is_suspect:
            return list(claim.messages)
        suspects = [message for message in claim.messages if message.is_suspect]
        if suspects:
            Message.objects.release([message.pk for message in suspects], claim.lease)
            self.suspects += suspects
        return [message for message in claim.messages if not message.is_suspect]

    def _take(
        self,
        candidates: MessageQuerySet,
        lease: Lease,
        *,
        limit: int,
        is_suspect: bool = False,
        statuses: Sequence[Status] = (),
    ) -> Claim | None:
        limit_locks(router.db_for_write(Message))
        messages = candidates.claim(
            lease, statuses=statuses or self.statuses, seconds=self.health.settings.lease_seconds, limit=limit
        )
        return Claim(messages, lease, is_suspect) if messages else None

    def _due(self, *, in_seconds: float = 0) -> list[MessageQuerySet]:
        """One for each lane."""
        mine = self._of_our_streams().due(since_seconds=-in_seconds)
        return [mine.filter(status__in=lane) for lane in self.lanes]

    def _candidates(self) -> MessageQuerySet:
        """What some provider can take now, suspects apart."""
        mine = self._of_our_streams()
        can_go = self._can_go()
        if can_go is not None:
            mine = mine.filter(can_go)
        return mine.exclude(pk__in=[message.pk for message in self.suspects]) if self.suspects else mine

    def _of_our_streams(self) -> MessageQuerySet:
        mine = Message.objects.all() if self.only is None else Message.objects.filter(pk__in=list(self.only))
        return mine if self.streams is None else mine.filter(stream__in=self.streams)

    def _can_go(self, *, whatever_the_limits: bool = False) -> Q | None:
        """The mail that some provider can take now; None when that is all of it."""
        usable = self.health.usable_streams(whatever_the_limits=whatever_the_limits)
        for_bulk = self.health.usable_streams(is_bulk=True, whatever_the_limits=whatever_the_limits)
        can_go = self._in_streams(usable)
        if for_bulk != usable and (in_streams := self._in_streams(for_bulk)) is not None:
            bulk_can_go = Q(priority__lt=Priority.BULK) | in_streams
            can_go = bulk_can_go if can_go is None else can_go & bulk_can_go
        if can_go is not None and (draining := self.health.draining()):
            can_go |= Q(status=Status.UNCERTAIN, provider__in=draining)
        return can_go

    def _in_streams(self, usable: Collection[str]) -> Q | None:
        """The mail of these streams; None when that is all of it."""
        blocked = set(self.health.settings.streams) - set(usable)
        if not blocked:
            return None
        # Mail of a stream that the settings no longer have goes as transactional mail does.
        return ~Q(stream__in=blocked) if "transactional" in usable else Q(stream__in=usable)
