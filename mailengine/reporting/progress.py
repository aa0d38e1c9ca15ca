"""How far a job has come."""

from __future__ import annotations

from dataclasses import dataclass

from django.db.models import Count

from ..models import Message, MessageJob


@dataclass(frozen=True)
class Share:
    """The messages of a job that are in one state."""

    status: str
    number: int
    percent: float
    """Of the messages that the job has so far."""

    @property
    def label(self) -> str:
        return str(Message.Status(self.status).label)


def progress_of(job: MessageJob) -> list[Share]:
    """The job's messages by status, in the order of `Message.Status`; in one query."""
    rows = Message.objects.filter(job=job).values_list("status").annotate(Count("pk")).order_by()
    numbers = dict(rows)
    total = sum(numbers.values())
    return [
        Share(status, numbers[status], 100 * numbers[status] / total)
        for status in Message.Status.values
        if status in numbers
    ]
