"""What each provider was given, hour by hour, as the ledger has it."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from mailengine.reporting.traffic import HOURS, counts_since, traffic_by_provider

pytestmark = pytest.mark.django_db
NOW = datetime(2026, 3, 5, 14, 20, 30, tzinfo=timezone.utc)


@pytest.fixture
def hand_over(hand_over):
    """Before NOW."""
    return lambda provider, outcome="accepted", count=1, **ago: hand_over(
        provider, outcome, count=count, at=NOW - timedelta(**ago)
    )


def test_each_hour_by_the_clock_has_its_outcomes(hand_over):
    hand_over("ses", minutes=20)
    hand_over("ses", "refused", minutes=20)
    hand_over("ses", "deferred", minutes=19)
    for outcome in ("unavailable", "misconfigured", "throttled", "uncertain"):
        hand_over("ses", outcome, minutes=21)

    *_, before, present = traffic_by_provider(NOW)["ses"].hours

    assert (present.begins_at, present.accepted, present.refused, present.failed) == (
        datetime(2026, 3, 5, 14, tzinfo=timezone.utc), 1, 2, 0,
    )  # fmt: skip
    assert (before.begins_at.hour, before.accepted, before.refused, before.failed) == (13, 0, 0, 4)
    assert before.outcomes == {"unavailable": 1, "misconfigured": 1, "throttled": 1, "uncertain": 1}


def test_there_are_24_hours_whatever_was_given(hand_over):
    hand_over("ses", hours=23, minutes=20)
    hand_over("ses", hours=23, minutes=21)

    traffic = traffic_by_provider(NOW)

    assert [len(traffic[alias].hours) for alias in ("ses", "never-heard-of")] == [24, 24]
    assert (traffic["ses"].hours[0].begins_at.hour, traffic["ses"].total) == (15, 1)


def test_today_is_that_of_utc(hand_over):
    hand_over("ses", hours=14, minutes=20)
    hand_over("ses", hours=14, minutes=21)
    hand_over("ses", "unavailable", minutes=1)

    traffic = traffic_by_provider(NOW)["ses"]

    assert (traffic.sent_today, traffic.accepted, traffic.total) == (1, 2, 3)


def test_shares_are_those_of_what_was_accepted(hand_over):
    hand_over("ses", count=3, hours=1)
    hand_over("relay", count=1, hours=5)
    hand_over("relay", "unavailable", count=10, hours=5)

    traffic = traffic_by_provider(NOW)

    assert [traffic.share(alias) for alias in ("ses", "relay", "other")] == [0.75, 0.25, 0]


def test_of_nothing_there_are_no_shares(hand_over):
    hand_over("relay", "unavailable", hours=5)

    assert traffic_by_provider(NOW).share("relay") is None


def test_what_is_under_way_is_left_out(hand_over):
    hand_over("ses", "", seconds=1)

    assert traffic_by_provider(NOW)["ses"].total == 0
    assert counts_since(NOW - timedelta(minutes=1)) == {"ses": 1}


def test_it_is_a_query_an_hour(hand_over, django_assert_num_queries):
    hand_over("ses", count=10)
    hand_over("relay", "refused", hours=5)

    with django_assert_num_queries(HOURS):
        traffic_by_provider(NOW)
