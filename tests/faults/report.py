"""What came of the cases: as a table to look at, and as the tables of docs/reference/faults.md."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import django

from .case import GROUPS, MARIADB, POSTGRESQL, SQLITE, Case, NotBuilt

COLUMNS = ("case", "fault", "messages", "faults", "lost", "duplicates", "at most", "stuck")
NAMES = {POSTGRESQL: "PostgreSQL", MARIADB: "MariaDB", SQLITE: "SQLite"}
MARK = '<!-- What follows is written by: make faults ARGS="--markdown docs/reference/faults.md" -->'


@dataclass(frozen=True)
class Result:
    """What came of all runs of a case, or why there are none."""

    case: Case
    database: str
    runs: Sequence[Mapping[str, Any]] = ()
    failure: str = ""
    seed: int = 0
    """Of the run that failed."""
    skipped: str = ""
    version: str = ""
    """Of the database's server."""

    @property
    def is_good(self) -> bool:
        return not self.failure

    @property
    def verdict(self) -> str:
        if self.skipped:
            return f"skipped: {self.skipped}"
        return "ok" if self.is_good else f"FAILED with seed {self.seed}"

    @property
    def notes(self) -> list[str]:
        return [note for run in self.runs for note in run["notes"]]

    def row(self) -> tuple[str, ...]:
        """As the columns have it."""
        where = "" if self.database == POSTGRESQL else f" ({NAMES[self.database]})"
        what = self.case.code, f"{self.case.title}{where}"
        if not self.runs:
            return (*what, *["-"] * 6)
        return (
            *what,
            f"{self._sum('message_count'):,}",
            f"{sum(run['faults'] for run in self.runs):,}",
            f"{self._count('lost'):,}",
            f"{self._sum('duplicates'):,}",
            self.case.duplicates,
            f"{self._count('stuck'):,}",
        )

    def line(self) -> str:
        """To be read while the others are played."""
        row = dict(zip(COLUMNS, self.row(), strict=True))
        figures = [f"{row[name]} {name}" for name in ("faults", "lost", "duplicates", "stuck")]
        seconds = f"{sum(run['seconds'] for run in self.runs):.0f} s"
        return "  ".join([self.case.code, self.verdict, f"{len(self.runs)} runs", *figures, seconds])

    def _sum(self, name: str) -> int:
        return sum(run["reckoning"][name] for run in self.runs)

    def _count(self, name: str) -> int:
        return sum(len(run["reckoning"][name]) for run in self.runs)


def in_order(results: Sequence[Result]) -> list[Result]:
    """By group and code."""
    return sorted(results, key=lambda result: (list(GROUPS).index(result.case.group), result.case.code))


def as_lines(results: Sequence[Result], missing: Sequence[NotBuilt]) -> Iterator[str]:
    """The table, and what is not in it."""
    results = in_order(results)
    rows = [(*COLUMNS, "runs", ""), *((*result.row(), str(len(result.runs)), result.verdict) for result in results)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    yield ""
    for result in results:
        yield from (f"{result.case.code}: {note}" for note in result.notes)
    yield from (f"{absent.code} is not played: {absent.title}. {absent.why}" for absent in missing)


def write_page(path: Path, results: Sequence[Result], missing: Sequence[NotBuilt]) -> None:
    """Write the tables to this page, in the place of those that it has; what stands above them stays."""
    prose = path.read_text().partition(MARK)[0].rstrip() if path.exists() else "# Faults"
    path.write_text("\n".join([prose, "", MARK, "", *as_markdown(results, missing)]) + "\n")


def as_markdown(results: Sequence[Result], missing: Sequence[NotBuilt]) -> Iterator[str]:
    """A table for each group, its notes, and what is not in it."""
    yield f"Figures of {_today()}, on {_machine(results)}."
    for letter, name in GROUPS.items():
        mine = [result for result in in_order(results) if result.case.group == letter]
        absent = [row for row in missing if row.group == letter]
        if not mine and not absent:
            continue
        yield from ("", f"## {name.partition(' ')[2]}")
        if mine:
            yield from ("", _cells(COLUMNS), f"|{'---|' * len(COLUMNS)}")
        for result in mine:
            code, title, *rest = result.row()
            yield _cells((code, title if result.verdict == "ok" else f"{title}; **{result.verdict}**", *rest))
        remarks = [f"- {result.case.code}: {note}" for result in mine for note in result.notes]
        remarks += [f"- {row.code} is not played: {row.title}. {row.why}" for row in absent]
        if remarks:
            yield from ("", *remarks)


def _cells(row: Sequence[str]) -> str:
    return f"| {' | '.join(row)} |"


def _today() -> str:
    today = datetime.now(timezone.utc)
    return f"{today.day} {today:%B %Y}"


def _machine(results: Sequence[Result]) -> str:
    found = {result.database: result.version for result in results if result.runs}
    databases = [f"{name} {found[kind]}" for kind, name in NAMES.items() if kind in found]
    versions = f"Python {platform.python_version()}", f"Django {django.__version__}", *databases
    return f"{os.cpu_count()} cores: {', '.join(versions)}"
