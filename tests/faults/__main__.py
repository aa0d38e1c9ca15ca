"""Plays the cases, each in a process and on a database server of its own, and says what came of them.

    python -m tests.faults [F-P04 | P | C1 ...] [--seeds N] [--seed N] [--database NAME] [--list] [--markdown FILE]

Exits 1 if any case fails, and says how to repeat it. The servers' data, with the migrated database in them, are made
once, and copied for each case.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from .case import CASES, MARIADB, NOT_BUILT, POSTGRESQL, SQLITE, Case, Missed, Skipped, is_meant
from .mariadb import MariaDB
from .postgres import Cluster
from .report import Result, as_lines, write_page
from .servers import DISK, Server, copy_tree

ROOT = Path(__file__).resolve().parent.parent.parent
ENVIRONMENT = {
    "DJANGO_SETTINGS_MODULE": "tests.worker_settings",
    "SECRET_KEY": "test",
    "TEST_MAILERS": '{"default": {"BACKEND": "mailengine.backends.EmailBackend"}}',
    "TEST_MAILENGINE": '{"PROVIDERS": {}}',
}
SERVERS: dict[str, type[Server]] = {POSTGRESQL: Cluster, MARIADB: MariaDB}
"""SQLite is a file:"""
FILE = "faults.sqlite3"
MISSES_ALLOWED = 5
"""Runs that miss their window, for each that hits it."""


def main() -> int:
    options = parsed()
    os.environ.update(ENVIRONMENT)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # servers are stopped, however we are told to end
    if options.prepare:
        return prepare(options.prepare, Path(options.template))
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
    if any(database_of(case, options) == POSTGRESQL for case in chosen) and (why := Cluster.why_not()):
        say(f"Nothing is played: {why}.")
        return 2
    started_at = time.monotonic()
    results = list(play_all(chosen, options))
    missing = [row for row in NOT_BUILT if is_meant(row.code, options.what)]
    for line in as_lines(results, missing):
        say(line)
    say(f"{len(results)} cases in {time.monotonic() - started_at:.0f} s")
    if options.markdown:
        write_page(Path(options.markdown), results, missing)
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
    parser.add_argument("--markdown", metavar="FILE", help="write the tables to this page: docs/reference/faults.md")
    for ours in ("--play", "--prepare", "--template"):  # what a process of ours is told by us
        parser.add_argument(ours, help=argparse.SUPPRESS)
    return parser.parse_args()


# All cases


def play_all(chosen: Sequence[Case], options: argparse.Namespace) -> Iterator[Result]:
    """Play each in a process of its own, some at a time; the results as they come."""
    running: set[subprocess.Popen[str]] = set()
    with own_folder() as folder, ThreadPoolExecutor(options.jobs) as pool:
        try:
            templates = make_templates(chosen, options, folder, pool, running)
            plays = [pool.submit(play_in_process, case, options, templates, running) for case in chosen]
            for done in as_completed(plays):
                result = done.result()
                say(result.line())
                if result.failure:
                    say(f"  {result.failure}\n  Again: python -m tests.faults {result.case.code} --seed {result.seed}")
                yield result
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in running:
                process.terminate()  # they stop their servers
            raise


def database_of(case: Case, options: argparse.Namespace) -> str:
    return str(options.database or case.databases[0])


def make_templates(
    chosen: Sequence[Case],
    options: argparse.Namespace,
    folder: Path,
    pool: ThreadPoolExecutor,
    running: set[subprocess.Popen[str]],
) -> dict[str, Path]:
    """The data of a server with the migrated database, for each kind that several cases are to be played on."""
    wanted = Counter(database_of(case, options) for case in chosen)
    kinds = [kind for kind, count in wanted.items() if count > 1 and not why_not(kind)]

    def make(kind: str) -> Path:
        process = run_ourselves(["--prepare", kind, "--template", str(folder / kind)], running)
        if process.returncode != 0:
            raise RuntimeError(f"no database of {kind} could be made: {process.stderr}")
        return folder / kind

    return dict(zip(kinds, pool.map(make, kinds), strict=True))


def why_not(kind: str) -> str:
    return SERVERS[kind].why_not() if kind in SERVERS else ""


def play_in_process(
    case: Case, options: argparse.Namespace, templates: dict[str, Path], running: set[subprocess.Popen[str]]
) -> Result:
    database = database_of(case, options)
    if database not in case.databases:
        return Result(case, database, skipped=f"makes no sense on {database}")
    if why := why_not(database):
        return Result(case, database, skipped=why)
    arguments = ["--play", case.code, "--database", database]
    for name in ("seeds", "seed"):
        if getattr(options, name) is not None:
            arguments += [f"--{name}", str(getattr(options, name))]
    if database in templates:
        arguments += ["--template", str(templates[database])]
    done = run_ourselves(arguments, running)
    if done.returncode != 0:
        return Result(case, database, failure=f"its process ended with {done.returncode}: {done.stderr[-4_000:]}")
    return Result(case, database, **json.loads(done.stdout.splitlines()[-1]))


def run_ourselves(arguments: Sequence[str], running: set[subprocess.Popen[str]]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.faults", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    running.add(process)
    out, err = process.communicate()
    running.discard(process)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


# One case


def prepare(kind: str, template: Path) -> int:
    """Make the data that servers of this kind begin with."""
    with own_folder() as folder, database(kind, folder) as server:
        from django.db import connection

        connection.close()
        if server is not None:
            server.stop()
        copy_tree(server.data if server else folder / FILE, template)
    return 0


def play_alone(options: argparse.Namespace) -> int:
    """Play one case and print its result as JSON."""
    template = Path(options.template) if options.template else None
    with own_folder() as folder, database(options.database, folder, template) as server:
        from django.db import connection

        version = ".".join(map(str, connection.get_database_version()))
        result = {"version": version, **play_runs(CASES[options.play], options, folder, server)}
    say(json.dumps(result, default=str))
    return 0


def play_runs(case: Case, options: argparse.Namespace, folder: Path, server: Server | None) -> dict[str, Any]:
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
                with World(nursery, run_folder, cluster=server) as world:
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
def own_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mailengine-faults-", dir=DISK) as folder:
        yield Path(folder)


@contextmanager
def database(kind: str, folder: Path, template: Path | None = None) -> Iterator[Server | None]:
    """Django set up on a migrated database of this kind: a copy, if there is a template."""
    with ExitStack() as stack:
        server = stack.enter_context(SERVERS[kind](template)) if kind in SERVERS else None
        if server is None and template is not None:
            copy_tree(template, folder / FILE)
        set_up(server.url if server else f"sqlite:///{folder / FILE}")
        if template is None:
            from django.core.management import call_command

            if server is not None:
                server.create_database()
            call_command("migrate", verbosity=0)
        yield server


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
