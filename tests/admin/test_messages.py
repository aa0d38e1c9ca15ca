from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest
from django.contrib.admin.models import LogEntry
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from mailengine.clock import read_now
from mailengine.models import Attempt, Message, Worker
from mailengine.pipeline.enqueue import queue_job, queue_mail

from .conftest import told

pytestmark = pytest.mark.django_db
LIST = "admin:mailengine_message_changelist"
KEPT = {"status": "uncertain", "available_at": None, "reason": "the connection was lost"}


@pytest.fixture
def operator(log_in):
    return log_in("view_message", "change_message", "view_attempt", "view_messagejob")


def found(client, **query: str) -> set[str]:
    return {message.recipient for message in client.get(reverse(LIST), query).context["cl"].queryset}


def page_of(client, message: Message) -> str:
    return client.get(reverse("admin:mailengine_message_change", args=[message.pk])).content.decode()


# Finding


def test_a_message_is_found_by_its_address_however_it_is_typed(operator, client, make_message):
    make_message("ann@example.org")
    make_message("ann@example.org.uk")

    assert found(client, q="ANN@Example.org ") == {"ann@example.org"}
    assert found(client, q="Ann Lee <ann@example.org>") == {"ann@example.org"}


def test_what_is_no_whole_address_finds_those_that_begin_so(operator, client, make_message):
    for address in ("ann@example.org", "annette@example.org", "joann@example.org"):
        make_message(address)

    assert found(client, q="Ann") == {"ann@example.org", "annette@example.org"}
    assert found(client, q="an_@") == set()


def test_a_message_is_found_by_its_id_also_within_other_text(operator, client, make_message):
    make_message("bob@example.org")
    message = make_message("ann@example.org")

    assert found(client, q=f"<{message.pk}@example.org>") == {"ann@example.org"}
    assert found(client, q=message.pk.hex) == {"ann@example.org"}
    assert found(client, q=str(uuid4())) == set()


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"kept": "dead"}, {"dead@example.org"}),
        ({"kept": "uncertain"}, {"kept@example.org"}),
        ({"kept": "all"}, {"dead@example.org", "kept@example.org"}),
        ({"status__exact": "sent"}, {"sent@example.org"}),
        ({"stream": "bulk"}, {"sent@example.org"}),
        ({"priority": "40"}, {"sent@example.org"}),
        ({"provider": "relay"}, {"sent@example.org"}),
    ],
)
def test_the_list_is_filtered(operator, client, make_message, configure, query, expected):
    """G38"""
    configure()
    make_message("dead@example.org", status="dead")
    make_message("kept@example.org", **KEPT)
    make_message("waits@example.org", status="uncertain")
    make_message("sent@example.org", status="sent", stream="bulk", priority=40, provider="relay")

    assert found(client, **query) == expected


def test_the_list_asks_the_same_number_of_queries_however_long_it_is(operator, client, make_message):
    job = queue_job("Headlines", "Text", None, ["ann@example.org"])

    def queries() -> int:
        with CaptureQueriesContext(connection) as asked:
            client.get(reverse(LIST))
        return len(asked)

    make_message("a@example.org", job=job)
    with_one = queries()
    for i in range(20):
        make_message(f"b{i}@example.org", job=job)

    assert queries() == with_one


def test_lists_and_pages_of_messages_show_no_body(operator, client, make_message):
    """SA6"""
    message = make_message(merge_data={"code": "secret-link"})

    for page in (client.get(reverse(LIST)).content.decode(), page_of(client, message)):
        assert "The body" not in page
        assert "secret-link" not in page


# One message


def test_a_message_shows_what_was_tried_by_whom_and_what_came_of_it(operator, client, make_message):
    """S22, P20"""
    now = read_now("default")
    worker = Worker.objects.create(name="mail-1:4711", command="send_mail", started_at=now, seen_at=now)
    message = make_message(status="dead", reason="refused: 550 5.1.1 no such user")
    tried = {"message": message, "provider": "relay", "begun_at": now, "ended_at": now}
    Attempt.objects.create(number=1, outcome="uncertain", code="worker lost", worker=worker, **tried)
    Attempt.objects.create(number=2, outcome="refused", code="550 5.1.1", detail="no such user", worker_id=99, **tried)

    page = page_of(client, message)

    for words in ("mail-1:4711", "worker lost", "550 5.1.1", "no such user", "Given up on: refused: 550 5.1.1"):
        assert words in page


def test_a_message_shows_every_recipient_with_its_outcome(operator, client):
    message = queue_mail("Hello", "Text", None, ["Ann Lee <ann@example.org>"], bcc=["bob@example.org"])
    outcomes = [{**recipient, "outcome": "refused"} for recipient in message.other_recipients]
    Message.objects.update(status="dead", other_recipients=outcomes)

    page = page_of(client, message)

    assert "<td>Ann Lee &lt;ann@example.org&gt;</td><td>to</td><td>refused</td>" in page
    assert "<td>bob@example.org</td><td>bcc</td><td>refused</td>" in page


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, "Queued and due"),
        ({"available_in": 3600}, "Queued, to be sent from"),
        ({"status": "sending", "leased_in": 60}, "is sending it now"),
        ({"status": "sending", "leased_in": -60}, "was lost; the next run takes it back"),
        ({"status": "deferred", "available_in": 60, "reason": "450 busy"}, "Refused for now: 450 busy. Next try at"),
        ({"status": "deferred", "reason": "450 busy"}, "Due again"),
        ({"status": "uncertain", "available_in": 60, "provider": "ses"}, "We wait for proof from ses until"),
        (KEPT, "It is kept for a person"),
        ({"status": "sent", "provider": "ses", "sent_in": 0}, "Accepted by ses at"),
        ({"status": "sent", "provider": "ses", "sent_in": 0, "delivery": "bounced"}, "but it bounced later"),
        ({"status": "sent", "provider": "ses", "sent_in": 0, "delivery": "delivered"}, "and delivered"),
        ({"status": "suppressed", "reason": "mail to it bounced"}, "Not sent: mail to it bounced."),
        ({"status": "cancelled", "reason": "by a person"}, "Withdrawn before it was sent: by a person."),
        ({"status": "expired", "expires_in": -60}, "Not sent: its time was over at"),
    ],
)
def test_a_sentence_says_where_a_message_stands(operator, client, make_message, values, sentence):
    """P34"""
    now = read_now("default")
    names = {
        "available_in": "available_at",
        "leased_in": "leased_until",
        "sent_in": "sent_at",
        "expires_in": "expires_at",
    }
    fields = {names.get(k, k): now + timedelta(seconds=v) if k in names else v for k, v in values.items()}

    assert sentence in page_of(client, make_message(**fields))


def test_a_message_of_a_paused_job_says_what_it_waits_for(operator, client, make_message):
    job = queue_job("Headlines", "Text", None, ["ann@example.org"])
    type(job).objects.filter(pk=job.pk).pause()

    assert "its job is paused" in page_of(client, make_message(job=job))


# What a person may do


@pytest.mark.parametrize(
    ("action", "before", "after"),
    [
        ("requeue", {"status": "dead"}, "queued"),
        ("requeue", KEPT, "queued"),
        ("cancel", {"status": "queued"}, "cancelled"),
        ("cancel", {"status": "deferred"}, "cancelled"),
        ("mark_sent", KEPT, "sent"),
        ("give_up", KEPT, "dead"),
    ],
)
def test_a_person_moves_a_message_on(operator, client, make_message, act, action, before, after):
    """G38"""
    message = make_message(**before)
    assert f'value="{action}"' in page_of(client, message)

    answer = act(action, message)

    message.refresh_from_db()
    assert message.status == after
    assert told(answer)[0].startswith("Done for 1: ")


@pytest.mark.parametrize("action", ["requeue", "cancel", "mark_sent", "give_up"])
def test_those_that_an_action_is_not_for_stay_and_are_counted(operator, make_message, act, action):
    sent, in_flight = make_message("a@example.org", status="sent"), make_message("b@example.org", status="sending")

    answer = act(action, sent, in_flight)

    assert {m.status for m in Message.objects.all()} == {"sent", "sending"}
    assert told(answer)[0].startswith("Done for 0 of 2: ")


def test_an_action_across_pages_respects_the_filter(operator, client, make_message):
    make_message("dead@example.org", status="dead")
    other = make_message("kept@example.org", **KEPT)

    url = reverse(LIST) + "?kept=dead"
    answer = client.post(url, {"action": "requeue", "select_across": "1", "_selected_action": other.pk}, follow=True)

    assert {m.recipient: m.status for m in Message.objects.all()} == {
        "dead@example.org": "queued",
        "kept@example.org": "uncertain",
    }
    assert told(answer)[0].startswith("Done for 1: ")


def test_an_action_on_very_many_changes_them_all(operator, client, make_message, monkeypatch):
    monkeypatch.setattr("mailengine.admin.base.AT_ONCE", 2)
    for i in range(5):
        make_message(f"dead{i}@example.org", status="dead")

    ticked = {"action": "requeue", "select_across": "1", "_selected_action": Message.objects.first().pk}
    answer = client.post(reverse(LIST), ticked, follow=True)

    assert {message.status for message in Message.objects.all()} == {"queued"}
    assert told(answer) == ["Done for 5: Requeue: send again."]


def test_who_did_what_to_which_message_is_kept(operator, make_message, act):
    """SA5"""
    message = make_message(status="dead")

    act("requeue", message)

    entry = LogEntry.objects.get()
    assert (entry.user, entry.object_id) == (operator, str(message.pk))
    assert str(message.pk) in entry.change_message


@pytest.mark.parametrize("action", ["requeue", "cancel", "mark_sent", "give_up"])
def test_who_may_only_view_can_move_nothing(log_in, client, make_message, act, action):
    """SA1"""
    log_in("view_message")
    messages = [make_message("a@example.org", status="dead"), make_message("b@example.org", **KEPT), make_message()]

    assert f'value="{action}"' not in client.get(reverse(LIST)).content.decode()
    assert all("mailengine-verbs" not in page_of(client, message) for message in messages)
    act(action, *messages)
    assert {m.status for m in Message.objects.all()} == {"dead", "uncertain", "queued"}


def test_no_form_writes_a_message(admin_client, make_message):
    message = make_message()

    assert admin_client.get(reverse("admin:mailengine_message_add")).status_code == 403
    url = reverse("admin:mailengine_message_change", args=[message.pk])
    assert admin_client.post(url, {"status": "sent"}).status_code == 403
    assert Message.objects.get().status == "queued"
