"""A provider with an idempotency key is asked again at once: with the same key and the same bytes it takes one mail."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from mailengine import Priority
from mailengine.models import Message, ProviderState
from mailengine.outcomes import Kind, Outcome
from mailengine.testing import ESPServer
from mailengine.testing.esp_server import Fault

from .helpers import ledger, queue, queue_many, send, statuses

pytestmark = pytest.mark.django_db

ACCEPTED = Outcome(Kind.ACCEPTED)
LOST = Outcome(Kind.UNCERTAIN, code="ReadTimeout", is_repeatable=True)
UNAVAILABLE = Outcome(Kind.UNAVAILABLE, code="HTTP 503", phase="http")


@pytest.fixture
def resend(configure, settings):
    """A provider that takes keys, "resend", which comes before "spare", which doesn't."""
    configure({"resend": {}, "spare": {}}, CONNECTIONS=1)
    mailer = {"BACKEND": "anymail.backends.resend.EmailBackend", "OPTIONS": {"api_key": "re_123"}}
    settings.MAILERS = {**settings.MAILERS, "resend": mailer}


@pytest.fixture
def answer(resend, handed_over):
    """Let handovers come to these outcomes, one after the other, and then be accepted."""
    return lambda *outcomes: handed_over(lambda alias, email, left=list(outcomes): left.pop(0) if left else ACCEPTED)


def run():
    try:
        send()
    except SystemExit:
        return


def keys(handovers) -> list[str]:
    return [key for _alias, _recipient, key in handovers]


def test_it_is_asked_again_at_once_with_the_same_key(answer):
    handovers = answer(LOST, LOST)
    message = queue()

    send()

    message.refresh_from_db()
    assert (message.status, message.uncertain_count) == ("sent", 1)
    assert ledger(message) == [("resend", "uncertain")] * 2 + [("resend", "accepted")]
    assert keys(handovers) == [f"{message.pk}-1"] * 3


def test_a_refusal_ends_the_series(answer, clock):
    handovers = answer(LOST, Outcome(Kind.DEFERRED, code="HTTP 408", phase="http"))
    message = queue()
    send()
    clock.advance(hours=1)
    send("retry_deferred")

    assert keys(handovers) == [f"{message.pk}-1", f"{message.pk}-1", f"{message.pk}-3"]


def test_what_says_nothing_of_the_message_does_not_end_it(answer, clock):
    handovers = answer(LOST, UNAVAILABLE)
    message = queue()
    run()
    clock.advance(seconds=61)
    run()

    assert keys(handovers) == [f"{message.pk}-1"] * 3


def test_a_clean_failure_begins_none(answer, clock):
    handovers = answer(UNAVAILABLE)
    message = queue()
    ProviderState.objects.create(alias="spare", throttled_until=timezone.now() + timedelta(days=1))
    run()
    run()

    assert keys(handovers) == [f"{message.pk}-1", f"{message.pk}-2"]


def test_one_that_takes_no_key_gets_none(answer):
    handovers = answer(UNAVAILABLE)
    message = queue()

    send()

    assert [(alias, key) for alias, _, key in handovers] == [("resend", f"{message.pk}-1"), ("spare", "")]


def test_a_person_s_requeue_keeps_the_key(answer):
    """It may be there already: then nothing is sent twice, and the answer says so."""
    handovers = answer(LOST)
    message = queue(stream="bulk")
    send(limit=1)
    Message.objects.update(status="uncertain", available_at=None)
    Message.objects.requeue()

    send()

    assert set(keys(handovers)) == {f"{message.pk}-1"}


def test_the_circuit_bounds_it(answer, clock):
    handovers = answer(*[LOST] * 9)
    message = queue()

    run()

    assert len(handovers) == 3
    message.refresh_from_db()
    assert (message.status, message.uncertain_count) == ("uncertain", 1)
    assert message.available_at is not None
    assert ProviderState.objects.get(pk="resend").is_open


@pytest.mark.parametrize("priority", [Priority.URGENT, Priority.NORMAL])
def test_no_other_provider_takes_it_meanwhile(answer, priority):
    handovers = answer(LOST, UNAVAILABLE)
    queue(priority=priority)

    run()

    assert {alias for alias, _, _ in handovers} == {"resend"}
    assert statuses() == {"uncertain": 1}


def test_urgent_mail_goes_elsewhere_once_its_window_is_over(answer, clock):
    answer(LOST, UNAVAILABLE, UNAVAILABLE)
    message = queue(priority=Priority.URGENT)
    run()
    clock.advance(seconds=61)

    run()

    assert ledger(message)[-1] == ("spare", "accepted")


def test_after_twelve_hours_the_ordinary_rules_hold(answer, clock):
    answer(*[LOST] * 9)
    message = queue()
    run()
    clock.advance(hours=13)

    run()

    message.refresh_from_db()
    assert (message.status, message.available_at, message.uncertain_count) == ("uncertain", None, 2)


def test_a_handover_that_carried_no_key_is_not_repeated_at_once(answer):
    handovers = answer(Outcome(Kind.UNCERTAIN, code="worker lost"))
    queue()

    send()

    assert len(handovers) == 1


def test_a_hundred_that_were_accepted_and_lost_arrive_once(resend, settings, clock):
    """F-E16 with a real server, which accepts each and hangs up."""
    seen = set()

    def behave(mail):
        if mail.mailengine_id in seen:
            return None
        seen.add(mail.mailengine_id)
        return Fault.ACCEPT_AND_HANG_UP

    with ESPServer(behave=behave) as esp:
        settings.MAILERS = {**settings.MAILERS, "resend": esp.mailer("resend")}
        settings.MAILENGINE = {**settings.MAILENGINE, "PROVIDERS": {"resend": {}}, "UNHEALTHY_THRESHOLD": 1000}
        queue_many(100)
        for _ in range(100):
            run()
            if statuses() == {"sent": 100}:
                break
            clock.advance(seconds=61)

    assert statuses() == {"sent": 100}
    assert sorted(mail.recipients for mail in esp.accepted) == sorted((f"u{n:04d}@example.org",) for n in range(100))
