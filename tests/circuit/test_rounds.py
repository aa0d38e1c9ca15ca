"""What one result changes in its provider's row."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from uuid import UUID

import pytest

from mailengine.circuit import Policy
from mailengine.models import ProviderState
from mailengine.outcomes import Kind, Outcome
from mailengine.pipeline.rounds import Result, effect_of

NOON = datetime(2026, 11, 22, 12, tzinfo=timezone.utc)
POLICY = Policy()
CLOSED = {"alias": "relay"}
OPEN = {**CLOSED, "is_open": True, "bad_rounds": 3, "opened_at": NOON - timedelta(hours=1)}
OURS = {**OPEN, "misconfigured": True, "alerted_at": NOON - timedelta(hours=1)}
ONCE = {**CLOSED, "refusals": [["rcpt 550", "d0.example", str(UUID(int=0)), "2026-11-22T11:00:00+00:00"]]}

GOOD = Outcome(Kind.ACCEPTED)
DOWN = Outcome(Kind.UNAVAILABLE, code="421")
NO_NAME = Outcome(Kind.UNAVAILABLE, code="no such host", ours_after_seconds=600)
WRONG_PASSWORD = Outcome(Kind.MISCONFIGURED, code="535")
SLOWER = Outcome(Kind.THROTTLED, code="429", retry_after_seconds=60)
REFUSED = Outcome(Kind.REFUSED, code="550", phase="rcpt")
TOO_LARGE = Outcome(Kind.REFUSED, code="552", phase="await", elsewhere=True)
NO_SOCKETS = Outcome(Kind.UNAVAILABLE, code="EMFILE", is_local=True)
ERROR = {"last_error", "last_error_at"}
OPENS = ERROR | {"is_open", "bad_rounds", "opened_at", "failed_at", "misconfigured"}


def effect(outcome, row, *, was_probe=False, **how):
    result = Result("relay", outcome, "bulk", was_probe, "u@d9.example", UUID(int=9), begun_at=NOON, ended_at=NOON)
    return effect_of(result, ProviderState(**row), now=NOON, policy=POLICY, **how)


@pytest.mark.parametrize(
    ("outcome", "row", "changed"),
    [
        (GOOD, CLOSED, set()),
        (GOOD, {**CLOSED, "bad_rounds": 2}, {"bad_rounds"}),
        (GOOD, ONCE, {"refusals"}),
        (GOOD, OPEN, {"good_rounds", "probing_until", "probes_left"}),
        (DOWN, CLOSED, ERROR | {"bad_rounds"}),
        (WRONG_PASSWORD, CLOSED, OPENS),
        (SLOWER, CLOSED, ERROR | {"throttled_until"}),
        (REFUSED, CLOSED, {"refusals"}),
        (TOO_LARGE, CLOSED, set()),
        (NO_SOCKETS, CLOSED, set()),
        (NO_SOCKETS, OPEN, set()),
    ],
)
def test_it_changes_these_fields_and_no_others(outcome, row, changed):
    assert set(effect(outcome, row).changes) == changed


def test_an_acceptance_makes_its_provider_the_one_that_the_stream_sticks_to():
    assert effect(GOOD, CLOSED, takes_over=True).changes == {"took_over_at": NOON}
    assert "took_over_at" not in effect(DOWN, CLOSED, takes_over=True).changes


def test_a_probe_whose_message_was_at_fault_lets_the_next_one_go():
    row = {**OPEN, "probing_until": NOON + timedelta(seconds=60)}

    assert effect(TOO_LARGE, row, was_probe=True).changes == {"probing_until": None}
    assert effect(TOO_LARGE, row).changes == {}


def test_a_provider_that_stays_out_of_reach_is_a_fault_of_ours():
    found = effect(NO_NAME, OPEN)

    assert (found.outcome.kind, found.changes["misconfigured"], found.to_tell) == (
        Kind.MISCONFIGURED,
        True,
        "no such host",
    )
    assert effect(NO_NAME, CLOSED).outcome.kind is Kind.UNAVAILABLE


def test_the_fifth_refusal_alike_is_ours_and_gives_back_the_four_before_it():
    refusals = [["rcpt 550", f"d{number}.example", str(UUID(int=number)), NOON.isoformat()] for number in (1, 2, 3, 4)]

    found = effect(REFUSED, {**CLOSED, "refusals": refusals})

    assert (found.outcome.kind, set(found.changes)) == (Kind.MISCONFIGURED, OPENS | {"refusals"})
    assert found.put_back == {UUID(int=number) for number in (1, 2, 3, 4, 9)}
    assert found.to_tell.startswith("the last 5 refusals were alike")


@pytest.mark.parametrize(("outcome", "row"), [(DOWN, CLOSED), (DOWN, OPEN), (GOOD, OURS), (REFUSED, OURS)])
def test_what_needs_no_person_is_told_nobody(outcome, row):
    assert effect(outcome, row).to_tell == ""


def test_the_end_of_an_incident_forgets_that_it_was_told():
    found = effect(GOOD, {**OURS, "good_rounds": 1})

    assert (found.changes["misconfigured"], found.changes["alerted_at"]) == (False, None)


@pytest.mark.parametrize(
    ("slowed_to", "seconds_ago", "accepted", "now_slowed_to"),
    [
        (None, None, 20, 10),
        (None, None, 1, 1),
        (None, None, 0, None),  # what it was asked before it says no to the first says nothing of a rate
        (10, 120, 0, 10),  # twice as much by now, and half of that
        (10, 120, 8, 4),
        (10, 7_200, 30, 15),
    ],
)
def test_a_provider_that_asks_us_to_slow_down_gets_half_of_what_it_got(slowed_to, seconds_ago, accepted, now_slowed_to):
    slowed_at = None if seconds_ago is None else NOON - timedelta(seconds=seconds_ago)

    found = effect(
        SLOWER, {**CLOSED, "slowed_to": slowed_to, "slowed_at": slowed_at}, taken_of_late=lambda: [NOON] * accepted
    )

    rate = found.changes.get("slowed_to", slowed_to)
    assert (rate, found.changes.get("slowed_at")) == (now_slowed_to, NOON if now_slowed_to else None)


def test_what_was_under_way_when_it_asked_to_slow_down_slows_it_down_no_further():
    row = {**CLOSED, "slowed_to": 10, "slowed_at": NOON}

    assert not {"slowed_to", "slowed_at"} & set(effect(SLOWER, row, taken_of_late=lambda: [NOON] * 8).changes)
