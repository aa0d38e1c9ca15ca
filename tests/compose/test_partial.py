"""One mail to several, of which the server takes some: each address has an outcome of its own."""

from __future__ import annotations

import pytest
from django.core.management import call_command

from mailengine import dispatch_slice, queue_mail
from mailengine.models import Message, Suppression

pytestmark = pytest.mark.django_db

TO = ["Ann <ann@example.org>", "Bob <Bob@example.org>"]


def outcomes(message):
    message.refresh_from_db()
    return {entry["address"]: entry["outcome"] for entry in message.recipients}


@pytest.fixture
def message(server):
    """A mail to three: the server takes Ann, asks us to come back for Bob, and has no Cyd."""
    server.replies["Bob@example.org"] = "450 4.2.1 Mailbox busy"
    server.replies["cyd@example.org"] = "550 5.1.1 No such user"
    return queue_mail("Hello", "All", "shop@example.org", TO, cc=["cyd@example.org"])


def test_each_address_has_its_own_outcome(message):
    dispatch_slice()
    assert outcomes(message) == {
        "ann@example.org": "accepted",
        "Bob@example.org": "deferred",
        "cyd@example.org": "refused",
    }
    assert message.status == "sent"


def test_who_was_refused_for_now_goes_on_alone(message, server, clock):
    dispatch_slice()
    alone = Message.objects.exclude(pk=message.pk).get()
    assert (alone.status, alone.recipient, alone.attempt_count) == ("deferred", "bob@example.org", 1)
    server.replies.clear()
    clock.advance(hours=1)
    call_command("retry_deferred", verbosity=0)
    first, second = server.accepted
    assert (first.recipients, second.recipients) == (("ann@example.org",), ("Bob@example.org",))
    for name in ("To", "Cc", "Subject", "Date", "From"):
        assert first.message[name] == second.message[name]
    alone.refresh_from_db()
    assert (alone.status, outcomes(alone)["Bob@example.org"]) == ("sent", "accepted")


def test_who_does_not_exist_is_suppressed(message):
    dispatch_slice()
    assert list(Suppression.objects.values_list("address", flat=True)) == ["cyd@example.org"]


def test_who_is_refused_again_and_again_is_tried_like_any_other(message, server, clock):
    dispatch_slice()
    clock.advance(hours=1)
    call_command("retry_deferred", verbosity=0)
    alone = Message.objects.exclude(pk=message.pk).get()
    assert (alone.status, alone.attempt_count) == ("deferred", 2)
    assert Message.objects.count() == 2


def test_who_has_no_try_left_is_a_dead_letter_with_its_reason(message, server, settings):
    settings.MAILENGINE = {**settings.MAILENGINE, "MAX_ATTEMPTS": 1}
    dispatch_slice()
    alone = Message.objects.exclude(pk=message.pk).get()
    assert (alone.status, alone.recipient, alone.available_at) == ("dead", "bob@example.org", None)
    assert alone.reason.startswith("attempts: given up after 1; the last: 450 4.2.1")
    Message.objects.filter(pk=alone.pk).requeue()
    server.replies.clear()
    dispatch_slice()
    assert [mail.recipients for mail in server.accepted] == [("ann@example.org",), ("Bob@example.org",)]


def test_a_suppressed_address_is_left_out(server):
    Suppression.objects.create(address="bob@example.org", reason=Suppression.Reason.REFUSED)
    message = queue_mail("Hello", "All", "shop@example.org", TO)
    dispatch_slice()
    assert server.accepted[0].recipients == ("ann@example.org",)
    assert server.accepted[0].message["To"] == "Ann <ann@example.org>"
    assert outcomes(message) == {"ann@example.org": "accepted", "Bob@example.org": "suppressed"}


def test_all_suppressed_is_suppressed(server):
    for address in ("ann@example.org", "bob@example.org"):
        Suppression.objects.create(address=address, reason=Suppression.Reason.REFUSED)
    message = queue_mail("Hello", "All", "shop@example.org", TO)
    dispatch_slice()
    message.refresh_from_db()
    assert (message.status, server.accepted) == ("suppressed", [])


def test_all_refused_for_now_is_deferred_as_one(server, clock):
    server.replies.update({"ann@example.org": "450 4.2.1 Busy", "Bob@example.org": "450 4.2.1 Busy"})
    message = queue_mail("Hello", "All", "shop@example.org", TO)
    dispatch_slice()
    message.refresh_from_db()
    assert (message.status, Message.objects.count()) == ("deferred", 1)


def test_with_nobody_accepted_only_those_refused_for_now_are_tried_again(server, clock):
    server.replies.update({"ann@example.org": "550 5.7.1 Not from you", "Bob@example.org": "450 4.2.1 Busy"})
    message = queue_mail("Hello", "All", "shop@example.org", TO)
    dispatch_slice()
    assert outcomes(message) == {"ann@example.org": "refused", "Bob@example.org": ""}
    server.replies.clear()
    clock.advance(hours=1)
    call_command("retry_deferred", verbosity=0)
    assert [mail.recipients for mail in server.accepted] == [("Bob@example.org",)]
    assert outcomes(message) == {"ann@example.org": "refused", "Bob@example.org": "accepted"}
