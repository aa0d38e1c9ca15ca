"""How a run goes on after errors: it waits for a database that fails in passing, and never loses what it knows."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from django.db import Error as DatabaseFault

from ..conf import Settings
from ..errors import DatabaseLost
from .bounds import Bounds
from .handovers import WAIT_SECONDS, Handovers
from .outage import may_try_again, one_line_of, waits

logger = logging.getLogger("mailengine.dispatch")

LAST_TRIES_SECONDS = 2.0
"""For how long a run that is over still tries to reach the database, when nothing is lost without it."""


class Recovery:
    """Takes the steps of a run, each again and again until the database bears it.

    `recover` comes before each new try: it finds out what was committed, and enters the rest.
    """

    def __init__(
        self,
        handovers: Handovers,
        bounds: Bounds,
        *,
        settings: Settings,
        using: str,
        recover: Callable[[], None],
    ) -> None:
        self.handovers = handovers
        self.bounds = bounds
        self.settings = settings
        self.using = using
        self.recover = recover
        self.is_direct = False
        """Somebody waits for the end of this run, as long as for a provider."""
        self.trouble_since = float("inf")
        """Since when the database fails."""

    def persist(self, step: Callable[[], None]) -> None:
        """Take this step; after a database error that passes, wait, recover, and take it again.

        Raises `DatabaseLost` when there is no time left to wait.
        """
        for seconds in waits():
            try:
                if self.trouble_since < float("inf"):
                    self.recover()
                step()
                self.trouble_since = float("inf")
                return
            except DatabaseFault as error:
                if not may_try_again(error, using=self.using):
                    raise
                # Once is a deadlock, say, and not worth a mail from cron.
                level = logging.INFO if self.trouble_since == float("inf") else logging.WARNING
                logger.log(level, "the database failed, trying again in %.1f s: %s", seconds, one_line_of(error))
                self._sit_out(error, seconds)

    def _sit_out(self, error: DatabaseFault, seconds: float) -> None:
        """Wait so long, while what is in flight goes on."""
        now = time.monotonic()
        self.trouble_since = min(self.trouble_since, now)
        while (left := now + seconds - time.monotonic()) > 0:
            self.handovers.collect(wait_seconds=min(left, WAIT_SECONDS))
            if self._is_hopeless():
                raise DatabaseLost(self._loss(error)) from error

    def _is_hopeless(self) -> bool:
        """Whether to stop waiting for the database: not before the run is over, and later with outcomes to record.

        What is sent directly has no such time: its caller waits no longer than for a provider.
        """
        has_news = bool(self.handovers.ended or self.handovers.in_flight)
        if self.is_direct:
            seconds = self.settings.lease_seconds if has_news else self.settings.send_deadline_seconds
            return time.monotonic() >= self.trouble_since + seconds
        if not self.bounds.must_stop():
            return False
        ends_at = self.trouble_since + LAST_TRIES_SECONDS
        if self.bounds.stop.is_set() and has_news:
            ends_at = max(ends_at, self.bounds.stopped_at + self.settings.send_deadline_seconds)
        elif has_news:
            ends_at = self.trouble_since + self.settings.lease_seconds
        return time.monotonic() >= ends_at

    def _loss(self, error: DatabaseFault) -> str:
        text = f"the database does not answer: {one_line_of(error)}"
        if self.handovers.ended:
            return f"{text}; {len(self.handovers.ended)} outcomes may not be recorded, the log names them"
        return f"{text}; what this run had claimed is sent by a later one"

    def save_what_is_known(self, *, give_back: Callable[[], None]) -> None:
        """After an error: let what is in flight end, and record it, lest mail that has arrived be sent again."""
        ends_at = time.monotonic() + self.settings.send_deadline_seconds
        while self.handovers.team.busy_count and time.monotonic() < ends_at:
            self.handovers.collect(wait_seconds=WAIT_SECONDS)
        for save in (self.recover, give_back):
            try:
                save()
            except Exception:
                # Whatever it is, it may be the error that ended the run: it must not keep the other from being done.
                logger.exception("after an error, not all that is known could be recorded")

    def name_unsaved(self) -> None:
        """What may not be recorded is said aloud: a person may have to know."""
        for item, outcome in self.handovers.ended:
            text = "message %s: what came of its handover to %s may not be recorded: %s: %s"
            logger.error(text, item.message.pk, item.provider, outcome.kind, outcome)
