"""Remove old mail that is done with."""

from __future__ import annotations

import argparse
from typing import Any

from django.core.management.base import CommandParser

from ...pipeline.processes import StopFlag
from ...pipeline.purge import purge
from ..base import MailCommand, counted


class Command(MailCommand):
    """`manage.py purge_mail`, for cron each night."""

    help = "Remove final messages older than --days with their attempts, and the words and files that nothing uses."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--days", type=_days, default=90, metavar="N", help="how old; default: %(default)s days")

    def handle(self, *args: Any, **options: Any) -> None:
        stop = StopFlag()
        with self.stopping(stop):
            report = purge(days=options["days"], must_stop=stop.is_set)
        removed = [counted(number, name.removesuffix("s")) for name, number in vars(report).items() if number]
        self.say(
            "purge_mail",
            f"{', '.join(removed)} removed",
            as_json=vars(report),
            options=options,
            is_empty=not removed,
        )


def _days(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of days, 0 or more")
    return int(text)
