"""A database for each run, copied from one that was migrated once: no run finds what another one left."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import psutil
import psycopg
from environment import HOME
from meter import NoMeter, PostgresMeter

NAME, TEMPLATE = "mailengine_bench", "mailengine_bench_template"
Child = Callable[..., subprocess.CompletedProcess[str]]


class Postgres:
    vendor = "postgresql"

    def __init__(self, dsn: str, pid: int | None, remark: str) -> None:
        self.dsn, self.remark = dsn, remark
        self.connection = _connection(dsn)
        self.pid = pid or _process_of(self.connection)
        with suppress(psycopg.Error):
            self.connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")

    @property
    def spec(self) -> str:
        """For the settings module."""
        return self._spec(NAME)

    @property
    def version(self) -> str:
        number = self.connection.execute("SHOW server_version").fetchone()
        fsync = self.connection.execute("SHOW fsync").fetchone()
        if number is None or fsync is None:
            raise RuntimeError("PostgreSQL does not tell its version")
        return f"PostgreSQL {str(number[0]).split()[0]}, fsync {fsync[0]}, {self.remark}"

    def prepare(self, run: Child) -> None:
        """Make the template; `run` runs a program under the bench's settings."""
        from engines.procrastinate import WORDS_TABLE
        from ledger import TABLES

        self._create(TEMPLATE)
        spec = self._spec(TEMPLATE)
        run([sys.executable, "manage.py", "migrate", "--verbosity", "0"], BENCH_DATABASE=spec)
        schema = ["-m", "procrastinate", "--app=engines.procrastinate_tasks.app", "schema", "--apply"]
        run([sys.executable, *schema], BENCH_DATABASE=spec)
        with psycopg.connect(spec.partition(":")[2], autocommit=True) as connection:
            connection.execute(WORDS_TABLE)
            connection.execute(TABLES)

    def fresh(self) -> None:
        self._create(NAME, f"TEMPLATE {TEMPLATE}")

    def settle(self) -> None:
        """Nothing of what was written before is left to do for the database while it is measured."""
        with psycopg.connect(self.spec.partition(":")[2], autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")
        with suppress(psycopg.Error):
            self.connection.execute("CHECKPOINT")

    def ask(self, sql: str) -> int:
        with psycopg.connect(self.spec.partition(":")[2], autocommit=True) as connection:
            row = connection.execute(sql).fetchone()
            return int(row[0]) if row else 0

    def size(self) -> int:
        return self.ask("SELECT pg_database_size(current_database())")

    def meter(self) -> PostgresMeter:
        return PostgresMeter(self.connection, NAME, self.pid)

    def close(self) -> None:
        for name in (NAME, TEMPLATE):
            self.connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        self.connection.close()

    def _create(self, name: str, ending: str = "") -> None:
        self.connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        for patience in (1, 2, 3, 0):
            try:
                self.connection.execute(f"CREATE DATABASE {name} {ending}")
                return
            except psycopg.errors.ObjectInUse:  # autovacuum looks at the template at this moment
                if not patience:
                    raise
                time.sleep(patience)

    def _spec(self, name: str) -> str:
        parts = psycopg.conninfo.conninfo_to_dict(self.dsn) | {"dbname": name}
        return f"postgresql:{psycopg.conninfo.make_conninfo(**parts)}"


def _connection(dsn: str) -> psycopg.Connection[tuple[object, ...]]:
    """Of a server that may still be starting."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return psycopg.connect(dsn, autocommit=True)
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _process_of(connection: psycopg.Connection[tuple[object, ...]]) -> int | None:
    """The id of the server's main process, where it runs on this machine."""
    with suppress(psutil.Error):
        parent = psutil.Process(connection.info.backend_pid).parent()
        if parent and "postgres" in parent.name():
            return int(parent.pid)
    return None


class Sqlite:
    vendor = "sqlite"
    version = f"SQLite {sqlite3.sqlite_version}, WAL, synchronous FULL"

    def __init__(self, folder: Path = HOME) -> None:
        self.file, self.template = folder / "bench.sqlite3", folder / "template.sqlite3"

    @property
    def spec(self) -> str:
        return f"sqlite:{self.file}"

    def prepare(self, run: Child) -> None:
        _remove(self.template)
        command = [sys.executable, "manage.py", "migrate", "--verbosity", "0"]
        run(command, BENCH_DATABASE=f"sqlite:{self.template}")
        with closing(sqlite3.connect(self.template)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def fresh(self) -> None:
        _remove(self.file)
        shutil.copy(self.template, self.file)

    def settle(self) -> None:
        with closing(sqlite3.connect(self.file)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.execute("ANALYZE")
            connection.commit()

    def ask(self, sql: str) -> int:
        with closing(sqlite3.connect(self.file, timeout=30)) as connection:
            return int(connection.execute(sql).fetchone()[0])

    def meter(self) -> NoMeter:
        return NoMeter()

    def close(self) -> None:
        _remove(self.file)
        _remove(self.template)


def _remove(file: Path) -> None:
    for path in file.parent.glob(f"{file.name}*"):
        path.unlink()
