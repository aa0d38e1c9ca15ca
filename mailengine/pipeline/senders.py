"""Those who talk to providers. They know emails and connections, and no rows.

The thread that owns a `Team` talks to the database and to nobody else; it gives an email, or the emails of one call, to
an idle sender and later collects what came of each. Connections are lent out for one handover each, the last one used
first, so that as few stay open as the load needs.

Whatever may have to wait has a thread of its own: to connect, and all that is said over HTTP or TLS. What goes by a
connection to an SMTP server that is open already is driven by one event loop, until the server says something else
than yes; then a thread goes on from there.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from ..backends.dialogue import Progress
from ..backends.wire import Mail
from ..outcomes import Kind, Outcome
from ..providers.connection import Connection
from .eventloop import EventLoop

GOODBYE_SECONDS = 10.0
"""How long a team that is closed waits for its connections to be."""
COMPANY_SECONDS = 0.001
"""How long an outcome waits for others to share its commit: more come while one is under way, and share the next."""

OVERDUE = Outcome(Kind.UNCERTAIN, code="overdue", detail="its backend had not come back when its time was over")
NO_SENDER = Outcome(Kind.UNAVAILABLE, code="no thread", is_local=True)
NOT_TAKEN = replace(NO_SENDER, detail="those there are were busy until its time was over")

T = TypeVar("T")


@dataclass(eq=False)
class Task(Generic[T]):
    """One handover, with what the owner wants to remember of it."""

    ticket: T
    emails: Sequence[Mail]
    connection: Connection
    until: float | None = None
    key: str = ""
    has_begun: bool = False
    """Whether the event loop has taken it."""
    _taken: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> bool:
        """Whether it is the caller's now: the sender's who hands it over, or the owner's who withdraws it."""
        return self._taken.acquire(blocking=False)

    def alike(self, outcome: Outcome) -> list[Outcome]:
        """The same outcome for each of its emails."""
        return [outcome] * len(self.emails)

    def hand_over(self) -> list[Outcome]:
        """All of it, or what is left of it once it was begun; for a thread that may wait."""
        return self.connection.hand_over_together(self.emails, until=self.until, key=self.key)

    # For the event loop

    def begin(self) -> socket.socket | None:
        if not self.take():
            return None  # it was withdrawn
        self.has_begun = True
        return self.connection.begin(self.emails, until=self.until)

    def go_on(self) -> Progress:
        return self.connection.go_on()

    def is_overdue(self) -> bool:
        return self.connection.is_overdue()


class Team(Generic[T]):
    """Up to `size` senders: an event loop, and threads that are started when there is work for them.

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
        self._idle: dict[str, list[Connection]] = defaultdict(list)
        self._outbox: SimpleQueue[list[tuple[Task[T], list[Outcome]]] | None] = SimpleQueue()
        self._loop: EventLoop[Task[T]] = EventLoop(when_sent=self._note_sent, when_stuck=self._give_to_a_thread)
        self._threads: list[threading.Thread] = []
        self._inbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._job_count = 0
        """How much of the inbox is not done: no more threads are needed."""
        self._hiring = threading.Lock()
        self._is_closed = False

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
        if connection.can_begin(emails):
            with suppress(OSError, RuntimeError):  # this host has no thread or file left for an event loop
                self._loop.put(task)
                return
        self._give_to_a_thread(task)

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
                found += [(task.ticket, outcomes) for task, outcomes in arrived if self._take_back(task, outcomes)]
                if not self.busy_count:
                    break
                if found:
                    ends_at = min(ends_at, time.monotonic() + COMPANY_SECONDS)
        return found + self._give_up()

    def _take_back(self, task: Task[T], outcomes: Sequence[Outcome]) -> bool:
        """Whether it says anything new."""
        self._idle[task.connection.alias].append(task.connection)
        if task not in self._overdue:
            self._free(task)
            return True
        self._overdue.remove(task)
        return any(outcome.kind is not Kind.UNCERTAIN for outcome in outcomes)

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
        """Close the idle connections and let the senders end; those still sending are left to their deadline.

        What none of them has taken by now is never sent.
        """
        for task in self._tasks:
            task.take()
        idle = [connection for connections in self._idle.values() for connection in connections]
        self._idle.clear()
        self._loop.close()
        with self._hiring:
            self._is_closed = True
            for connection in idle:
                self._inbox.put(connection.close)
            with suppress(RuntimeError):  # each may have to wait for its server: not one after another
                while len(self._threads) < len(idle):
                    self._start_thread()
            for _thread in self._threads:
                self._inbox.put(None)
        if not self.busy_count and not self._overdue:
            ends_at = time.monotonic() + GOODBYE_SECONDS
            self._loop.join(timeout=GOODBYE_SECONDS)
            for thread in self._threads:
                thread.join(timeout=max(ends_at - time.monotonic(), 0))

    # In the event loop

    def _note_sent(self, tasks: list[Task[T]]) -> None:
        self._outbox.put([(task, [task.connection.outcome_of(email) for email in task.emails]) for task in tasks])

    # In the owner's thread, or in the event loop

    def _give_to_a_thread(self, task: Task[T]) -> None:
        job = partial(self._hand_over, task)
        try:
            with self._hiring:
                self._job_count += 1
                if self._is_closed:
                    self._start_thread(job)  # those there were have gone
                    return
                if len(self._threads) < self._job_count:
                    self._start_thread()
                self._inbox.put(job)
        except RuntimeError as error:  # this host has no thread left
            if len(self._threads) > len(self._overdue) and not self._is_closed:
                self._inbox.put(job)  # one that is busy may take it later
            elif task.has_begun:
                job()  # here and now, though it may wait: there is nobody else
            else:
                self._forget_job()
                if task.take():
                    self._outbox.put([(task, task.alike(replace(NO_SENDER, detail=str(error))))])

    def _start_thread(self, job: Callable[[], None] | None = None) -> None:
        """One for this job alone, or for all that comes."""
        name = f"mailengine-{len(self._threads) + 1}"
        thread = threading.Thread(target=job or self._work, name=name, daemon=True)
        thread.start()
        if job is None:
            self._threads.append(thread)

    # In the threads

    def _work(self) -> None:
        while (job := self._inbox.get()) is not None:
            job()
            del job  # or an idle thread would hold its mail in memory

    def _hand_over(self, task: Task[T]) -> None:
        try:
            outcomes = task.hand_over() if task.has_begun or task.take() else None
        finally:
            self._forget_job()  # before its owner hears of it, who may have the next one
        if outcomes is not None:
            self._outbox.put([(task, outcomes)])

    def _forget_job(self) -> None:
        with self._hiring:
            self._job_count -= 1
