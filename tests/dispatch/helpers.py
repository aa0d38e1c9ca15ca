"""What the tests of the loop do again and again."""

from __future__ import annotations

from django.core.management import call_command

from mailengine import queue_mail
from mailengine.models import Message


def queue(to: str = "ann@example.org", **options) -> Message:
    return queue_mail("Hello", "Good morning.", "desk@example.org", [to], **options)


def queue_many(count: int, **options) -> list[Message]:
    return [queue(f"u{number:04d}@example.org", **options) for number in range(count)]


def send(command: str = "send_mail", **options) -> None:
    call_command(command, verbosity=0, **options)


def ledger(message: Message) -> list[tuple[str, str]]:
    """(provider, outcome) of each attempt, in order."""
    return list(message.attempts.order_by("number").values_list("provider", "outcome"))


def statuses() -> dict[str, int]:
    """How many messages are in each status."""
    found: dict[str, int] = {}
    for status in Message.objects.values_list("status", flat=True):
        found[status] = found.get(status, 0) + 1
    return found
