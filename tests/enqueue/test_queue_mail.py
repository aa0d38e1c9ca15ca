"""One call puts one mail into the queue."""

from __future__ import annotations

from datetime import timedelta

import pytest
from asgiref.sync import async_to_sync
from django.core import mail
from django.core.mail import EmailMessage
from django.utils.timezone import now

import mailengine
from mailengine import Priority, aqueue_mail, aqueue_message, dispatch_slice, queue_mail, queue_message
from mailengine.models import Attachment, Content, Message

pytestmark = pytest.mark.django_db


def test_changing_the_import_of_send_mail_is_enough(provider):
    arguments = ("Hello", "Dear Ann", "shop@example.org", ["ann@example.org"])
    message = queue_mail(*arguments)
    assert (message.status, message.stream, message.priority) == ("queued", "transactional", Priority.NORMAL)
    dispatch_slice()
    (email,) = provider.accepted
    assert (email.subject, email.body, email.from_email, email.to) == arguments


def test_no_person_is_needed(django_user_model, provider, settings):
    """S20, S21: an address is enough, such as that of an approver who stands in the settings alone."""
    settings.APPROVER = "approver@example.org"
    message = queue_mail("Please approve", "A new user", None, [settings.APPROVER])
    dispatch_slice()
    message.refresh_from_db()
    assert (message.status, message.recipient) == ("sent", "approver@example.org")
    assert not django_user_model.objects.exists()


def test_several_recipients_get_one_mail_together(provider):
    message = queue_mail(
        "Hello", "All", None, ["Ann <Ann@Example.org>", "bob@example.org"], cc=["c@example.org"], bcc=["d@example.org"]
    )
    assert message.recipient == "ann@example.org"
    assert [(r["address"], r["name"], r["kind"], r["outcome"]) for r in message.recipients] == [
        ("Ann@example.org", "Ann", "to", ""),
        ("bob@example.org", "", "to", ""),
        ("c@example.org", "", "cc", ""),
        ("d@example.org", "", "bcc", ""),
    ]
    dispatch_slice()
    (email,) = provider.accepted
    assert (email.to, email.cc, email.bcc) == (
        ["Ann <Ann@example.org>", "bob@example.org"],
        ["c@example.org"],
        ["d@example.org"],
    )
    message.refresh_from_db()
    assert {r["outcome"] for r in message.recipients} == {"accepted"}


def test_mail_for_bcc_alone_goes(provider):
    message = queue_mail("Hello", "Hidden", None, [], bcc=["d@example.org"])
    dispatch_slice()
    assert message.recipient == "d@example.org"
    assert (provider.accepted[0].to, provider.accepted[0].bcc) == ([], ["d@example.org"])


def test_every_keyword_arrives(provider, files):
    queue_mail(
        "Hello",
        "Text",
        "Shop <shop@example.org>",
        ["ann@example.org"],
        html_message="<p>HTML</p>",
        reply_to=["Help <help@example.org>"],
        headers={"X-Order": "7"},
        attachments=[("a.txt", "words", "text/plain"), ("b.pdf", b"%PDF-\xff", "application/pdf")],
        metadata={"order": 7},
        tags=["order"],
    )
    dispatch_slice()
    (email,) = provider.accepted
    assert email.alternatives == [("<p>HTML</p>", "text/html")]
    assert email.reply_to == ["Help <help@example.org>"]
    assert email.extra_headers["X-Order"] == "7"
    assert email.attachments == [("a.txt", "words", "text/plain"), ("b.pdf", b"%PDF-\xff", "application/pdf")]
    assert email.metadata["order"] == 7
    assert email.tags == ["order"]


@pytest.mark.parametrize("priority", [Priority.HIGH, 10, "high", "HIGH", "10"])
def test_a_priority_can_be_spelt_in_several_ways(provider, priority):
    assert queue_mail("Hello", "", None, ["ann@example.org"], priority=priority).priority == Priority.HIGH


def test_a_stream_brings_its_priority(provider):
    assert queue_mail("Hello", "", None, ["ann@example.org"], stream="bulk").priority == Priority.BULK


def test_mail_waits_for_its_time(provider, clock):
    message = queue_mail("Hello", "", None, ["ann@example.org"], send_at=now() + timedelta(hours=1))
    dispatch_slice()
    assert provider.accepted == []
    clock.advance(hours=2)
    dispatch_slice()
    message.refresh_from_db()
    assert message.status == "sent"


def test_mail_is_not_sent_too_late(provider, clock):
    message = queue_mail("Hello", "", None, ["ann@example.org"], expires_at=now() + timedelta(hours=1))
    clock.advance(hours=2)
    dispatch_slice()
    message.refresh_from_db()
    assert (message.status, provider.accepted) == ("expired", [])


def test_a_developers_template_is_rendered_once(provider, settings, tmp_path):
    """C11: subject, text and HTML from files; only the last is escaped."""
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [tmp_path]}]
    (tmp_path / "welcome.subject.txt").write_text("Welcome,\n{{ name }}\n")
    (tmp_path / "welcome.txt").write_text("Dear {{ name|upper }}")
    (tmp_path / "welcome.html").write_text("<b>{{ name }}</b>")
    message = queue_mail("", "", None, ["ann@example.org"], template="welcome", context={"name": "Ann & Bob"})
    assert message.content.subject == "Welcome, Ann & Bob"
    assert message.content.text == "Dear ANN & BOB"
    assert message.content.html == "<b>Ann &amp; Bob</b>"


def test_words_given_win_over_the_template(provider, settings, tmp_path):
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [tmp_path]}]
    (tmp_path / "welcome.txt").write_text("Dear reader")
    content = queue_mail("Hello", "", None, ["ann@example.org"], template="welcome").content
    assert (content.subject, content.text, content.html) == ("Hello", "Dear reader", "")


def test_the_async_twins_do_the_same(provider):
    email = EmailMessage("Two", "", None, ["ann@example.org"])
    first = async_to_sync(aqueue_mail)("One", "", None, ["ann@example.org"])
    second = async_to_sync(aqueue_message)(email, priority="low")
    assert list(Message.objects.order_by("id")) == [first, second]


def test_a_file_is_kept_once_however_often_it_is_attached(provider, files):
    for name in ("a.pdf", "b.pdf"):
        queue_mail("Hello", "", None, ["ann@example.org"], attachments=[(name, b"%PDF", "application/pdf")])
    assert (Content.objects.count(), Attachment.objects.count(), len(files())) == (2, 1, 1)


def test_the_public_names_are_there():
    assert set(mailengine.__all__) <= set(dir(mailengine))
    with pytest.raises(AttributeError, match="queue_male"):
        mailengine.queue_male  # noqa: B018


def test_a_django_email_is_left_as_it_was(provider):
    email = EmailMessage("Hello", "", None, ["ann@example.org"], headers={"X-Order": "7"})
    queue_message(email, tags=["a"], metadata={"b": 1})
    assert email.extra_headers == {"X-Order": "7"}
    assert not hasattr(email, "tags")
    assert not hasattr(mail, "outbox") or mail.outbox == []
