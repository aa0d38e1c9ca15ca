"""Which provider carries the next message."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from mailengine.circuit import Circuit
from mailengine.providers.choose import Candidate, Choice, choose, in_preference

NOON = datetime(2030, 1, 1, 12, tzinfo=timezone.utc)
SOON = NOON + timedelta(seconds=30)
HEALTHY = Circuit()
RESTING = Circuit(is_open=True, probe_at=SOON)
PROBE_DUE = Circuit(is_open=True, probe_at=NOON)
THROTTLED = Circuit(throttled_until=SOON)


@pytest.mark.parametrize(
    ("circuits", "choice"),
    [
        ([HEALTHY, HEALTHY], Choice("a")),
        ([RESTING, HEALTHY], Choice("b")),
        ([THROTTLED, HEALTHY], Choice("b")),
        ([HEALTHY, RESTING], Choice("a")),
        ([PROBE_DUE, HEALTHY], Choice("a", is_probe=True)),
        ([HEALTHY, PROBE_DUE], Choice("b", is_probe=True)),
        ([PROBE_DUE, PROBE_DUE], Choice("a", is_probe=True)),
        ([RESTING, THROTTLED], None),
        ([], None),
    ],
)
def test_the_first_usable_one_takes_it_and_a_due_probe_goes_first(circuits, choice):
    candidates = [Candidate(alias, circuit) for alias, circuit in zip("ab", circuits, strict=False)]
    assert choose(candidates, now=NOON) == choice


@pytest.mark.parametrize(
    ("circuits", "tried", "choice"),
    [
        ([HEALTHY, HEALTHY], {"a"}, Choice("b")),
        ([HEALTHY, PROBE_DUE], {"b"}, Choice("a")),
        ([HEALTHY, HEALTHY], {"a", "b"}, None),
    ],
)
def test_where_it_has_been_it_does_not_go_again(circuits, tried, choice):
    candidates = [Candidate(alias, circuit) for alias, circuit in zip("ab", circuits, strict=True)]
    assert choose(candidates, now=NOON, tried=tried) == choice


def test_mail_that_must_not_probe_takes_a_healthy_one_or_waits():
    candidates = [Candidate("a", PROBE_DUE), Candidate("b", HEALTHY)]
    assert choose(candidates, now=NOON, probing=False) == Choice("b")
    assert choose(candidates[:1], now=NOON, probing=False) is None


@pytest.mark.parametrize(
    ("strategy", "took_over", "order"),
    [
        ("ordered", {}, "abc"),
        ("ordered", {"c": NOON}, "abc"),
        ("sticky", {}, "abc"),
        ("sticky", {"a": NOON}, "abc"),
        ("sticky", {"c": NOON}, "cab"),
        ("sticky", {"b": NOON, "c": SOON}, "cab"),
        ("sticky", {"b": SOON, "c": NOON}, "bac"),
    ],
)
def test_the_order_of_preference(strategy, took_over, order):
    known = {alias: Candidate(alias, HEALTHY, took_over.get(alias)) for alias in "cba"}
    assert "".join(c.alias for c in in_preference("abc", strategy=strategy, known=known)) == order


def test_a_provider_without_a_state_is_left_out():
    known = {"b": Candidate("b", HEALTHY)}
    assert in_preference(["a", "b"], strategy="ordered", known=known) == [known["b"]]
