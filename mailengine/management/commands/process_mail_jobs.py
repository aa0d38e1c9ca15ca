"""Expand due jobs into one message for each recipient."""

from __future__ import annotations

from typing import Any

from ...models import MessageJob
from ...pipeline.expand import ExpansionReport, expand_jobs
from ...pipeline.processes import StopFlag
from ..base import SliceCommand, counted, duration

NAME = "process_mail_jobs"


class Command(SliceCommand):
    """`manage.py process_mail_jobs`, for cron each minute; overlapping runs share the work."""

    help = "Expand due jobs into one message for each recipient, taking up those that were interrupted."

    def handle(self, *args: Any, **options: Any) -> None:
        if options["dry_run"]:
            self._dry_run(options)
            return
        stop = StopFlag()
        with self.stopping(stop), self.progress_bar(lambda: None, verbosity=options["verbosity"]) as draw:
            report = expand_jobs(
                max_time=options["max_time"],
                limit=options["limit"],
                stop=stop,
                on_progress=None if draw is None else lambda report: draw(report.messages),
            )
        self.say(
            NAME,
            f"{summary(report)} in {duration(report.seconds)}",
            as_json=report.as_dict(),
            options=options,
            is_empty=report.is_empty,
        )

    def _dry_run(self, options: dict[str, Any]) -> None:
        jobs = list(MessageJob.objects.due().values_list("pk", flat=True))
        self.say(
            NAME,
            f"would expand {counted(len(jobs), 'job')}; nothing was done",
            as_json={"dry_run": True, "jobs": jobs},
            options=options,
            is_empty=not jobs,
        )


def summary(report: ExpansionReport) -> str:
    """What a run did with jobs, in one line without its name."""
    parts = []
    if report.jobs:
        parts.append(f"{counted(report.messages, 'message')} from {counted(report.jobs, 'job')}{_left_out(report)}")
    if report.paused:
        parts.append(f"{counted(report.paused, 'job')} paused, the admin says why")
    if report.postponed:
        parts.append(f"{counted(report.postponed, 'job')} left for the next run, the log says why")
    if report.followed:
        parts.append(f"{counted(report.followed, 'message')} cancelled or let go on with their job")
    if report.jobs_done:
        parts.append(f"{counted(report.jobs_done, 'job')} done")
    return "; ".join(parts)


def _left_out(report: ExpansionReport) -> str:
    parts = []
    if report.duplicates:
        parts.append(counted(report.duplicates, "duplicate"))
    if report.malformed:
        parts.append(counted(report.malformed, "malformed address", "malformed addresses"))
    return f" ({' and '.join(parts)} left out)" if parts else ""
