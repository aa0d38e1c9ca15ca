"""One clock for everybody: the database's, in UTC.

Hosts' clocks differ; leases, due times and windows are compared by the one clock that all of them share. Python's own
clock is used for nothing but how long something took.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from typing import Any

from django.db import connections, models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.sql.compiler import SQLCompiler

_offset_seconds = 0.0
_stopped_at: datetime | None = None


def set_offset(seconds: float) -> None:
    """Shift the clock by so many seconds. For `mailengine.testing` alone: it is the clock of tests."""
    global _offset_seconds
    _offset_seconds = seconds


def stop_at(instant: datetime | None) -> None:
    """Let the clock stand still at this instant, or go on again: None. For `mailengine.testing` alone."""
    global _stopped_at
    _stopped_at = instant


def stopped_at() -> datetime | None:
    """The instant at which a test has stopped the clock. Then there is no point in waiting for a later one."""
    return _stopped_at


def seconds_since(then: float) -> float:
    """How far this clock has gone since `then`, an instant on `time.monotonic()`."""
    return 0.0 if _stopped_at is not None else time.monotonic() - then


class DatabaseNow(models.Func):
    """The database's clock in UTC, give or take `seconds`. Django's own `Now()` gives the session's zone on MariaDB."""

    output_field = models.DateTimeField()

    def __init__(self, seconds: float = 0, **extra: Any) -> None:
        super().__init__(**extra)
        self.seconds = seconds

    @property
    def _shift(self) -> float:
        return self.seconds + _offset_seconds

    @property
    def _still(self) -> str:
        """The instant at which a test has stopped the clock, as the databases write it; empty while it runs."""
        if _stopped_at is None:
            return ""
        # As Django writes the instants that Python gives it: SQLite compares them as text.
        return str((_stopped_at + timedelta(seconds=self.seconds)).astimezone(timezone.utc).replace(tzinfo=None))

    def as_sql(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **_: Any) -> tuple[str, list[str]]:  # type: ignore[override]
        raise NotImplementedError(
            f"mailengine has no clock for {connection.vendor}; it runs on SQLite, PostgreSQL, MySQL"
        )

    def as_postgresql(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **_: Any) -> tuple[str, list[str]]:
        if still := self._still:
            return f"TIMESTAMP WITH TIME ZONE '{still}+00'", []
        # Not now(): that stands still for the length of a transaction.
        sql = "STATEMENT_TIMESTAMP()"
        return (f"({sql} + INTERVAL '{self._shift:.6f} seconds')" if self._shift else sql), []

    def as_mysql(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **_: Any) -> tuple[str, list[str]]:
        if still := self._still:
            return f"TIMESTAMP'{still}'", []
        sql = "UTC_TIMESTAMP(6)"
        return (f"({sql} + INTERVAL {round(self._shift * 1e6)} MICROSECOND)" if self._shift else sql), []

    def as_sqlite(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **_: Any) -> tuple[str, Any]:
        if still := self._still:
            return f"'{still}'", []
        modifier = f", '{self._shift:+.3f} seconds'" if self._shift else ""
        # The doubled percent signs become single ones when Django hands the parameters over.
        return f"STRFTIME('%%Y-%%m-%%d %%H:%%M:%%f', 'now'{modifier})", []


def db_now(seconds: float = 0) -> DatabaseNow:
    """An expression for this instant by the database's clock, or for `seconds` after it."""
    return DatabaseNow(seconds)


def now_sql(connection: BaseDatabaseWrapper, seconds: float = 0) -> str:
    """`db_now(seconds)` as SQL, which has no parameters and goes where those of a statement are put in."""
    from django.db.models.sql import Query

    sql, _params = Query(None).get_compiler(connection=connection).compile(DatabaseNow(seconds))
    return str(sql)


def read_now(using: str) -> datetime:
    """This instant by the clock of the database `using`, as an aware datetime."""
    connection = connections[using]
    expression = DatabaseNow()
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {now_sql(connection)}", ())
        (value,) = cursor.fetchone()
    for convert in [*connection.ops.get_db_converters(expression), *expression.get_db_converters(connection)]:
        value = convert(value, expression, connection)
    instant: datetime = value
    return instant
