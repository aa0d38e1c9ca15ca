"""What Anymail adds to Django's EmailMessage comes through the queue as it was given."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, timezone
from functools import cache

import pytest
from anymail.message import AnymailMessage
from anymail.utils import Attachment
from django.core import mail
from django.core.mail import EmailMultiAlternatives

from mailengine import dispatch_slice, queue_message
from mailengine.compat import get_mailer

pytestmark = pytest.mark.django_db

SENDER, ANN = "shop@example.org", ["Ann <ann@example.org>"]
PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)


@pytest.fixture
def anymail(configure, settings, files):
    """Anymail's test backend as the provider: it notes what an ESP would be given."""
    configure()
    settings.MAILERS = {**settings.MAILERS, "relay": {"BACKEND": "anymail.backends.test.EmailBackend"}}


def given_directly(make):
    mail.outbox = []
    get_mailer("relay").send_messages([make()])
    return seen(mail.outbox[0].anymail_test_params)


def given_through_the_queue(make):
    mail.outbox = []
    message = queue_message(make())
    dispatch_slice()
    params = mail.outbox[0].anymail_test_params
    assert params["metadata"].pop("mailengine_id") == str(message.pk)
    ours = ["Auto-Submitted", "Date", "Message-ID", "X-Mailengine-Id"]
    assert [name for name in ours if params["extra_headers"].pop(name)] == ours
    return seen(params)


def seen(params):
    """What an ESP is given, without what is empty."""
    return {name: comparable(value) for name, value in params.items() if value not in ({}, [])}


def comparable(value):
    """Attachments and addresses as something that can be compared; headers in any order, as databases keep them."""
    if isinstance(value, list | tuple):
        return [comparable(item) for item in value]
    if isinstance(value, Mapping):
        return {name: comparable(item) for name, item in value.items()}
    if isinstance(value, Attachment):
        return {name: item for name, item in vars(value).items() if not name.startswith("_")}
    return str(value)


def plain(**attributes):
    def make():
        email = EmailMultiAlternatives("Hello", "Text", SENDER, ANN)
        vars(email).update(attributes)
        return email

    return make


@cache  # its Content-ID is another one each time
def with_inline_image():
    email = AnymailMessage("Hello", "Text", SENDER, ANN)
    identifier = email.attach_inline_image(PNG, filename="logo.png", idstring="logo", domain="example.org")
    email.attach_alternative(f'<img src="cid:{identifier}">', "text/html")
    return email


def with_everything():
    email = AnymailMessage(
        "Hello",
        "Text",
        SENDER,
        ANN,
        cc=["c@example.org"],
        bcc=["d@example.org"],
        reply_to=["Help <help@example.org>", "desk@example.org"],
        headers={"X-Order": "7", "List-Id": "<news.example.org>"},
        tags=["order", "shop"],
        metadata={"order": 7, "gift": True},
        track_clicks=False,
    )
    email.attach_alternative("<p>HTML</p>", "text/html")
    email.attach_alternative("*text*", "text/markdown")
    email.attach("order.csv", "a;b\n", "text/csv")
    email.attach("order.pdf", b"%PDF-\xff\x00", "application/pdf")
    email.attach("invite.ics", "BEGIN:VCALENDAR", "text/calendar; method=REQUEST")
    return email


def html_only():
    email = AnymailMessage("Hello", "<p>HTML</p>", SENDER, ANN)
    email.content_subtype = "html"
    return email


@pytest.mark.parametrize(
    "make",
    [
        plain(),
        plain(tags=["order"]),
        plain(metadata={"order": 7}),
        plain(merge_data={"ann@example.org": {"name": "Ann", "count": 3}}),
        plain(merge_data={}),
        plain(merge_global_data={"site": "Shop"}),
        plain(merge_metadata={"ann@example.org": {"id": 1}}),
        plain(merge_headers={"ann@example.org": {"X-A": "1"}}),
        plain(template_id="welcome"),
        plain(esp_extra={"ip_pool": "news"}),
        plain(track_opens=True),
        plain(track_opens=False),
        plain(envelope_sender="bounces@example.org"),
        plain(send_at=datetime(2030, 1, 2, 3, 4, 5, 678000, tzinfo=timezone.utc)),
        plain(send_at=date(2030, 1, 2)),
        plain(send_at=1_900_000_000),
        with_everything,
        with_inline_image,
    ],
)
def test_an_esp_is_given_the_same(anymail, make):
    assert given_through_the_queue(make) == given_directly(make)


def test_html_alone_gets_a_text_part(anymail):
    """C08"""
    found = given_through_the_queue(html_only)
    assert (found["text_body"], found["html_body"]) == ("HTML", "<p>HTML</p>")


def test_tags_and_metadata_of_the_call_are_added(anymail):
    queue_message(plain(tags=["a"], metadata={"x": 1, "y": 1})(), tags=["b"], metadata={"y": 2})
    mail.outbox = []
    dispatch_slice()
    params = mail.outbox[0].anymail_test_params
    assert params["tags"] == ["a", "b"]
    assert (params["metadata"]["x"], params["metadata"]["y"]) == (1, 2)
