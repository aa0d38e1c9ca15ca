"""`mail_worker`: every stage, continuously, in one thread that talks to the database."""

from __future__ import annotations

import time
from collections.abc import Iterator
from threading import Event
from typing import Final

from django.db import reset_queries, router

from ..models import Message, MessageJob
from ..models.messages import EXPIRY_BATCH, RESCUE_BATCH
from ..models.workers import MAIL_WORKER
from .dispatch import Dispatcher
from .expand import Expander, ExpansionReport
from .listener import Listener
from .report import Report
from .verdict import window_seconds

HOUSE_SECONDS = 5.0
"""How often it looks for what needs no hurry: leases that are over, mail that has expired, jobs that are done."""
ANEW_SECONDS = 60.0
"""How often it forgets what a run finds out for itself: as often as cron would begin one."""
ASIDE_SECONDS = 10.0
"""How long a job is left alone that did not go on: its audience is away, or somebody else is at it."""
LOOK_APART_SECONDS = 0.1
"""How soon it looks for jobs when there are news, and mail to send: that may be what the news are about."""
SURE_SECONDS = 3.0
"""For so long after its start it looks each second, whatever its interval: who queues mail may not know of it yet."""

DONE: Final = object()
"""What comes after the last piece."""


class MailWorker:
    """One process that sends all there is, until it is told to stop.

    `keeps_house`: it also expands jobs, takes back what lost workers left, closes what has expired and jobs that are
    done. Of several processes on a host one does that; should several, they double nothing.
    """

    def __init__(
        self,
        *,
        interval: float = 1.0,
        max_time: float | None = None,
        limit: int | None = None,
        stop: Event | None = None,
        keeps_house: bool = True,
    ) -> None:
        stop = stop or Event()
        self.dispatcher = Dispatcher(MAIL_WORKER, retries=True, max_time=max_time, limit=limit, stop=stop)
        self.listener = Listener(router.db_for_write(Message), self._hear)
        self.house = House(self.dispatcher, stop, interval=interval) if keeps_house else None
        self._longest_wait = interval
        self._started_at = time.monotonic()
        self._anew_at = self._started_at + ANEW_SECONDS

    def run(self) -> Report:
        self.listener.start()
        try:
            return self.dispatcher.run_on(self)
        finally:
            self.listener.close()

    @property
    def expansion(self) -> ExpansionReport:
        """What became of jobs."""
        return self.house.expander.report if self.house else ExpansionReport()

    @property
    def interval(self) -> float:
        is_new = time.monotonic() < self._started_at + SURE_SECONDS
        return min(self._longest_wait, 1.0) if is_new else self._longest_wait

    def do_some(self, *, is_idle: bool) -> bool:
        """What there is to do between turns of sending."""
        if time.monotonic() >= self._anew_at:
            self._anew_at = time.monotonic() + ANEW_SECONDS
            self.dispatcher.begin_anew()
            reset_queries()  # Django keeps them while DEBUG is on
        return self.house is not None and self.house.do_some(is_idle=is_idle)

    def _hear(self) -> None:
        if self.house is not None:
            self.house.hear_news()
        self.dispatcher.tell_news()


class House:
    """The stages before and after sending, in pieces so short that urgent mail can wait for one."""

    def __init__(self, dispatcher: Dispatcher, stop: Event, *, interval: float) -> None:
        self.dispatcher = dispatcher
        self.expander = Expander(float("inf"), None, stop, None, is_patient=False)
        self.interval = interval
        self._tidies_at = 0.0
        self._looks_at = 0.0
        """For jobs that are due, while there is mail to send; otherwise at any time."""
        self._expands_at = 0.0
        """Not before then, while there is mail to send."""
        self._follows: Iterator[None] = iter(())
        self._begun: dict[int, Iterator[None]] = {}
        """What is left of jobs that are being expanded, the most urgent one now."""
        self._handled_count = 0
        """Messages, when it last closed jobs."""
        self._aside_until: dict[int, float] = {}
        """Jobs that are left alone for a while."""

    def hear_news(self) -> None:
        """Somebody may have queued a job. For any thread."""
        self._looks_at = min(self._looks_at, time.monotonic() + LOOK_APART_SECONDS)

    def do_some(self, *, is_idle: bool) -> bool:
        """Do a piece of what is due; whether anything was done."""
        if time.monotonic() >= self._tidies_at:
            self._tidies_at = time.monotonic() + HOUSE_SECONDS
            if self._tidy():
                return True
        if next(self._follows, DONE) is not DONE:
            return True
        if is_idle:
            self._close_jobs()
        if not is_idle and time.monotonic() < self._expands_at:
            return False
        return self._expand(is_idle=is_idle)

    def _tidy(self) -> bool:
        """Take back what lost workers left, close what has expired and jobs that are done; a batch of each."""
        run, rescued, expired = self.dispatcher, 0, 0
        if Message.objects.overdue_leases().exists():
            rescued = Message.objects.rescue(
                window=lambda message: window_seconds(message, settings=run.settings), must_stop=lambda: True
            )
        if Message.objects.expired().exists():
            expired = Message.objects.expire(must_stop=lambda: True)
        run.report.rescued += rescued
        run.report.expired += expired
        run.report.jobs_done += MessageJob.objects.finish()
        run.health.refresh()  # it also records that the admins were told
        self._follows = self.expander.follow_jobs()
        if rescued >= RESCUE_BATCH or expired >= EXPIRY_BATCH:
            self._tidies_at = 0.0
        return bool(rescued or expired)

    def _close_jobs(self) -> None:
        """Where something was sent since: it may have been the last message of its job."""
        handled = self.dispatcher.report.outcomes.total()
        if handled != self._handled_count:
            self._handled_count = handled
            self.dispatcher.report.jobs_done += MessageJob.objects.finish()

    def _expand(self, *, is_idle: bool) -> bool:
        """Make a piece of the most urgent job that is due; whether there was one."""
        began_at = time.monotonic()
        if not (is_idle or self._begun or began_at >= self._looks_at):
            return False
        self._looks_at = began_at + self.interval
        self._aside_until = {pk: until for pk, until in self._aside_until.items() if until > began_at}
        due = MessageJob.objects.due().exclude(pk__in=list(self._aside_until))
        pk = due.values_list("pk", flat=True).first()
        if pk is None:
            self._begun.clear()
            return False
        if pk not in self._begun:
            self._begun[pk] = self.expander.expand(pk)
        if next(self._begun[pk], DONE) is DONE:
            del self._begun[pk]
            self._aside_until[pk] = began_at + ASIDE_SECONDS
        # At most half of the time goes into it, while there is mail to send.
        self._expands_at = 2 * time.monotonic() - began_at
        return True
