"""What a run has claimed and not yet begun: composed as it is needed, and as there is memory for it."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping

from .composer import Composer
from .health import Health
from .items import Item
from .senders import Team

LARGE_BYTES = 100_000
"""Mail of this size takes memory that counts."""
BYTES_IN_HAND = 8_000_000
"""Of large mail that is composed or being sent; more only when one alone is larger.

To render a mail takes up to eight times its size, for a moment.
"""
COMPOSING_SECONDS = 1.0
"""After which no more is composed in this turn of the loop: what has ended meanwhile waits to be recorded."""


class Stock:
    """The items to begin, the next one first."""

    def __init__(self, composer: Composer, health: Health, team: Team[Item]) -> None:
        self.composer = composer
        self.health = health
        self.team = team
        self._items: deque[Item] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    def clear(self) -> None:
        self._items.clear()

    def add(self, items: Collection[Item]) -> None:
        """Add items that were claimed together: before those that are less urgent, and behind all others."""
        self._items = deque(sorted((*self._items, *items), key=lambda item: item.message.priority))

    def put_first(self, items: Iterable[Item]) -> None:
        self._items.extendleft(reversed(list(items)))

    def compose_next(self, *, in_flight: Iterable[Item]) -> None:
        """Compose what can begin next, as many as there are senders, and as far as there is memory for large mail.

        What can't be composed was never in doubt.
        """
        in_hand = (*in_flight, *(item for item in self._items if item.is_ready))
        taken = sum(_bytes_that_count(item) for item in in_hand)
        is_full = False
        planned: Counter[str] = Counter()
        ready_count = 0
        ends_at = time.monotonic() + COMPOSING_SECONDS
        for item in self._items:
            if ready_count >= self.team.size or time.monotonic() >= ends_at:
                break
            if not self._reserve(item, planned, busy={}):
                continue
            if not item.is_ready:
                self.composer.weigh(item)
                if size := _bytes_that_count(item):
                    # One that finds no room is not overtaken by the large ones behind it.
                    is_full = is_full or (taken > 0 and taken + size > BYTES_IN_HAND)
                    if is_full:
                        continue
                    taken += size
                self.composer.compose(item)
            ready_count += 1

    def can_begin(self) -> bool:
        """Whether `take()` would give anything."""
        planned: Counter[str] = Counter()
        return self.team.idle_count > 0 and any(
            item.is_ready and self._reserve(item, planned, busy=self.team.in_flight) for item in self._items
        )

    def take(self) -> list[Item]:
        """Take out what can begin now: as many as there are idle senders."""
        taken: list[Item] = []
        kept: list[Item] = []
        planned: Counter[str] = Counter()
        while self._items and len(taken) < self.team.idle_count:
            item = self._items.popleft()
            is_next = item.is_ready and self._reserve(item, planned, busy=self.team.in_flight)
            (taken if is_next else kept).append(item)
        self.put_first(kept)
        return taken

    def take_untrusted(self) -> list[Item]:
        """Take out those whose lease could end before their handover does."""
        gone = [item for item in self._items if not item.lease.is_trusted]
        if gone:
            self._items = deque(item for item in self._items if item.lease.is_trusted)
        return gone

    def _reserve(self, item: Item, planned: Counter[str], *, busy: Mapping[str, int]) -> bool:
        """Count it among the handovers that are `planned`, unless the provider that it would go to has no room for it.

        `busy` are those under way. Where providers share a stream, the next one that has room takes it.
        """
        full: set[str] = set()
        while not item.verdict:
            choice = self.health.choose(item.message, tried=item.tried | full, planned=planned)
            if choice is None or (full and not self.health.settings.provider(choice.alias).weight):
                return not full  # one that only stands in for others does not do so for want of room
            count = planned[choice.alias]
            has_room = busy.get(choice.alias, 0) + count < self.health.room(choice.alias)
            if has_room and self.health.may_begin(choice.alias, item.message, planned=count):
                planned[choice.alias] += 1
                item.reserved = choice.alias
                return True
            if not self.health.is_shared(item.message.stream):
                return False
            full.add(choice.alias)
        return True


def _bytes_that_count(item: Item) -> int:
    return item.size if item.size and item.size >= LARGE_BYTES else 0
