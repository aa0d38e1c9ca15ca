"""What can't be composed: it hurts itself, its job at the most, and never the run."""

from __future__ import annotations

import logging
import os

import pytest
from django.core.files.storage import storages
from django.core.management import call_command
from django.db import OperationalError

from mailengine import queue_job
from mailengine.models import Attachment, Message, MessageJob
from mailengine.models.messages import POISON_CLAIMS
from mailengine.pipeline import composer
from mailengine.pipeline.dispatch import Dispatcher

from .. import processes
from .helpers import ledger, queue, queue_many, send, statuses

pytestmark = pytest.mark.django_db

TWO_LINES = {"name": "Ann\nBcc: eve@example.org"}
"""Merge data that no subject can carry; the front door lets none in, but rows may be older than it is."""


class Nameless(Exception):  # noqa: N818  as a project might
    """An error whose own text can't be had."""

    def __str__(self):
        raise RuntimeError("no text")


ERRORS = {
    "a bug": RuntimeError("boom"),
    "an assertion": AssertionError(),
    "no memory": MemoryError(),
    "no stack": RecursionError("maximum recursion depth exceeded"),
    "an error without text": Nameless(),
    "an end of something": StopIteration(),
    "a warning": DeprecationWarning("old"),
    "a database of its own": OperationalError("no such table: theirs"),
}


@pytest.fixture
def fails(monkeypatch):
    """`fails(address, error)`: composing mail to this address raises this error."""
    errors = {}
    original = composer.compose

    def compose(message, words, **options):
        if message.recipient in errors:
            raise errors[message.recipient]
        return original(message, words, **options)

    monkeypatch.setattr(composer, "compose", compose)
    return errors.__setitem__


def job_for(count, *, bad=()) -> MessageJob:
    """An expanded job with a name in its subject, which those whose number is in `bad` can't have there."""
    people = [(f"p{number:04d}@example.org", {"name": f"P{number}"}) for number in range(count)]
    job = queue_job("Hello {{ name }}", "Good morning.", "desk@example.org", people)
    call_command("process_mail_jobs", verbosity=0)
    hopeless = [f"p{number:04d}@example.org" for number in bad]
    Message.objects.filter(recipient__in=hopeless).update(merge_data=TWO_LINES)
    return job


@pytest.mark.parametrize("kind", ERRORS)
def test_whatever_composing_raises_the_others_are_sent(provider, clock, fails, kind, caplog):
    """F-X17: it stands at the head with top priority, and the run goes on."""
    poison, others = queue("poison@example.org", priority=0), queue_many(20)
    fails("poison@example.org", ERRORS[kind])

    send()

    poison.refresh_from_db()
    assert statuses() == {"queued": 1, "sent": len(others)}
    assert poison.reason.startswith(f"composing it failed: {type(ERRORS[kind]).__name__}")
    assert (poison.claim_count, poison.attempt_count, ledger(poison)) == (1, 0, [])
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert str(poison.pk) in caplog.text


def test_at_the_third_strike_it_is_set_aside(provider, clock, fails):
    poison = queue("poison@example.org")
    fails("poison@example.org", RecursionError("too deep"))

    for _ in range(POISON_CLAIMS):
        assert Message.objects.get().status == "queued"
        send()
        clock.advance(seconds=61)

    poison.refresh_from_db()
    assert poison.status == "dead"
    assert poison.reason == "poison: composing it failed 3 times, last RecursionError: too deep"


def test_it_is_not_tried_again_at_once(provider, clock, fails):
    """What lacked memory may find it later."""
    poison = queue("poison@example.org")
    fails("poison@example.org", MemoryError())
    send()
    send()
    poison.refresh_from_db()
    assert poison.claim_count == 1


def test_the_third_time_it_is_claimed_alone(provider, clock, fails, monkeypatch):
    poison = queue("poison@example.org")
    fails("poison@example.org", MemoryError())
    for _ in range(POISON_CLAIMS - 1):
        send()
        clock.advance(seconds=61)
    queue_many(5)
    together = []
    original = composer.Composer.compose

    def note(self, item):
        together.append((item.message.recipient, item.lease.id))
        original(self, item)

    monkeypatch.setattr(composer.Composer, "compose", note)
    send()

    lease = dict(together)[poison.recipient]
    assert [recipient for recipient, other in together if other == lease] == [poison.recipient]
    assert statuses() == {"dead": 1, "sent": 5}


def test_urgent_mail_goes_before_suspects_that_are_left(provider, settings):
    queue_many(4, stream="bulk")
    Message.objects.update(claim_count=POISON_CLAIMS - 1)

    def queue_urgent_mail(report):
        if report.outcomes.total() == 1 and not Message.objects.filter(priority=0):
            queue("urgent@example.org", priority=0)

    Dispatcher("send_mail", on_progress=queue_urgent_mail).run()

    # One suspect may have been claimed already.
    assert [email.to[0] for email in provider.accepted].index("urgent@example.org") <= 2
    assert statuses() == {"sent": 5}


def test_a_strike_is_forgotten_once_it_can_be_composed(provider, clock, fails, monkeypatch):
    message = queue("poison@example.org")
    fails("poison@example.org", MemoryError())
    send()
    clock.advance(seconds=61)
    monkeypatch.undo()
    send()
    message.refresh_from_db()
    assert (message.status, message.claim_count) == ("sent", 0)


def test_poison_that_may_have_gone_is_kept_for_a_person(provider, clock, fails):
    message = queue("poison@example.org")
    Message.objects.update(status="uncertain", uncertain_count=1, provider="relay")
    fails("poison@example.org", RuntimeError("boom"))
    for _ in range(POISON_CLAIMS):
        send()
        clock.advance(hours=1)
    assert list(Message.objects.kept_for_a_person()) == [message]


def test_what_may_have_gone_and_is_invalid_now_is_kept_too(provider, clock, fails):
    message = queue("poison@example.org")
    Message.objects.update(status="uncertain", uncertain_count=1, provider="relay")
    fails("poison@example.org", ValueError("no such charset"))
    send()
    assert list(Message.objects.kept_for_a_person()) == [message]
    assert Message.objects.get().reason.startswith("invalid: it can't be composed: no such charset")


def test_one_bad_context_of_many_is_one_dead_letter(provider, clock):
    """F-X15."""
    job = job_for(200, bad={100})
    send()
    assert statuses() == {"dead": 1, "sent": 199}
    job.refresh_from_db()
    assert job.status == "done"


@pytest.mark.parametrize("bad", [{0, 1, 2, 3}, {0, 2, 4, 6, 8, 10, 12}, {7, 8, 9, 10, 11, 12, 13}])
def test_a_job_of_which_something_can_be_composed_goes_on(provider, clock, bad):
    job_for(20, bad=bad)
    send()
    assert statuses() == {"dead": len(bad), "sent": 20 - len(bad)}


@pytest.mark.parametrize("connections", [1, 8])
def test_a_job_that_can_not_be_composed_is_paused(provider, clock, settings, connections, caplog):
    """F-X15: and costs no message."""
    settings.MAILENGINE = {**settings.MAILENGINE, "CONNECTIONS": connections}
    settings.ADMINS = []
    job = job_for(100, bad=range(100))
    others = queue_many(5, stream="bulk", priority="BULK")

    send()

    job.refresh_from_db()
    assert job.status == "paused"
    assert "can't be composed: invalid: " in job.reason
    assert Message.objects.filter(job=job, status="queued", available_at=None).count() >= 5
    assert not Message.objects.filter(status="dead").exists()
    assert Message.objects.filter(pk__in=[other.pk for other in others], status="sent").count() == 5
    alerts = [record for record in caplog.records if record.name == "mailengine.alerts"]
    assert [record.levelno for record in alerts] == [logging.ERROR]
    assert f"Job {job.pk} is paused" in alerts[0].getMessage()


def test_the_admins_are_told_once(provider, clock, settings):
    settings.ADMINS = [("Ops", "ops@example.org")] if not _takes_plain_admins() else ["ops@example.org"]
    job_for(50, bad=range(50))

    send()
    send()

    [alert] = [email for email in provider.accepted if email.to == ["ops@example.org"]]
    assert "is paused" in alert.subject
    assert "name" in alert.body


def test_messages_follow_the_job_once_its_cause_is_mended(provider, clock):
    job = job_for(30, bad=range(30))
    send()
    Message.objects.filter(job=job).update(merge_data={"name": "Ann"})

    MessageJob.objects.filter(pk=job.pk).resume()
    call_command("process_mail_jobs", verbosity=0)
    send()

    job.refresh_from_db()
    assert (statuses(), job.status) == ({"sent": 30}, "done")


@pytest.mark.parametrize("stop", ["nobody", "a person", "a person who cancels it"])
def test_what_runs_before_had_set_aside_is_put_back_too(provider, clock, settings, stop, monkeypatch):
    settings.MAILENGINE = {**settings.MAILENGINE, "CONNECTIONS": 1}
    job = job_for(12, bad=range(12))
    send(limit=4)
    assert statuses() == {"dead": 4, "queued": 8}
    pause = composer.Composer._pause

    def too_late(self, job_id, streak):
        jobs = MessageJob.objects.filter(pk=job_id)
        changes = {"nobody": lambda: None, "a person": jobs.pause, "a person who cancels it": jobs.cancel}
        changes[stop]()
        pause(self, job_id, streak)

    monkeypatch.setattr(composer.Composer, "_pause", too_late)
    send()
    call_command("process_mail_jobs", verbosity=0)

    job.refresh_from_db()
    if stop == "a person who cancels it":
        assert (job.status, statuses()["dead"]) == ("cancelled", 8)
    else:
        assert (job.status, statuses()) == ("paused", {"queued": 12})
        assert not Message.objects.exclude(available_at=None).exists()


def test_a_bug_in_composing_pauses_the_job_too(provider, clock, fails):
    job = job_for(30)
    for message in Message.objects.all():
        fails(message.recipient, RuntimeError("boom"))

    send()

    job.refresh_from_db()
    assert (job.status, statuses()) == ("paused", {"queued": 30})
    assert "RuntimeError: boom" in job.reason
    clock.advance(hours=1)
    send()
    assert set(Message.objects.values_list("status", "claim_count")) == {("queued", 0)}


def test_different_reasons_are_no_fault_of_the_job(provider, clock, fails):
    job = job_for(10)
    for number, message in enumerate(Message.objects.all()):
        fails(message.recipient, ValueError(f"reason {number}"))
    send()
    job.refresh_from_db()
    assert (job.status, statuses()) == ("done", {"dead": 10})


def test_a_job_of_which_mail_was_sent_before_goes_on(provider, clock, fails):
    job = job_for(30)
    send(limit=10)
    for message in Message.objects.filter(status="queued"):
        fails(message.recipient, ValueError("gone bad"))
    send()
    job.refresh_from_db()
    assert (job.status, statuses()) == ("done", {"sent": 10, "dead": 20})


@pytest.mark.django_db(transaction=True)
def test_a_file_that_needs_more_memory_than_there_is_sets_one_message_aside(server):
    """F-P18 in small: three strikes, and its batch-mates are sent; no process dies."""
    attachments = [("huge.bin", b"x", "application/octet-stream")]
    poison, others = queue("poison@example.org", priority=0, attachments=attachments), queue_many(20)
    os.truncate(_storage_path(Attachment.objects.get()), 1 << 30)  # a gigabyte that takes no room on the disk
    limit = """
import resource
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20), used + (400 << 20)))
"""

    for strike in range(1, POISON_CLAIMS + 1):
        run = processes.run("send_mail", before=limit)
        assert run.returncode == 0, run.stderr
        assert "MemoryError" in run.stderr
        poison.refresh_from_db()
        assert poison.claim_count == strike % POISON_CLAIMS
        assert statuses() == {str(poison.status): 1, "sent": len(others)}
        Message.objects.filter(pk=poison.pk, status="queued").update(available_at="2020-01-01T00:00Z")

    assert (poison.status, poison.reason) == ("dead", "poison: composing it failed 3 times, last MemoryError")
    assert len(server.accepted) == len(others)


@pytest.fixture
def volume(settings, tmp_path):
    """Where the attachments of a test are."""
    folder = tmp_path / "volume"
    backend = "django.core.files.storage.FileSystemStorage"
    settings.STORAGES = {**settings.STORAGES, "mailengine": {"BACKEND": backend, "OPTIONS": {"location": folder}}}
    return folder


def queue_with_files(count: int) -> list[Message]:
    """Messages with a file each."""
    return [
        queue(f"f{number}@example.org", attachments=[("a.txt", b"file %d" % number, "text/plain")])
        for number in range(count)
    ]


@pytest.mark.parametrize("mount_point", ["empty", "gone"])
def test_mail_with_attachments_waits_while_their_volume_is_not_mounted(provider, clock, volume, mount_point, caplog):
    queue_with_files(6)
    queue_many(3)
    away = volume.rename(volume.with_name("away"))
    if mount_point == "empty":
        volume.mkdir()

    for _ in range(POISON_CLAIMS + 1):
        caplog.clear()
        send()
        assert statuses() == {"queued": 6, "sent": 3}
        errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
        assert [error.partition(";")[0] for error in errors] == ["the storage of attachments has none of its files"]
        clock.advance(seconds=61)
    if mount_point == "empty":
        volume.rmdir()
    away.rename(volume)
    send()

    assert statuses() == {"sent": 9}


def test_a_file_that_is_gone_from_a_storage_that_is_there_ends_its_mail(provider, volume):
    lost, *others = queue_with_files(3)
    os.remove(_storage_path(lost.content.files.get().attachment))

    send()

    lost.refresh_from_db()
    assert lost.status == "dead"
    assert lost.reason.startswith("invalid: an attachment's file is gone: ")
    assert statuses() == {"dead": 1, "sent": len(others)}


def _storage_path(attachment: Attachment) -> str:
    return storages["mailengine"].path(str(attachment.file.name))


def _takes_plain_admins() -> bool:
    import django

    return django.VERSION >= (6, 0)
