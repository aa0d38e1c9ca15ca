"""One new row by straight SQL: the same row that `save()` would write."""

from __future__ import annotations

import datetime

import pytest
from django.db import IntegrityError, connection, transaction
from django.db.models.signals import post_save, pre_save
from django.forms.models import model_to_dict

from mailengine.clock import db_now, read_now
from mailengine.models import Content, Message
from mailengine.models.bulk import insert

from .helpers import make_job, now

pytestmark = pytest.mark.django_db


def content(**fields):
    words = {
        "subject": "Hi",
        "text": "Grüß Gott, 100 %s",
        "html": "<p>%</p>",
        "from_email": "",
        "headers": {"X-A": "1"},
    }
    return Content(**{**words, "created_at": now(), **fields})


def message(**fields):
    return Message(
        **{"content": make_job().content, "recipient": "ann@example.org", "stream": "bulk", "priority": 40, **fields}
    )


def test_a_row_is_as_save_would_have_written_it():
    at = now()
    inserted, saved = content(created_at=at), content(created_at=at)

    insert(inserted, using="default")
    saved.save()

    first, second = Content.objects.order_by("pk")
    assert (inserted.pk, saved.pk) == (first.pk, second.pk)
    assert {**model_to_dict(first), "id": None} == {**model_to_dict(second), "id": None}
    assert (inserted.created_at, first.created_at, inserted._state.adding) == (at, at, False)


def test_a_row_with_an_id_of_its_own_keeps_it_and_can_be_saved_again():
    row = message(available_at=now(), created_at=now(), merge_data={"name": "Ann"})
    own = row.pk

    insert(row, using="default")
    row.priority = 0
    row.save()

    found = Message.objects.get()
    assert (found.pk, found.priority, found.merge_data, found.other_recipients) == (own, 0, {"name": "Ann"}, None)


def test_the_databases_clock_is_told_as_an_instant(clock):
    clock.advance(days=400)
    row = message(available_at=db_now(60), created_at=db_now())

    insert(row, using="default")

    found = Message.objects.get()
    assert (found.created_at, found.available_at) == (row.created_at, row.available_at)
    assert row.created_at <= read_now("default") < row.created_at + datetime.timedelta(seconds=60)
    assert row.available_at - row.created_at > datetime.timedelta(seconds=59)


def test_a_database_that_returns_nothing_is_asked_for_its_clock_before(monkeypatch):
    if connection.vendor == "postgresql":
        pytest.skip("PostgreSQL always returns what it wrote, and has no other way to tell an id")
    monkeypatch.setattr(connection.features, "can_return_columns_from_insert", False)
    row = content(created_at=db_now())

    insert(row, using="default")

    found = Content.objects.get()
    assert (found.pk, found.created_at) == (row.pk, row.created_at)


def test_who_listens_to_saves_hears_of_it():
    heard = []

    def listen(sender, instance, **about):
        heard.append((sender, instance, about.get("created")))

    pre_save.connect(listen, sender=Content)
    post_save.connect(listen, sender=Content)
    try:
        row = content()
        insert(row, using="default")
    finally:
        pre_save.disconnect(listen, sender=Content)
        post_save.disconnect(listen, sender=Content)

    assert heard == [(Content, row, None), (Content, row, True)]


def test_a_row_that_is_forbidden_spoils_the_transaction_as_with_save():
    row = message(available_at=now(), created_at=now())
    insert(row, using="default")

    with transaction.atomic():
        with pytest.raises(IntegrityError):
            insert(message(id=row.pk, available_at=now(), created_at=now()), using="default")
        assert transaction.get_rollback()
