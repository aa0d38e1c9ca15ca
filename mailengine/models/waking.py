"""Wake the workers that wait for mail, when a commit has queued some. Only PostgreSQL can: elsewhere they look again.

The notification carries nothing, so one that is lost or comes twice does no harm. It is sent by a statement of its own
right after the commit, not within the transaction: docs/decisions/0015-waking-workers.md says why.
"""

from __future__ import annotations

import logging
from functools import partial

from django.db import Error as DatabaseFault
from django.db import connections, transaction

from .workers import is_mail_worker_at_work

CHANNEL = "mailengine"

logger = logging.getLogger("mailengine.workers")


def wake_workers(using: str) -> None:
    """Let workers that wait look at once when the caller's transaction has committed; once for each transaction."""
    connection = connections[using]
    if connection.vendor != "postgresql":
        return
    if connection.in_atomic_block and _is_planned(using):
        return
    transaction.on_commit(_Waking(_notify, using), using=using, robust=True)


class _Waking(partial[None]):
    """What `on_commit()` is given, so that it is found again."""


def _is_planned(using: str) -> bool:
    """Whether this transaction does it already. Only a rollback that undoes the caller's work, too, can undo that."""
    return any(isinstance(planned[1], _Waking) for planned in reversed(connections[using].run_on_commit))


def _notify(using: str) -> None:
    connection = connections[using]
    try:
        # Without autocommit a statement now would open a transaction that nobody closes.
        if connection.get_autocommit() and is_mail_worker_at_work(using):
            with connection.cursor() as cursor:
                cursor.execute(f"NOTIFY {CHANNEL}")
    except DatabaseFault as error:
        # It is queued; workers look again within their interval.
        logger.info("workers could not be woken: %s", error)
