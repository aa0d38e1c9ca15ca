"""send_direct_email(): at once or not at all, with a ledger all the same."""

from __future__ import annotations

import contextlib

import pytest
from asgiref.sync import async_to_sync
from django.core.management import call_command
from django.db import transaction

from mailengine import asend_direct_email, dispatch_slice, send_direct_email
from mailengine.errors import DatabaseLost, NotSent
from mailengine.models import Message, Suppression
from mailengine.outcomes import Kind
from mailengine.testing import FakeProvider

from ..database_faults import at, servers_only, through_a_proxy

pytestmark = pytest.mark.django_db

MAIL = ("Hello", "Now", "shop@example.org", ["ann@example.org"])


@pytest.fixture
def providers(configure):
    """Set two providers by their options: `providers(first={...}, second={...})`."""
    FakeProvider.reset()

    def set_up(first=None, second=None, **mailengine):
        configure({"first": first or {}, "second": second or {}}, **mailengine)

    yield set_up
    FakeProvider.reset()


def accepted(name):
    return len(FakeProvider.named(name).accepted)


def failure(**changes):
    with pytest.raises(NotSent) as caught:
        send_direct_email(*MAIL, **changes)
    return caught.value


def test_it_is_sent_when_the_call_returns(providers):
    """S18"""
    providers()
    message = send_direct_email(*MAIL)
    assert (message.status, message.provider, accepted("first")) == ("sent", "first", 1)
    assert [(a.number, a.provider, a.outcome) for a in message.attempts.all()] == [(1, "first", "accepted")]


@pytest.mark.parametrize("word", ["unavailable", "misconfigured", "throttled"])
def test_another_provider_takes_over(providers, word):
    providers(first={"script": [word]})
    message = send_direct_email(*MAIL)
    assert (message.status, message.provider) == ("sent", "second")
    assert [a.outcome for a in message.attempts.all()] == [word, "accepted"]


def test_a_provider_can_be_named(providers):
    providers()
    assert send_direct_email(*MAIL, provider="second").provider == "second"
    assert (accepted("first"), accepted("second")) == (0, 1)


def test_the_provider_named_is_used_whatever_its_streams(providers):
    providers(STREAMS={"transactional": {"PROVIDERS": ["first"]}})
    assert send_direct_email(*MAIL, provider="second").provider == "second"


def test_no_other_is_asked_than_the_one_named(providers):
    providers(second={"script": ["unavailable"]})
    assert failure(provider="second").outcome.kind is Kind.UNAVAILABLE
    assert accepted("first") == 0


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("refused", Kind.REFUSED),
        ("deferred", Kind.DEFERRED),
        ("unavailable", Kind.UNAVAILABLE),
        ("misconfigured", Kind.MISCONFIGURED),
        ("throttled", Kind.THROTTLED),
    ],
)
def test_a_failure_is_raised_and_final(providers, clock, word, kind):
    """S18: the caller was told, so it is not sent behind its back later."""
    providers(first={"script": [word]}, second={"script": [word]})
    error = failure()
    assert error.outcome.kind is kind
    assert (error.message.status, error.message.attempts.exists()) == ("dead", True)
    clock.advance(days=1)
    dispatch_slice()
    assert (accepted("first"), accepted("second")) == (0, 0)


def test_in_doubt_it_says_so_and_keeps_the_mail_for_a_person(providers, clock):
    providers(first={"script": ["uncertain"]})
    error = failure()
    assert (error.outcome.kind, error.message.status, error.message.available_at) == (
        Kind.UNCERTAIN,
        "uncertain",
        None,
    )
    clock.advance(days=1)
    dispatch_slice()
    assert (accepted("first"), accepted("second")) == (0, 0)


@pytest.mark.parametrize(("word", "status"), [("unavailable", "dead"), ("accept", "sent")])
def test_what_comes_of_it_after_its_lease_is_final_too(providers, clock, monkeypatch, word, status):
    """The host slept, and another one has rescued it meanwhile."""
    providers(first={"script": [word]}, second={})

    def sleep():
        clock.advance(hours=1)
        Message.objects.rescue(window=lambda message: None)

    hits = at(monkeypatch, "mailengine.models.messages:MessageQuerySet.held", sleep, times=(2,))
    with contextlib.suppress(NotSent):
        send_direct_email(*MAIL)
    clock.advance(days=1)
    dispatch_slice()
    call_command("retry_deferred", verbosity=0)
    assert (hits, Message.objects.get().status, accepted("second")) == ([2], status, 0)


def test_a_suppressed_address_is_no_exception(providers):
    providers()
    Suppression.objects.create(address="ann@example.org", reason=Suppression.Reason.REFUSED)
    assert failure().message.status == "suppressed"
    assert accepted("first") == 0


def test_a_wrong_sender_is_named(providers, settings):
    providers()
    settings.DEFAULT_FROM_EMAIL = "nobody"
    with pytest.raises(NotSent, match="DEFAULT_FROM_EMAIL"):
        send_direct_email("Hello", "", None, ["ann@example.org"])


def test_without_providers_it_is_not_sent(configure):
    configure({})
    assert "PROVIDERS" in str(failure())


def test_what_it_cannot_do_is_refused(providers):
    providers()
    with pytest.raises(ValueError, match=r"queue_mail\(\)"):
        send_direct_email(*MAIL, idempotency_key="7")
    assert not Message.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_not_inside_a_transaction(providers):
    """S18: a rollback could not call the mail back."""
    providers()
    with transaction.atomic(), pytest.raises(RuntimeError, match=r"queue_mail\(\)"):
        send_direct_email(*MAIL)
    assert accepted("first") == 0
    assert not Message.objects.exists()


@servers_only
@pytest.mark.django_db(transaction=True)
def test_a_database_that_goes_away_is_waited_for_no_longer_than_a_provider(providers, monkeypatch):
    """Nothing was begun: it is dead once its lease is over."""
    providers(SEND_DEADLINE_SECONDS=1, LEASE_SECONDS=20)
    with through_a_proxy() as proxy:
        at(monkeypatch, "mailengine.pipeline.dispatch:Dispatcher._begin_directly", proxy.down)
        with pytest.raises(DatabaseLost, match="does not answer"):
            send_direct_email(*MAIL)
    assert (Message.objects.get().status, accepted("first")) == ("sending", 0)


@servers_only
@pytest.mark.django_db(transaction=True)
def test_an_outcome_that_can_not_be_recorded_is_named_at_the_end_of_its_lease(providers, monkeypatch, caplog):
    providers(SEND_DEADLINE_SECONDS=1, LEASE_SECONDS=3)
    with through_a_proxy() as proxy:
        at(monkeypatch, "mailengine.pipeline.senders:Team.send", proxy.down)
        with pytest.raises(DatabaseLost, match="1 outcomes may not be recorded"):
            send_direct_email(*MAIL)
    message = Message.objects.get()
    assert (message.status, accepted("first")) == ("sending", 1)
    assert str(message.pk) in caplog.text


@pytest.mark.django_db(transaction=True)
def test_the_async_twin_does_the_same(providers):
    providers()
    assert async_to_sync(asend_direct_email)(*MAIL).status == "sent"
