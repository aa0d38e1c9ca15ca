"""The handovers of a run: those under way, and what came of the others until that is durable.

What began and what has ended is entered turn by turn. An error can hide whether a turn was committed: its number, which
the worker's row shows, tells.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from uuid import UUID

from ..outcomes import Kind, Outcome
from ..providers.batch import CallRefused
from .items import Call, Item
from .report import Report
from .senders import Team
from .stock import Stock

WAIT_SECONDS = 0.2
"""How long the loop waits for a handover to end before it looks at the clock and the stop event again."""
BEGUN_TOO_LATE = Outcome(
    Kind.UNAVAILABLE, code="too late", detail="its lease ran out before its begin was durable", is_local=True
)
NEVER_SENT = Outcome(
    Kind.UNAVAILABLE,
    code="commit unknown",
    detail="the database failed as it began; nothing was handed over",
    is_local=True,
)
TURNS = 2**31
"""The number of a turn fits into its column, in a run of months too: it begins again."""


@dataclass
class Turn:
    """What one commit of the loop enters, kept until it is known to be durable."""

    number: int
    """What the worker's own row says once it is committed."""
    before: Report
    """What the run had done when it began."""
    ended: list[tuple[Item, Outcome]]
    begun: deque[Call] = field(default_factory=deque)
    """In the end: those not yet given to a sender."""
    is_durable: bool = False


class Handovers:
    """What this run has begun and not yet recorded the end of."""

    def __init__(self, team: Team[Call], stock: Stock) -> None:
        self.team = team
        self.stock = stock
        self.in_flight: dict[UUID, Item] = {}
        self.ended: list[tuple[Item, Outcome]] = []
        """What came of handovers, until it is durable."""
        self.turn: Turn | None = None
        """The one under way: an error leaves it behind."""
        self._turn_numbers = count(1)

    def collect(self, *, wait_seconds: float) -> None:
        """Wait for a handover to end, and note what came of each message that it carried; or for news."""
        for call, outcomes in self.team.collect(wait_seconds=wait_seconds):
            self.ended += zip(call.items, outcomes, strict=True)
            if any(isinstance(outcome, CallRefused) for outcome in outcomes):
                self.stock.note_refused_call(call.provider)

    def next_turn(self, report: Report) -> Turn:
        self.turn = Turn(next(self._turn_numbers) % TURNS, report.copy(), list(self.ended))
        return self.turn

    def begin(self, turn: Turn, calls: Sequence[Call]) -> None:
        """Their Begin is part of this turn: they go to senders once it is durable."""
        turn.begun.extend(calls)
        self.in_flight.update((item.message.pk, item) for call in calls for item in call.items)

    def forget(self, item: Item) -> None:
        """It is not in flight any more; but a later handover of the same message may be."""
        held = self.in_flight.get(item.message.pk)
        if held is not None and held.number == item.number:
            del self.in_flight[item.message.pk]

    def confirm(self, turn: Turn) -> None:
        """It is durable: forget what it has recorded."""
        turn.is_durable = True
        del self.ended[: len(turn.ended)]
        for item, _outcome in turn.ended:
            # An item and its call hold each other: until Python looks for such circles, its mail would stay in memory.
            item.email = item.call = None
        turn.ended.clear()

    def abandon(self, turn: Turn) -> None:
        """An error has cut it short, and what it has begun beyond that is never handed over.

        If it is durable nevertheless, that has an entry in the ledger: this is its outcome then.
        """
        begun = [item for call in turn.begun for item in call.items]
        for item in (*begun, *(item for item, _outcome in self.ended)):
            self.forget(item)
        if turn.is_durable:
            self.ended += [(item, NEVER_SENT) for item in begun]
        self.turn = None
