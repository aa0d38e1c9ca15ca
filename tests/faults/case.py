"""Cases and where they are registered: `@case` above a function of a `World` and a seeded `Random`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from .oracle import Reckoning

if TYPE_CHECKING:
    from .world import World

POSTGRESQL, SQLITE, MARIADB = "postgresql", "sqlite", "mysql"
"""As Django calls them: `connection.vendor`."""
GROUPS = {
    "P": "C1 Process death",
    "L": "C2 Leases, concurrency, clocks",
    "D": "C3 Database",
    "S": "C4 SMTP",
    "E": "C5 ESP over HTTP",
    "X": "C6 Expansion, content, addresses",
    "A": "C7 API, webhooks, pages",
}
MOST_COPIES = 2
"""Of one message: the first, and one more after an uncertain handover."""


class Missed(Exception):  # noqa: N818 (not a failure: the run is repeated with another seed)
    """The fault did not hit the window that the case is about; the run does not count."""


class Skipped(Exception):  # noqa: N818
    """The case can't be played on this machine."""


@dataclass(frozen=True)
class Run:
    """One run of a case that counts."""

    seed: int
    kills: int
    faults: int
    """Kills, and whatever else was done to it."""
    reckoning: Reckoning
    seconds: float
    notes: tuple[str, ...] = ()
    """Figures that are to be read, and bind nobody: see `World.note()`."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Case:
    """A fault, and what must come of it."""

    code: str
    title: str
    play: Callable[[World, Random], None]
    seeds: int
    """Runs, each with a seed of its own."""
    duplicates: str
    """How many there may be, in words."""
    bound: Callable[[Run], int]
    """The same as a number."""
    databases: tuple[str, ...]
    """Where it makes sense; the first is where it is run by default."""
    quick: bool
    leaves_waiting: bool

    @property
    def group(self) -> str:
        """A key of GROUPS."""
        return self.code[2]

    def objections(self, run: Run) -> list[str]:
        """Why this run is no good, in sentences; none if it is."""
        found = list(run.reckoning.findings)
        bound = self.bound(run)
        if run.reckoning.duplicates > bound:
            found.append(f"{run.reckoning.duplicates} duplicates; at most {bound} were to be: {self.duplicates}")
        if run.reckoning.max_copies > MOST_COPIES:
            found.append(f"{run.reckoning.max_copies} copies of one message")
        if run.reckoning.waiting and not self.leaves_waiting:
            found.append(f"{run.reckoning.waiting} messages are still waiting after the drain")
        return found


@dataclass(frozen=True)
class NotBuilt:
    """A row of the list of faults that has no case, and why."""

    code: str
    title: str
    why: str

    @property
    def group(self) -> str:
        return self.code[2]


def is_meant(code: str, words: Sequence[str]) -> bool:
    """Whether somebody who says `F-P04`, `P04`, `P` or `C1`, or nothing at all, means this case, too."""
    code = code.upper().removeprefix("F-")
    names = {code, code[0], GROUPS[code[0]].split()[0]}
    return not words or any(word.upper().removeprefix("F-") in names for word in words)


CASES: dict[str, Case] = {}
NOT_BUILT: list[NotBuilt] = []


def case(
    code: str,
    title: str,
    *,
    seeds: int = 1,
    duplicates: str = "0",
    bound: Callable[[Run], int] = lambda run: 0,
    databases: tuple[str, ...] = (POSTGRESQL, SQLITE, MARIADB),
    quick: bool = False,
    leaves_waiting: bool = False,
) -> Callable[[Callable[[World, Random], None]], Callable[[World, Random], None]]:
    """Register the function below as a case; see the package's docstring."""

    def register(play: Callable[[World, Random], None]) -> Callable[[World, Random], None]:
        assert code not in CASES, f"there are two cases {code}"
        CASES[code] = Case(code, title, play, seeds, duplicates, bound, databases, quick, leaves_waiting)
        return play

    return register


def not_built(code: str, title: str, why: str) -> None:
    """Register why there is no such case."""
    NOT_BUILT.append(NotBuilt(code, title, why))
