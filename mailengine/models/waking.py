"""Wake the workers that wait for mail, when a commit has queued some. Only PostgreSQL can: elsewhere they look again.

The notification carries nothing, so one that is lost or comes twice does no harm. It is sent by a statement of its own
right after the commit, not within the transaction: docs/decisions/0015-waking-workers.md says why.
"""

from __future__ import annotations

import logging
from typing import TypeVar

from django.db import Error as DatabaseFault
from django.db import connections, transaction

from .workers import is_mail_worker_at_work

CHANNEL = "mailengine"

logger = logging.getLogger("mailengine.workers")

T = TypeVar("T", bound="AfterCommit")


def wake_workers(using: str) -> None:
    """Let workers that wait look at once when the caller's transaction has committed; once for each transaction."""
    connection = connections[using]
    if connection.vendor != "postgresql":
        return
    if planned(_Waking, using=using) is None:
        transaction.on_commit(_Waking(using), using=using, robust=True)


class AfterCommit:
    """What `on_commit()` is given once for a whole transaction: `planned()` finds it again."""

    is_done = False

    def __init__(self, using: str) -> None:
        self.using = using
        self.__qualname__ = type(self).__qualname__  # Django 5.2 names by it what failed, and fails without

    def __call__(self) -> None:
        self.is_done = True  # a test may run it long before its transaction ends
        self.do()

    def do(self) -> None:
        raise NotImplementedError


def planned(kind: type[T], *, using: str) -> T | None:
    """The one of this kind that is still to be done after this transaction.

    Only a rollback that undoes the work of the caller, too, can take it away again.
    """
    hooks = (hook[1] for hook in reversed(connections[using].run_on_commit))
    return next((hook for hook in hooks if isinstance(hook, kind) and not hook.is_done), None)


class _Waking(AfterCommit):
    def do(self) -> None:
        _notify(self.using)


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
