"""One run of the loop in several processes, since one process uses one core."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from threading import Event
from typing import Any

from ..errors import DatabaseLost
from .report import Report

SIGNALS = (signal.SIGTERM, signal.SIGINT)
LOOK_SECONDS = 0.1
"""How soon a stop event is seen."""


class StopFlag(Event):
    """An event for signal handlers, which may run at any instant, even within each other.

    `Event.set()` takes a lock, and a second signal would wait for ever for the first. Nobody can `wait()` for this one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.was_set = False

    def set(self) -> None:
        self.was_set = True

    def is_set(self) -> bool:
        return self.was_set


def dispatch_in_processes(command: str, *, count: int, limit: int | None, stop: Event, **options: Any) -> Report:
    """The added reports of `count` processes that share the work; `limit` is divided among them.

    `options` are those of `Dispatcher`. One that fails or is killed takes no other with it: `failed` of the report says
    how it ended. What it had recorded stays so, and what it held is rescued by a later run.
    """
    started_at = time.monotonic()
    context = multiprocessing.get_context("spawn")  # a fork would share this process's database connection
    total = Report(command)
    team = []
    for number in range(count):
        share = share_of(limit, number=number, count=count)
        if share == 0:
            continue
        ours, theirs = context.Pipe(duplex=False)
        work = (theirs, command, {**options, "limit": share})
        process = context.Process(target=_work, args=work, name=f"{command}-{number + 1}")
        with signals_blocked():
            process.start()
        theirs.close()
        team.append((process, ours))
    told = False
    while alive := [process for process, _pipe in team if process.is_alive()]:
        if stop.is_set() and not told:
            told = True
            for process in alive:
                process.terminate()  # SIGTERM: what is in flight ends first
        wait([process.sentinel for process in alive], timeout=LOOK_SECONDS)
    for process, pipe in team:
        with suppress(EOFError, OSError):  # killed before it could say what it did, or in the middle of that
            total.add(pipe.recv())
        process.join()
        if process.exitcode:
            total.failed.append(f"{process.name} {ending(process.exitcode)}")
    total.seconds = time.monotonic() - started_at
    return total


def share_of(limit: int | None, *, number: int, count: int) -> int | None:
    """What process `number` of `count` may do of `limit`, as equally as whole numbers allow; None: no limit."""
    return None if limit is None else limit // count + (number < limit % count)


def ending(exitcode: int) -> str:
    """How a process ended, that did not end well."""
    if exitcode < 0:
        return f"was killed by signal {-exitcode} ({signal.strsignal(-exitcode)})"
    return "failed, see above"


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Hold signals back from a process that starts in here, until it can deal with them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(pipe: Connection, command: str, options: dict[str, Any]) -> None:
    """What each process of one run does."""
    stop = _set_up()
    from .dispatch import Dispatcher  # it imports models, which have to wait for the line above

    dispatcher = Dispatcher(command, stop=stop, **options)
    with _ending_well():
        try:
            dispatcher.run()
        finally:
            pipe.send(dispatcher.report)


def work_on(pipe: Connection, options: dict[str, Any]) -> None:
    """What each process of a `Supervisor` does; `options` are those of `MailWorker`."""
    stop = _set_up()
    threading.Thread(target=_stop_with_parent, args=(pipe, stop), name="mailengine-parent", daemon=True).start()
    from .worker import MailWorker

    worker = MailWorker(stop=stop, **options)
    with _ending_well():
        try:
            worker.run()
        finally:
            with suppress(OSError):  # there may be nobody any more to hear it
                pipe.send((worker.dispatcher.report, worker.expansion))


def _set_up() -> StopFlag:
    """Prepare this process: Django, and what a signal sets."""
    stop = StopFlag()
    for number in SIGNALS:
        signal.signal(number, lambda *_: stop.set())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    import django

    django.setup()
    return stop


@contextmanager
def _ending_well() -> Iterator[None]:
    """Let nothing that comes late disturb the end of this process."""
    try:
        yield
    except DatabaseLost as error:
        sys.exit(f"{multiprocessing.current_process().name}: {error}")
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def _stop_with_parent(pipe: Connection, stop: Event) -> None:
    """Wait for the end of the parent, who never says a word: its death closes the pipe."""
    with suppress(EOFError, OSError):
        pipe.recv()
    stop.set()
