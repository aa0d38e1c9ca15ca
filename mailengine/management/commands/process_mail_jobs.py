"""Expand due jobs into one message for each recipient."""

from __future__ import annotations

from threading import Event
from typing import Any

from ...models import MessageJob
from ...pipeline.expand import ExpansionReport, expand_jobs
from ..base import MailCommand, counted, duration


class Command(MailCommand):
    """`manage.py process_mail_jobs`, for cron each minute; overlapping runs share the work."""

    help = "Expand due jobs into one message for each recipient, taking up those that were interrupted."

    def handle(self, *args: Any, **options: Any) -> None:
        if options["dry_run"]:
            self._dry_run(options)
            return
        stop = Event()
        with self.stopping(stop):
            report = expand_jobs(
                max_time=options["max_time"],
                limit=options["limit"],
                stop=stop,
                on_progress=self._show if self.shows_progress else None,
            )
        self.end_progress()
        self.say(
            f"process_mail_jobs: {summary(report)}",
            as_json=report.as_dict(),
            options=options,
            is_empty=report.is_empty,
        )

    def _show(self, report: ExpansionReport) -> None:
        self.progress(f"process_mail_jobs: {report.messages:,} messages")

    def _dry_run(self, options: dict[str, Any]) -> None:
        jobs = list(MessageJob.objects.due())
        self.say(
            f"process_mail_jobs: would expand {counted(len(jobs), 'job')}; nothing was done",
            as_json={"command": "process_mail_jobs", "dry_run": True, "jobs": [job.pk for job in jobs]},
            options=options,
            is_empty=not jobs,
        )


def summary(report: ExpansionReport) -> str:
    """What a run did, in one line without its name."""
    text = f"{counted(report.messages, 'message')} from {counted(report.jobs, 'job')}"
    left_out = [
        counted(number, noun)
        for number, noun in ((report.duplicates, "duplicate"), (report.malformed, "malformed address"))
        if number
    ]
    if left_out:
        text += f" ({', '.join(left_out).replace('addresss', 'addresses')} left out)"
    if report.paused:
        text += f", {counted(report.paused, 'job')} paused, see the admin for the reason"
    if report.followed:
        text += f", {counted(report.followed, 'message')} cancelled or let go on with their job"
    if report.jobs_done:
        text += f", {counted(report.jobs_done, 'job')} done"
    return f"{text} in {duration(report.seconds)}"
