"""How much a provider may be given: values in, values out."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailengine.rate import (
    FORGOTTEN_SECONDS,
    Limit,
    after_slowing,
    busiest_second,
    free_at,
    left,
    limits_of,
    of_the_day,
    taken,
)

NOON = datetime(2030, 1, 1, 12, tzinfo=timezone.utc)
TEN_A_SECOND = limits_of("10/s")


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("text", "windows"),
    [
        ("14/s", [(14, 1)]),
        (" 200 / min ", [(200, 60)]),
        ("1000/h", [(1_000, 3_600)]),
        ("14/s, 50000/day", [(14, 1), (50_000, 86_400)]),
    ],
)
def test_a_rate_is_read_as_people_write_it(text, windows):
    found = [(limit.most, round(limit.slice_seconds * (limit.slice_count - 2))) for limit in limits_of(text)]
    assert found == windows


@pytest.mark.parametrize("text", ["", "14", "14/", "/s", "0/s", "-1/s", "1.5/s", "14/week", "14/s,", "14/s/s", "1e3/s"])
def test_what_is_no_rate_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="Write it like '14/s'"):
        limits_of(text)


def test_no_more_than_its_number_begins_at_once():
    usage = taken(TEN_A_SECOND, {}, now=NOON, count=7)
    assert left(TEN_A_SECOND, usage, now=NOON) == 3
    assert left(TEN_A_SECOND, taken(TEN_A_SECOND, usage, now=NOON, count=3), now=NOON) == 0


def test_without_a_limit_there_is_no_end():
    assert left((), {}, now=NOON) is None
    assert free_at((), {}, now=NOON) == NOON
    assert taken((), {}, now=NOON) == {}


@given(
    pauses=st.lists(st.floats(min_value=0, max_value=1.5), min_size=1, max_size=80),
    delays=st.lists(st.floats(min_value=0, max_value=0.04), min_size=80, max_size=80),
)
def test_no_second_sees_more_than_the_rate_even_if_mail_takes_a_moment_to_arrive(pauses, delays):
    usage, now, arrivals = {}, NOON, []
    for pause in pauses:
        now += timedelta(seconds=pause)
        while left(TEN_A_SECOND, usage, now=now) and len(arrivals) < len(delays):
            usage = taken(TEN_A_SECOND, usage, now=now)
            arrivals.append(now + timedelta(seconds=delays[len(arrivals)]))
    for first in arrivals:
        assert sum(first <= arrival < first + timedelta(seconds=1) for arrival in arrivals) <= 10


def test_mail_of_a_slice_s_very_end_may_arrive_late_as_well():
    usage = taken(TEN_A_SECOND, {}, now=at(0.049), count=10)
    assert free_at(TEN_A_SECOND, usage, now=at(0.049)) >= at(0.049 + 0.05 + 1)


def test_it_is_free_again_when_enough_has_left_the_window():
    usage = taken(TEN_A_SECOND, {}, now=NOON, count=4)
    usage = taken(TEN_A_SECOND, usage, now=at(0.5), count=6)
    assert free_at(TEN_A_SECOND, usage, now=at(0.6)) == at(1.1)
    assert left(TEN_A_SECOND, usage, now=at(1.09)) == 0
    assert left(TEN_A_SECOND, usage, now=at(1.1)) == 4


def test_what_has_left_the_window_keeps_nobody_waiting():
    usage = taken(TEN_A_SECOND, {}, now=NOON, count=4)
    usage = taken(TEN_A_SECOND, usage, now=at(0.5), count=10)
    assert free_at(TEN_A_SECOND, usage, now=at(1.15)) == at(1.6)


def test_when_it_is_free_is_now_if_something_is_left():
    assert free_at(TEN_A_SECOND, taken(TEN_A_SECOND, {}, now=NOON), now=NOON) == NOON


def test_the_tightest_limit_decides():
    limits = limits_of("10/s, 12/min")
    usage = taken(limits, {}, now=NOON, count=10)
    assert left(limits, usage, now=at(2)) == 2
    usage = taken(limits, usage, now=at(2), count=2)
    assert free_at(limits, usage, now=at(3)) == at(66)


def test_a_reserve_is_left_by_those_who_may_not_use_it():
    usage = taken(TEN_A_SECOND, {}, now=NOON, count=9)
    assert left(TEN_A_SECOND, usage, now=NOON, share=0.9) == 0
    assert left(TEN_A_SECOND, usage, now=NOON) == 1


def test_a_reserve_is_not_rounded_up():
    assert left(limits_of("50000/day"), {}, now=NOON, share=1 - 0.9) == 5_000


def test_a_reserve_never_takes_the_last_one():
    one_a_second = limits_of("1/s")
    assert left(one_a_second, {}, now=NOON, share=0.9) == 1


def test_a_lower_rate_counts_what_was_begun_under_the_higher_one():
    usage = taken(limits_of("20/s"), {}, now=NOON, count=15)
    assert left(TEN_A_SECOND, usage, now=NOON) == 0
    assert free_at(TEN_A_SECOND, usage, now=NOON) == at(1.1)


def test_the_usage_stays_small():
    usage = {}
    for number in range(500):
        usage = taken(limits_of("10/s, 100/min, 1000/h, 9000/day"), usage, now=at(number * 7_000))
    assert sum(len(slices) for slices in usage.values()) <= 4 * 22


def test_what_a_limit_that_is_gone_has_counted_is_forgotten():
    usage = taken(limits_of("10/s, 100/min"), {}, now=NOON)
    assert set(taken(TEN_A_SECOND, usage, now=NOON)) == {"s"}


@pytest.mark.parametrize(
    "usage", [[], "x", 7, {"s": 5}, {"s": None}, {"s": {"x": 1}}, {"s": {"1": "x"}}, {"s": {"99999999999999999": 20}}]
)
def test_what_nobody_can_read_counts_as_nothing(usage):
    """A row may be written by hand, and no mail should stop for that."""
    assert left(TEN_A_SECOND, usage, now=NOON) == 10
    assert free_at(TEN_A_SECOND, usage, now=NOON) == NOON
    assert left(TEN_A_SECOND, taken(TEN_A_SECOND, usage, now=NOON), now=NOON) == 9


class TestWarmUp:
    SCHEDULE = (50, 100, 500)

    @pytest.mark.parametrize(("days", "most"), [(0, 50), (1, 100), (2, 500)])
    def test_each_day_has_its_number(self, days, most):
        (limit,) = of_the_day(self.SCHEDULE, since=NOON, now=NOON + timedelta(days=days))
        assert limit.most == most

    def test_it_begins_with_the_first_mail(self):
        assert of_the_day(self.SCHEDULE, since=None, now=NOON)[0].most == 50

    @pytest.mark.parametrize("days", [3, 300, -1])
    def test_before_and_after_it_there_is_no_limit(self, days):
        assert of_the_day(self.SCHEDULE, since=NOON, now=NOON + timedelta(days=days)) == ()

    def test_a_day_is_one_of_utc_and_its_number_ends_with_it(self):
        limits = of_the_day(self.SCHEDULE, since=NOON, now=NOON)
        usage = taken(limits, {}, now=NOON, count=50)
        midnight = datetime(2030, 1, 2, tzinfo=timezone.utc)
        assert left(limits, usage, now=midnight - timedelta(seconds=1)) == 0
        assert free_at(limits, usage, now=NOON) == midnight
        tomorrow = of_the_day(self.SCHEDULE, since=NOON, now=midnight)
        assert left(tomorrow, usage, now=midnight) == 100


class TestSlowing:
    @pytest.mark.parametrize(("seconds", "most"), [(0, 10), (30, 11), (60, 14), (120, 20), (240, 40), (-5, 10)])
    def test_it_recovers_by_doubling(self, seconds, most):
        (limit,) = after_slowing(10, since=NOON, now=at(seconds))
        assert (limit.most, limit.name) == (most, "s")

    def test_it_is_forgotten_after_an_hour(self):
        assert after_slowing(10, since=NOON, now=at(FORGOTTEN_SECONDS + 1)) == ()


@pytest.mark.parametrize(
    ("seconds", "most"),
    [((), 0), ((5,), 1), ((0, 1, 2), 1), ((0.5, 0, 0.999, 1.2, 1.3, 3), 4), ((0, 0, 0, 2, 2), 3)],
)
def test_the_busiest_second_is_the_one_with_most(seconds, most):
    assert busiest_second(at(instant) for instant in seconds) == most


@pytest.mark.parametrize(
    ("limit", "words"), [(TEN_A_SECOND[0], "10/s"), (Limit(50_000, "today", 86_400, 1), "50,000 on this day")]
)
def test_it_says_what_it_is(limit, words):
    assert str(limit) == words
