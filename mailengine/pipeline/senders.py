"""The threads that talk to providers. They know emails and connections, and no rows.

The thread that owns a `Team` talks to the database and to nobody else; it gives an email to an idle sender and later
collects what came of it. Connections are lent out for one handover each, the last one used first, so that as few stay
open as the load needs.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from django.core.mail import EmailMessage

from ..outcomes import Outcome
from ..providers.connection import Connection

COMPANY_SECONDS = 0.01
"""How long an outcome waits for others to share its commit: of the order of what a commit takes."""

T = TypeVar("T")


@dataclass(frozen=True)
class Task(Generic[T]):
    """One handover, with what the owner wants to remember of it."""

    ticket: T
    email: EmailMessage
    connection: Connection


class Team(Generic[T]):
    """Up to `size` threads, started when there is work for them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.in_flight: dict[str, int] = defaultdict(int)
        self._threads: list[threading.Thread] = []
        self._inbox: SimpleQueue[Task[T] | Connection | None] = SimpleQueue()
        self._outbox: SimpleQueue[tuple[Task[T], Outcome]] = SimpleQueue()
        self._idle: dict[str, list[Connection]] = defaultdict(list)

    @property
    def busy_count(self) -> int:
        return sum(self.in_flight.values())

    @property
    def idle_count(self) -> int:
        return self.size - self.busy_count

    def send(self, ticket: T, email: EmailMessage, alias: str) -> None:
        """Let an idle sender hand this email to the provider `alias`."""
        idle = self._idle[alias]
        connection = idle.pop() if idle else Connection(alias)
        self.in_flight[alias] += 1
        if len(self._threads) < self.busy_count:
            thread = threading.Thread(target=self._work, name=f"mailengine-{len(self._threads) + 1}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._inbox.put(Task(ticket, email, connection))

    def collect(self, *, wait_seconds: float) -> list[tuple[T, Outcome]]:
        """The handovers that have ended; waits for the first for so long, and for its company a few milliseconds."""
        found: list[tuple[T, Outcome]] = []
        ends_at = time.monotonic() + wait_seconds
        with suppress(Empty):
            while self.busy_count or wait_seconds:
                task, outcome = self._outbox.get(timeout=max(ends_at - time.monotonic(), 0))
                self.in_flight[task.connection.alias] -= 1
                self._idle[task.connection.alias].append(task.connection)
                found.append((task.ticket, outcome))
                ends_at = min(ends_at, time.monotonic() + COMPANY_SECONDS)
        return found

    def close(self) -> None:
        """Close the idle connections and let the threads end; those still sending are left to their deadline."""
        for connections in self._idle.values():
            for connection in connections:
                self._inbox.put(connection)
        self._idle.clear()
        for _thread in self._threads:
            self._inbox.put(None)
        if not self.busy_count:
            for thread in self._threads:
                thread.join(timeout=10)

    def _work(self) -> None:
        while (task := self._inbox.get()) is not None:
            if isinstance(task, Connection):
                task.close()
                continue
            self._outbox.put((task, task.connection.hand_over(task.email)))
