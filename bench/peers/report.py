"""From rows to what people read: tables in Markdown, the goals with what was reached, a drawing in SVG.

Values in, text out: nothing here measures anything, and nothing but the standard library is needed.
"""

from __future__ import annotations

import html
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
PROVIDER_RATE = 64 / 0.05
MB = 1e6


@dataclass(frozen=True)
class Spread:
    """The median of some runs, and both ends."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        numbers = list(values)
        return cls(statistics.median(numbers), min(numbers), max(numbers))

    def text(self, digits: int = 0) -> str:
        median, lowest, highest = (f"{number:,.{digits}f}" for number in (self.median, self.lowest, self.highest))
        return median if lowest == highest else f"{median} ({lowest} to {highest})"


class Found:
    """All rows of a run, by case and engine."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows: dict[str, dict[str, list[Row]]] = {}
        for row in rows:
            self._rows.setdefault(row["case"], {}).setdefault(row["engine"], []).append(row)

    def engines(self, case: str) -> list[str]:
        return list(self._rows.get(case, {}))

    def spread(self, case: str, engine: str, name: str) -> Spread | None:
        """None where it wasn't measured."""
        values = [row[name] for row in self._rows.get(case, {}).get(engine, []) if row.get(name) is not None]
        return Spread.of(values) if values else None

    def median(self, case: str, engine: str, name: str = "rate") -> float | None:
        found = self.spread(case, engine, name)
        return found.median if found else None

    def best(self, case: str, engines: Iterable[str], name: str = "rate") -> tuple[str, float] | None:
        """The engine with the highest median, and that."""
        rates = {engine: rate for engine in engines if (rate := self.median(case, engine, name)) is not None}
        return max(rates.items(), key=lambda item: item[1]) if rates else None


# Tables


@dataclass(frozen=True)
class Column:
    title: str
    name: str
    digits: int = 0
    unit: float = 1

    def cell(self, found: Found, case: str, engine: str) -> str:
        spread = found.spread(case, engine, self.name)
        if spread is None:
            return ""
        scaled = Spread(spread.median / self.unit, spread.lowest / self.unit, spread.highest / self.unit)
        return scaled.text(self.digits) if self.name in SPREAD else f"{scaled.median:,.{self.digits}f}"


SPREAD = {"rate", "p50", "p99", "seconds"}
"""What is shown with both ends; of the rest the median says enough."""
_COST = [
    Column("statements", "statements", 2),
    Column("commits", "commits", 2),
    Column("flushes", "syncs", 2),
    Column("WAL bytes", "wal_bytes"),
]
_DRAIN = [
    Column("mails", "count"),
    Column("mails/s", "rate"),
    Column("first to last", "steady_rate"),
    *_COST,
    Column("CPU", "cpu", 2),
    Column("database CPU", "database_cpu", 2),
    Column("memory", "rss_total", unit=MB),
]
_QUEUE = [
    Column("mails", "count"),
    Column("mails/s", "rate"),
    *_COST,
    Column("stored bytes", "bytes"),
    Column("CPU", "cpu", 2),
    Column("memory", "rss", unit=MB),
]
TABLES: dict[str, tuple[str, str, list[Column]]] = {
    "drain": ("Draining into a local server", "PostgreSQL; one mail to many, queued beforehand.", _DRAIN),
    "singles": ("Draining mails that were queued one by one", "PostgreSQL; each has words of its own.", _DRAIN),
    "slow": (
        "Draining into a provider that answers after 50 ms",
        "PostgreSQL; the server is a Python program on the same cores.",
        _DRAIN,
    ),
    "grow": (
        "One, two and four processes",
        "PostgreSQL; into the provider that answers after 50 ms, 16 connections in each process.",
        _DRAIN,
    ),
    "sqlite": ("Draining from SQLite", "One process; into the same local server.", _DRAIN),
    "urgent": (
        "Urgent mail while bulk mail is sent",
        "Seconds from its commit to its arrival; four a second. A command is started again as soon as it ends.",
        [
            Column("bulk mails", "count"),
            Column("urgent", "urgent"),
            Column("p50", "p50", 3),
            Column("p90", "p90", 3),
            Column("p99", "p99", 3),
            Column("longest", "longest", 3),
        ],
    ),
    "memory": (
        "Memory of a worker",
        "The largest of its processes, in MB, with 1,000 mails queued and with many.",
        [
            Column("many", "queued"),
            Column("with 1,000", "rss_of_1000", unit=MB),
            Column("with many", "rss", unit=MB),
            Column("growth", "growth", unit=MB),
        ],
    ),
    "queue_many": ("Queueing one mail to many", "PostgreSQL. mailengine keeps a job, which is expanded later.", _QUEUE),
    "queue_each": ("Queueing mails one by one", "PostgreSQL; a commit for each.", _QUEUE),
    "expand": ("Expanding a job into messages", "PostgreSQL; beside it the database's own ways.", _QUEUE),
}


def tables(rows: Sequence[Row], titles: Mapping[str, str]) -> str:
    """A section with a table for each case that was measured. Columns that nothing was measured for are left out."""
    found, sections = Found(rows), []
    for case, (title, remark, columns) in TABLES.items():
        engines = found.engines(case)
        if not engines:
            continue
        cells = {column: [column.cell(found, case, engine) for engine in engines] for column in columns}
        shown = [column for column in columns if any(cells[column])]
        lines = [
            [titles.get(engine, engine), *(cells[column][number] for column in shown)]
            for number, engine in enumerate(engines)
        ]
        table = _table(["", *(column.title for column in shown)], lines)
        sections.append(f"## {title}\n\n{remark}\n\n{table}")
    return "\n\n".join(sections)


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))


# Goals


@dataclass(frozen=True)
class Goal:
    """A figure to reach, and what was measured: None where it was not."""

    what: str
    target: float
    unit: str
    measured: float | None
    detail: str = ""
    is_limit: bool = False
    """It must not be more, rather than not less."""

    @property
    def is_reached(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured <= self.target if self.is_limit else self.measured >= self.target

    def cells(self) -> list[str]:
        reach = f"{'at most ' if self.is_limit else ''}{self.target:g} {self.unit}"
        if self.measured is None:
            return [self.what, reach, "not measured", ""]
        number = f"{self.measured:,.2f} {self.unit}"
        return [self.what, reach, f"{number}{f': {self.detail}' if self.detail else ''}", _VERDICTS[self.is_reached]]


_VERDICTS = {True: "yes", False: "no", None: ""}


def goals(rows: Sequence[Row], products: Mapping[str, str], own_words: Iterable[str]) -> list[Goal]:
    """What mailengine is to reach, beside what it reached in this run.

    `products` gives each engine's product; `own_words` are the engines whose mails each bring their own words.
    """
    found = Found(rows)

    def ours(case: str) -> list[str]:
        return [engine for engine in found.engines(case) if products.get(engine) == "mailengine"]

    def peers(case: str) -> list[str]:
        return [e for e in found.engines(case) if products.get(e, "limit") not in ("mailengine", "limit")]

    def ratio(what: str, target: float, unit: str, case: str, others: Iterable[str], other_case: str = "") -> Goal:
        mine, best = found.best(case, ours(case)), found.best(other_case or case, others)
        if mine is None or best is None:
            return Goal(what, target, unit, None)
        return Goal(what, target, unit, mine[1] / best[1], f"{mine[1]:,.0f}/s to {best[1]:,.0f}/s of {best[0]}")

    clients = [engine for engine in found.engines("drain") if engine.startswith("smtp-source")]
    wordy = [engine for engine in peers("drain") if engine in set(own_words)]
    return [
        ratio("draining mails of a job", 4, "x the best peer", "drain", peers("drain")),
        ratio("draining mails of a job", 0.4, "x smtp-source", "drain", clients),
        ratio("draining from SQLite, one process", 3, "x the best peer", "sqlite", peers("sqlite")),
        ratio("draining single mails", 1.5, "x the best peer", "singles", wordy, "drain"),
        _slow_goal(found, ours("slow")),
        _growth_goal(found),
        ratio("expanding a job", 0.25, "x INSERT … SELECT unnest", "expand", ["narrow_unnest"]),
        _queue_goal(found),
        *_urgent_goals(found, ours("urgent")),
        *_memory_goals(found, ours("memory")),
    ]


def _slow_goal(found: Found, engines: list[str]) -> Goal:
    what, unit = "a provider of 50 ms, 64 connections in one process", "x 64 / 0.05 s"
    mine = found.best("slow", engines)
    if mine is None:
        return Goal(what, 0.8, unit, None)
    return Goal(what, 0.8, unit, mine[1] / PROVIDER_RATE, f"{mine[1]:,.0f}/s")


def _growth_goal(found: Found) -> Goal:
    """From the first mail to the last: to start a process is not what grows."""
    what, unit = "two processes for one, a provider of 50 ms", "x"
    one, two = (found.median("grow", f"mailengine-{number}x16", "steady_rate") for number in (1, 2))
    if not one or not two:
        return Goal(what, 1.7, unit, None)
    return Goal(what, 1.7, unit, two / one, f"{two:,.0f}/s to {one:,.0f}/s")


def _queue_goal(found: Found) -> Goal:
    what, unit = "`queue_mail()` one at a time", "x the same rows by the ORM"
    mine, bare = found.median("queue_each", "mailengine"), found.median("queue_each", "orm_rows")
    if not mine or not bare:
        return Goal(what, 2, unit, None, is_limit=True)
    return Goal(what, 2, unit, bare / mine, f"{1_000 / mine:.2f} ms to {1_000 / bare:.2f} ms", is_limit=True)


def _urgent_goals(found: Found, engines: list[str]) -> list[Goal]:
    engine = "mailengine-worker" if "mailengine-worker" in engines else next(iter(engines), "")
    return [
        Goal(f"urgent mail during a drain, {name}", most, "s", found.median("urgent", engine, name), is_limit=True)
        for name, most in (("p50", 0.1), ("p99", 1.0))
    ]


def _memory_goals(found: Found, engines: list[str]) -> list[Goal]:
    engine = "mailengine-worker-1" if "mailengine-worker-1" in engines else next(iter(engines), "")
    size, growth = found.median("memory", engine, "rss"), found.median("memory", engine, "growth")
    queued = found.median("memory", engine, "queued")
    many = f"{queued:,.0f}" if queued else "many"
    return [
        Goal(f"memory of a worker, {many} queued", 120, "MB", _in_mb(size), is_limit=True),
        Goal(f"its growth from 1,000 to {many} queued", 10, "MB", _in_mb(growth), is_limit=True),
    ]


def _in_mb(size: float | None) -> float | None:
    return None if size is None else size / MB


def goals_table(reached: Iterable[Goal]) -> str:
    return _table(["what", "reach", "measured", "reached"], [goal.cells() for goal in reached])


# The drawing


@dataclass(frozen=True)
class Panel:
    """Bars of one case, longest first."""

    title: str
    case: str
    name: str = "rate"
    unit: str = "/s"
    digits: int = 0
    shorter_is_better: bool = False


PANELS = [
    Panel("Mails a second into a local server", "drain"),
    Panel("Mails a second into a provider that answers after 50 ms", "slow"),
    Panel("Mails a second from SQLite, one process", "sqlite"),
    Panel("Seconds until half of the urgent mail has arrived while bulk mail is sent", "urgent", "p50", " s", 2, True),
]
WIDTH, LABELS, NUMBERS, BAR, STEP = 860, 390, 80, 14, 22

STYLE = """
    text { font: 13px system-ui, sans-serif; fill: #1f2328 }
    .title { font-weight: 600; font-size: 14px }
    .mailengine { fill: #0969da }
    .peer { fill: #8c959f }
    .limit { fill: none; stroke: #8c959f; stroke-dasharray: 3 2 }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 }
      .mailengine { fill: #4493f8 }
    }
"""


def drawing(rows: Sequence[Row], titles: Mapping[str, str], products: Mapping[str, str]) -> str:
    """The main figures as bars: ours in colour, the peers in grey, the machine's limits dashed."""
    found, parts, y = Found(rows), [], 8
    for panel in PANELS:
        bars = [(engine, found.median(panel.case, engine, panel.name)) for engine in found.engines(panel.case)]
        known = [(engine, value) for engine, value in bars if value is not None]
        if not known:
            continue
        known.sort(key=lambda bar: bar[1], reverse=not panel.shorter_is_better)
        longest = max(value for _engine, value in known) or 1
        parts.append(f'<text class="title" x="0" y="{y + 14}">{html.escape(panel.title)}</text>')
        y += 26
        for engine, value in known:
            product = products.get(engine, "limit")
            kind = product if product in ("mailengine", "limit") else "peer"
            length = max((WIDTH - LABELS - NUMBERS) * value / longest, 1)
            label, end = html.escape(_short(titles.get(engine, engine))), LABELS + length
            parts += [
                f'<text x="{LABELS - 8}" y="{y + 11}" text-anchor="end">{label}</text>',
                f'<rect class="{kind}" x="{LABELS}" y="{y}" width="{length:.1f}" height="{BAR}"/>',
                f'<text x="{end + 6:.1f}" y="{y + 11}">{value:,.{panel.digits}f}{panel.unit}</text>',
            ]
            y += STEP
        y += 16
    words = "; ".join(_in_words(found, panel, titles) for panel in PANELS if found.engines(panel.case))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" role="img">\n'
        f"<title>{html.escape(words)}</title>\n<style>{STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _short(title: str) -> str:
    """A product and the first thing that is said of it; the tables say the rest."""
    return ", ".join(title.split(", ")[:2])


def _in_words(found: Found, panel: Panel, titles: Mapping[str, str]) -> str:
    """For who can't see it."""
    values = ((engine, found.median(panel.case, engine, panel.name)) for engine in found.engines(panel.case))
    return f"{panel.title}: " + ", ".join(
        f"{titles.get(engine, engine)} {value:,.{panel.digits}f}{panel.unit}"
        for engine, value in values
        if value is not None
    )


def put_between_markers(page: str, text: str) -> str:
    """The page with this text in place of what stood between the markers."""
    if BEGIN not in page or END not in page:
        raise ValueError(f"the page has no place for the figures: it needs {BEGIN} and {END}")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    return f"{before}{BEGIN}\n\n{text.strip()}\n\n{END}{after}"
