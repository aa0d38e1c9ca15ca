"""Every stage of the mail, continuously: instead of cron."""

from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import CommandParser
from django.db import connections

from ...models import MessageJob
from ...pipeline.expand import ExpansionReport
from ...pipeline.processes import StopFlag
from ...pipeline.report import Report
from ...pipeline.supervisor import Supervisor
from ...pipeline.worker import MailWorker
from ...reporting.status import waiting_mail
from ..base import SliceCommand, at_least_one, counted, number_of_seconds
from ..sending import summary
from .process_mail_jobs import summary as summary_of_jobs

NAME = "mail_worker"


class Command(SliceCommand):
    """`manage.py mail_worker`, for systemd and its kin; beside cron, and on several hosts, it shares the work."""

    help = "Expand jobs, send what is due and what was deferred, and look after the queue, until a signal ends it."
    max_time = None

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--workers", type=at_least_one, default=1, metavar="N", help="processes to share the work; default: 1"
        )
        parser.add_argument(
            "--interval",
            type=number_of_seconds,
            default=1,
            metavar="S",
            help="seconds that it waits without news at most; default: %(default)s",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["dry_run"]:
            self._dry_run(options)
            return
        report, expansion = self._run(options)
        did = [summary(report), *([summary_of_jobs(expansion)] if not expansion.is_empty else [])]
        self.say(
            NAME,
            "; ".join(did),
            as_json={**report.as_dict(), "expanded": expansion.as_dict()},
            options=options,
            is_empty=report.is_empty and expansion.is_empty,
        )

    def _run(self, options: dict[str, Any]) -> tuple[Report, ExpansionReport]:
        stop = StopFlag()
        bounds = {name: options[name] for name in ("interval", "max_time", "limit")}
        with self.stopping(stop):
            if options["workers"] == 1:
                worker = MailWorker(stop=stop, **bounds)
                return worker.run(), worker.expansion
            connections.close_all()  # this process needs none, for days
            supervisor = Supervisor(count=options["workers"], stop=stop, say=self._warn, **bounds)
            return supervisor.run(), supervisor.expansion

    def _warn(self, text: str) -> None:
        self.stderr.write(f"{NAME}: {text}")
        sys.stderr.flush()

    def _dry_run(self, options: dict[str, Any]) -> None:
        jobs = list(MessageJob.objects.due().values_list("pk", flat=True))
        due = sum(waiting_mail(deferred=deferred, due_only=True).count for deferred in (False, True))
        count = due if options["limit"] is None else min(due, options["limit"])
        self.say(
            NAME,
            f"would expand {counted(len(jobs), 'job')} and send {count:,} of {due:,} due; nothing was done",
            as_json={"dry_run": True, "jobs": jobs, "would_send": count, "due": due},
            options=options,
            is_empty=not (due or jobs),
        )
