"""How long a statement of ours waits for rows that somebody else has locked."""

from __future__ import annotations

from django.db import connections

LONGEST_LOCK_WAIT_SECONDS = 10


def limit_lock_waits(using: str) -> None:
    """Let no statement of this transaction wait longer for a lock; it fails then, with an error that passes.

    Only where nobody has set a limit: PostgreSQL has none, and a session whose host is gone keeps its locks until TCP
    finds out, which takes hours.
    """
    connection = connections[using]
    if connection.vendor == "postgresql":
        limit = f"{LONGEST_LOCK_WAIT_SECONDS * 1_000:.0f}ms"
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT set_config('lock_timeout', %s, true) WHERE current_setting('lock_timeout') = '0'", [limit]
            )
