"""Database errors that pass: which they are, and how to go on after one."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from django.db import Error as DatabaseFault
from django.db import InterfaceError, InternalError, OperationalError, close_old_connections, connections

logger = logging.getLogger("mailengine.database")

FIRST_WAIT_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 5.0
SPREAD = 0.2
_ENDED_FOR_US = {"25P03", "25P04", "25006"}
"""PostgreSQL: a transaction that idled or lasted too long; a standby that is about to take over."""
_UNKNOWN_COLUMN = 1054
"""MySQL, and mysqlclient calls it operational."""
_OURS = ("no such ", "near ", "Error binding parameter")
"""SQLite, which calls nearly everything operational."""

T = TypeVar("T")


def passes(error: BaseException) -> bool:
    """Whether the same work may well succeed later: the connection was lost, or lost a race, or found no room.

    A lost connection, a restart, a deadlock, a timeout, too many connections and a full disk do; a missing table does
    not. The drivers call all of them operational.
    """
    if isinstance(error, InternalError):
        return getattr(error.__cause__, "sqlstate", None) in _ENDED_FOR_US
    if isinstance(error, OperationalError):
        return error.args[:1] != (_UNKNOWN_COLUMN,) and not str(error).startswith(_OURS)
    return isinstance(error, InterfaceError) and not str(error).startswith(_OURS)


def waits() -> Iterator[float]:
    """Seconds to wait before each new try: from 0.1 doubling to 5, spread so that workers don't come all at once."""
    seconds = FIRST_WAIT_SECONDS
    while True:
        yield seconds * (1 + SPREAD * (2 * random.random() - 1))  # noqa: S311  not a secret
        seconds = min(2 * seconds, LONGEST_WAIT_SECONDS)


def may_try_again(error: BaseException, *, using: str) -> bool:
    """Whether the work can be done again on a new connection, which the next query then opens.

    Not within a transaction of the caller's, which is lost as a whole.
    """
    if not passes(error) or connections[using].in_atomic_block:
        return False
    connections[using].close()
    close_old_connections()
    return True


def persist(
    work: Callable[[], T], *, using: str, must_stop: Callable[[], bool], recover: Callable[[], None] | None = None
) -> T:
    """What `work` returns, which is done again after each error that passes, until it works or the run must stop.

    Raises the last error then. A commit may have arrived though its answer was lost: `recover`, done before each new
    try, finds that out, or the work bears being done twice.
    """
    pauses, has_failed = waits(), False
    while True:
        try:
            if has_failed and recover is not None:
                recover()
            return work()
        except DatabaseFault as error:
            has_failed = True
            if not may_try_again(error, using=using) or must_stop():
                raise
            logger.warning("the database failed, trying again: %s", one_line_of(error))
        sleep(next(pauses), must_stop=must_stop)


def sleep(seconds: float, *, must_stop: Callable[[], bool]) -> None:
    """Wait, unless the run must stop meanwhile."""
    ends_at = time.monotonic() + seconds
    while not must_stop() and (left := ends_at - time.monotonic()) > 0:
        time.sleep(min(left, FIRST_WAIT_SECONDS))


def one_line_of(error: BaseException) -> str:
    """The driver's words, which may be many lines."""
    return " ".join(str(error).split()) or type(error).__name__
