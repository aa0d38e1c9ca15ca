"""Which provider carries the next message."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta, timezone
from random import Random

import pytest

from mailengine.providers.choose import Candidate, Choice, Shares, choose, in_preference

NOON = datetime(2030, 1, 1, 12, tzinfo=timezone.utc)
SOON = NOON + timedelta(seconds=30)
HEALTHY = {"is_usable": True}
RESTING = {"is_usable": False}
PROBE_DUE = {"is_usable": False, "probe_is_due": True}


@pytest.mark.parametrize(
    ("states", "choice"),
    [
        ([HEALTHY, HEALTHY], Choice("a")),
        ([RESTING, HEALTHY], Choice("b")),
        ([HEALTHY, RESTING], Choice("a")),
        ([PROBE_DUE, HEALTHY], Choice("a", is_probe=True)),
        ([HEALTHY, PROBE_DUE], Choice("b", is_probe=True)),
        ([PROBE_DUE, PROBE_DUE], Choice("a", is_probe=True)),
        ([RESTING, RESTING], None),
        ([], None),
    ],
)
def test_the_first_usable_one_takes_it_and_a_due_probe_goes_first(states, choice):
    candidates = [Candidate(alias, **state) for alias, state in zip("ab", states, strict=False)]
    assert choose(candidates) == choice


@pytest.mark.parametrize(
    ("states", "tried", "choice"),
    [
        ([HEALTHY, HEALTHY], {"a"}, Choice("b")),
        ([HEALTHY, PROBE_DUE], {"b"}, Choice("a")),
        ([HEALTHY, HEALTHY], {"a", "b"}, None),
    ],
)
def test_where_it_has_been_it_does_not_go_again(states, tried, choice):
    candidates = [Candidate(alias, **state) for alias, state in zip("ab", states, strict=True)]
    assert choose(candidates, tried=tried) == choice


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
    known = {alias: Candidate(alias, took_over_at=took_over.get(alias)) for alias in "cba"}
    assert "".join(c.alias for c in in_preference("abc", strategy=strategy, known=known)) == order


def test_a_provider_without_a_state_is_left_out():
    known = {"b": Candidate("b")}
    assert in_preference(["a", "b"], strategy="ordered", known=known) == [known["b"]]


def test_the_one_that_a_run_has_drawn_goes_first():
    known = {alias: Candidate(alias) for alias in "abc"}
    assert "".join(c.alias for c in in_preference("abc", strategy="spread", known=known, lead="b")) == "bac"


class TestShares:
    """G16, G37: each next message goes to the one that is furthest behind."""

    def give(self, shares: Shares, candidates: list[Candidate], count: int) -> Counter[str]:
        given = Counter()
        for _ in range(count):
            alias = shares.in_turn(candidates, planned={})[0].alias
            shares.note(alias, candidates)
            given[alias] += 1
        return given

    @pytest.mark.parametrize("seed", range(20))
    @pytest.mark.parametrize(
        "weights", [(1, 1), (1, 1, 1), (3, 1), (5, 3, 1, 1, 0), (1_000, 1), (6, 4), (1_000_000_000, 999_999_999)]
    )
    def test_each_gets_its_share_at_any_time(self, weights, seed):
        candidates = [Candidate(alias, weight=w) for alias, w in zip("abcde", weights, strict=False)]
        shares, given = Shares(rng=Random(seed)), Counter()
        for count in range(1, 201):
            given += self.give(shares, candidates, 1)
            for candidate in candidates:
                assert abs(given[candidate.alias] - count * candidate.weight / sum(weights)) < 2
        assert given["e"] == 0

    def test_runs_of_one_message_share_as_well(self):
        candidates = [Candidate("a", weight=3), Candidate("b", weight=1)]
        given = Counter()
        for seed in range(2_000):
            given += self.give(Shares(rng=Random(seed)), candidates, 1)
        assert given["b"] == pytest.approx(500, rel=0.15)

    def test_planned_messages_count_as_given(self):
        candidates = [Candidate("a"), Candidate("b")]
        shares = Shares(rng=Random(1))
        first = shares.in_turn(candidates, planned={})[0].alias
        assert shares.in_turn(candidates, planned={first: 1})[0].alias != first

    def test_one_that_comes_back_makes_up_for_nothing(self):
        healthy, resting = Candidate("b"), Candidate("b", **RESTING)
        shares = Shares()
        self.give(shares, [Candidate("a"), resting], 100)
        given = self.give(shares, [Candidate("a"), healthy], 100)
        assert given == {"a": 50, "b": 50}

    def test_what_can_not_be_used_and_what_only_stands_in_comes_last(self):
        candidates = [Candidate("a", weight=0), Candidate("b", **RESTING), Candidate("c")]
        in_turn = Shares().in_turn(candidates, planned={})
        assert [candidate.alias for candidate in in_turn] == ["c", "a", "b"]
