"""How the queue stands, for people, for monitoring and for crontabs."""

from __future__ import annotations

import json
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error as DatabaseFault
from django.utils import translation

from ...reporting.schedule import crontab_lines, systemd_units, worker_unit
from ...reporting.status import CRITICAL, GOOD, LEVELS, UNKNOWN, QueueStatus, queue_status
from ..base import database_trouble, duration, failed_checks, in_words
from ..providers import provider_lines

COLUMNS = ("due", "scheduled", "sending", "deferred", "uncertain", "kept", "held", "dead")


class Command(BaseCommand):
    """`manage.py mail_status`, with `--check` for Nagios and its kin."""

    help = "Show the queue by stream and status, the oldest mail that is due, the providers' health and the workers."
    requires_system_checks = []  # noqa: RUF012  it says what they found, and what else there is to know

    def add_arguments(self, parser: CommandParser) -> None:
        instead = parser.add_mutually_exclusive_group()
        instead.add_argument(
            "--check",
            action="store_true",
            help="exit with 0 good, 1 warning, 2 critical, 3 unknown, and say why in a line",
        )
        instead.add_argument(
            "--schedule", action="store_true", help="print crontab lines and systemd units for this project"
        )
        parser.add_argument("--json", action="store_true", help="print one JSON object on one line")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["schedule"]:
            self.stdout.write(f"{crontab_lines()}\n{systemd_units()}\n{worker_unit()}", ending="")
            return
        with translation.override("en"):  # as all that it says by itself
            self._tell(options)

    def _tell(self, options: dict[str, Any]) -> None:
        try:
            # Monitoring asks often, and for no figures.
            status = queue_status(with_traffic=not options["check"])
        except DatabaseFault as error:
            text = database_trouble(error)
            if not options["check"] and not options["json"]:
                raise CommandError(text) from error
            self._write(f"MAIL {LEVELS[UNKNOWN]}: {text}", {"level": LEVELS[UNKNOWN], "findings": [text]}, options)
            sys.exit(UNKNOWN)
        # First of all: while the settings are wrong nothing is sent, whatever else there is to say.
        status.findings[:0] = [
            (CRITICAL, f"nothing is sent until this is mended: {in_words(p)}") for p in failed_checks()
        ]
        self._write(_verdict(status) if options["check"] else _table(status), status.as_dict(), options)
        if options["check"] and status.level != GOOD:
            sys.exit(status.level)

    def _write(self, text: str, as_json: dict[str, Any], options: dict[str, Any]) -> None:
        self.stdout.write(json.dumps({"command": "mail_status", **as_json}) if options["json"] else text)


def _verdict(status: QueueStatus) -> str:
    """One line, the worst first, as Nagios shows it."""
    texts = [text for _level, text in status.worst_first()]
    return f"MAIL {LEVELS[status.level]}: {'; '.join(texts) or 'nothing is late'}"


def _table(status: QueueStatus) -> str:
    lines = [f"{LEVELS[level]}: {text}" for level, text in status.worst_first()]
    lines += ["", *_streams(status)] if lines else _streams(status)
    lines += ["", *provider_lines(status.providers)]
    jobs = [f"{count:,} {name}" for name, count in status.jobs.items()]
    lines.append(f"jobs     {', '.join(jobs) or 'none unfinished'}")
    lines.append(f"workers  {', '.join(status.workers) or 'none at work'}")
    return "\n".join(lines)


def _streams(status: QueueStatus) -> list[str]:
    """A row a stream; columns of nothing but zeros are left out, so that the eye finds what is there."""
    if not status.streams:
        return ["no mail is waiting, and none is dead"]
    shown = [name for name in COLUMNS if name == "due" or any(getattr(stream, name) for stream in status.streams)]
    rows = [["stream", *shown, "oldest due"]]
    for stream in status.streams:
        oldest = "-" if stream.oldest_seconds is None else duration(stream.oldest_seconds)
        rows.append([stream.stream, *(f"{getattr(stream, name):,}" for name in shown), oldest])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))])
        for first, *rest in rows
    ]
