"""Plays the cases, each in a process and on a database server of its own, and says what came of them.

    python -m tests.faults [F-P04 | P | C1 ...] [--seeds N] [--seed N] [--database NAME] [--list] [--markdown FILE]

Exits 1 if any case fails, and says how to repeat it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import mariadb
from .case import CASES, MARIADB, NOT_BUILT, POSTGRESQL, SQLITE, Case, Missed, NotBuilt, Skipped, is_meant
from .mariadb import MariaDB
from .postgres import Cluster, find_programs

ROOT = Path(__file__).resolve().parent.parent.parent
ENVIRONMENT = {
    "DJANGO_SETTINGS_MODULE": "tests.worker_settings",
    "SECRET_KEY": "test",
    "TEST_MAILERS": '{"default": {"BACKEND": "mailengine.backends.EmailBackend"}}',
    "TEST_MAILENGINE": '{"PROVIDERS": {}}',
}
DISK = "/var/tmp"  # noqa: S108 (not /tmp: that is memory on many machines)
MISSES_ALLOWED = 5
"""Runs that miss their window, for each that hits it."""
COLUMNS = ("case", "what", "runs", "messages", "faults", "lost", "duplicates", "bound", "stuck", "ok")


@dataclass(frozen=True)
class Result:
    """What came of all runs of a case, or why there are none."""

    case: Case
    runs: Sequence[Mapping[str, Any]] = ()
    failure: str = ""
    seed: int = 0
    """Of the run that failed."""
    skipped: str = ""

    @property
    def is_good(self) -> bool:
        return not self.failure

    def row(self) -> tuple[str, ...]:
        """As the columns have it."""
        if self.skipped:
            return (self.case.code, self.case.title, *["-"] * 7, f"skipped: {self.skipped}")
        ok = "ok" if self.is_good else f"FAILED with seed {self.seed}"
        return (
            self.case.code,
            self.case.title,
            str(len(self.runs)),
            f"{self._sum('message_count'):,}",
            f"{sum(run['faults'] for run in self.runs):,}",
            str(sum(len(run["reckoning"]["lost"]) for run in self.runs)),
            str(self._sum("duplicates")),
            self.case.duplicates,
            str(sum(len(run["reckoning"]["stuck"]) for run in self.runs)),
            ok,
        )

    def _sum(self, name: str) -> int:
        return sum(run["reckoning"][name] for run in self.runs)


def main() -> int:
    options = parsed()
    os.environ.update(ENVIRONMENT)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # servers are stopped, however we are told to end
    if options.play:
        return play_alone(options)
    set_up("sqlite:///:memory:")
    chosen = [case for case in CASES.values() if is_meant(case.code, options.what)]
    if options.list or not chosen:
        for case in chosen:
            say(f"{case.code}  {case.title} ({case.seeds} runs; duplicates: {case.duplicates})")
        if not chosen:
            say(f"No case is called {' or '.join(options.what)}; --list names them all.")
        return 0 if chosen else 2
    try:
        find_programs()
    except FileNotFoundError as error:
        say(str(error))
        return 2
    started_at = time.monotonic()
    results = list(play_all(chosen, options))
    results.sort(key=lambda result: list(CASES).index(result.case.code))
    missing = [row for row in NOT_BUILT if is_meant(row.code, options.what)]
    for line in report(results, missing, markdown=False):
        say(line)
    say(f"{len(results)} cases in {time.monotonic() - started_at:.0f} s")
    if options.markdown:
        Path(options.markdown).write_text("\n".join(report(results, missing, markdown=True)) + "\n")
    return 0 if all(result.is_good for result in results) else 1


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Play faults against real workers.")
    parser.add_argument("what", nargs="*", help="codes (F-P04, P04) or groups (P, C1); all by default")
    parser.add_argument("--list", action="store_true", help="name the cases, and play none")
    parser.add_argument("--seeds", type=int, metavar="N", help="runs of each case; default: what it says itself")
    parser.add_argument("--seed", type=int, metavar="N", help="one run, with this seed: to repeat a failure")
    parser.add_argument(
        "--database", choices=[POSTGRESQL, SQLITE, MARIADB], help="default: the first that a case names"
    )
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="cases at a time; default: %(default)s")
    parser.add_argument("--markdown", metavar="FILE", help="write the table there, too")
    parser.add_argument("--play", metavar="CODE", help=argparse.SUPPRESS)
    return parser.parse_args()


# All cases


def play_all(chosen: Sequence[Case], options: argparse.Namespace) -> Iterator[Result]:
    """Play each in a process of its own, some at a time; the results as they come."""
    running: set[subprocess.Popen[str]] = set()
    with ThreadPoolExecutor(options.jobs) as pool:
        plays = [pool.submit(play_in_process, case, options, running) for case in chosen]
        try:
            for done in as_completed(plays):
                result = done.result()
                row = dict(zip(COLUMNS, result.row(), strict=True))
                say(
                    "  ".join(
                        row[name] if name in {"case", "ok"} else f"{row[name]} {name}"
                        for name in ("case", "ok", "runs", "faults", "lost", "duplicates", "stuck")
                    )
                    + f"  {sum(run['seconds'] for run in result.runs):.0f} s"
                )
                if result.failure:
                    say(f"  {result.failure}\n  Again: python -m tests.faults {result.case.code} --seed {result.seed}")
                yield result
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in running:
                process.terminate()  # they stop their servers
            raise


def play_in_process(case: Case, options: argparse.Namespace, running: set[subprocess.Popen[str]]) -> Result:
    database = options.database or case.databases[0]
    if database not in case.databases:
        return Result(case, skipped=f"makes no sense on {database}")
    if database == MARIADB and (why := _why_no_mariadb()):
        return Result(case, skipped=why)
    command = [sys.executable, "-m", "tests.faults", "--play", case.code, "--database", database]
    for name in ("seeds", "seed"):
        if getattr(options, name) is not None:
            command += [f"--{name}", str(getattr(options, name))]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    running.add(process)
    out, err = process.communicate()
    running.discard(process)
    if process.returncode != 0:
        return Result(case, failure=f"its process ended with {process.returncode}: {err[-4_000:]}")
    return Result(case, **json.loads(out.splitlines()[-1]))


def _why_no_mariadb() -> str:
    if importlib.util.find_spec("MySQLdb") is None:
        return "mysqlclient is not installed"
    return "" if mariadb.is_installed() else "no MariaDB server is installed"


def report(results: Sequence[Result], missing: Sequence[NotBuilt], *, markdown: bool) -> Iterator[str]:
    """The table, and what is not in it."""
    rows = [COLUMNS, *(result.row() for result in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    for number, row in enumerate(rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        yield f"| {' | '.join(cells)} |" if markdown else "  ".join(cells).rstrip()
        if markdown and number == 0:
            yield f"|{'|'.join('-' * (width + 2) for width in widths)}|"
    yield ""
    for result in results:
        for note in (note for run in result.runs for note in run["notes"]):
            yield f"{'- ' if markdown else ''}{result.case.code}: {note}"
    for absent in missing:
        yield f"{'- ' if markdown else ''}{absent.code} is not played: {absent.title}. {absent.why}"


# One case


def play_alone(options: argparse.Namespace) -> int:
    """Play one case and print its result as JSON."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mailengine-faults-", dir=DISK)))
        cluster = stack.enter_context(database(options.database, folder))
        result = play_runs(CASES[options.play], options, folder, cluster)
    say(json.dumps(result, default=str))
    return 0


def play_runs(
    case: Case, options: argparse.Namespace, folder: Path, cluster: Cluster | MariaDB | None
) -> dict[str, Any]:
    from .workers import Nursery
    from .world import World, forget_everything, play

    wanted = 1 if options.seed is not None else options.seeds or case.seeds
    seed = options.seed if options.seed is not None else 1
    runs: list[dict[str, Any]] = []
    misses = 0
    nursery = Nursery()
    try:
        while len(runs) < wanted:
            (run_folder := folder / f"{seed}").mkdir()
            try:
                with World(nursery, run_folder, cluster=cluster) as world:
                    runs.append(play(case, world, seed=seed).as_dict())
            except Missed as missed:
                misses += 1
                if misses > MISSES_ALLOWED * wanted:
                    return {"runs": runs, "failure": f"{misses} runs missed their window: {missed}", "seed": seed}
            except Skipped as skipped:
                return {"skipped": str(skipped)}
            except AssertionError as error:
                return {"runs": runs, "failure": _words_of(error), "seed": seed}
            seed += 1
            forget_everything()
    finally:
        nursery.close()
    return {"runs": runs}


def _words_of(error: AssertionError) -> str:
    """What it says, and where it was raised: many say nothing else."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{str(error) or place.line} ({Path(place.filename).name}, line {place.lineno})"


@contextmanager
def database(name: str, folder: Path) -> Iterator[Cluster | MariaDB | None]:
    """Django set up on a new and migrated database of this kind."""
    with ExitStack() as stack:
        servers = {POSTGRESQL: Cluster, MARIADB: MariaDB}
        cluster = stack.enter_context(servers[name]()) if name in servers else None
        set_up(f"sqlite:///{folder}/faults.sqlite3" if cluster is None else cluster.url)
        from django.db import connection

        connection.settings_dict["TEST"]["NAME"] = (
            f"{folder}/test.sqlite3" if name == SQLITE else f"mailengine_faults_{os.getpid()}"
        )
        before = connection.settings_dict["NAME"]
        connection.creation.create_test_db(verbosity=0, autoclobber=True, serialize=False)
        if cluster is None:
            stack.callback(connection.creation.destroy_test_db, before, verbosity=0)
        yield cluster


def set_up(url: str) -> None:
    """Django with the settings of a worker; and the cases, which need it."""
    os.environ["DATABASE_URL"] = url
    import django

    django.setup()
    from . import cases

    cases.load()


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
