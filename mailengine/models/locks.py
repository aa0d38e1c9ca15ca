"""How long a statement of ours waits for rows that somebody else has locked, and how long we keep ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import OperationalError, connections

LONGEST_LOCK_WAIT_SECONDS = 10
LONGEST_IDLE_SECONDS = 20
"""Between two statements of a transaction that holds locks. Composing is all that takes long there."""


def limit_locks(using: str) -> None:
    """Let no statement of this transaction wait longer for a lock, nor a lost client keep its locks longer.

    It fails then, with an error that passes. Only where nobody has set a limit: PostgreSQL has none, and a session
    whose host is gone in the middle of a transaction keeps its locks until TCP finds out, which takes hours. All that
    take over pass over those rows meanwhile. In the transaction alone, so that a pooler may sit in between.
    """
    connection = connections[using]
    if connection.vendor == "postgresql":
        limits = [f"{seconds * 1_000:.0f}ms" for seconds in (LONGEST_LOCK_WAIT_SECONDS, LONGEST_IDLE_SECONDS)]
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT set_config(name, value, true) FROM (VALUES ('lock_timeout', %s),"
                " ('idle_in_transaction_session_timeout', %s)) AS limits(name, value)"
                " WHERE current_setting(name) = '0'",
                limits,
            )


@contextmanager
def waiting_for_locks(using: str, *, seconds: int) -> Iterator[None]:
    """Within it no statement waits longer for a lock; see `is_tired_of_waiting()`.

    To be used in a transaction, around a savepoint. SQLite locks the database as a whole, before any of this.
    """
    connection = connections[using]
    if connection.vendor == "sqlite":
        yield
        return
    look, change, value = (
        ("SELECT current_setting('lock_timeout')", "SELECT set_config('lock_timeout', %s, true)", f"{seconds}s")
        if connection.vendor == "postgresql"
        else ("SELECT @@innodb_lock_wait_timeout", "SET SESSION innodb_lock_wait_timeout = %s", seconds)
    )
    with connection.cursor() as cursor:
        cursor.execute(look)
        (before,) = cursor.fetchone()
        cursor.execute(change, [value])
        try:
            yield
        finally:
            cursor.execute(change, [before])


def is_tired_of_waiting(error: OperationalError) -> bool:
    """Whether it says that a lock was not to be had in time."""
    return getattr(error.__cause__, "sqlstate", None) == "55P03" or error.args[:1] == (1205,)
