"""Where a message stands while its providers are what it waits for."""

from __future__ import annotations

import pytest

from mailengine import queue_mail
from mailengine.clock import read_now
from mailengine.models import Priority
from mailengine.rate import per, taken
from mailengine.reporting.standing import standing_of

pytestmark = pytest.mark.django_db


def standing(**options):
    message = queue_mail("Hi", "Hello", "a@example.org", ["ann@example.org"], **options)
    message.refresh_from_db()
    return standing_of(message, now=read_now("default"))


def used(count):
    return taken([per(100, "day")], {}, now=read_now("default"), count=count)


def test_it_waits_for_a_limit(providers, row):
    providers(ses={"RATE": "100/day"})
    row("ses", usage=used(100))
    assert standing().startswith("Due: it waits for the limit of ses until ")


def test_bulk_mail_waits_for_it_before_other_mail(providers, row):
    providers(ses={"RATE": "100/day"})
    row("ses", usage=used(95))
    assert standing(priority=Priority.BULK).startswith("Due: it waits for the limit of ses until ")
    assert standing().startswith("Queued and due: the next run")


def test_nobody_may_be_given_it(providers, row):
    providers(ses={}, relay={})
    row("ses", mode="draining")
    row("relay", mode="disabled")
    text = "Due, but none of its providers may be given new mail: ses (Draining), relay (Disabled)."
    assert standing() == text


def test_nobody_can_be_used(providers, row):
    providers(ses={})
    row("ses", is_open=True)
    assert standing() == "Due, but none of its providers can be used: ses (Resting)."


def test_mail_for_later_is_not_held_up(providers, row, clock):
    providers(ses={})
    row("ses", mode="disabled")
    message = queue_mail(
        "Hi", "Hello", "a@example.org", ["ann@example.org"], send_at=read_now("default").replace(year=2099)
    )
    assert standing_of(message, now=read_now("default")).startswith("Queued, to be sent from ")
