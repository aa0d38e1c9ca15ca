"""Whom a job is for, by name: functions that the project registers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

from django.db.models import QuerySet

from ..errors import UnknownAudience

Entry = str | tuple[str, Mapping[str, object]]
"""An address, or an address with its merge data."""
Entries = Callable[[], Iterable[Entry]]

COUNTED = 10_000
"""How many entries are counted one by one, where an audience has no quicker way to say how many it has."""


@dataclass(frozen=True)
class Size:
    """How many an audience has; `at_least` where counting stopped early."""

    number: int
    at_least: bool = False


@dataclass(frozen=True)
class Audience:
    """A named source of recipients."""

    name: str
    entries: Entries
    count: Callable[[], int] | None = None

    def size(self) -> Size:
        """How many it has now, without loading them all."""
        if self.count is not None:
            return Size(self.count())
        entries = self.entries()
        if isinstance(entries, QuerySet):
            return Size(entries.count())
        if isinstance(entries, list | tuple):
            return Size(len(entries))
        number = sum(1 for _entry in islice(entries, COUNTED + 1))
        return Size(min(number, COUNTED), at_least=number > COUNTED)


_audiences: dict[str, Audience] = {}


def audience(name: str, *, count: Callable[[], int] | None = None) -> Callable[[Entries], Entries]:
    """Register a function that yields the addresses of an audience, or pairs of (address, merge data).

    It is called when a job for it is expanded, and again should that be interrupted: the order must be stable, so
    order by a key that doesn't change. `count` tells quickly how many there are, for the admin's confirmation page.

    Raises ValueError for a name that `queue_job()` would take for addresses.
    """
    if not name or not is_name(name):
        raise ValueError(f"{name!r} is no name of an audience. Use letters, digits, hyphens and the like.")

    def register(entries: Entries) -> Entries:
        _audiences[name] = Audience(name, entries, count)
        return entries

    return register


def find_audience(name: str) -> Audience:
    """The audience of this name. Raises `UnknownAudience`."""
    try:
        return _audiences[name]
    except KeyError:
        raise UnknownAudience(name, known=_audiences) from None


def is_name(text: str) -> bool:
    """Whether a text is the name of an audience, rather than addresses."""
    return "@" not in text and not any(character in ",;" or character.isspace() for character in text)


def audience_names() -> list[str]:
    """Those that are registered, in alphabetical order."""
    return sorted(_audiences)
