"""Providers that may send for some senders only."""

from __future__ import annotations

import pytest

from mailengine import queue_job, queue_mail
from mailengine.models import MessageJob

from .helpers import ledger, queue, send, statuses

pytestmark = pytest.mark.django_db


def allow(configure, *senders, relay=(), **mailengine):
    """`ses` may send for these alone, and comes first; `relay`, unless told, for anybody."""
    providers = {"ses": {"ALLOWED_SENDERS": list(senders)}, "relay": {"ALLOWED_SENDERS": list(relay)} if relay else {}}
    configure({"ses": {}, "relay": {}}, PROVIDERS=providers, **mailengine)


@pytest.mark.parametrize(
    ("allowed", "carried_by"),
    [
        ("@example.org", "ses"),
        ("desk@example.org", "ses"),
        ("DESK@Example.ORG", "ses"),
        ("news@example.org", "relay"),
        ("@mail.example.org", "relay"),
        ("@ample.org", "relay"),
    ],
)
def test_a_sender_goes_by_one_that_may(configure, allowed, carried_by):
    """G32"""
    allow(configure, allowed)
    message = queue()

    send()

    assert ledger(message) == [(carried_by, "accepted")]


def test_a_domain_outside_ascii_is_the_same_in_both_forms(configure, settings):
    settings.DEFAULT_FROM_EMAIL = "Büro <desk@bücher.example>"
    allow(configure, "@BÜCHER.example")
    message = queue_mail("Hello", "Good morning.", None, ["ann@example.org"])

    send()

    assert ledger(message) == [("ses", "accepted")]


def test_what_none_may_send_is_a_dead_letter_with_that_reason(configure):
    """G32: and is never tried."""
    allow(configure, "@example.com", relay=["@example.net"])
    message = queue()

    send()

    message.refresh_from_db()
    assert message.status == "dead"
    assert message.reason == "refused: none of its providers may send as desk@example.org (ALLOWED_SENDERS)"
    assert ledger(message) == []


def test_a_job_that_none_may_send_is_paused_and_goes_on_once_one_may(configure):
    allow(configure, "@example.com", relay=["@example.net"])
    job = queue_job("News", "Read this.", "desk@example.org", [f"u{number}@example.org" for number in range(20)])
    send("process_mail_jobs")
    send()
    job.refresh_from_db()
    assert (job.status, statuses()) == ("paused", {"queued": 20})
    assert "none of its providers may send as desk@example.org" in job.reason

    allow(configure, "@example.org")
    MessageJob.objects.filter(pk=job.pk).resume()
    send("process_mail_jobs")
    send()

    assert statuses() == {"sent": 20}


def test_it_waits_for_the_one_that_may(configure, clock):
    configure(
        {"ses": {"script": ["unavailable"] * 3}, "relay": {}},
        PROVIDERS={"ses": {}, "relay": {"ALLOWED_SENDERS": ["@example.com"]}},
    )
    message = queue()
    for _ in range(5):
        send()
        clock.advance(minutes=2)

    assert {provider for provider, _outcome in ledger(message)} == {"ses"}
    assert statuses() == {"sent": 1}


def test_mail_in_doubt_at_one_that_may_no_longer_is_kept_for_a_person(configure, clock):
    configure({"ses": {"script": ["uncertain"]}, "relay": {}})
    message = queue()
    send()
    allow(configure, "@example.com")
    clock.advance(hours=1)

    send()

    message.refresh_from_db()
    assert (message.status, message.available_at) == ("uncertain", None)
    assert message.reason.endswith("kept for a person to decide")
