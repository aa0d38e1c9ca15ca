"""The part of all handovers that a stream gets while mail that goes before it never stops: its `SHARE`."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from ..conf import Settings
from ..models import Priority
from .items import Item

MOST_OWED = 2.0
"""Handovers that a stream can be owed: one that waited for long is not served all at once."""


class StreamShares:
    """What streams with a share are owed: a part of each handover that goes before their own.

    So a stream whose mail is next anyway is owed nothing; while there is always other mail, each fifth place goes to
    a stream with a share of 0.2. Mail of priority HIGH or URGENT gives way to nobody, and owes nothing.
    """

    def __init__(self, settings: Settings) -> None:
        self._shares = {name: policy.share for name, policy in settings.streams.items() if policy.share}
        self._owed = dict.fromkeys(self._shares, 0.0)

    def missing(self, in_hand: Mapping[str, int], *, of: int) -> dict[str, int]:
        """How many messages of each stream are to be taken in hand besides, for its share of so many handovers."""
        wanted = {name: max(round(share * of), 1) - in_hand.get(name, 0) for name, share in self._shares.items()}
        return {name: count for name, count in wanted.items() if count > 0}

    def note(self, item: Item, *, waiting: Collection[str]) -> None:
        """The handover of this item begins, while there is mail of the streams that are `waiting`."""
        self._pay(self._owed, item, waiting)

    def in_turn(self, items: Sequence[Item]) -> Iterable[Item]:
        """These items in their order, but for what a stream is owed when its turn comes. Nothing is noted by that."""
        return items if len({item.message.stream for item in items}) < 2 else self._interleaved(items)

    def _interleaved(self, items: Iterable[Item]) -> Iterator[Item]:
        lines: dict[str, deque[tuple[int, Item]]] = {}
        for place, item in enumerate(items):
            lines.setdefault(item.message.stream, deque()).append((place, item))
        owed = self._owed.copy()
        while lines:
            stream = min(lines, key=lambda name: lines[name][0][0])
            if _gives_way(lines[stream][0][1]):
                stream = next((name for name, amount in owed.items() if amount >= 1 and name in lines), stream)
            _place, item = lines[stream].popleft()
            if not lines[stream]:
                del lines[stream]
            self._pay(owed, item, lines)
            yield item

    def _pay(self, owed: dict[str, float], item: Item, waiting: Collection[str]) -> None:
        if not _gives_way(item):
            return
        for name, share in self._shares.items():
            if name == item.message.stream:
                owed[name] = max(owed[name] + share - 1, 0.0)
            elif name in waiting:
                owed[name] = min(owed[name] + share, MOST_OWED)


def _gives_way(item: Item) -> bool:
    return item.message.priority > Priority.HIGH
