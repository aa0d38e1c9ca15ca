"""One run of the loop in several processes, since one process uses one core."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from threading import Event
from typing import Any

from ..errors import MailengineError
from .report import Report

SIGNALS = (signal.SIGTERM, signal.SIGINT)
LOOK_SECONDS = 0.1
"""How soon a stop event is seen."""


def dispatch_in_processes(command: str, *, count: int, limit: int | None, stop: Event, **options: Any) -> Report:
    """The added reports of `count` processes that share the work; `limit` is divided among them.

    `options` are those of `Dispatcher`. Raises `MailengineError` when one of them failed; the others have finished
    then.
    """
    started_at = time.monotonic()
    context = multiprocessing.get_context("spawn")  # a fork would share this process's database connection
    total = Report(command)
    team = []
    for number in range(count):
        share = None if limit is None else limit // count + (number < limit % count)
        if share == 0:
            continue
        ours, theirs = context.Pipe(duplex=False)
        work = (theirs, command, {**options, "limit": share})
        process = context.Process(target=_work, args=work, name=f"{command}-{number + 1}")
        with _signals_blocked():
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
    failed = []
    for process, pipe in team:
        process.join()
        if process.exitcode == 0:
            total.add(pipe.recv())
        else:
            failed.append(process.name)
    total.seconds = time.monotonic() - started_at
    if failed:
        raise MailengineError(f"{', '.join(failed)} failed, see above; what they held is rescued by a later run.")
    return total


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Hold signals back from a process that starts in here, until it can deal with them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(pipe: Connection, command: str, options: dict[str, Any]) -> None:
    """What each process does."""
    stop = threading.Event()
    for number in SIGNALS:
        signal.signal(number, lambda *_: stop.set())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    import django

    django.setup()
    from .dispatch import Dispatcher  # it imports models, which have to wait for the line above

    pipe.send(Dispatcher(command, stop=stop, **options).run().as_dict())
