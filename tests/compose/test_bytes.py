"""The same rows give the same bytes, each time: what went out can be rebuilt and proved (N11)."""

from __future__ import annotations

import hashlib
from email.mime.image import MIMEImage

import django
import pytest
from django.core.mail import EmailMultiAlternatives
from django.core.management import call_command

from mailengine import queue_job, queue_mail, queue_message
from mailengine.backends.wire import render
from mailengine.models import Message
from mailengine.pipeline.compose import compose, load_words

pytestmark = pytest.mark.django_db

MAIL = ("Grüße", "Text\nmit Ä\n.\n", "Shöp <shop@example.org>", ["Ann <Ann@example.org>"])
PDF = [("a.pdf", bytes(range(256)), "application/pdf")]


def rebuilt(message):
    """The bytes of this message, from its rows as they are now."""
    message = Message.objects.get(pk=message.pk)
    return render(compose(message, load_words(message.content_id)))


def inline_image():
    if django.VERSION < (6, 0):
        return MIMEImage(b"\x89PNG" + bytes(50), "png")
    from email.message import MIMEPart

    part = MIMEPart()
    part.set_content(b"\x89PNG" + bytes(50), maintype="image", subtype="png", disposition="inline", cid="<logo>")
    return part


def plain():
    return queue_mail(*MAIL)


def with_html_and_file():
    return queue_mail(*MAIL, html_message="<p>Ä</p>", attachments=PDF)


def with_inline_image():
    email = EmailMultiAlternatives(*MAIL, alternatives=[('<img src="cid:logo">', "text/html")])
    email.attach(inline_image())
    return queue_message(email)


def to_several():
    return queue_mail(
        *MAIL[:3], ["ann@example.org", "Bob <bob@example.org>"], cc=["Änn <c@example.org>"], bcc=["d@x.org"]
    )


def with_a_long_subject():
    return queue_mail("ä" * 200 + " b" * 200, *MAIL[1:])


def one_of_a_job():
    queue_job("For {{ name }}", "Dear {{ name }}", None, [("ann@example.org", {"name": "Änn"})], attachments=PDF)
    call_command("process_mail_jobs", verbosity=0)
    return Message.objects.get()


EVERY_KIND = [plain, with_html_and_file, with_inline_image, to_several, with_a_long_subject, one_of_a_job]


@pytest.mark.parametrize("queue", EVERY_KIND)
def test_composed_twice_it_is_the_same(server, queue):
    message = queue()
    assert rebuilt(message) == rebuilt(message)


@pytest.mark.parametrize("queue", EVERY_KIND)
def test_what_a_server_received_can_be_rebuilt_and_proved(server, sent, queue):
    """N11: from the rows after sending; the ledger has the checksum."""
    message = queue()
    sent()
    received = server.accepted[0].content
    assert rebuilt(message) == received
    assert bytes(message.attempts.get().sha256) == hashlib.sha256(received).digest()


def test_a_second_try_sends_the_same_bytes(server, sent, clock):
    """What a mailbox has twice it can tell by its bytes."""
    answers = iter(["451 4.3.0 Try again"])
    server.answer = lambda step: next(answers, None) if step.verb == "DOT" else None
    message = with_html_and_file()
    sent()
    first = message.attempts.get(number=1)
    clock.advance(hours=1)
    call_command("retry_deferred", verbosity=0)
    assert [a.sha256 for a in message.attempts.all()] == [first.sha256] * 2
    assert len(server.accepted) == 1
