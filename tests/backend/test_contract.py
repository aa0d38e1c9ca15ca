"""EmailBackend keeps the promises of Django's own mail backends, and queues."""

from __future__ import annotations

import logging

import django
import pytest
from django.core import mail
from django.core.mail import EmailMessage, EmailMultiAlternatives, mail_admins, mail_managers, send_mail, send_mass_mail
from django.db import connection
from django.utils.log import AdminEmailHandler
from django.utils.translation import gettext_lazy

from mailengine import Priority, dispatch_slice
from mailengine.backends import EmailBackend
from mailengine.models import Message

pytestmark = pytest.mark.django_db

ANN = ["ann@example.org"]


def queued():
    return list(Message.objects.order_by("id"))


def email(subject="Hello", to=ANN, **further):
    return EmailMessage(subject, "Text", "shop@example.org", to, **further)


def people(*addresses):
    """ADMINS and MANAGERS as this Django wants them."""
    return list(addresses) if django.VERSION >= (6, 0) else [(address, address) for address in addresses]


def test_send_mail_queues(provider):
    """S19"""
    assert send_mail("Hello", "Text", None, ANN, html_message="<p>HTML</p>") == 1
    (message,) = queued()
    assert (message.status, message.stream, message.priority) == ("queued", "transactional", Priority.HIGH)
    assert provider.calls == 0
    dispatch_slice()
    assert provider.accepted[0].alternatives == [("<p>HTML</p>", "text/html")]


def test_an_email_sends_itself_into_the_queue(provider):
    assert email().send() == 1
    assert len(queued()) == 1


def test_mass_mail_is_counted(provider):
    """S19"""
    assert send_mass_mail([("One", "", None, ANN), ("Two", "", None, ANN)]) == 2
    assert [message.content.subject for message in queued()] == ["One", "Two"]


@pytest.mark.parametrize(("send", "setting"), [(mail_admins, "ADMINS"), (mail_managers, "MANAGERS")])
def test_admins_and_managers_are_written_to(provider, settings, send, setting):
    setattr(settings, setting, people("a@example.org", "b@example.org"))
    settings.SERVER_EMAIL = "server@example.org"
    send("Trouble", "Words")
    (message,) = queued()
    assert [entry["address"] for entry in message.recipients] == ["a@example.org", "b@example.org"]
    assert message.content.from_email == "server@example.org"


def test_the_admins_log_handler_queues(provider, settings):
    settings.ADMINS = people("admin@example.org")
    record = logging.LogRecord("shop", logging.ERROR, __file__, 1, "It broke", None, None)
    AdminEmailHandler().emit(record)
    assert "It broke" in queued()[0].content.subject


def test_a_wrong_server_email_does_not_stop_the_report(provider, settings, caplog):
    settings.ADMINS, settings.SERVER_EMAIL = people("admin@example.org"), "nobody"
    mail_admins("Trouble", "Words")
    assert queued()[0].content.from_email == ""
    assert "SERVER_EMAIL" in caplog.text


def test_no_mail_is_no_trouble(provider):
    assert EmailBackend().send_messages([]) == 0
    assert EmailBackend().send_messages([email(to=[])]) == 0
    assert email(to=[]).send() == 0


def test_it_can_be_opened_and_closed(provider):
    with EmailBackend() as backend:
        assert backend.send_messages([email(), email()]) == 2
    backend.close()
    assert len(queued()) == 2


def test_unicode_comes_through(provider):
    email("Grüße 日本", ["Bjørn <b@bücher.example>"]).send()
    dispatch_slice()
    (sent,) = provider.accepted
    assert (sent.subject, sent.to) == ("Grüße 日本", ["Bjørn <b@xn--bcher-kva.example>"])


def test_lazy_words_are_translated_now(provider):
    email(gettext_lazy("Hello")).send()
    assert queued()[0].content.subject == "Hello"


def test_a_bad_mail_raises_and_none_of_the_others_is_queued(provider, caplog):
    with pytest.raises(ValueError, match="subject"):
        EmailBackend().send_messages([email(), email("Hello\nBcc: x@example.org")])
    assert queued() == []
    assert "could not be queued" in caplog.text


def test_fail_silently_is_silent_and_logs(provider, caplog):
    assert EmailBackend(fail_silently=True).send_messages([email("a\nb")]) == 0
    assert queued() == []
    assert "could not be queued" in caplog.text


@pytest.mark.skipif(django.VERSION >= (6, 1), reason="fail_silently is deprecated from Django 6.1 on")
def test_fail_silently_of_older_djangos(provider):
    assert send_mail("a\nb", "", None, ANN, fail_silently=True) == 0
    assert send_mail("Hello", "", None, ANN, fail_silently=True) == 1


@pytest.mark.skipif(django.VERSION < (6, 1), reason="using= came with Django 6.1")
def test_an_alias_has_terms_of_its_own(provider, settings):
    options = {"stream": "bulk", "priority": "low"}
    settings.MAILERS = {
        **settings.MAILERS,
        "later": {"BACKEND": "mailengine.backends.EmailBackend", "OPTIONS": options},
    }
    send_mail("Hello", "", None, ANN, using="later")
    assert [(message.stream, message.priority) for message in queued()] == [("bulk", Priority.LOW)]


def test_one_mail_can_have_terms_of_its_own(provider):
    mine = email()
    mine.mailengine = {"stream": "bulk", "priority": "low", "idempotency_key": "7"}
    assert (mine.send(), mine.send()) == (1, 1)
    assert [(message.stream, message.priority) for message in queued()] == [("bulk", Priority.LOW)]


@pytest.mark.parametrize("name", ["X-Mailengine-Priority", "x-mailengine-priority"])
@pytest.mark.parametrize("value", ["urgent", "0"])
def test_a_header_sets_the_priority_and_stays_here(provider, name, value):
    mine = email(headers={name: value, "X-Order": "7"})
    mine.send()
    assert (queued()[0].priority, queued()[0].content.headers) == (Priority.URGENT, {"X-Order": "7"})
    assert mine.extra_headers == {name: value, "X-Order": "7"}


def test_the_email_given_is_not_changed(provider):
    mine = EmailMultiAlternatives("Hello", "Text", None, ANN, headers={"X-Order": "7"})
    before = mine.message().as_string().partition("\n\n")[2]
    mine.send()
    assert mine.message().as_string().partition("\n\n")[2] == before


def test_a_database_that_fails_is_told_and_logged(provider, caplog):
    """A password reset catches everything: the log is then the only trace."""

    def broken(*_arguments):
        raise django.db.OperationalError("disk full")

    with connection.execute_wrapper(broken), pytest.raises(django.db.OperationalError):
        EmailBackend().send_messages([email()])
    assert "could not be queued" in caplog.text


def test_nothing_reaches_djangos_outbox(provider):
    email().send()
    assert mail.outbox == []
