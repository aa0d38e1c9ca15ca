"""One run of the loop in several processes, since one process uses one core."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections.abc import Collection
from multiprocessing.connection import Connection
from threading import Event
from typing import Any

from ..errors import MailengineError
from .dispatch import Dispatcher
from .report import Report


def dispatch_in_processes(
    command: str,
    *,
    count: int,
    deferred: bool,
    streams: Collection[str] | None,
    max_time: float | None,
    limit: int | None,
    stop: Event,
) -> Report:
    """The added reports of `count` processes that share the work; `limit` is divided among them.

    Raises `MailengineError` when one of them failed; the others have finished then.
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
        options = {"deferred": deferred, "streams": streams, "max_time": max_time, "limit": share}
        process = context.Process(target=_work, args=(theirs, command, options), name=f"{command}-{number + 1}")
        process.start()
        theirs.close()
        team.append((process, ours))
    told = False
    while any(process.is_alive() for process, _pipe in team):
        if stop.is_set() and not told:
            told = True
            for process, _pipe in team:
                process.terminate()  # SIGTERM: what is in flight ends first
        team[0][0].join(timeout=0.1) if team[0][0].is_alive() else time.sleep(0.1)
    failed = []
    for process, pipe in team:
        process.join()
        if process.exitcode == 0 and pipe.poll():
            total.add(pipe.recv())
        else:
            failed.append(process.name)
    total.seconds = time.monotonic() - started_at
    if failed:
        raise MailengineError(f"{', '.join(failed)} failed; the log says why, and what they held is rescued.")
    return total


def _work(pipe: Connection, command: str, options: dict[str, Any]) -> None:
    """What each process does."""
    import django

    django.setup()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    pipe.send(Dispatcher(command, stop=stop, **options).run().as_dict())
