"""What cases about jobs share: whom they are for, and how they are looked at and ended."""

from __future__ import annotations

from mailengine.models import MessageJob

from .world import World

WORDS = "Hello", "Good morning.", "desk@example.org"


def addresses(count: int) -> list[str]:
    return [f"u{number:07}@example.org" for number in range(count)]


def crowd(count: int) -> str:
    """Python that registers an audience of so many: the same addresses as above, one after the other."""
    return f"""
import mailengine
@mailengine.audience("crowd", count=lambda: {count})
def crowd():
    return (f"u{{number:07}}@example.org" for number in range({count}))
"""


def cursor_of(job: MessageJob) -> int:
    return int(MessageJob.objects.values_list("cursor", flat=True).get(pk=job.pk))


def withdraw(world: World, job: MessageJob) -> None:
    """Cancel the job, and let its messages follow."""
    MessageJob.objects.filter(pk=job.pk).cancel()
    while MessageJob.objects.filter(pk=job.pk, unsettled=True).exists():
        world.run("process_mail_jobs")
