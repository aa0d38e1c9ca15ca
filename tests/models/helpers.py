"""Rows to begin with, and workers that claim, begin and die."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from django.db import connection, transaction

from mailengine.clock import read_now
from mailengine.models import Attempt, Content, Lease, Message, MessageJob, Worker
from mailengine.models.messages import Status
from mailengine.outcomes import Kind, Outcome

LEASE_SECONDS = 240
ACCEPTED = Outcome(Kind.ACCEPTED, provider_message_id="from-the-provider")
DEFERRED = Outcome(Kind.DEFERRED, code="450 4.2.1", detail="Mailbox busy")


def now(**ahead: float):
    return read_now("default") + timedelta(**ahead)


def make_content() -> Content:
    return Content.objects.create(
        subject="Hello", text="Good morning.", from_email="desk@example.org", created_at=now()
    )


def make_message(status: Status = Status.QUEUED, **fields: Any) -> Message:
    """A message that is due, unless `fields` say otherwise."""
    values = {
        "recipient": "ann@example.org",
        "stream": "transactional",
        "priority": 20,
        "available_at": now(),
        "created_at": now(),
        **fields,
    }
    if "content" not in values:
        values["content"] = make_content()
    return Message.objects.create(status=status, **values)


def make_messages(count: int, status: Status = Status.QUEUED, **fields: Any) -> list[Message]:
    content = make_content()
    return [make_message(status, content=content, recipient=f"u{n}@example.org", **fields) for n in range(count)]


def make_job(count: int = 0, status: MessageJob.Status = MessageJob.Status.SENDING) -> MessageJob:
    """A job with so many queued messages."""
    job = MessageJob.objects.create(content=make_content(), stream="bulk", priority=40, status=status, created_at=now())
    rows = [(f"u{n}@example.org", None, None) for n in range(count)]
    Message.objects.insert_many(job, rows, now=now())
    return job


def new_lease(name: str = "mail3:4711") -> Lease:
    worker = Worker.objects.create(name=name, command="send_mail", started_at=now(), seen_at=now())
    return Lease(worker, trusted_until=float("inf"))


def claim(lease: Lease, *, status: Status = Status.QUEUED, limit: int = 100) -> list[Message]:
    """Claim in a transaction of its own, as a worker does."""
    with transaction.atomic():
        return Message.objects.claim(lease, statuses=[status], seconds=LEASE_SECONDS, limit=limit)


def begin(message: Message, lease: Lease, *, number: int = 1, provider: str = "relay") -> None:
    Attempt.objects.begin({message.pk: (number, provider)}, worker=lease.worker, now=now())


def rescue(window: float | None = 600) -> int:
    return Message.objects.rescue(window=lambda message: window)


def settle_late(message: Message, verdict: Any, *, number: int = 1, outcome: Outcome = ACCEPTED) -> bool:
    with transaction.atomic():
        Message.objects.held([message.pk])
        return Message.objects.settle_late(message, verdict, number=number, outcome=outcome)


def after_a_lost_handover(clock: Any) -> Message:
    """A message that is uncertain, since its worker died after Begin."""
    lease, message = new_lease(), make_message()
    claim(lease)
    begin(message, lease)
    clock.advance(seconds=LEASE_SECONDS + 1)
    rescue()
    message.refresh_from_db()
    return message


def at_the_same_time(count: int, work: Callable[[], Any]) -> list[Any]:
    """What each of `count` threads got from `work`, each on a connection of its own and all started together."""
    start = threading.Barrier(count)

    def run() -> Any:
        try:
            start.wait(timeout=20)
            return work()
        finally:
            connection.close()

    with ThreadPoolExecutor(count) as pool:
        return [future.result(timeout=60) for future in [pool.submit(run) for _ in range(count)]]


@contextmanager
def in_another_process(work: Callable[[], Any]) -> Iterator[Future[Any]]:
    """`work` under way on a thread with a connection of its own, as a Future."""

    def run() -> Any:
        try:
            return work()
        finally:
            connection.close()

    pool = ThreadPoolExecutor(1)
    try:
        yield pool.submit(run)
    finally:
        pool.shutdown(wait=False)  # a test that fails must let go of its locks first
