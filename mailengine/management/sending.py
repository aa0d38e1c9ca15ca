"""`send_mail` and `retry_deferred`: one run of the loop, in one process or in several."""

from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.db import Error as DatabaseFault

from ..conf import get_settings
from ..errors import UnknownStream
from ..pipeline.dispatch import Dispatcher
from ..pipeline.outage import passes
from ..pipeline.processes import StopFlag, dispatch_in_processes
from ..pipeline.report import Report
from ..reporting.status import Waiting, has_work, waiting_mail
from .base import BLOCKED, USAGE, SliceCommand, at_least_one, duration

ORDER = ("sent", "deferred", "uncertain", "dead", "suppressed", "cancelled", "expired")
ALWAYS = ("sent",)


class SendingCommand(SliceCommand):
    """What the two commands share; `deferred` tells them apart.

    One more exit code: 3 when mail is due and no provider can be used.
    """

    name: str
    deferred: bool

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--workers", type=at_least_one, default=1, metavar="N", help="processes to share the work; default: 1"
        )
        parser.add_argument(
            "--stream", action="append", metavar="NAME", help="only mail of this stream; may be given more than once"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        streams = options["stream"]
        _check_streams(streams)
        if options["dry_run"]:
            self._dry_run(streams, options)
            return
        report = self._run(streams, options)
        waiting = Waiting() if report.is_empty else self._still_waiting(streams)
        self.say(
            self.name,
            f"{summary(report)}{what_is_left(report, waiting)}",
            as_json={**report.as_dict(), "waiting": waiting.count, "oldest_seconds": waiting.oldest_seconds},
            options=options,
            is_empty=report.is_empty,
        )
        if report.failed:
            raise CommandError(f"{'; '.join(report.failed)}. What they held is rescued by a later run.")
        if report.is_blocked:
            sys.exit(BLOCKED)

    def _run(self, streams: list[str] | None, options: dict[str, Any]) -> Report:
        stop = StopFlag()
        bounds: dict[str, Any] = {name: options[name] for name in ("max_time", "limit")}
        bounds |= {"deferred": self.deferred, "streams": streams}
        with self.stopping(stop):
            if options["workers"] > 1:
                if not has_work(deferred=self.deferred, streams=streams):
                    return Report(self.name)  # nothing that would be worth the start of a process
                return dispatch_in_processes(self.name, count=options["workers"], stop=stop, **bounds)
            with self.progress_bar(lambda: self._due(streams), verbosity=options["verbosity"]) as draw:
                on_progress = None if draw is None else lambda report: draw(report.outcomes.total())
                return Dispatcher(self.name, stop=stop, on_progress=on_progress, **bounds).run()

    def _still_waiting(self, streams: list[str] | None) -> Waiting:
        """What is left to do; nothing, where the database does not say. The run itself is over and recorded."""
        try:
            return waiting_mail(deferred=self.deferred, streams=streams)
        except DatabaseFault as error:
            if not passes(error):
                raise
            return Waiting()

    def _dry_run(self, streams: list[str] | None, options: dict[str, Any]) -> None:
        due = self._due(streams)
        count = due if options["limit"] is None else min(due, options["limit"])
        self.say(
            self.name,
            f"would send {count:,} of {due:,} due; nothing was done",
            as_json={"dry_run": True, "would_send": count, "due": due},
            options=options,
            is_empty=not due,
        )

    def _due(self, streams: list[str] | None) -> int:
        return waiting_mail(deferred=self.deferred, streams=streams, due_only=True).count


def summary(report: Report) -> str:
    """What a run did, in one line without its name."""
    counts = {**report.outcomes, "expired": report.outcomes["expired"] + report.expired}
    parts = [f"{counts.get(name, 0):,} {name}" for name in ORDER if name in ALWAYS or counts.get(name)]
    if report.rescued:
        parts.append(f"{report.rescued:,} rescued")
    text = f"{', '.join(parts)} in {duration(report.seconds)}"
    if report.sent_by:
        text += f" ({', '.join(f'{alias} {count:,}' for alias, count in report.sent_by.most_common())})"
    return text


def what_is_left(report: Report, waiting: Waiting) -> str:
    """What a run left to do, and why, to be added to what it did."""
    text = ""
    if waiting.count:
        text += f"; {waiting.count:,} waiting"
        if waiting.oldest_seconds is not None:
            text += f", oldest {duration(waiting.oldest_seconds)}"
    if len(report.longest_waits) > 1:  # whether one stream has held up another
        waits = sorted(report.longest_waits.items(), key=lambda wait: wait[1])
        text += f"; longest wait: {', '.join(f'{stream} {duration(seconds)}' for stream, seconds in waits)}"
    if report.is_blocked:
        text += "; no provider can be used now: manage.py mail_status says why"
    elif report.is_limited:
        text += "; the rest waits for the limits of its providers: manage.py mail_status says until when"
    return text


def _check_streams(streams: list[str] | None) -> None:
    try:
        for stream in streams or ():
            get_settings().stream(stream)
    except UnknownStream as error:
        raise CommandError(str(error), returncode=USAGE) from error
