"""What a run costs: time, CPU, memory of a program and its children; statements, commits and WAL of the database."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import psutil
import psycopg
from environment import HOME, ROOT

PUBLISHED_SECONDS = 1.1
"""A backend of PostgreSQL publishes its counters at most once a second, and when it ends."""
SAMPLE_SECONDS = 0.5
"""To look for a program's children costs some milliseconds of the cores that are measured."""
PLUMBING = r"^\s*(begin|commit|rollback|savepoint|release|start transaction|set|show|discard|deallocate)"


class Program:
    """A program under measurement, started at once and stopped with the block; its output goes to `log`."""

    def __init__(self, command: Iterable[object], env: Mapping[str, str], *, log: str) -> None:
        self.log = HOME / "logs" / f"{log}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.started_at = time.time()
        with self.log.open("wb") as file:
            arguments = [str(argument) for argument in command]
            everything = {**os.environ, **env}
            self._process = subprocess.Popen(
                arguments, env=everything, cwd=ROOT, stdout=file, stderr=file, start_new_session=True
            )
        self.returncode: int | None = None
        self.ended_at = self.cpu_seconds = 0.0
        self.memory = _Memory(self._process.pid)
        self.memory.start()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def seconds(self) -> float:
        return self.ended_at - self.started_at

    def is_running(self) -> bool:
        if self.returncode is None:
            self._reap(os.WNOHANG)
        return self.returncode is None

    def wait(self) -> None:
        if self.returncode is None:
            self._reap(0)

    def stop(self, *, patience_seconds: float = 20) -> None:
        """SIGTERM, and SIGKILL to all of it for one that does not obey."""
        if self.is_running():
            os.kill(self._process.pid, 15)
        deadline = time.monotonic() + patience_seconds
        while self.is_running():
            if time.monotonic() > deadline:
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, 9)
            time.sleep(0.02)

    def _reap(self, flags: int) -> None:
        pid, status, usage = os.wait4(self._process.pid, flags)
        if pid:
            self.ended_at = time.time()
            self.returncode = self._process.returncode = os.waitstatus_to_exitcode(status)
            self.cpu_seconds = usage.ru_utime + usage.ru_stime  # with that of its children
            self.memory.is_done.set()


class _Memory(threading.Thread):
    """The highest resident memory of a program's processes: of the largest one, and of all together."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.is_done = pid, threading.Event()
        self.largest = self.total = 0

    def run(self) -> None:
        with suppress(psutil.Error):
            root = psutil.Process(self.pid)
            while not self.is_done.wait(SAMPLE_SECONDS):
                sizes = [_size(process) for process in [root, *root.children(recursive=True)]]
                self.largest, self.total = max(self.largest, *sizes), max(self.total, sum(sizes))


def _size(process: psutil.Process) -> int:
    with suppress(psutil.Error):
        return int(process.memory_info().rss)
    return 0


@dataclass(frozen=True)
class Costs:
    """What PostgreSQL did between two readings; None where the server doesn't tell."""

    statements: float | None
    commits: float
    syncs: float | None
    wal_bytes: float
    cpu_seconds: float | None

    def each(self, count: int) -> dict[str, float | None]:
        """By message; CPU in seconds by thousand messages."""
        return {
            "statements": None if self.statements is None else self.statements / count,
            "commits": self.commits / count,
            "syncs": None if self.syncs is None else self.syncs / count,
            "wal_bytes": self.wal_bytes / count,
            "database_cpu": None if self.cpu_seconds is None else self.cpu_seconds / count * 1_000,
        }


class PostgresMeter:
    """Reads the counters of one database from a connection to another, so that it doesn't count itself."""

    def __init__(self, connection: psycopg.Connection[tuple[object, ...]], database: str, pid: int | None) -> None:
        self.connection, self.database = connection, database
        self.process = None if pid is None else psutil.Process(pid)

    def start(self) -> None:
        time.sleep(PUBLISHED_SECONDS)
        self._before = self._read()

    def stop(self) -> Costs:
        time.sleep(PUBLISHED_SECONDS)
        after = self._read()
        return Costs(*(None if b is None or a is None else a - b for b, a in zip(self._before, after, strict=True)))  # type: ignore[arg-type]

    def _read(self) -> list[float | None]:
        commits = self._ask("SELECT xact_commit FROM pg_stat_database WHERE datname = %s", self.database)
        wal = self._ask("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')")
        statements = self._ask(
            "SELECT coalesce(sum(calls), 0) FROM pg_stat_statements s JOIN pg_database d ON d.oid = dbid"
            " WHERE datname = %s AND query !~* %s",
            self.database,
            PLUMBING,
        )
        syncs = self._ask("SELECT wal_sync FROM pg_stat_wal")
        return [statements, commits, syncs, wal, self._cpu_seconds()]

    def _ask(self, sql: str, *params: str) -> float | None:
        try:
            row = self.connection.execute(sql, params).fetchone()
        except psycopg.Error:  # an extension that is not loaded, a column of another release, or no right to read it
            return None
        return None if row is None else float(str(row[0]))

    def _cpu_seconds(self) -> float | None:
        if self.process is None:
            return None
        times = self.process.cpu_times()
        total = times.user + times.system + times.children_user + times.children_system
        for child in self.process.children():
            with suppress(psutil.Error):
                total += child.cpu_times().user + child.cpu_times().system
        return float(total)


class NoMeter:
    """For SQLite, which keeps no counters."""

    def start(self) -> None:
        pass

    def stop(self) -> None:
        return None
