"""What the commands that send have in common: options, signals, output and exit codes."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser, SystemCheckError

USAGE = 2
BLOCKED = 3


class MailCommand(BaseCommand):
    """A command with `--limit`, `--max-time`, `--dry-run` and `--json`, which says in one line what it did.

    Exit codes: 0 done, also after a signal; 1 unexpected error; 2 usage or configuration; 3 mail is waiting and no
    provider can be used.
    """

    requires_system_checks = ["mailengine"]  # noqa: RUF012  Django's own form
    max_time: float | None = 50
    counts = "messages"

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--limit", type=_count, metavar="N", help=f"{self.counts} at most; default: no limit")
        parser.add_argument(
            "--max-time",
            type=_seconds,
            default=self.max_time,
            metavar="SECONDS",
            help="begin nothing new after so many seconds; default: %(default)s",
        )
        parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
        parser.add_argument("--json", action="store_true", help="print one JSON object on one line")

    def execute(self, *args: Any, **options: Any) -> str | None:
        try:
            return super().execute(*args, **options)
        except SystemCheckError as error:
            raise CommandError(str(error), returncode=USAGE) from error

    @contextmanager
    def stopping(self, stop: threading.Event) -> Iterator[None]:
        """Let SIGTERM and SIGINT set `stop`, so that what is under way ends first; in the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def say(self, line: str, *, as_json: Mapping[str, Any], options: Mapping[str, Any], is_empty: bool) -> None:
        """Print what was done: nothing at all when that is nothing, since cron mails any output."""
        if options["json"]:
            self.stdout.write(json.dumps(as_json))
        elif (not is_empty and options["verbosity"] >= 1) or options["verbosity"] >= 2:
            self.stdout.write(line)

    def progress(self, text: str) -> None:
        """Show on a terminal how far it is, on a line that the next one replaces."""
        if self.shows_progress:
            self.stderr.write(f"\r{text:<78}", ending="")
            self.stderr.flush()

    def end_progress(self) -> None:
        if self.shows_progress:
            self.stderr.write(f"\r{'':<78}\r", ending="")

    @property
    def shows_progress(self) -> bool:
        return bool(self.stderr.isatty()) and sys.stdin is not None and sys.stdin.isatty()


def counted(number: int, noun: str) -> str:
    """`1 message`, `1,240 messages`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(seconds: float) -> str:
    """`0.4 s`, `41 s`, `2 min`, `3 h`, `5 days`: as exact as an operator needs it."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size or size == 60:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _count(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of 1 or more")
    return number


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return seconds
