"""What the commands have in common: options, signals, output and exit codes."""

from __future__ import annotations

import argparse
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from django.core.checks import CheckMessage, run_checks
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error as DatabaseFault
from django.db import connections, router

from ..errors import DatabaseLost
from ..models import Message
from ..pipeline.outage import one_line_of, passes
from ..pipeline.processes import SIGNALS, StopFlag

USAGE = 2
BLOCKED = 3
BAR_WIDTH = 30
REDRAW_SECONDS = 0.1

Draw = Callable[[int], None]
"""Shows how many are done."""


class MailCommand(BaseCommand):
    """A command for cron: silent when there was nothing to do, otherwise it says in one line what it did.

    Exit codes: 0 done, also after a signal; 1 unexpected error; 2 usage or configuration.
    """

    requires_system_checks = ["mailengine"]  # noqa: RUF012  Django's own form

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object on one line, in any case")

    is_whole_process = False
    """Started from the command line: nothing comes after it."""

    def run_from_argv(self, argv: list[str]) -> None:
        self.is_whole_process = True
        super().run_from_argv(argv)

    def execute(self, *args: Any, **options: Any) -> str | None:
        """A database that is down is an operator's business: one line that says what was tried, and the mend."""
        using = router.db_for_write(Message)
        try:
            connections[using].ensure_connection()
            return super().execute(*args, **options)
        except DatabaseLost as error:
            raise CommandError(str(error)) from error
        except DatabaseFault as error:
            if not passes(error) or connections[using].in_atomic_block:
                raise
            raise CommandError(database_trouble(error)) from error

    def check(self, *args: Any, **options: Any) -> None:
        """Refuse to run with wrong settings. Mere warnings are left to `manage.py check`: cron would mail them."""
        if problems := failed_checks():
            raise CommandError("\n".join(in_words(problem) for problem in problems), returncode=USAGE)

    @contextmanager
    def stopping(self, stop: StopFlag) -> Iterator[None]:
        """Let SIGTERM and SIGINT set `stop`, so that what is under way ends first; in the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, lambda *_: stop.set()) for number in SIGNALS}
        try:
            yield
        finally:
            # In a process of its own a second signal, come late, is not to kill what the first one let end well.
            is_ending = self.is_whole_process and stop.is_set()
            for number, handler in before.items():
                signal.signal(number, signal.SIG_IGN if is_ending else handler)

    def say(
        self, command: str, did: str, *, as_json: Mapping[str, Any], options: Mapping[str, Any], is_empty: bool
    ) -> None:
        """Print what was done: nothing at all when that is nothing, unless somebody asked for more."""
        if options["json"]:
            self.stdout.write(json.dumps({"command": command, **as_json}))
        elif options["verbosity"] >= (2 if is_empty else 1):
            self.stdout.write(f"{command}: {'nothing to do' if is_empty else did}")


class SliceCommand(MailCommand):
    """A command that does a bounded piece of work: `--limit`, `--max-time`, `--dry-run`."""

    max_time: float | None = 50

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--limit", type=at_least_one, metavar="N", help="messages at most; default: no limit")
        parser.add_argument(
            "--max-time",
            type=number_of_seconds,
            default=self.max_time,
            metavar="SECONDS",
            help=f"begin nothing new after so many seconds; default: {self.max_time or 'no limit'}",
        )
        parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")

    @contextmanager
    def progress_bar(self, count: Callable[[], int | None], *, verbosity: int) -> Iterator[Draw | None]:
        """On a terminal, a function that draws how many of `count()` are done, on a line wiped in the end; else None.

        `count` is asked once, and on a terminal only; it gives None where nobody knows.
        """
        if not self.stderr.isatty() or verbosity < 1:
            yield None
            return
        total, drawn_at = count(), float("-inf")

        def draw(done: int) -> None:
            nonlocal drawn_at
            if time.monotonic() - drawn_at >= REDRAW_SECONDS:
                drawn_at = time.monotonic()
                self._overwrite(_bar(done, total))

        try:
            yield draw
        finally:
            self._overwrite("")

    def _overwrite(self, text: str) -> None:
        self.stderr.write(f"\r{text}\x1b[K", str, ending="")  # str: without the colour of errors
        self.stderr.flush()


def failed_checks() -> list[CheckMessage]:
    """The errors that mailengine's system checks find, and nobody silenced; none of these commands runs with one."""
    found = run_checks(tags=["mailengine"])
    return [message for message in found if message.is_serious() and not message.is_silenced()]


def database_trouble(error: DatabaseFault) -> str:
    """What is wrong with the database, in one line: where it was looked for, what it said, the mend."""
    text, alias = one_line_of(error), router.db_for_write(Message)
    if "mailengine_" in text:
        return f"tables are missing, run manage.py migrate: {text}"
    place = connections[alias].settings_dict
    address = f"{place['HOST']}:{place['PORT']}".strip(":")
    where = f"{place['NAME']}{f' at {address}' if address else ''}"
    return (
        f"the database does not answer: {connections[alias].vendor} {where}: {text}. "
        f"Nothing was lost; start it, or mend DATABASES[{alias!r}]."
    )


def in_words(problem: CheckMessage) -> str:
    """A system check's finding in one line, with the mend."""
    return f"{problem.msg} ({problem.id})" + (f" {problem.hint}" if problem.hint else "")


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 message`, `1,240 messages`, `2 addresses`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """`0.04 s`, `2.5 s`, `41 s`, `2 min`, `3 h`, `5 days`: as exact as an operator needs it."""
    if seconds < 1:
        return f"{max(seconds, 0.01):.2f} s"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def at_least_one(text: str) -> int:
    """The number in `text`, for argparse."""
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return number


def number_of_seconds(text: str) -> float:
    """The number in `text`, for argparse."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, 0 or more")
    return seconds


def _bar(done: int, total: int | None) -> str:
    if not total:
        return f"{done:,} done"
    filled = BAR_WIDTH * min(done, total) // total
    return f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {done:,} of {total:,}"
