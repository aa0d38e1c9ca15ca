"""`mail_worker --workers N`: a process that does nothing but keep N others at work."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from threading import Event
from typing import Any

from .expand import ExpansionReport
from .processes import LOOK_SECONDS, ending, share_of, signals_blocked, work_on
from .report import Report

LONG_LIFE_SECONDS = 60.0
"""Whoever died after so long is replaced at once; one that died sooner, later each time."""
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0


@dataclass
class Place:
    """One of the N, whichever process holds it now."""

    number: int
    limit: int | None
    process: BaseProcess | None = None
    pipe: Connection | None = None
    started_at: float = 0.0
    starts_at: float = 0.0
    """When the next one starts, while there is none."""
    deaths: int = 0
    """In a row, each soon after its start."""
    is_done: bool = False

    def pause_seconds(self) -> float:
        """How long to wait with the next one, now that this one has died."""
        lived_long = time.monotonic() - self.started_at >= LONG_LIFE_SECONDS
        self.deaths = 0 if lived_long else self.deaths + 1
        return min(FIRST_PAUSE_SECONDS * 2.0 ** min(self.deaths - 1, 10), LONGEST_PAUSE_SECONDS) if self.deaths else 0.0


class Supervisor:
    """Keeps `count` processes at work until it is told to stop; the first of them keeps house.

    One that dies is replaced; what it held is rescued when its leases are over. Should this process die, the others end
    as after a signal. `say` is given a line for each death.
    """

    def __init__(
        self, *, count: int, limit: int | None, stop: Event, say: Callable[[str], None], **options: Any
    ) -> None:
        self.stop = stop
        self.say = say
        self.options = options
        self.report = Report("mail_worker")
        self.expansion = ExpansionReport()
        # Not a fork: that would share this process's connections.
        self._context = multiprocessing.get_context("spawn")
        shares = [share_of(limit, number=number, count=count) for number in range(count)]
        self._has_told = False
        """Whether the signal was passed on."""
        max_time = options.get("max_time")
        self._ends_at = float("inf") if max_time is None else time.monotonic() + max_time
        # Where each ends at a limit of its own, none of them may take the house with it.
        self._all_keep_house = limit is not None
        self._places = [Place(number, share) for number, share in enumerate(shares) if share != 0]

    def run(self) -> Report:
        started_at = time.monotonic()
        for place in self._places:
            self._start(place)
        while any(not place.is_done for place in self._places):
            if self.stop.is_set() and not self._has_told:
                self._tell_all()
            alive = [place.process.sentinel for place in self._places if place.process is not None]
            if alive:
                wait(alive, timeout=LOOK_SECONDS)
            else:
                time.sleep(LOOK_SECONDS)
            for place in self._places:
                self._look_after(place)
        self.report.seconds = time.monotonic() - started_at
        return self.report

    def _start(self, place: Place) -> None:
        ours, theirs = self._context.Pipe()
        left = self._ends_at - time.monotonic()
        options = {
            **self.options,
            "limit": place.limit,
            "max_time": None if left == float("inf") else max(left, 0.0),
            "keeps_house": place.number == 0 or self._all_keep_house,
        }
        process = self._context.Process(target=work_on, args=(theirs, options), name=f"mail_worker-{place.number + 1}")
        with signals_blocked():
            process.start()
        theirs.close()
        place.process, place.pipe, place.started_at = process, ours, time.monotonic()

    def _tell_all(self) -> None:
        """Pass the signal on; who is not there is not replaced any more."""
        self._has_told = True
        for place in self._places:
            if place.process is None:
                place.is_done = True
            else:
                place.process.terminate()  # SIGTERM: what is in flight ends first

    def _look_after(self, place: Place) -> None:
        if place.process is None:
            if not place.is_done and time.monotonic() >= place.starts_at:
                self._start(place)
            return
        if place.process.is_alive():
            return
        stopped = self._read_report(place)
        place.process.join()
        code, name = place.process.exitcode or 0, place.process.name
        place.process.close()
        place.process = None
        if not code and (self.stop.is_set() or stopped in {"limit", "max_time"}):
            place.is_done = True
        elif self.stop.is_set():
            place.is_done = True
            self.say(f"{name} {ending(code)}; what it held is rescued by a later run")
        else:
            seconds = place.pause_seconds()
            place.starts_at = time.monotonic() + seconds
            how = ending(code) if code else "was told to stop"
            self.say(f"{name} {how}; another starts {f'in {seconds:g} s' if seconds else 'now'}")

    def _read_report(self, place: Place) -> str:
        """Add what it did to what all did; why it has stopped, where it could still say so."""
        stopped = ""
        if place.pipe is None:
            return stopped
        with suppress(EOFError, OSError):  # killed before it could say what it did, or in the middle of that
            if place.pipe.poll():
                report, expansion = place.pipe.recv()
                stopped = report.stopped
                self.report.add(report)
                self.expansion.add(expansion)
                if place.limit is not None:
                    place.limit = max(place.limit - report.outcomes.total(), 1)
        place.pipe.close()
        place.pipe = None
        return stopped
