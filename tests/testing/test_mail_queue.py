"""N13: a project's own queue in its own tests, where providers fail on demand and no time passes by itself."""

from __future__ import annotations

from datetime import timedelta

import django
import pytest
from anymail.signals import tracking
from django.conf import settings
from django.core import mail
from django.core.mail import send_mail
from django.db import connection
from django.test import TestCase, override_settings

from mailengine import queue_job, queue_mail, send_direct_email
from mailengine.clock import stopped_at
from mailengine.errors import NotSent, UnknownProvider
from mailengine.models import Message
from mailengine.testing import FakeProvider, MailQueue, flaky_provider

NEVER_CALLED = {"BACKEND": "mailengine.backends.SMTPBackend", "OPTIONS": {"host": "never.invalid"}}
MAILERS = {
    "default": {"BACKEND": "mailengine.backends.EmailBackend"},
    "ses": {"BACKEND": "anymail.backends.amazon_ses.EmailBackend"},
    "relay": NEVER_CALLED,
    "siren": NEVER_CALLED,
}
MAILENGINE = {"PROVIDERS": {"ses": {}, "relay": {}}, "STREAMS": {"bulk": {"PROVIDERS": ["ses"]}}}


@pytest.fixture(autouse=True)
def _project(settings):
    """A project with two providers, of which bulk mail may use one."""
    settings.MAILERS, settings.MAILENGINE = MAILERS, MAILENGINE


def recipients(queue: MailQueue) -> list[str]:
    return [email.to[0].partition("@")[0] for email in queue.outbox]


def statuses(queue: MailQueue) -> dict[str, str]:
    return {message.recipient.partition("@")[0]: message.status for message in queue.messages}


def test_ses_is_down_for_an_hour(mail_queue):
    mail_queue.fail("ses", hours=1)
    mail_queue.queue("ann@example.org", "bob@example.org")
    queue_job("News", "Hello", None, ["cem@example.org"])

    report = mail_queue.drain()

    assert recipients(mail_queue) == ["ann", "bob"]
    assert report.sent_by == {"relay": 2}
    assert report.is_blocked
    assert statuses(mail_queue) == {"ann": "sent", "bob": "sent", "cem": "queued"}

    mail_queue.advance(hours=1)
    assert mail_queue.drain().sent_by == {"ses": 1}

    assert recipients(mail_queue) == ["ann", "bob", "cem"]
    assert set(statuses(mail_queue).values()) == {"sent"}


def test_it_stays_down_until_its_time_is_over(mail_queue):
    mail_queue.fail("ses", minutes=10)
    mail_queue.queue("ann@example.org", stream="bulk")
    for _ in range(9):
        mail_queue.advance(minutes=1)
        mail_queue.drain()
    assert recipients(mail_queue) == []

    mail_queue.advance(minutes=1)
    mail_queue.drain()

    assert recipients(mail_queue) == ["ann"]


def test_it_fails_until_it_recovers(mail_queue):
    mail_queue.fail("ses", "misconfigured")
    mail_queue.fail("relay")
    mail_queue.queue("ann@example.org")
    mail_queue.drain()
    mail_queue.advance(days=1)
    mail_queue.drain()
    assert recipients(mail_queue) == []

    mail_queue.recover("relay")
    mail_queue.advance(hours=1)
    mail_queue.drain()

    assert [(handover.provider, handover.did) for handover in mail_queue.handovers][-1] == ("relay", "accept")
    assert recipients(mail_queue) == ["ann"]


def test_a_later_failure_replaces_an_earlier_one_with_its_end(mail_queue):
    mail_queue.fail("ses", minutes=1)
    mail_queue.fail("ses")
    mail_queue.advance(hours=1)
    mail_queue.queue("ann@example.org", stream="bulk")

    mail_queue.drain()

    assert recipients(mail_queue) == []


def test_it_fails_so_many_times(mail_queue):
    mail_queue.fail("ses", "deferred", times=2)
    mail_queue.queue("ann@example.org", "bob@example.org", "cem@example.org")

    report = mail_queue.drain()

    assert report.outcomes == {"deferred": 2, "sent": 1}
    mail_queue.advance(minutes=2)
    assert mail_queue.drain().outcomes == {"sent": 2}


def test_the_order_is_always_the_same(mail_queue):
    """By priority and age, whatever CONNECTIONS the project has."""
    names = [f"u{number:02}" for number in range(20)]
    mail_queue.queue(*[f"{name}@example.org" for name in names])
    mail_queue.queue("urgent@example.org", priority="urgent")

    mail_queue.drain()

    assert recipients(mail_queue) == ["urgent", *names]


def test_what_django_sends_is_queued(mail_queue):
    send_mail("Hello", "Good morning.", None, ["ann@example.org"])
    assert recipients(mail_queue) == []

    mail_queue.drain()

    assert recipients(mail_queue) == ["ann"]
    assert mail.outbox == []


def test_a_mailer_that_is_no_provider_leads_to_djangos_outbox(mail_queue, settings):
    """Nothing leaves the process, be it by a mailer that the queue knows nothing of."""
    if django.VERSION >= (6, 1):
        send_mail("Help", "The cellar is full of water.", None, ["ann@example.org"], using="siren")
        assert [email.to for email in mail.outbox] == [["ann@example.org"]]
    assert settings.MAILERS["siren"]["BACKEND"].endswith("locmem.EmailBackend")


def test_a_default_mailer_that_is_not_the_queue_stays_beside_it(settings, mail_queue_for):
    settings.MAILERS = {**MAILERS, "default": NEVER_CALLED}
    mail_queue = mail_queue_for()

    send_mail("Hello", "Good morning.", None, ["ann@example.org"])

    assert len(mail.outbox) == 1
    assert not mail_queue.messages.exists()


@pytest.fixture
def mail_queue_for(db, settings):
    """A `MailQueue` for the settings as they are by now."""
    opened = []

    def open_queue():
        opened.append(MailQueue(settings=settings))
        return opened[-1].__enter__()

    yield open_queue
    for queue in opened:
        queue.__exit__(None, None, None)


def test_a_provider_that_is_fake_already_keeps_its_script(settings, mail_queue_for):
    settings.MAILERS = {"ses": flaky_provider(script=["deferred"]), "relay": flaky_provider(fails_every=1)}
    mail_queue = mail_queue_for()
    mail_queue.queue("ann@example.org")

    mail_queue.drain()

    assert [(handover.provider, handover.did) for handover in mail_queue.handovers] == [("ses", "deferred")]


def test_providers_with_names_of_their_own_are_found_by_alias(settings, mail_queue_for):
    settings.MAILERS = {
        alias: {"BACKEND": "mailengine.testing.FakeProvider", "OPTIONS": {"name": "both"}} for alias in ("ses", "relay")
    }
    mail_queue = mail_queue_for()
    mail_queue.queue("ann@example.org")

    mail_queue.drain()

    assert mail_queue.provider("ses").calls == mail_queue.provider("relay").calls == 1


def test_settings_that_a_test_sets_itself_are_used(mail_queue, settings):
    settings.MAILERS = {"other": flaky_provider(fails_every=1), "third": flaky_provider()}
    settings.MAILENGINE = {"PROVIDERS": ["other", "third"]}
    mail_queue.fail("third", "deferred", times=1)
    mail_queue.queue("ann@example.org")

    mail_queue.drain()

    assert [(handover.provider, handover.did) for handover in mail_queue.handovers] == [
        ("other", "unavailable"),
        ("third", "deferred"),
    ]


def test_mail_whose_reply_was_lost_is_proven_by_a_report(mail_queue):
    mail_queue.fail("ses", "lost_reply", times=1)
    [message] = mail_queue.queue("ann@example.org")
    mail_queue.drain()
    assert statuses(mail_queue) == {"ann": "uncertain"}

    mail_queue.report(message, "delivered")

    assert statuses(mail_queue) == {"ann": "sent"}
    mail_queue.advance(days=1)
    mail_queue.drain()
    assert recipients(mail_queue) == ["ann"]


def test_without_a_report_it_goes_once_more(mail_queue):
    mail_queue.fail("ses", "lost_reply", times=1)
    mail_queue.queue("ann@example.org")
    mail_queue.drain()
    mail_queue.advance(minutes=11)

    mail_queue.drain()

    assert recipients(mail_queue) == ["ann", "ann"]
    assert statuses(mail_queue) == {"ann": "sent"}


def test_what_bounces_is_reported_when_the_run_is_over(mail_queue, events):
    mail_queue.fail("ses", "bounce", times=1)
    [message] = mail_queue.queue("ann@example.org")

    mail_queue.drain()

    assert events == [("bounced", "ann@example.org", str(message.pk), "sent")]


@pytest.fixture
def events():
    """What Anymail's signal has reported, and the status of the message at that moment."""
    heard = []

    def hear(sender, event, esp_name, **_):
        message_id = event.metadata["mailengine_id"]
        status = Message.objects.get(pk=message_id).status
        heard.append((event.event_type, event.recipient, message_id, status))

    tracking.connect(hear)
    yield heard
    tracking.disconnect(hear)


def test_a_hard_bounce_and_a_report_of_it(mail_queue, events):
    [message] = mail_queue.queue("ann@example.org")
    mail_queue.drain()

    mail_queue.report(message, "complained")

    assert [event[0] for event in events] == ["complained"]
    with pytest.raises(ValueError, match=r"knows no event 'complaint'\. Did you mean 'complained'\?"):
        mail_queue.report(message, "complaint")


def test_a_job_for_later_waits_for_its_hour(mail_queue):
    queue_job("News", "Hello", None, ["ann@example.org"], send_at=mail_queue.now + timedelta(hours=1))
    mail_queue.advance(minutes=59, seconds=59)
    mail_queue.drain()
    assert recipients(mail_queue) == []

    mail_queue.advance(seconds=1)
    mail_queue.drain()

    assert recipients(mail_queue) == ["ann"]


def test_everything_that_becomes_due_at_this_instant_is_done(mail_queue, settings):
    """Deferred mail that need not wait is tried until it is given up."""
    settings.MAILENGINE = {**settings.MAILENGINE, "BACKOFF_FIRST_SECONDS": 0, "MAX_ATTEMPTS": 5}
    mail_queue.fail("ses", "deferred")
    mail_queue.queue("ann@example.org")

    report = mail_queue.drain()

    assert report.outcomes == {"deferred": 4, "dead": 1}
    assert not mail_queue.drain().outcomes


def test_an_empty_queue_is_drained_at_once(mail_queue):
    assert mail_queue.drain().is_empty


@pytest.mark.parametrize("how", ["unavailable", "misconfigured", "throttled", "uncertain", "hang", "deferred"])
def test_whatever_fails_draining_ends(mail_queue, how):
    for alias in ("ses", "relay"):
        mail_queue.fail(alias, how)
    mail_queue.queue(*[f"u{number}@example.org" for number in range(5)])

    reports = [mail_queue.drain(), mail_queue.drain()]

    assert {report.stopped for report in reports} == {"done"}
    assert recipients(mail_queue) == []


def test_a_name_that_is_no_providers_is_said_with_the_nearest(mail_queue):
    for use in (mail_queue.fail, mail_queue.recover, mail_queue.provider):
        with pytest.raises(UnknownProvider, match="Did you mean 'relay'"):
            use("relais")
    with pytest.raises(ValueError, match="Did you mean 'unavailable'"):
        mail_queue.fail("relay", "unavailible")


def test_alerts_to_the_admins_are_not_among_the_mail(mail_queue, settings):
    settings.ADMINS = ["admin@example.org"] if django.VERSION >= (6, 0) else [("Admin", "admin@example.org")]
    mail_queue.fail("ses", "misconfigured")
    mail_queue.queue("ann@example.org")

    mail_queue.drain()

    assert [(handover.provider, handover.did) for handover in mail_queue.handovers] == [
        ("ses", "misconfigured"),
        ("relay", "accept"),
    ]
    [alert] = mail.outbox
    assert alert.to == ["admin@example.org"]


def test_what_is_sent_directly_goes_by_the_same_providers(mail_queue):
    mail_queue.fail("ses")

    message = send_direct_email("Hello", "Good morning.", None, ["ann@example.org"])

    assert message.provider == "relay"
    mail_queue.fail("relay")
    with pytest.raises(NotSent):
        send_direct_email("Hello", "Good morning.", None, ["bob@example.org"])
    assert recipients(mail_queue) == ["ann"]


@override_settings(MAILERS=MAILERS, MAILENGINE=MAILENGINE)
class OfUnittestTests(TestCase):
    def test_it_is_for_test_cases_too(self):
        with MailQueue() as queue:
            queue_mail("Hello", "Good morning.", None, ["ann@example.org"])
            queue.drain()
            assert recipients(queue) == ["ann"]

    def test_nothing_of_it_is_left_afterwards(self):
        with MailQueue() as queue:
            queue.fail("ses")
            queue.queue("ann@example.org")
            queue.drain()

        assert (settings.MAILERS, settings.MAILENGINE) == (MAILERS, MAILENGINE)
        assert stopped_at() is None
        assert (FakeProvider.handovers(), FakeProvider.named("ses").told) == ([], "")

    def test_nor_after_an_error(self):
        with pytest.raises(ZeroDivisionError), MailQueue():
            1 / 0  # noqa: B018

        assert stopped_at() is None

    @override_settings(MAILERS={"ses": None})
    def test_nor_after_settings_that_are_none(self):
        with pytest.raises(AttributeError), MailQueue():
            pass

        assert stopped_at() is None


def test_the_fixture_takes_the_database_by_itself(mail_queue):
    assert connection.in_atomic_block


@pytest.mark.django_db(transaction=True)
def test_or_one_with_transactions(mail_queue):
    assert not connection.in_atomic_block
    mail_queue.queue("ann@example.org")
    mail_queue.drain()
    assert recipients(mail_queue) == ["ann"]
