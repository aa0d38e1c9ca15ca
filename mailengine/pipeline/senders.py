"""The threads that talk to providers. They know emails and connections, and no rows.

The thread that owns a `Team` talks to the database and to nobody else; it gives an email, or the emails of one call, to
an idle sender and later collects what came of each. Connections are lent out for one handover each, the last one used
first, so that as few stay open as the load needs.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from ..backends.wire import Mail
from ..outcomes import Kind, Outcome
from ..providers.connection import Connection

COMPANY_SECONDS = 0.002
"""How long an outcome waits for others to share its commit: more come while one is under way, and share the next."""

OVERDUE = Outcome(Kind.UNCERTAIN, code="overdue", detail="its backend had not come back when its time was over")
NO_SENDER = Outcome(Kind.UNAVAILABLE, code="no thread", is_local=True)
NOT_TAKEN = replace(NO_SENDER, detail="those there are were busy until its time was over")

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Task(Generic[T]):
    """One handover, with what the owner wants to remember of it."""

    ticket: T
    emails: Sequence[Mail]
    connection: Connection
    until: float | None = None
    key: str = ""
    _taken: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> bool:
        """Whether it is the caller's now: the sender's who hands it over, or the owner's who withdraws it."""
        return self._taken.acquire(blocking=False)

    def alike(self, outcome: Outcome) -> list[Outcome]:
        """The same outcome for each of its emails."""
        return [outcome] * len(self.emails)


class Team(Generic[T]):
    """Up to `size` threads, started when there is work for them.

    A backend that does not keep to the end of its handover costs its thread, and nobody else's time: after
    `grace_seconds` more the handover counts as uncertain, and another thread takes the place. What no thread has taken
    by then is withdrawn, untouched.
    """

    def __init__(self, size: int, *, grace_seconds: float = float("inf")) -> None:
        self.size = size
        self.grace_seconds = grace_seconds
        self.in_flight: dict[str, int] = defaultdict(int)
        self._tasks: set[Task[T]] = set()
        self._overdue: set[Task[T]] = set()
        self._threads: list[threading.Thread] = []
        self._inbox: SimpleQueue[Task[T] | Connection | None] = SimpleQueue()
        self._outbox: SimpleQueue[tuple[Task[T], list[Outcome]] | None] = SimpleQueue()
        self._idle: dict[str, list[Connection]] = defaultdict(list)

    @property
    def busy_count(self) -> int:
        return len(self._tasks)

    @property
    def idle_count(self) -> int:
        return self.size - self.busy_count

    def send(self, ticket: T, emails: Sequence[Mail], alias: str, *, until: float | None = None, key: str = "") -> None:
        """Let an idle sender hand these emails to the provider `alias` in one call.

        `until` and `key` as in `Connection.hand_over_together()`.
        """
        idle = self._idle[alias]
        connection = idle.pop() if idle else Connection(alias)
        task = Task(ticket, emails, connection, until, key)
        self.in_flight[alias] += 1
        self._tasks.add(task)
        if len(self._threads) < self.busy_count + len(self._overdue):
            try:
                self._start_thread()
            except RuntimeError as error:  # this host has none left; a sender that is busy may take the task later
                if len(self._threads) <= len(self._overdue):
                    self._outbox.put((task, task.alike(replace(NO_SENDER, detail=str(error)))))
                    return
        self._inbox.put(task)

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._work, name=f"mailengine-{len(self._threads) + 1}", daemon=True)
        thread.start()
        self._threads.append(thread)

    def wake(self) -> None:
        """Let the owner, who may be waiting in `collect()`, go on at once. For any thread."""
        self._outbox.put(None)

    def collect(self, *, wait_seconds: float) -> list[tuple[T, list[Outcome]]]:
        """The handovers that have ended, with what came of each of their emails.

        It waits for the first for so long, and for its company, if any is under way, a few milliseconds; no longer than
        until somebody wakes it. One that was overdue comes a second time, should its backend come back with more than
        a doubt.
        """
        found: list[tuple[T, list[Outcome]]] = []
        ends_at = time.monotonic() + wait_seconds
        with suppress(Empty):
            while self.busy_count or self._overdue or wait_seconds:
                arrived = self._outbox.get(timeout=max(ends_at - time.monotonic(), 0))
                if arrived is None:
                    break
                task, outcomes = arrived
                self._idle[task.connection.alias].append(task.connection)
                if task in self._overdue:
                    self._overdue.remove(task)
                    if all(outcome.kind is Kind.UNCERTAIN for outcome in outcomes):
                        continue
                else:
                    self._free(task)
                found.append((task.ticket, outcomes))
                if not self.busy_count:
                    break
                ends_at = min(ends_at, time.monotonic() + COMPANY_SECONDS)
        return found + self._give_up()

    def _give_up(self) -> list[tuple[T, list[Outcome]]]:
        now = time.monotonic()
        late = [t for t in self._tasks if t.until is not None and now > t.until + self.grace_seconds]
        given_up = []
        for task in late:
            self._free(task)
            if task.take():
                self._idle[task.connection.alias].append(task.connection)
                given_up.append((task.ticket, task.alike(NOT_TAKEN)))
            else:
                self._overdue.add(task)
                given_up.append((task.ticket, task.alike(OVERDUE)))
        return given_up

    def _free(self, task: Task[T]) -> None:
        self._tasks.remove(task)
        self.in_flight[task.connection.alias] -= 1

    def close(self) -> None:
        """Close the idle connections and let the threads end; those still sending are left to their deadline.

        What none of them has taken by now is never sent.
        """
        for task in self._tasks:
            task.take()
        for connections in self._idle.values():
            for connection in connections:
                self._inbox.put(connection)
        self._idle.clear()
        for _thread in self._threads:
            self._inbox.put(None)
        if not self.busy_count and not self._overdue:
            for thread in self._threads:
                thread.join(timeout=10)

    def _work(self) -> None:
        while (task := self._inbox.get()) is not None:
            if isinstance(task, Connection):
                task.close()
            elif task.take():
                outcomes = task.connection.hand_over_together(task.emails, until=task.until, key=task.key)
                self._outbox.put((task, outcomes))
            del task  # or an idle thread would hold its mail in memory
