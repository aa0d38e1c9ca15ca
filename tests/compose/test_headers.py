"""What every mail carries, as a server receives it."""

from __future__ import annotations

from datetime import timedelta
from email.utils import parsedate_to_datetime

import pytest
from django.core.management import call_command
from django.utils.timezone import now

from mailengine import queue_job, queue_mail
from mailengine.models import Content, Message
from mailengine.pipeline.compose import compose, load_words

pytestmark = pytest.mark.django_db

MAIL = ("Hello", "Text", "Shop <shop@example.org>", ["ann@example.org"])


def test_every_mail_can_be_traced(sent):
    message = queue_mail(*MAIL)
    (mail,) = sent()
    assert mail["Message-ID"] == f"<{message.pk}@example.org>"
    assert mail["X-Mailengine-Id"] == str(message.pk)
    assert mail["Auto-Submitted"] == "auto-generated"
    assert parsedate_to_datetime(mail["Date"]) == message.created_at.replace(microsecond=0)


def test_planned_mail_is_dated_as_planned(sent, clock):
    send_at = (now() + timedelta(hours=1)).replace(microsecond=0)
    queue_mail(*MAIL, send_at=send_at)
    clock.advance(hours=2)
    assert parsedate_to_datetime(sent()[0]["Date"]) == send_at


def test_the_callers_own_headers_win(sent):
    headers = {
        "message-id": "<mine@example.org>",
        "DATE": "Tue, 01 Jan 2030 00:00:00 +0000",
        "auto-submitted": "no",
        "reply-to": "help@example.org",
        "to": "readers@example.org",
    }
    queue_mail(*MAIL, headers=headers)
    (mail,) = sent()
    for name, value in headers.items():
        assert mail.get_all(name) == [value]


def test_metadata_carries_the_id_for_webhooks(provider):
    message = queue_mail(*MAIL, metadata={"order": 7})
    email = compose(message, load_words(message.content_id))
    assert email.metadata == {"order": 7, "mailengine_id": str(message.pk)}


def test_names_and_spelling_are_kept(server, sent):
    """The envelope has the address as it was spelt, the domain in a form that every server knows (F-X08)."""
    queue_mail(*MAIL[:3], ['"Lee, Änn" <Ann.Lee@Bücher.Example>'])
    (mail,) = sent()
    assert server.accepted[0].recipients == ("Ann.Lee@xn--bcher-kva.example",)
    (address,) = mail["To"].addresses
    assert (address.display_name, address.username) == ("Lee, Änn", "Ann.Lee")


def test_a_jobs_mail_has_one_recipient(server, sent):
    """C03"""
    queue_job(*MAIL[:3], ["Ann <Ann@example.org>", "bob@example.org"])
    call_command("process_mail_jobs", verbosity=0)
    mails = {mail["To"]: (mail["Cc"], mail["Bcc"]) for mail in sent()}
    assert mails == {"Ann <Ann@example.org>": (None, None), "bob@example.org": (None, None)}
    assert sorted(mail.recipients for mail in server.accepted) == [("Ann@example.org",), ("bob@example.org",)]


def test_bcc_is_in_the_envelope_alone(server, sent):
    queue_mail(*MAIL, bcc=["hidden@example.org"])
    (mail,) = sent()
    assert server.accepted[0].recipients == ("ann@example.org", "hidden@example.org")
    assert b"hidden" not in server.accepted[0].content
    assert mail["Bcc"] is None


HOSTILE = ["\r\nBcc: x@example.org", "\nBcc: x@example.org", "%0d%0aBcc: x@example.org", "\u2028Bcc: x@example.org"]
ENCODED = "=?utf-8?q?Hello=0d=0aBcc:_x@example.org?="


@pytest.mark.parametrize("text", [*HOSTILE, ENCODED])
@pytest.mark.parametrize("field", ["subject", "from_email", "reply_to", "headers", "extras"])
def test_what_was_stored_by_other_means_forges_nothing(server, sent, field, text):
    """F-X10: whatever stands in the rows, no other header and no other recipient."""
    message = queue_mail(*MAIL)
    bad = {
        "subject": f"Hello{text}",
        "from_email": f"Shop{text} <shop@example.org>",
        "reply_to": [f"Help{text} <help@example.org>"],
        "headers": {"X-Order": f"7{text}", f"X-B{text}": "1"},
        "extras": {"metadata": {"a": text}, "tags": [text]},
    }
    Content.objects.filter(pk=message.content_id).update(**{field: bad[field]})
    mails = sent()
    message.refresh_from_db()
    assert message.status in {"sent", "dead"}
    for mail in mails:
        assert mail["Bcc"] is None
    assert all(mail.recipients == ("ann@example.org",) for mail in server.accepted)


def test_merge_data_cannot_forge_a_header(sent):
    """F-X10: that mail is set aside with its reason, and the others go."""
    data = {"bad@example.org": {"name": "x\r\nBcc: y@example.org"}, "ann@example.org": {"name": "Ann"}}
    queue_job("For {{ name }}", "Text", None, list(data), merge_data=data)
    call_command("process_mail_jobs", verbosity=0)
    assert [mail["Subject"] for mail in sent()] == ["For Ann"]
    bad = Message.objects.get(recipient="bad@example.org")
    assert (bad.status, "{{ name }}" in bad.reason) == ("dead", True)
