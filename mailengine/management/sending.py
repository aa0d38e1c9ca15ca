"""`send_mail` and `retry_deferred`: one run of the loop, in one process or in several."""

from __future__ import annotations

import sys
from threading import Event
from typing import Any

from django.core.management.base import CommandError, CommandParser

from ..conf import get_settings
from ..errors import UnknownStream
from ..pipeline.dispatch import Dispatcher
from ..pipeline.processes import dispatch_in_processes
from ..pipeline.report import Report
from ..reporting.status import Waiting, waiting_mail
from .base import BLOCKED, USAGE, MailCommand, duration

ORDER = ("sent", "deferred", "uncertain", "dead", "suppressed", "cancelled", "expired")
ALWAYS = ("sent",)


class SendingCommand(MailCommand):
    """What the two commands share; `deferred` tells them apart."""

    name: str
    deferred: bool

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--workers", type=int, default=1, metavar="N", help="processes to share the work; default: 1"
        )
        parser.add_argument(
            "--stream", action="append", metavar="NAME", help="only mail of this stream; may be given more than once"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        streams = options["stream"]
        self._check(streams, workers=options["workers"])
        if options["dry_run"]:
            self._dry_run(streams, options)
            return
        report = self._run(streams, options)
        waiting = waiting_mail(deferred=self.deferred, streams=streams) if not report.is_empty else Waiting()
        self.say(
            f"{self.name}: {summary(report, waiting)}",
            as_json={**report.as_dict(), "waiting": waiting.count, "oldest_seconds": waiting.oldest_seconds},
            options=options,
            is_empty=report.is_empty,
        )
        if report.is_blocked:
            sys.exit(BLOCKED)

    def _run(self, streams: list[str] | None, options: dict[str, Any]) -> Report:
        stop = Event()
        with self.stopping(stop):
            if options["workers"] > 1:
                return dispatch_in_processes(
                    self.name,
                    count=options["workers"],
                    deferred=self.deferred,
                    streams=streams,
                    max_time=options["max_time"],
                    limit=options["limit"],
                    stop=stop,
                )
            dispatcher = Dispatcher(
                self.name,
                deferred=self.deferred,
                streams=streams,
                max_time=options["max_time"],
                limit=options["limit"],
                stop=stop,
                on_progress=self._show if self.shows_progress else None,
            )
            try:
                return dispatcher.run()
            finally:
                self.end_progress()

    def _show(self, report: Report) -> None:
        self.progress(f"{self.name}: {', '.join(_outcomes(report))}")

    def _dry_run(self, streams: list[str] | None, options: dict[str, Any]) -> None:
        waiting = waiting_mail(deferred=self.deferred, streams=streams, due_only=True)
        count = waiting.count if options["limit"] is None else min(waiting.count, options["limit"])
        self.say(
            f"{self.name}: would send {count:,} of {waiting.count:,} due; nothing was done",
            as_json={"command": self.name, "dry_run": True, "would_send": count, "due": waiting.count},
            options=options,
            is_empty=not waiting.count,
        )

    def _check(self, streams: list[str] | None, *, workers: int) -> None:
        if workers < 1:
            raise CommandError("--workers is 1 or more.", returncode=USAGE)
        try:
            for stream in streams or ():
                get_settings().stream(stream)
        except UnknownStream as error:
            raise CommandError(str(error), returncode=USAGE) from error


def summary(report: Report, waiting: Waiting) -> str:
    """What a run did, in one line without its name."""
    parts = _outcomes(report)
    if report.rescued:
        parts.append(f"{report.rescued:,} rescued")
    text = f"{', '.join(parts)} in {duration(report.seconds)}"
    if report.sent_by:
        text += f" ({', '.join(f'{alias} {count:,}' for alias, count in report.sent_by.most_common())})"
    if waiting.count:
        text += f"; {waiting.count:,} waiting"
        if waiting.oldest_seconds is not None:
            text += f", oldest {duration(waiting.oldest_seconds)}"
    if report.is_blocked:
        text += "; no provider can be used now, see manage.py mail_status"
    return text


def _outcomes(report: Report) -> list[str]:
    counts = {**report.outcomes, "expired": report.outcomes["expired"] + report.expired}
    return [f"{counts.get(name, 0):,} {name}" for name in ORDER if name in ALWAYS or counts.get(name)]
