"""SMTP providers get bytes, all others an EmailMessage; mail that changes its provider changes its form."""

from __future__ import annotations

import logging
from typing import ClassVar

import pytest
from django.core.mail import EmailMessage
from django.core.management import call_command

from mailengine import dispatch_slice, queue_job, queue_mail, send_direct_email
from mailengine.backends.smtp import SMTPBackend
from mailengine.backends.wire import WireMail
from mailengine.conf import get_settings
from mailengine.models import Lease, Message, Worker
from mailengine.pipeline.composer import Composer
from mailengine.pipeline.health import Health
from mailengine.pipeline.items import Item
from mailengine.providers.connection import takes_wire_mail
from mailengine.testing import FakeProvider, SMTPServer

pytestmark = pytest.mark.django_db

MAIL = ("Hello", "Text\n.\n", "Shop <shop@example.org>", ["ann@example.org"])


class Recording(SMTPBackend):
    """One that sends as `SMTPBackend` does, and notes what form it was given."""

    forms: ClassVar[list[type]] = []

    def _envelope_recipients(self, email):
        self.forms.append(type(email))
        return super()._envelope_recipients(email)


class Changing(SMTPBackend):
    """One that has its own way of sending: it needs emails."""

    def send_messages(self, email_messages):
        for email in email_messages:
            email.extra_headers["X-Ours"] = "1"
        return super().send_messages(email_messages)


@pytest.fixture
def forms():
    Recording.forms = []
    return Recording.forms


@pytest.fixture
def composer():
    """The mail that a run makes of a message."""
    composer = Composer(Health(get_settings()))
    lease = Lease(Worker.objects.register("test"), trusted_until=float("inf"))

    def made(message):
        item = Item(message, lease, reserved="relay")
        composer.compose(item)
        return item.email

    return made


@pytest.fixture
def relay(configure, settings):
    """A real SMTP server behind `relay`, by the backend that is given; behind it stands a `FakeProvider` `esp`."""
    configure({"relay": {}, "esp": {}})
    FakeProvider.reset()
    with SMTPServer() as server:

        def use(backend):
            mailer = {**server.mailer(), "BACKEND": f"{backend.__module__}.{backend.__name__}"}
            settings.MAILERS = {**settings.MAILERS, "relay": mailer}
            settings.MAILENGINE = {"PROVIDERS": {"relay": {}, "esp": {}}}
            return server

        yield use
    FakeProvider.reset()


def test_an_smtp_provider_is_given_bytes(relay, forms):
    server = relay(Recording)
    queue_mail(*MAIL, html_message="<p>Ä</p>")
    dispatch_slice()
    assert forms == [WireMail]
    assert server.accepted[0].message["Subject"] == "Hello"


def test_a_direct_email_goes_as_bytes_too(relay, forms):
    relay(Recording)
    send_direct_email(*MAIL)
    assert forms == [WireMail]


def test_a_backend_with_a_way_of_sending_of_its_own_is_given_emails(relay):
    server = relay(Changing)
    queue_mail(*MAIL)
    dispatch_slice()
    assert server.accepted[0].message["X-Ours"] == "1"


def test_who_takes_bytes_follows_the_settings(settings, relay):
    relay(SMTPBackend)
    assert takes_wire_mail("relay")
    settings.MAILERS = {"relay": {"BACKEND": "django.core.mail.backends.smtp.EmailBackend"}}
    assert not takes_wire_mail("relay")
    settings.MAILERS = {"relay": {"BACKEND": "no.such.Backend"}}
    assert not takes_wire_mail("relay")
    assert not takes_wire_mail("missing")


def test_mail_that_goes_elsewhere_is_composed_for_who_takes_it(relay):
    server = relay(SMTPBackend)
    server.answer = lambda step: "421 4.3.2 Closing" if step.verb == "MAIL" else None
    message = queue_mail(*MAIL, tags=["a"])
    dispatch_slice()
    (email,) = FakeProvider.named("esp").accepted
    assert isinstance(email, EmailMessage)
    assert (email.extra_headers["X-Mailengine-Id"], email.tags) == (str(message.pk), ["a"])
    message.refresh_from_db()
    assert (message.status, message.provider) == ("sent", "esp")


def test_mail_that_an_esp_can_t_take_goes_by_smtp(relay, settings):
    server = relay(SMTPBackend)
    settings.MAILERS["esp"]["OPTIONS"]["script"] = ["unavailable"] * 3
    settings.MAILENGINE = {"PROVIDERS": {"esp": {}, "relay": {}}}
    message = queue_mail(*MAIL)
    dispatch_slice()
    assert [mail.mailengine_id for mail in server.accepted] == [str(message.pk)]


def test_mail_that_can_t_be_cast_is_composed_by_django_and_said_so_once(relay, settings, caplog):
    server = relay(SMTPBackend)
    settings.DEFAULT_CHARSET = "iso-8859-1"
    queue_job("Grüße", "Äpfel", None, ["ann@example.org", "bob@example.org"])
    call_command("process_mail_jobs", verbosity=0)
    with caplog.at_level(logging.INFO, "mailengine.dispatch"):
        dispatch_slice()
    assert [mail.message.get_content_charset() for mail in server.accepted] == ["iso-8859-1"] * 2
    assert len([record for record in caplog.records if "composed by Django" in record.getMessage()]) == 1


def test_large_words_of_a_job_are_in_memory_once(composer, relay):
    relay(SMTPBackend)
    queue_job("Hello", "Text\n" * 5_000, None, ["ann@example.org", "bob@example.org"])
    call_command("process_mail_jobs", verbosity=0)
    mails = [composer(message) for message in Message.objects.order_by("recipient")]
    assert [mail.to for mail in mails] == [["ann@example.org"], ["bob@example.org"]]
    large = [{id(piece) for piece in mail.pieces if len(piece) > 10_000} for mail in mails]
    assert large[0] == large[1] != set()
