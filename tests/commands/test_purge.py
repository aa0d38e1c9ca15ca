"""`purge_mail`: retention of what is final, and nothing else (N11)."""

import datetime

import pytest
from django.core.management import call_command
from django.db import connection, transaction
from django.utils import timezone

from mailengine import queue_job, queue_mail
from mailengine.models import Attachment, Attempt, Content, JobRecipients, Message, MessageJob
from mailengine.pipeline import purge as retention
from mailengine.pipeline.purge import purge
from tests.models.helpers import in_another_process

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def files(settings, tmp_path):
    """The folder of the attachments."""
    settings.MEDIA_ROOT = tmp_path
    return tmp_path


def queue(address="b@example.org", **options):
    return queue_mail("Hi", "Hello", "a@example.org", [address], **options)


def send():
    call_command("process_mail_jobs", verbosity=0)
    call_command("send_mail", verbosity=0)


def everything_of(*models):
    return [row for model in models for row in model.objects.all()]


def test_what_is_final_and_old_goes_with_its_ledger_and_its_words(provider, clock, said):
    queue()
    send()
    clock.advance(days=91)

    assert said("purge_mail") == "purge_mail: 1 message, 1 content removed\n"
    assert everything_of(Message, Attempt, Content) == []


def test_what_is_final_and_not_old_stays(provider, clock, said):
    queue()
    send()
    clock.advance(days=89)

    assert said("purge_mail") == ""
    assert Message.objects.get().attempts.count() == 1


def test_days_say_how_old(provider, clock, said_as_json):
    queue()
    send()
    clock.advance(days=8)

    assert said_as_json("purge_mail", days=9)["messages"] == 0
    assert said_as_json("purge_mail", days=7) == {
        "command": "purge_mail",
        "messages": 1,
        "jobs": 0,
        "contents": 1,
        "attachments": 0,
    }


@pytest.mark.parametrize("status", [status for status in Message.Status.values if status not in Message.FINAL_STATUSES])
def test_what_is_not_final_stays_however_old(status, provider, clock):
    message = queue()
    Message.objects.filter(pk=message.pk).update(status=status, available_at=None)
    clock.advance(days=1_000)

    purge(days=90)

    assert Message.objects.get().pk == message.pk


def test_mail_that_was_scheduled_long_ago_is_as_old_as_its_sending(provider, clock):
    queue(send_at=timezone.now() + datetime.timedelta(days=100))
    clock.advance(days=101)
    send()

    purge(days=90)

    assert Message.objects.get().status == "sent"


def test_a_job_goes_with_its_last_message_and_its_files(provider, clock, said, files):
    """N11"""
    queue_job("Hi", "Hello", "a@example.org", ["b@example.org", "c@example.org"], attachments=[("a.txt", "x", None)])
    send()
    clock.advance(days=91)

    assert said("purge_mail") == "purge_mail: 2 messages, 1 job, 1 content, 1 attachment removed\n"
    assert everything_of(MessageJob, JobRecipients, Attachment) == []
    assert not [path for path in files.rglob("*") if path.is_file()]


def test_a_job_stays_while_one_of_its_messages_does(configure, provider, clock):
    configure({"relay": {"script": ["deferred"]}})
    job = queue_job("Hi", "Hello", "a@example.org", ["b@example.org", "c@example.org"])
    send()
    clock.advance(days=91)

    report = purge(days=90)

    assert (report.messages, report.jobs, report.contents) == (1, 0, 0)
    assert job.messages.get().status == "deferred"


@pytest.mark.parametrize("state", ["queued", "expanding", "sending", "paused"])
def test_an_unfinished_job_without_messages_stays(state, provider, clock):
    job = queue_job("Hi", "Hello", "a@example.org", ["b@example.org"])
    MessageJob.objects.filter(pk=job.pk).update(status=state)
    clock.advance(days=1_000)

    assert purge(days=90).jobs == 0


def test_a_file_stays_while_another_mail_has_it(provider, clock, files):
    queue(attachments=[("old.txt", "the same", None)])
    send()
    clock.advance(days=91)
    kept = queue(attachments=[("new.txt", "the same", None)])

    report = purge(days=90)

    assert (report.messages, report.attachments) == (1, 0)
    assert kept.content.attachments.get().read() == b"the same"


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(connection.vendor == "sqlite", reason="it has no locks on rows")
def test_what_somebody_has_locked_is_left_to_the_next(provider, clock):
    """A purge waits for nobody, and so holds nobody up."""
    queue("b@example.org")
    queue("c@example.org")
    send()
    clock.advance(days=91)
    kept = Message.objects.get(recipient="b@example.org")

    with transaction.atomic():
        Message.objects.select_for_update().get(pk=kept.pk)
        with in_another_process(lambda: purge(days=90)) as report:
            assert report.result(timeout=60).messages == 1

    assert everything_of(Message) == [kept]
    assert purge(days=90).messages == 1


def test_days_without_end_remove_nothing(provider, clock):
    queue()
    send()

    assert purge(days=1_000_000).messages == 0


def test_it_goes_in_small_batches_and_can_be_stopped_between_them(provider, clock, monkeypatch):
    monkeypatch.setattr(retention, "BATCH", 10)
    queue_job("Hi", "Hello", "a@example.org", [f"reader{number}@example.org" for number in range(35)])
    send()
    clock.advance(days=91)
    asked = 0

    def must_stop():
        nonlocal asked
        asked += 1
        return asked > 2

    report = purge(days=90, must_stop=must_stop)

    assert (report.messages, report.jobs, Message.objects.count()) == (20, 0, 15)
    assert purge(days=90).messages == 15
