"""The same idempotency key gives the same row, however often and from wherever it is asked for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier

import pytest
from django.db import connection, transaction
from django.utils.timezone import now

from mailengine import queue_job, queue_mail
from mailengine.errors import IdempotencyConflict
from mailengine.models import Attachment, Content, IdempotencyKey, JobRecipients, Message, MessageJob

MAIL = ("Hello", "Dear Ann", None, ["ann@example.org"])
JOB = ("Hello", "Dear {{ name }}", None, [("ann@example.org", {"name": "Ann"})])
TWINS = 20


@pytest.mark.django_db
def test_the_same_request_gives_the_first_row(provider, files):
    pdf = [("a.pdf", b"%PDF", "application/pdf")]
    first, again = (queue_mail(*MAIL, attachments=pdf, idempotency_key="order-7") for _ in range(2))
    assert first == again
    assert (Message.objects.count(), Content.objects.count(), Attachment.objects.count()) == (1, 1, 1)


@pytest.mark.django_db
@pytest.mark.parametrize(
    "changes",
    [
        {"subject": "Other"},
        {"recipient_list": ["bob@example.org"]},
        {"cc": ["bob@example.org"]},
        {"html_message": "<p>"},
        {"attachments": [("a.pdf", b"other", "application/pdf")]},
        {"metadata": {"a": 2}},
        {"stream": "bulk"},
    ],
)
def test_another_request_under_the_key_is_a_conflict(provider, files, changes):
    arguments = dict(zip(("subject", "message", "from_email", "recipient_list"), MAIL, strict=True))
    queue_mail(**arguments, idempotency_key="order-7")
    with pytest.raises(IdempotencyConflict, match="order-7"):
        queue_mail(**{**arguments, **changes}, idempotency_key="order-7")
    assert (Message.objects.count(), Content.objects.count()) == (1, 1)


@pytest.mark.django_db
def test_a_key_is_good_for_a_mail_and_for_a_job(provider):
    queue_mail(*MAIL, idempotency_key="7")
    first, again = (queue_job(*JOB, idempotency_key="7") for _ in range(2))
    assert first == again
    assert (MessageJob.objects.count(), JobRecipients.objects.count()) == (1, 1)


@pytest.mark.django_db
def test_other_recipients_of_a_job_are_a_conflict(provider):
    queue_job(*JOB, idempotency_key="7")
    with pytest.raises(IdempotencyConflict):
        queue_job(*JOB[:3], [("ann@example.org", {"name": "Anna"})], idempotency_key="7")


@pytest.mark.django_db
def test_a_repeated_request_is_answered_after_its_mail_expired(provider, clock):
    expires_at = now() + timedelta(hours=1)
    first = queue_mail(*MAIL, expires_at=expires_at, idempotency_key="7")
    clock.advance(hours=2)
    assert queue_mail(*MAIL, expires_at=expires_at, idempotency_key="7") == first


@pytest.mark.django_db
def test_a_rolled_back_request_leaves_its_key_free(provider):
    with transaction.atomic():
        queue_mail(*MAIL, idempotency_key="7")
        transaction.set_rollback(True)
    queue_mail("Other", *MAIL[1:], idempotency_key="7")
    assert IdempotencyKey.objects.count() == 1


def at_once(call):
    """What so many threads get, each with a connection of its own, that call at the same moment."""
    barrier = Barrier(TWINS)

    def one(_number):
        try:
            connection.ensure_connection()
            barrier.wait(timeout=30)
            return call()
        finally:
            connection.close()

    with ThreadPoolExecutor(TWINS) as pool:
        return list(pool.map(one, range(TWINS)))


@pytest.mark.django_db(transaction=True)
def test_twins_at_the_same_moment_make_one_message(provider, files):
    pdf = [("a.pdf", b"%PDF", "application/pdf")]
    found = at_once(lambda: queue_mail(*MAIL, attachments=pdf, idempotency_key="order-7").pk)
    assert len(set(found)) == 1
    assert (Message.objects.count(), Content.objects.count(), Attachment.objects.count()) == (1, 1, 1)
    assert len(files()) == 1


@pytest.mark.django_db(transaction=True)
def test_twins_at_the_same_moment_make_one_job(provider):
    found = at_once(lambda: queue_job(*JOB, idempotency_key="issue-7").pk)
    assert len(set(found)) == 1
    assert (MessageJob.objects.count(), JobRecipients.objects.count(), Content.objects.count()) == (1, 1, 1)


@pytest.mark.django_db(transaction=True)
def test_the_same_file_attached_at_the_same_moment_is_kept_once(provider, files):
    found = at_once(lambda: queue_mail(*MAIL, attachments=[("a.pdf", b"%PDF", "application/pdf")]).pk)
    assert len(set(found)) == TWINS
    assert (Attachment.objects.count(), len(files())) == (1, 1)
