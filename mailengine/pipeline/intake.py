"""When a run looks at the queue, and how much it takes in hand then."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from ..models import Lease
from ..models.messages import Status
from ..rate import LONGEST_MOMENT_SECONDS
from .bounds import Bounds
from .claims import LOOK_AGAIN_SECONDS, Claims
from .handovers import Handovers
from .items import Claim, Item
from .stock import Stock


@dataclass
class Lookout:
    """What a run knows of some mail in the queue: it looks again at once while there may be more, else in a while."""

    has_more: bool = False
    """Whether there may be something to claim, as far as is known."""
    looked_at: float = float("-inf")

    @property
    def is_worth_a_look(self) -> bool:
        return self.has_more or time.monotonic() >= self.looked_at + LOOK_AGAIN_SECONDS

    def note_look(self) -> None:
        self.looked_at = time.monotonic()


class Intake:
    """The mail that comes in from the queue: `claims` knows how to ask for it, this knows when, and for how much."""

    def __init__(
        self, claims: Claims, stock: Stock, handovers: Handovers, bounds: Bounds, *, new_lease: Callable[[], Lease]
    ) -> None:
        self.claims = claims
        self.stock = stock
        self.handovers = handovers
        self.bounds = bounds
        self.new_lease = new_lease
        self.is_open = False
        """Whether this run takes from the queue: not before it can send, nor where it was given its one message."""
        self.queue = Lookout()
        """What comes next of this run's mail."""
        self.retries = Lookout()
        """Deferred mail, where it takes that as well."""
        self.beside = Lookout(has_more=True)
        """Mail of other streams than those whose providers hold up the stock."""
        self.has_news = False
        """Whether somebody has queued something since it last looked."""
        self.saw_mail = False
        """Whether any was due when the run began."""

    # When to look

    def open(self) -> None:
        self.is_open = True
        self.look_again()

    def look_again(self) -> None:
        """Something may have come back to the queue, or may go now that could not before."""
        self.queue.has_more = self.is_open

    def tell_news(self) -> None:
        """Somebody has queued something. For any thread."""
        if not self.has_news:
            self.has_news = True
            self.handovers.team.wake()

    def hear_news(self) -> None:
        if self.has_news:
            self.has_news = False
            self.look_again()
            self.beside.has_more = True

    def look_first(self) -> bool:
        """Whether anything is due as the run begins."""
        self.saw_mail = self.claims.has_mail()
        return self.saw_mail

    def look_around(self) -> None:
        """Whether anything is due: that is all it asks, as long as nothing is."""
        was_told, self.has_news = self.has_news, False
        found = not was_told and self.claims.has_mail()
        self.queue.has_more = bool(was_told or found or self.handovers.ended)
        self.retries.has_more = found and len(self.claims.lanes) > 1
        if not was_told:
            self.retries.note_look()

    @property
    def has_more(self) -> bool:
        """Whether there may be something to claim at this moment."""
        return self.queue.has_more or self.retries.has_more

    def is_through(self) -> bool:
        """Whether there is nothing left to claim, nor will be in a moment."""
        if self.has_more or (self.claims.suspects and self._batch() > 0):
            return False
        if not self.is_open or self.left == 0:
            return True
        # A provider that asks for a moment is waited for: by the second, where it limits us by the second.
        ends = [seconds for seconds in self.claims.health.throttle_ends() if seconds <= LONGEST_MOMENT_SECONDS]
        seconds_since_look = time.monotonic() - self.queue.looked_at
        if any(-seconds_since_look <= seconds <= 0 for seconds in ends):
            return False  # it takes mail again, and nobody has looked since
        soon = [seconds for seconds in ends if seconds > 0]
        return not soon or not self.claims.is_blocked(in_seconds=min(soon) + LOOK_AGAIN_SECONDS)

    # How much to take

    def take_more_urgent(self) -> Claim | None:
        """Take mail that goes before what is in stock: it is composed before anything else begins."""
        idle_count = self.stock.team.idle_count
        if not self.stock or not idle_count or self._may_not_take():
            return None
        head = min(item.message.priority for item in self.stock)
        limit = min(self._batch(), idle_count)
        if head == 0 or limit <= 0:
            return None
        return self.claims.take_more_urgent(self.new_lease(), than=head, limit=limit)

    def take(self) -> Claim | None:
        """Take what comes next, if it is time for that."""
        return self._take_next() or self._take_retries()

    def _take_next(self) -> Claim | None:
        """Take the next batch when the stock runs low."""
        if self._may_not_take():
            return None
        if len(self.stock) >= self.stock.team.size:
            return self._take_beside()
        limit = self._batch()
        if self.claims.suspects and limit > 0:
            if self._in_hand():
                return None
            return self.claims.take_suspect_or_more_urgent(self.new_lease(), limit=limit)
        if not self.queue.is_worth_a_look:
            return None
        self.queue.note_look()
        if limit <= 0:
            # What is in flight may close a circuit, or come back; then there is more to do.
            self.queue.has_more = bool(self._in_hand())
            return None
        lease = self.new_lease()
        claim = self.claims.take(lease, limit=limit)
        self.queue.has_more = claim is not None and len(claim.messages) == limit
        return self._with_owed(claim, lease) if claim and self.queue.has_more else claim

    def _with_owed(self, claim: Claim, lease: Lease) -> Claim:
        """This claim, and besides it what streams with a share lack of it."""
        messages = list(claim.messages)
        in_hand = self.stock.streams() + Counter(message.stream for message in messages)
        for stream, missing in self.stock.shares.missing(in_hand, of=len(claim.messages)).items():
            limit = missing if self.left is None else min(missing, self.left - len(messages))
            if limit > 0 and (owed := self.claims.take_owed(stream, lease, limit=limit)):
                messages += owed.messages
        return Claim(messages, lease)

    def _take_beside(self) -> Claim | None:
        """Where the stock waits for a provider, slow or limited: take mail of other streams, lest it wait as well."""
        if not self.stock.team.idle_count or self.claims.suspects or not self.beside.is_worth_a_look:
            return None
        held_up, limit, claim = self.stock.held_up(), self._batch(), None
        if held_up and limit > 0 and len(self.stock) - len(held_up) < self.stock.team.size:
            streams = {item.message.stream for item in held_up}
            claim = self.claims.take(self.new_lease(), limit=limit, but=streams)
            self.beside.has_more = claim is not None
            self.beside.note_look()
        return claim

    def _take_retries(self) -> Claim | None:
        """Take deferred mail as well, where that is this run's business: never more than half of the senders can send.

        So new mail finds a sender, however much there is that has failed before.
        """
        if len(self.claims.lanes) < 2 or not self.retries.is_worth_a_look or self._may_not_take():
            return None
        if self.claims.suspects:
            self.retries.has_more = False  # each of them waits for empty hands
            return None
        if self.claims.health.only_probes() and self.queue.has_more:
            return None  # new mail makes the better probe
        in_hand = sum(item.message.claimed_from == Status.DEFERRED for item in self._in_hand())
        limit = min(max(self.stock.team.size // 2, 1) - in_hand, self._batch())
        if limit <= 0:
            self.retries.has_more = self.retries.has_more and in_hand > 0
            return None
        self.retries.note_look()
        claim = self.claims.take_retries(self.new_lease(), limit=limit)
        self.retries.has_more = claim is not None and len(claim.messages) == limit
        return claim

    def _may_not_take(self) -> bool:
        if not self.is_open or self.bounds.must_stop() or self.claims.health.pause_seconds:
            return True
        return any(item.is_suspect for item in self._in_hand())

    def _batch(self) -> int:
        """How many to claim at most."""
        return self.claims.batch(most=self.left)

    @property
    def left(self) -> int | None:
        """How many more messages this run may take in hand; None: as many as there are."""
        return self.bounds.left(in_hand=len(self.stock) + len(self.handovers.in_flight))

    def _in_hand(self) -> list[Item]:
        return [*self.stock, *self.handovers.in_flight.values()]
