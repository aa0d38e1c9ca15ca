"""What Django's own pages send goes through the queue, with nothing but settings; and never troubles a visitor."""

from __future__ import annotations

import pytest
from django.contrib.auth import get_user_model

from mailengine import Priority, dispatch_slice
from mailengine.models import Message
from mailengine.testing import FakeProvider, SMTPServer

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.backend.urls")]


@pytest.fixture
def ann():
    return get_user_model().objects.create_user("ann", "ann@example.org", "a password of hers")


def register(client):
    return client.post("/register/", {"email": "new@example.org"})


def test_a_password_reset_is_queued_and_sent(client, provider, ann):
    """S07, S17: no view is subclassed."""
    response = client.post("/accounts/password_reset/", {"email": ann.email}, follow=True)
    assert response.status_code == 200
    message = Message.objects.get()
    assert (message.recipient, message.priority, message.stream) == (ann.email, Priority.HIGH, "transactional")
    assert provider.calls == 0
    dispatch_slice()
    link = next(line for line in provider.accepted[0].body.splitlines() if "/reset/" in line)
    assert client.get("/accounts/reset/" + link.partition("/reset/")[2], follow=True).status_code == 200


def test_a_registration_is_queued(client, provider):
    """S07"""
    assert register(client).status_code == 200
    assert Message.objects.get().recipient == "new@example.org"


BROKEN = {
    "no such module": {"BACKEND": "no.such.Backend"},
    "no credentials": {"BACKEND": "anymail.backends.postmark.EmailBackend"},
    "a wrong password": {"BACKEND": "mailengine.testing.FakeProvider", "OPTIONS": {"script": ["misconfigured"] * 9}},
    "nobody listens": {"BACKEND": "mailengine.backends.SMTPBackend", "OPTIONS": {"host": "127.0.0.1", "port": 1}},
}


@pytest.mark.parametrize("entry", BROKEN.values(), ids=BROKEN)
def test_a_broken_provider_is_a_wait_and_no_error(client, configure, settings, clock, entry):
    """S12, S13, S15, S16: the page answers, the user stays, and the mail goes once the setting is mended."""
    configure()
    FakeProvider.reset()
    good = settings.MAILERS
    settings.MAILERS = {**good, "relay": entry}
    assert register(client).status_code == 200
    assert get_user_model().objects.filter(username="new@example.org").exists()
    dispatch_slice()
    message = Message.objects.get()
    assert (message.status, message.attempt_count) == ("queued", 0)
    settings.MAILERS = good
    clock.advance(minutes=2)
    dispatch_slice()
    message.refresh_from_db()
    assert message.status == "sent"


def test_a_provider_that_is_not_in_mailers_is_a_wait(client, configure, settings, clock):
    """S12, S16"""
    configure()
    good = settings.MAILERS
    settings.MAILERS = {"default": good["default"]}
    assert register(client).status_code == 200
    dispatch_slice()
    assert Message.objects.get().status == "queued"
    settings.MAILERS = good
    clock.advance(minutes=2)
    dispatch_slice()
    assert Message.objects.get().status == "sent"


@pytest.mark.parametrize("wrong", ["nobody", "", "a@b@c", "Shop\nBcc: x@example.org <shop@example.org>"])
def test_a_wrong_default_sender_is_a_wait_and_no_error(client, provider, settings, clock, caplog, wrong):
    """S12, S13, S16: mending DEFAULT_FROM_EMAIL is the only step."""
    settings.DEFAULT_FROM_EMAIL = wrong
    assert register(client).status_code == 200
    dispatch_slice()
    message = Message.objects.get()
    assert (message.status, provider.calls) == ("queued", 0)
    assert "DEFAULT_FROM_EMAIL" in message.reason
    settings.DEFAULT_FROM_EMAIL = "shop@example.org"
    clock.advance(minutes=2)
    dispatch_slice()
    message.refresh_from_db()
    assert (message.status, provider.accepted[0].from_email) == ("sent", "shop@example.org")


def test_held_mail_goes_in_the_order_it_came(client, configure, settings, clock):
    """S16, with a real server: down, then up."""
    with SMTPServer() as server:
        configure(CONNECTIONS=1)
        settings.MAILERS = {**settings.MAILERS, "relay": server.mailer()}
        server.down()
        for number in range(3):
            client.post("/register/", {"email": f"u{number}@example.org"})
        dispatch_slice()
        assert set(Message.objects.values_list("status", flat=True)) == {"queued"}
        server.up()
        clock.advance(minutes=2)
        dispatch_slice()
        assert [mail.recipients for mail in server.accepted] == [(f"u{number}@example.org",) for number in range(3)]
