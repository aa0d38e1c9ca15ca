"""How the queue stands, for people, for monitoring and for crontabs."""

from __future__ import annotations

import json
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.db import DatabaseError

from ...reporting.schedule import crontab_lines, systemd_units
from ...reporting.status import LEVELS, UNKNOWN, QueueStatus, queue_status
from ..base import duration

COLUMNS = ("due", "scheduled", "sending", "deferred", "uncertain", "kept", "held", "dead")


class Command(BaseCommand):
    """`manage.py mail_status`, with `--check` for Nagios and its kin."""

    help = "Show the queue by stream and status, the oldest mail that is due, the providers' health and the workers."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--check",
            action="store_true",
            help="exit with 0 good, 1 warning, 2 critical, 3 unknown, and say why in a line",
        )
        parser.add_argument(
            "--schedule", action="store_true", help="print crontab lines and systemd timers for this project"
        )
        parser.add_argument("--json", action="store_true", help="print one JSON object on one line")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["schedule"]:
            self.stdout.write(f"{crontab_lines()}\n{systemd_units()}")
            return
        try:
            status = queue_status()
        except DatabaseError as error:
            if not options["check"]:
                raise
            self.stdout.write(f"MAIL {LEVELS[UNKNOWN]}: the database does not answer: {error}")
            sys.exit(UNKNOWN)
        if options["json"]:
            self.stdout.write(json.dumps(status.as_dict()))
        elif options["check"]:
            self.stdout.write(_verdict(status))
        else:
            self.stdout.write(_table(status))
        if options["check"]:
            sys.exit(status.level)


def _verdict(status: QueueStatus) -> str:
    worst = sorted(status.findings, reverse=True)
    return f"MAIL {LEVELS[status.level]}: {'; '.join(text for _level, text in worst) or 'nothing is late'}"


def _table(status: QueueStatus) -> str:
    lines = [f"{'stream':<16}" + "".join(f"{column:>11}" for column in COLUMNS) + f"{'oldest':>11}"]
    for depth in status.streams:
        oldest = "-" if depth.oldest_seconds is None else duration(depth.oldest_seconds)
        lines.append(f"{depth.stream:<16}" + "".join(f"{getattr(depth, c):>11,}" for c in COLUMNS) + f"{oldest:>11}")
    if not status.streams:
        lines.append("nothing is waiting, nothing is dead")
    lines.append("")
    lines += [f"provider {p.alias}: {p.state}{f', {p.detail}' if p.detail else ''}" for p in status.providers]
    lines += [f"jobs {name}: {count:,}" for name, count in status.jobs.items()]
    lines.append(f"workers: {', '.join(status.workers) or 'none at work'}")
    lines += [f"{LEVELS[level]}: {text}" for level, text in sorted(status.findings, reverse=True)]
    return "\n".join(lines)
