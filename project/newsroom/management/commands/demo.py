"""The whole story on a throw-away database, held against what really arrived."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, NoReturn

from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser

from project.demo.newsroom import FEWEST

SETTINGS = "project.demo.settings"


class Command(BaseCommand):
    """`manage.py demo`: needs no set-up, and exits with 1 unless the receiving side and the ledger agree."""

    help = (
        "Show the whole story on a throw-away database in var/demo: an editor's newsletter, three providers of which "
        "one goes down and one is drained, a password reset in the midst of it, and a reckoning of what arrived "
        "against the ledger."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--recipients", type=_recipients, default=3_000, metavar="N", help="size of the audience; default: 3000"
        )
        parser.add_argument(
            "--seed", type=int, default=1, metavar="N", help="of names and of bad addresses; default: 1"
        )
        form = parser.add_mutually_exclusive_group()
        form.add_argument("--serve", action="store_true", help="afterwards serve the admin on 127.0.0.1, until Ctrl-C")
        form.add_argument("--json", action="store_true", help="print one JSON object on one line and nothing else")

    def handle(self, *args: Any, recipients: int, seed: int, serve: bool, json: bool, **options: Any) -> None:
        if os.environ.get("DJANGO_SETTINGS_MODULE") != SETTINGS:
            _become("demo", f"--{recipients=}", f"--{seed=}", *["--serve"] * serve, *["--json"] * json)
        from project.demo.performance import give

        try:
            agrees = give(recipients=recipients, seed=seed, serve=serve, as_json=json, out=self.stdout)
        except KeyboardInterrupt:
            sys.exit(130)  # as shells have it
        if not agrees:
            sys.exit(1)


def _become(*arguments: str) -> NoReturn:
    """Go on as the same command under the demo's settings: a process that runs can't change its database."""
    manage = str(settings.BASE_DIR / "manage.py")
    # No shell: our own program, with arguments that were parsed.
    os.execv(sys.executable, [sys.executable, manage, *arguments, f"--settings={SETTINGS}"])  # noqa: S606


def _recipients(text: str) -> int:
    if not text.isdecimal() or int(text) < FEWEST:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of {FEWEST} or more")
    return int(text)
