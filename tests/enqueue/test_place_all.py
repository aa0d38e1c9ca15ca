"""Many mails at once: the same rows as one by one, by a few statements."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.core.mail import EmailMultiAlternatives
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from mailengine.errors import InvalidMail
from mailengine.models import Content, Message
from mailengine.pipeline.enqueue import order_of, place, place_all

pytestmark = pytest.mark.django_db


def order(number, *, send_at=None, expires_at=None, priority=None, **mail):
    words = {"subject": f"No. {number}", "body": "Good morning.\n" * 40, "to": [f"reader{number}@example.org"]}
    email = EmailMultiAlternatives(from_email="desk@example.org", **{**words, **mail})
    return order_of(
        email,
        stream="transactional",
        priority=priority,
        send_at=send_at,
        expires_at=expires_at,
        metadata={"number": number},
        tags=None,
    )


def rows():
    """All that was stored of each message, but for what differs in any case."""
    messages = Message.objects.order_by("id").select_related("content")
    drop = {"id", "content_id", "_state", "_content_cache", "created_at", "available_at"}
    found = []
    for message in messages:
        row = {name: value for name, value in vars(message).items() if name not in drop}
        words = {name: value for name, value in vars(message.content).items() if name not in {*drop, "content"}}
        files = list(message.content.files.values_list("position", "filename", "mimetype", "attachment_id"))
        found.append((row, words, files, message.available_at - message.created_at))
    return found


def test_the_same_rows_as_one_by_one():
    later = timezone.now().replace(microsecond=0) + timedelta(hours=1)
    orders = [
        order(1),
        order(2, to=["Ann <ann@example.org>", "bob@example.org"], bcc=["cee@example.org"], priority="urgent"),
        order(3, expires_at=later, attachments=[("a.txt", b"a", "text/plain"), ("b.bin", b"\0b", "")]),
        order(4, headers={"X-Shop": "4"}, reply_to=["shop@example.org"], subject=""),
    ]
    for each in orders:
        place(each, client="shop")
    expected = rows()
    Message.objects.all().delete()

    made = place_all(orders, client="shop")

    assert rows() == expected
    assert [message.pk for message in made] == list(Message.objects.order_by("id").values_list("pk", flat=True))
    assert all(not message._state.adding for message in made)


def test_they_wait_for_their_time():
    later = timezone.now().replace(microsecond=0) + timedelta(hours=1)
    place_all([order(1), order(2, send_at=later)])

    first, second = Message.objects.order_by("id")
    assert (first.available_at, second.available_at) == (first.created_at, later)


def test_what_says_the_same_is_stored_once():
    same = [order(7, to=[f"reader{number}@example.org"]) for number in range(5)]
    place_all([*same, order(8), order(7, attachments=[("a.txt", b"a", "text/plain")])])

    assert (Message.objects.count(), Content.objects.count()) == (7, 3)
    assert [message.recipient for message in Message.objects.order_by("id")][:2] == [
        "reader0@example.org", "reader1@example.org",
    ]  # fmt: skip


def test_a_thousand_cost_a_few_statements():
    with CaptureQueriesContext(connection) as few:
        place_all([order(number) for number in range(10)])
    with CaptureQueriesContext(connection) as many:
        place_all([order(number) for number in range(1_000)])

    assert Message.objects.count() == Content.objects.count() == 1_010
    # SQLite and MariaDB are asked in more pieces, for how much a statement may hold.
    assert len(many) <= (len(few) if connection.vendor == "postgresql" else len(few) + 30)


def test_one_that_can_not_be_takes_all_back():
    earlier = timezone.now() - timedelta(hours=1)
    with pytest.raises(InvalidMail, match="expires_at"):
        place_all([order(1), order(2, expires_at=earlier)])
    assert not Content.objects.exists()


def test_they_are_sent(provider):
    place_all([order(number) for number in range(20)])
    call_command("send_mail", verbosity=0)

    assert sorted(email.subject for email in provider.accepted) == sorted(f"No. {number}" for number in range(20))


def test_large_words_fit(provider):
    """MariaDB takes statements of 16 MB."""
    place_all([order(number, body="x" * 50_000 + str(number)) for number in range(500)])

    assert Content.objects.count() == 500
