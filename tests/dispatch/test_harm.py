"""One bad message, one failing part: what it may not do to the rest."""

from __future__ import annotations

import pytest
from django.db import OperationalError

from mailengine import queue_mail
from mailengine.models import Attachment, Message, ProviderState
from mailengine.models.attempts import AttemptQuerySet
from mailengine.testing import FakeProvider

from .helpers import ledger, queue, queue_many, send, statuses

pytestmark = pytest.mark.django_db


def run(command: str = "send_mail") -> None:
    """Send, whatever the exit code."""
    try:
        send(command)
    except SystemExit:
        return


def test_a_message_that_always_fails_like_a_provider_keeps_no_other_from_being_the_probe(server, clock):
    server.replies["bad@example.org"] = "421 4.3.0 Try later"
    queue("bad@example.org", priority=0)
    run()
    assert ProviderState.objects.get().is_open
    good = queue_many(5)

    for _ in range(3):
        clock.advance(seconds=61)
        run()

    assert Message.objects.filter(pk__in=[message.pk for message in good], status="sent").count() == 5


def test_a_recipient_whose_address_is_unverified_is_no_misconfiguration_of_ours(server):
    reply = "550 5.1.1 <gone@example.org>: Recipient address rejected: unverified address: host unknown"
    server.replies["gone@example.org"] = reply
    message = queue("gone@example.org")

    send()

    message.refresh_from_db()
    assert message.status == "dead"
    assert not ProviderState.objects.get().is_open


@pytest.mark.parametrize("reply", ["452 4.3.1 Full", "454 4.7.1 Too fast", "450 4.2.1 Busy"])
def test_who_was_refused_for_now_goes_on_alone_whoever_was_at_fault(server, reply):
    server.replies["bob@example.org"] = reply
    queue_mail("Hello", "Good morning.", "desk@example.org", ["ann@example.org", "bob@example.org"])

    send()

    assert statuses() == {"sent": 1, "deferred": 1}
    assert Message.objects.get(status="deferred").recipient == "bob@example.org"
    outcomes = [entry["outcome"] for entry in Message.objects.get(status="sent").recipients]
    assert outcomes == ["accepted", "deferred"]


def test_what_has_arrived_is_recorded_though_the_database_failed_once(provider, clock, monkeypatch):
    queue_many(8)
    end_many, failures = AttemptQuerySet.end_many, []

    def fail_once(self, ended, *, now):
        if not failures:
            failures.append(list(ended))
            raise OperationalError("deadlock")
        end_many(self, ended, now=now)

    monkeypatch.setattr(AttemptQuerySet, "end_many", fail_once)
    with pytest.raises(OperationalError):
        send()
    assert "sending" not in statuses()

    clock.advance(hours=2)
    run()

    assert statuses() == {"sent": 8}
    assert len(provider.accepted) == 8


def test_a_storage_that_fails_in_its_own_way_is_a_wait(provider, monkeypatch, clock):
    class CloudError(Exception):
        """As boto's, no OSError."""

    class Storage:
        def open(self, *_):
            raise CloudError("the bucket is away")

    message = queue()
    other = queue("other@example.org")
    monkeypatch.setattr("mailengine.pipeline.composer.load_words", _failing_for(message, Storage(), monkeypatch))

    send()

    message.refresh_from_db(), other.refresh_from_db()
    assert (message.status, other.status) == ("queued", "sent")
    assert "CloudError: the bucket is away" in message.reason


def test_mail_that_only_a_broken_provider_would_take_is_not_given_up(configure):
    FakeProvider.reset()
    configure({"large": {"fails_every": 1}, "small": {"script": ["too_large"]}}, CONNECTIONS=1)
    message = queue()

    run()

    message.refresh_from_db()
    assert message.status == "deferred"
    assert ledger(message) == [("large", "unavailable"), ("small", "refused")]


def _failing_for(message, storage, monkeypatch):
    from mailengine.pipeline import composer

    load = composer.load_words

    def load_words(content_id):
        if content_id == message.content_id:
            monkeypatch.setattr("mailengine.models.content.attachment_storage", lambda: storage)
            Attachment(sha256="0" * 64, size=1, file="x").read()
        return load(content_id)

    return load_words


@pytest.fixture
def stubborn(server, settings):
    """A server that takes its time with the first mail, behind a backend that knows nothing of deadlines."""
    backend = "django.core.mail.backends.smtp.EmailBackend"
    options = {"host": server.host, "port": server.port, "timeout": 30}
    settings.MAILERS = {**settings.MAILERS, "relay": {"BACKEND": backend, "OPTIONS": options}}
    settings.MAILENGINE = {**settings.MAILENGINE, "SEND_DEADLINE_SECONDS": 0.5, "LEASE_SECONDS": 4}

    def dawdle(_mail):
        server.delay_seconds = 2 if len(server.accepted) == 1 else 0.25

    server.on_accepted = dawdle
    return server


def test_a_backend_that_does_not_come_back_costs_the_others_no_connection(stubborn):
    first, second = queue(priority=0), queue("bob@example.org")

    send()

    assert ledger(first) == [("relay", "uncertain")]
    assert first.attempts.get().code == "overdue"
    assert ledger(second) == [("relay", "accepted")]
    assert statuses() == {"uncertain": 1, "sent": 1}


def test_a_yes_that_comes_when_its_time_was_over_still_counts(stubborn):
    first = queue(priority=0)
    queue_many(10)

    send()

    first.refresh_from_db()
    assert first.status == "sent"
    assert first.uncertain_count == 1
    assert ledger(first) == [("relay", "accepted")]
