"""What the bench asks of each engine."""

from __future__ import annotations

import functools
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import support
from environment import LOCKS
from support import addresses

words = functools.cache(support.words)
"""(subject, text, HTML) of the one mail that all of them send: 2 kB of text, 20 kB of HTML."""

if TYPE_CHECKING:
    from django.core.mail import EmailMultiAlternatives

__all__ = ["SENDER", "Engine", "addresses", "django_command", "email", "pieces", "words"]

SENDER = "news@example.org"
PIECE = 500


class Engine:
    """One product at one setting.

    The upper half is asked by the bench. The methods whose names begin with `queue_` run in a process of their own with
    Django set up, and are what the bench takes the time of.
    """

    product = ""
    runs_as = "command"
    """`command` ends by itself when nothing is left, `worker` is stopped, `once` does all its work without a queue."""
    left_sql = ""
    """How many mails are not sent yet."""
    has_own_words = True
    """Whether each of its mails brings its own words, even where all say the same."""

    def __init__(self, key: str, title: str) -> None:
        self.key, self.title = key, title
        self.env: dict[str, str] = {}

    def command(self) -> list[str]:
        raise NotImplementedError

    def left(self, ask: Callable[[str], int]) -> int:
        """How many mails are not sent yet; `ask` answers SQL."""
        return ask(self.left_sql)

    def mistakes(self, ask: Callable[[str], int], count: int) -> str:
        """What its own books say against `count` mails having been sent; empty: nothing."""
        return ""

    def tidy(self) -> None:
        """Take away what an earlier run left outside the database: the lock of a process that was ended, for one."""
        shutil.rmtree(LOCKS, ignore_errors=True)
        LOCKS.mkdir(parents=True)

    # In a process with Django set up

    def queue_many(self, count: int) -> None:
        """One mail to so many, in the quickest way that it documents."""
        raise NotImplementedError

    def queue_each(self, count: int) -> None:
        """So many mails, one call and one commit for each."""
        raise NotImplementedError

    def queue_urgent(self, address: str) -> None:
        raise NotImplementedError


def django_command(*arguments: object) -> list[str]:
    return [os.environ.get("BENCH_PYTHON", sys.executable), "manage.py", *map(str, arguments)]


def email(to: str) -> EmailMultiAlternatives:
    from django.core.mail import EmailMultiAlternatives

    subject, text, html = words()
    message = EmailMultiAlternatives(subject, text, SENDER, [to])
    message.attach_alternative(html, "text/html")
    return message


def pieces(count: int, size: int = PIECE) -> Iterator[list[str]]:
    """All addresses in lists of `size`."""
    everyone = list(addresses(count))
    for start in range(0, count, size):
        yield everyone[start : start + size]
