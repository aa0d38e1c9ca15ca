"""What a run has claimed and not yet begun: composed as it is needed, and as there is memory for it."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from itertools import chain
from uuid import UUID

from ..models import Priority
from ..providers.batch import can_share_a_call, most_in_a_call
from .composer import Composer
from .health import Health
from .items import Call, Item
from .limits import is_bulk
from .senders import Team
from .shares import StreamShares

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

    def __init__(self, composer: Composer, health: Health, team: Team[Call]) -> None:
        self.composer = composer
        self.health = health
        self.team = team
        self._items: deque[Item] = deque()
        self._composed_count = 0
        """In the last turn."""
        self._lack_memory: set[UUID] = set()
        """Messages that found none in the last turn."""
        self.shares = StreamShares(health.settings)
        self._one_by_one: set[str] = set()
        """Providers that get no more calls of many in this run."""

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
        """Compose what can begin next, as much as there are senders for, and as far as there is memory for large mail.

        What can't be composed was never in doubt.
        """
        in_hand = chain(in_flight, (item for item in self._items if item.is_ready))
        sizes = {self._words(item): item.size or 0 for item in in_hand if _bytes_that_count(item)}
        is_full = False
        self._composed_count = 0
        self._lack_memory.clear()
        ends_at = time.monotonic() + COMPOSING_SECONDS
        in_turn = self.shares.in_turn(self._items)
        planned = (item for call in self._plan(in_turn, most=self.team.size, busy={}) for item in call.items)
        unready = [item for item in planned if not item.is_ready]
        self.composer.load(item.message for item in unready)
        for item in unready:
            if time.monotonic() >= ends_at:
                return
            self.composer.weigh(item)
            if (size := _bytes_that_count(item)) and (words := self._words(item)) not in sizes:
                # One that finds no room is not overtaken by the large ones behind it.
                taken = sum(sizes.values())
                is_full = is_full or (taken > 0 and taken + size > BYTES_IN_HAND)
                if is_full:
                    self._lack_memory.add(item.message.pk)
                    continue
                sizes[words] = size
            self.composer.compose(item)
            self._composed_count += 1

    def can_begin(self) -> bool:
        """Whether there may be something to `take()`."""
        room = Room(self.health, busy=self.team.in_flight)
        return self.team.idle_count > 0 and any(item.is_ready and room.reserve(item) for item in self._items)

    def held_up(self) -> list[Item]:
        """What its provider has no room for at this moment, or no more by its limits."""
        room = Room(self.health, busy=self.team.in_flight)
        return [item for item in self._items if not room.reserve(item)]

    def next(self) -> list[Item]:
        """What `take()` would take out at this moment, or a little more: in the largest calls that may be."""
        return [item for call in self._next_calls(self._items, at_best=True) for item in call.items if item.is_ready]

    def take(self, *, among: Container[UUID]) -> list[Call]:
        """Take out what can begin now, `among` these messages: as many calls as there are idle senders."""
        calls = []
        for call in self._next_calls(item for item in self._items if not item.is_ready or item.message.pk in among):
            ready = [item for item in call.items if item.is_ready]
            if ready and (len(ready) == len(call.items) or not self._waits(call)):
                calls.append(Call(ready))
        taken = {id(item) for call in calls for item in call.items}
        self._items = deque(item for item in self._items if id(item) not in taken)
        waiting = self.streams()
        for call in calls:
            self.shares.note(call.items[0], waiting=waiting)
        return calls

    def _next_calls(self, items: Iterable[Item], *, at_best: bool = False) -> list[Call]:
        # What waits for memory lets those go that have it.
        able = [item for item in items if item.is_ready or item.message.pk not in self._lack_memory]
        in_turn = self.shares.in_turn(able)
        return self._plan(in_turn, most=self.team.idle_count, busy=self.team.in_flight, at_best=at_best)

    def streams(self) -> Counter[str]:
        """How much mail it has of each stream."""
        return Counter(item.message.stream for item in self._items)

    def take_untrusted(self) -> list[Item]:
        """Take out those whose lease could end before their handover does."""
        gone = [item for item in self._items if not item.lease.is_trusted]
        if gone:
            self._items = deque(item for item in self._items if item.lease.is_trusted)
        return gone

    def note_refused_call(self, alias: str) -> None:
        """A call of many was refused as a whole by this provider: in this run it gets mail one by one."""
        self._one_by_one.add(alias)

    def begin_anew(self) -> None:
        """Let providers have calls of many again."""
        self._one_by_one.clear()

    def _plan(self, items: Iterable[Item], *, most: int, busy: Mapping[str, int], at_best: bool = False) -> list[Call]:
        """What can begin next, in at most so many calls: in order, each with all that may go with its first item.

        `at_best`: if all that is under way were accepted.
        """
        calls: list[Call] = []
        if most <= 0:
            return calls
        room = Room(self.health, busy=busy)
        open_calls: dict[int | None, tuple[Call, int]] = {}
        """By job, with how many more each may carry."""
        for item in items:
            job_id = item.message.job_id
            call, places = open_calls.get(job_id, (None, 0))
            if call is not None and _may_join(item, call) and room.reserve(item, joining=call.items[0].reserved):
                call.items.append(item)
                open_calls[job_id] = call, places - 1
                if places == 1:
                    del open_calls[job_id]
            elif len(calls) < most:
                if room.reserve(item):
                    calls.append(Call([item]))
                    if (places := self._most_together(item, at_best=at_best) - 1) > 0:
                        open_calls[job_id] = calls[-1], places
            elif not open_calls:
                break
        return calls

    def _waits(self, call: Call) -> bool:
        """Whether the call waits for company that is still to be composed: once, and for as long as that goes on."""
        first = call.items[0]
        waits = not first.has_waited or self._composed_count > 0
        first.has_waited = True
        return waits

    def _most_together(self, item: Item, *, at_best: bool = False) -> int:
        """How many mails the call may carry that this item, which has a provider reserved, is the first of."""
        if item.verdict or item.is_probe or item.reserved in self._one_by_one or not _may_have_company(item):
            return 1
        most = self.health.most_together(item.reserved, at_best=at_best)
        return min(most, most_in_a_call(item.reserved, item.email)) if most > 1 else 1

    def _words(self, item: Item) -> object:
        """What it takes memory for: mails that may share a call hold the same words and files."""
        return item.message.content_id if item.reserved and self._most_together(item) > 1 else item.message.pk


class Room:
    """What providers have room for, less what has been reserved here. `busy` are the calls under way at each."""

    def __init__(self, health: Health, *, busy: Mapping[str, int]) -> None:
        self.health = health
        self.busy = busy
        self._calls: Counter[str] = Counter()
        self._mails: Counter[str] = Counter()
        self._plain: dict[tuple[str, bool], str] = {}
        """By stream, and whether for bulk mail: the provider of all mail about which there is nothing special."""
        self._rooms: dict[str, int] = {}
        """What `health` says of each, asked once."""

    def reserve(self, item: Item, *, joining: str = "") -> bool:
        """Reserve room for it at the provider that it would go to, if there is any.

        Where providers share a stream, the next one that has room takes it. With `joining` it goes in a call to this
        provider that has its room already, or not at all.
        """
        if not joining and (alias := self._plain_choice(item)):
            return self._reserve_at(alias, item)
        full: set[str] = set()
        while not item.verdict:
            choice = self.health.choose(item.message, tried=item.tried | full, planned=self._mails)
            if choice is None or (full and not self.health.settings.provider(choice.alias).weight):
                return not full and not joining  # one that only stands in does not do so for want of room
            alias = choice.alias
            if joining and (alias != joining or choice.is_probe):
                return False
            has_room = joining or self.busy.get(alias, 0) + self._calls[alias] < self._room_at(alias)
            if has_room and self.health.limits.allow(alias, item.message, planned=self._mails[alias]):
                self._mails[alias] += 1
                self._calls[alias] += not joining
                item.reserved, item.is_probe = alias, choice.is_probe
                return True
            if joining or not self.health.is_shared(item.message.stream):
                return False
            full.add(alias)
        return not joining

    def _plain_choice(self, item: Item) -> str:
        """Where it goes if nothing of it needs a second look, as of nearly all; else empty."""
        message = item.message
        if item.verdict or item.tried or message.was_in_doubt:
            return ""
        kind = message.stream, is_bulk(message)
        if kind not in self._plain:
            choice = self.health.choose(message, tried=())
            is_special = choice is None or choice.is_probe or self.health.is_shared(message.stream)
            if choice is None or is_special or self.health.limits.exist_at(choice.alias):
                self._plain[kind] = ""
            else:
                self._plain[kind] = choice.alias
        return self._plain[kind]

    def _reserve_at(self, alias: str, item: Item) -> bool:
        if self.busy.get(alias, 0) + self._calls[alias] >= self._room_at(alias):
            return False
        self._mails[alias] += 1
        self._calls[alias] += 1
        item.reserved, item.is_probe = alias, False
        return True

    def _room_at(self, alias: str) -> int:
        if alias not in self._rooms:
            self._rooms[alias] = self.health.room(alias)
        return self._rooms[alias]


def _may_join(item: Item, call: Call) -> bool:
    first = call.items[0]
    if item.verdict or not _may_have_company(item) or item.message.recipient == first.message.recipient:
        return False
    return item.email is None or first.email is None or can_share_a_call(first.email, item.email)


def _may_have_company(item: Item) -> bool:
    """Whether it is mail of a job, for one recipient, in words that are the same for all, and was never in doubt."""
    message = item.message
    return (
        message.job_id is not None
        and message.priority >= Priority.BULK
        and message.merge_data is None
        and not message.uncertain_count
        and not item.goes_alone
        and not item.is_suspect
    )


def _bytes_that_count(item: Item) -> int:
    return item.size if item.size and item.size >= LARGE_BYTES else 0
