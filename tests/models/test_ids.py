"""Ids that sort by age and can't be guessed from each other."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from uuid import RFC_4122, UUID

import pytest

from mailengine import ids
from mailengine.ids import uuid7, uuid7s


def test_an_id_is_a_uuid_of_version_7_and_of_this_millisecond():
    value = uuid7()
    assert (value.version, value.variant) == (7, RFC_4122)
    assert abs((value.int >> 80) - time.time_ns() // 1_000_000) < 1_000


def test_ids_sort_in_the_order_of_their_making():
    made = [uuid7() for _ in range(20_000)]
    assert made == sorted(made)
    assert [str(value) for value in made] == sorted(str(value) for value in made)


def test_many_ids_at_once_are_in_the_order_of_their_making_too():
    made = [uuid7(), *map(UUID, uuid7s(5_000)), uuid7(), *map(UUID, uuid7s(5_000)), uuid7()]
    assert made == sorted(set(made))
    assert {(value.version, value.variant) for value in made} == {(7, RFC_4122)}
    assert uuid7s(0) == []


def test_ids_are_unique_over_threads_and_sorted_in_each():
    with ThreadPoolExecutor(8) as pool:
        lists = list(pool.map(lambda _: [uuid7() for _ in range(5_000)], range(8)))
    assert len({value for made in lists for value in made}) == 40_000
    assert all(made == sorted(made) for made in lists)


def test_a_clock_set_back_does_not_set_ids_back(monkeypatch):
    before = uuid7()
    an_hour_ago = time.time_ns() - 3_600 * 10**9
    monkeypatch.setattr(ids.time, "time_ns", lambda: an_hour_ago)
    assert before < uuid7() < uuid7()


@pytest.mark.parametrize(
    "make", [lambda: [uuid7() for _ in range(1_000)], lambda: map(UUID, uuid7s(1_000))], ids=["one", "many"]
)
def test_ids_do_not_tell_the_next(make):
    made = [value.int for value in make()]
    steps = {later - earlier for earlier, later in pairwise(made)}
    assert len(steps) > 990
