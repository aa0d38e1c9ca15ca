"""C6 and C7, callers: transactions that fail, and the same idempotency key from many at once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from random import Random

from django.db import connection, transaction

import mailengine
from mailengine.models import Content, Message, MessageJob

from .case import case
from .jobs import WORDS
from .workers import Worker
from .world import UNHURRIED, World


def _call(world: World, code: str) -> Worker:
    """A process of the project's own, with this Python."""
    return world.worker("shell", "--no-imports", "--verbosity=0", "-c", code)


@case("F-X22", "mail queued in transactions that roll back, commit late, or are killed", quick=True)
def queued_in_transactions(world: World, random: Random) -> None:
    """It goes if and only if they commit, and not before."""
    world.configure(**UNHURRIED)
    sink = world.smtp()
    for number in world.times(10):
        words = [*WORDS, [f"u{number}@example.org"]]
        with suppress(ZeroDivisionError), transaction.atomic():
            mailengine.queue_mail(*words, attachments=[("a.txt", "a")])
            mailengine.queue_job(*WORDS, [f"v{number}@example.org"])
            raise ZeroDivisionError
        held = world.folder / f"held{number}"
        victim = _call(world, _queue_and_wait(words, held))
        world.wait_until(held.exists, what="mail to be queued in a transaction")
        before = sink.accepted_count
        if connection.vendor != "sqlite":  # where one writer makes all others wait
            assert world.run("send_mail").returncode == 0
        assert sink.accepted_count == before, "mail went before its transaction was committed"
        victim.kill()
        world.until_killed(victim)
        with transaction.atomic():
            world.acked.append(str(mailengine.queue_mail(*words).pk))
        world.run("process_mail_jobs")
        world.run("send_mail")
    assert world.statuses() == {"sent": len(world.acked)}
    assert not MessageJob.objects.exists()


def _queue_and_wait(words: Sequence[object], held: Path, *, key: str | None = None) -> str:
    """Python that queues a mail, says so by a file, and never commits."""
    return f"""
import pathlib, time
from django.db import transaction
import mailengine
with transaction.atomic():
    mailengine.queue_mail(*{words!r}, idempotency_key={key!r})
    pathlib.Path({str(held)!r}).touch()
    time.sleep(600)
"""


def _callers(world: World, requests: Sequence[tuple[str, str]]) -> list[Worker]:
    """A process for each of these (key, subject), all at work at the same instant."""
    go = world.folder / "go"
    go.unlink(missing_ok=True)
    crew, ready = [], []
    for number, (key, subject) in enumerate(requests):
        ready.append(world.folder / f"ready{number}")
        ready[-1].unlink(missing_ok=True)
        crew.append(_call(world, _queue_at_once(ready[-1], go, subject, key)))
    world.wait_until(lambda: all(path.exists() for path in ready), seconds=120, what="the callers to be ready")
    go.touch()
    return crew


def _queue_at_once(ready: Path, go: Path, subject: str, key: str) -> str:
    """Python that waits for the others, queues a mail, and prints its id, or that the key is taken."""
    return f"""
import pathlib, time
import mailengine, mailengine.errors
from django.db import connection
connection.ensure_connection()
pathlib.Path({str(ready)!r}).touch()
while not pathlib.Path({str(go)!r}).exists():
    time.sleep(0.02)
try:
    made = mailengine.queue_mail({subject!r}, "Text", None, ["ann@example.org"], idempotency_key={key!r})
    print(made.pk)
except mailengine.errors.IdempotencyConflict:
    print("conflict")
"""


def _answers(crew: Sequence[Worker]) -> list[str]:
    for worker in crew:
        assert worker.wait(seconds=120) == 0, worker.err[-2_000:]
    return [worker.out.strip() for worker in crew]


@case("F-A01", "the same idempotency key from 50 processes at once, and once more", quick=True)
def one_key(world: World, random: Random) -> None:
    """One row; everybody is given its id."""
    world.configure(**UNHURRIED)
    sink = world.smtp()
    for number in world.times(2, quick=1):
        requests = [(f"order-{number}", "Hello")] * (4 if world.is_quick else 50)
        ids = _answers(_callers(world, requests))
        again = _answers(_callers(world, requests[:2]))
        assert len({*ids, *again}) == 1, Counter(ids)
        world.acked += ids[:1]
    assert Message.objects.count() == len(world.acked)
    assert Content.objects.count() == len(world.acked)
    world.drain()
    assert sink.accepted_count == len(world.acked)


@case("F-A01b", "the same, and who came first dies before its commit")
def one_key_whose_first_user_dies(world: World, random: Random) -> None:
    """One of the others makes the row."""
    world.configure(**UNHURRIED)
    world.smtp()
    for number in world.times(3):
        key, held = f"order-{number}", world.folder / f"held{number}"
        words = ["Hello", "Text", None, ["ann@example.org"]]
        first = _call(world, _queue_and_wait(words, held, key=key))
        world.wait_until(held.exists, what="the first to have the key")
        crew = _callers(world, [(key, "Hello")] * 30)
        time.sleep(random.uniform(0, 1))
        first.kill()
        ids = _answers(crew)
        assert len(set(ids)) == 1, Counter(ids)
        world.acked += ids[:1]
    assert Message.objects.count() == len(world.acked)


@case("F-A02", "the same idempotency key with two contents, from 50 processes at once")
def one_key_for_two(world: World, random: Random) -> None:
    """One row; who wanted the other content hears so, and nothing of it is queued."""
    world.configure(**UNHURRIED)
    world.smtp()
    requests = [("order-7", subject) for subject in ("Hello", "Good bye")] * 25
    random.shuffle(requests)
    answers = _answers(_callers(world, requests))
    [made] = Message.objects.select_related("content")
    for (_key, subject), answer in zip(requests, answers, strict=True):
        assert answer == (str(made.pk) if subject == made.content.subject else "conflict")
    world.acked.append(str(made.pk))
    assert Content.objects.count() == 1
