"""Remove old mail that is done with."""

from __future__ import annotations

import argparse
import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from ...pipeline.purge import purge
from ..base import counted


class Command(BaseCommand):
    """`manage.py purge_mail`, for cron each night."""

    help = "Remove final messages older than --days with their attempts, and the words and files that nothing uses."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--days", type=_days, default=90, metavar="N", help="how old; default: %(default)s days")
        parser.add_argument("--json", action="store_true", help="print one JSON object on one line")

    def handle(self, *args: Any, **options: Any) -> None:
        report = purge(days=options["days"])
        if options["json"]:
            self.stdout.write(json.dumps({"command": "purge_mail", **vars(report)}))
        elif any(vars(report).values()) and options["verbosity"] >= 1:
            removed = [counted(number, name.removesuffix("s")) for name, number in vars(report).items() if number]
            self.stdout.write(f"purge_mail: {', '.join(removed)} removed")


def _days(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of days, 0 or more")
    return int(text)
