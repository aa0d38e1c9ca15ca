"""A job and its messages: made in one go, held, let go on and withdrawn together."""

from __future__ import annotations

import threading
from concurrent.futures import wait

import pytest
from django.db import connection, transaction

from mailengine.models import Message, MessageJob
from mailengine.models.messages import Status, Verdict

from .helpers import claim, in_another_process, make_job, make_message, new_lease, now

pytestmark = pytest.mark.django_db
JobStatus = MessageJob.Status


def follow(job: MessageJob) -> int:
    """What `process_mail_jobs` does after a change of the job's status."""
    job.refresh_from_db()
    assert job.unsettled
    return Message.objects.follow(job)


def test_messages_of_a_job_are_queued_and_due():
    job, due_at = make_job(), now()
    exact = [{"address": "Ann@example.org", "name": "Ann", "kind": "to", "outcome": ""}]
    rows = [("ann@example.org", exact, {"name": "Ann O'Neil \\ ü"}), ("bob@example.org", None, None)]
    assert Message.objects.insert_many(job, rows, now=due_at) == 2
    ann, bob = Message.objects.order_by("id")
    assert (ann.other_recipients, ann.merge_data) == (exact, {"name": "Ann O'Neil \\ ü"})
    assert (bob.other_recipients, bob.merge_data) == (None, None)
    for message in (ann, bob):
        assert (message.status, message.available_at, message.job) == ("queued", due_at, job)
        assert (message.stream, message.priority, message.content_id) == ("bulk", 40, job.content_id)
    assert Message.objects.filter(merge_data__isnull=True).get() == bob  # NULL, not JSON's null


@pytest.mark.parametrize("name", ["Ann", "Ann\nLee", "", "\\N", "NULL", "{a,b}", "a\tb", '"', "'", "%s", "\u2028"])
def test_merge_data_comes_back_as_it_was(name):
    job = make_job()
    rows = [("ann@example.org", None, {"name": name}), ("bob@example.org", None, None), ("c'd@example.org", None, {})]
    assert Message.objects.insert_many(job, rows, now=now()) == 3
    found = Message.objects.order_by("id").values_list("recipient", "other_recipients", "merge_data")
    assert list(found) == rows


def test_no_rows_make_no_messages():
    assert Message.objects.insert_many(make_job(), [], now=now()) == 0


def test_an_address_gets_one_message_of_a_job():
    job = make_job(1)
    rows = [("u0@example.org", None, None), ("u1@example.org", None, None)]
    assert Message.objects.insert_many(job, rows, now=now()) == 1
    make_message(recipient="u0@example.org")
    make_message(recipient="u0@example.org")


def test_messages_follow_a_cancelled_job():
    job, lease = make_job(3), new_lease()
    claim(lease, limit=1)
    assert MessageJob.objects.filter(pk=job.pk).cancel() == 1
    assert follow(job) == 2
    assert sorted(job.messages.values_list("status", flat=True)) == ["cancelled", "cancelled", "sending"]
    assert set(job.messages.filter(status="cancelled").values_list("reason", flat=True)) == {"cancelled: with its job"}


def test_the_messages_of_a_paused_job_are_passed_over():
    """Design: the claim skips the messages of paused jobs without visiting them."""
    job = make_job(3)
    MessageJob.objects.filter(pk=job.pk).pause("paused: by Ann")
    assert follow(job) == 3
    assert follow(job) == 0
    assert claim(new_lease()) == []


def test_the_messages_of_a_resumed_job_go_on():
    job = make_job(3)
    MessageJob.objects.filter(pk=job.pk).pause()
    follow(job)
    assert MessageJob.objects.filter(pk=job.pk).resume() == 1
    assert follow(job) == 3
    assert follow(job) == 0
    assert len(claim(new_lease())) == 3
    assert set(job.messages.values_list("reason", flat=True)) == {""}


def test_deferred_messages_of_a_paused_job_keep_their_time():
    job = make_job(1)
    job.messages.update(status=Status.DEFERRED, available_at=now(hours=1))
    MessageJob.objects.filter(pk=job.pk).pause()
    assert follow(job) == 0
    assert job.messages.get().available_at > now()


def test_messages_follow_in_batches():
    job = make_job(3)
    MessageJob.objects.filter(pk=job.pk).cancel()
    job.refresh_from_db()
    assert [Message.objects.follow(job, limit=2) for _ in range(3)] == [2, 1, 0]


@pytest.mark.skipif(connection.vendor == "sqlite", reason="a transaction on SQLite locks the whole file")
@pytest.mark.django_db(transaction=True)
def test_what_is_set_aside_while_its_job_is_resumed_goes_on_too():
    """A Begin that still saw the job paused commits after the resume: its message must not wait for ever."""
    job, lease = make_job(1), new_lease()
    (message,) = claim(lease)
    MessageJob.objects.filter(pk=job.pk).pause()
    resumed = threading.Event()

    def follow_it():
        resumed.wait(timeout=10)
        return follow(job)

    with in_another_process(follow_it) as followed:
        with transaction.atomic():  # the Begin
            Message.objects.held([message.pk])
            with in_another_process(MessageJob.objects.filter(pk=job.pk).resume) as resume:
                assert resume.result(timeout=10) == 1
            resumed.set()
            wait([followed], timeout=0.5)
            Message.objects.settle(message, Verdict(Status.QUEUED, "its job is paused", available_at=None), lease=lease)
        assert followed.result(timeout=10) == 1
    assert len(claim(new_lease())) == 1


@pytest.mark.parametrize("status", JobStatus)
def test_a_job_moves_as_its_state_allows(status):
    def moved(verb: str) -> str:
        job = make_job(status=status)
        MessageJob.objects.filter(pk=job.pk).update(paused_from=JobStatus.SENDING if status == "paused" else "")
        getattr(MessageJob.objects.filter(pk=job.pk), verb)()
        job.refresh_from_db()
        return str(job.status)

    running = status in {JobStatus.QUEUED, JobStatus.EXPANDING, JobStatus.SENDING}
    assert moved("pause") == ("paused" if running else status)
    assert moved("resume") == ("sending" if status == JobStatus.PAUSED else status)
    assert moved("cancel") == ("cancelled" if running or status == JobStatus.PAUSED else status)
    assert moved("finish") == ("done" if status == JobStatus.SENDING else status)


@pytest.mark.parametrize("status", MessageJob.RUNNING)
def test_a_resumed_job_goes_on_where_it_was_paused(status):
    job = make_job(status=status)
    job_rows = MessageJob.objects.filter(pk=job.pk)
    job_rows.pause("paused: by Ann")
    job_rows.resume()
    job.refresh_from_db()
    assert (job.status, job.reason, job.paused_from) == (status, "", "")


@pytest.mark.parametrize("status", Message.OPEN_STATUSES)
def test_a_job_is_not_done_while_one_message_is_open(status):
    job = make_job(2)
    first, last = job.messages.order_by("id")
    Message.objects.filter(pk=first.pk).update(status=Status.SENT)
    Message.objects.filter(pk=last.pk).update(status=status)
    assert MessageJob.objects.finish() == 0
    Message.objects.filter(pk=last.pk).update(status=Status.DEAD)
    assert MessageJob.objects.finish() == 1


def test_of_two_expansions_one_moves_the_cursor():
    """F-L14"""
    job = make_job(status=JobStatus.EXPANDING)
    twin = MessageJob.objects.get(pk=job.pk)
    piece = {"to": 500, "made": 499, "duplicates": 1, "problems": [], "finished": False}
    with transaction.atomic():
        assert job.hold()
        job.advance(**piece)
    with transaction.atomic():
        assert not twin.hold()
    job.refresh_from_db()
    assert (job.cursor, job.message_count, job.duplicate_count) == (500, 499, 1)


def test_a_paused_job_is_expanded_no_further():
    """F-X03"""
    job = make_job(status=JobStatus.EXPANDING)
    MessageJob.objects.filter(pk=job.pk).pause()
    with transaction.atomic():
        assert not job.hold()
    assert not job.start()
