"""Hears of commits that queued something: a connection to PostgreSQL that does nothing but `LISTEN`.

It has a thread of its own, which asks the database for nothing else. Behind a pooler that lends its connections for one
transaction each it hears nothing, and nothing else is different: workers look again within their interval.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django.db import Error as DatabaseFault
from django.db import connections

from ..models.waking import CHANNEL
from .outage import one_line_of, waits

if TYPE_CHECKING:
    from psycopg import Connection

LOOK_SECONDS = 0.5
"""How soon it sees that it is to end."""
COMPANY_SECONDS = 0.01
"""How long it waits after one notification, since more may come with it: nobody needs to be woken for each."""
KEEPALIVE = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
"""So that a connection which was lost without a word is noticed."""

logger = logging.getLogger("mailengine.workers")


class Listener:
    """Calls `on_news()`, from its thread, when something may have been queued; a lost connection is replaced."""

    def __init__(self, using: str, on_news: Callable[[], None]) -> None:
        self.using = using
        self.on_news = on_news
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, where the database and its driver can, and no transaction of a test's hides what others do."""
        connection = connections[self.using]
        if connection.vendor != "postgresql" or connection.in_atomic_block:
            return
        from django.db.backends.postgresql.psycopg_any import is_psycopg3

        if not is_psycopg3:
            return
        self._thread = threading.Thread(target=self._work, name="mailengine-listener", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # this host has none left
            self._thread = None
            logger.warning("new mail is looked for each interval, since it can't be listened for: %s", error)

    def close(self) -> None:
        self._is_over.set()
        if self._thread is not None:
            self._thread.join(timeout=4 * LOOK_SECONDS)

    def _work(self) -> None:
        import psycopg

        pauses = waits()
        while not self._is_over.is_set():
            try:
                with self._connect() as connection:
                    connection.execute(f"LISTEN {CHANNEL}")
                    pauses = waits()
                    self._tell()  # of what came before
                    while not self._is_over.is_set():
                        for _notification in connection.notifies(timeout=LOOK_SECONDS, stop_after=1):
                            self._tell()
            except (psycopg.Error, DatabaseFault) as error:
                logger.info("the connection that listens for new mail was lost: %s", one_line_of(error))
                self._is_over.wait(next(pauses))

    def _connect(self) -> Connection[Any]:
        """A connection with the parameters of Django's own; not one of its pool, which would lack it for good."""
        import psycopg

        parameters = connections[self.using].get_connection_params()
        return psycopg.connect(**{**KEEPALIVE, **parameters}, autocommit=True)

    def _tell(self) -> None:
        self.on_news()
        self._is_over.wait(COMPANY_SECONDS)
