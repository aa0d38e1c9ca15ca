"""Providers that share the mail: by weight, or by drawing who goes first."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest
from django.db import connections

from mailengine import dispatch_slice, queue_job
from mailengine.models import Attempt, ProviderState
from mailengine.outcomes import Kind, Outcome

from .helpers import ledger, queue, queue_many, send, statuses

pytestmark = pytest.mark.django_db


def queue_job_for(count: int) -> None:
    queue_job("News", "Read this.", "desk@example.org", [f"u{number:04d}@example.org" for number in range(count)])
    send("process_mail_jobs")


def accepted() -> Counter[str]:
    return Counter(Attempt.objects.filter(outcome="accepted").values_list("provider", flat=True))


@pytest.mark.parametrize("connections", [1, 8])
def test_two_equal_ones_share_evenly(configure, connections):
    """G16"""
    configure({"a": {}, "b": {}}, STRATEGY="weighted", CONNECTIONS=connections)
    queue_job_for(400)

    send(max_time=300)

    assert accepted() == {"a": pytest.approx(200, abs=1), "b": pytest.approx(200, abs=1)}


def test_five_follow_their_weights(configure):
    """G37"""
    weights = {"a": 5, "b": 3, "c": 1, "d": 1, "e": 0}
    configure(
        {alias: {} for alias in weights},
        STRATEGY="weighted",
        PROVIDERS={alias: {"WEIGHT": weight} for alias, weight in weights.items()},
    )
    queue_job_for(400)

    send(max_time=300)

    assert accepted() == {alias: pytest.approx(40 * weight, abs=8) for alias, weight in weights.items() if weight}


def test_one_of_weight_0_stands_in_for_others(configure):
    configure(
        {"a": {"fails_every": 1}, "e": {}}, STRATEGY="weighted", PROVIDERS={"a": {"WEIGHT": 1}, "e": {"WEIGHT": 0}}
    )
    messages = queue_many(10)

    send()

    assert statuses() == {"sent": 10}
    assert accepted() == {"e": 10}
    assert ledger(messages[0]) == [("a", "unavailable"), ("e", "accepted")]


def test_a_dead_one_costs_no_more_than_its_probes(configure):
    configure({"a": {"fails_every": 1}, "b": {}}, STRATEGY="weighted", UNHEALTHY_THRESHOLD=2, CONNECTIONS=1)
    queue_many(50)

    send()

    assert statuses() == {"sent": 50}
    assert Attempt.objects.filter(provider="a").count() == 2
    assert ProviderState.objects.get(alias="a").is_open


def test_one_that_hangs_does_not_hold_up_the_mail_of_the_other(configure, handed_over):
    """While it has a single handover, as at the beginning of each run, all others go by the one that answers."""
    configure({"a": {}, "b": {}}, STRATEGY="weighted", CONNECTIONS=4)
    others_are_through, by_b = threading.Event(), []

    def hang(alias, email):
        if alias == "a":
            assert others_are_through.wait(20)
            return Outcome(Kind.ACCEPTED)
        by_b.append(email)
        if len(by_b) == 19:
            others_are_through.set()
        return Outcome(Kind.ACCEPTED)

    handed_over(hang)
    queue_many(20)
    send()

    assert statuses() == {"sent": 20}
    assert len(by_b) == 19


@pytest.mark.django_db(transaction=True)
def test_two_runs_at_once_share_as_well(configure):
    configure({"a": {}, "b": {}}, STRATEGY="weighted", CONNECTIONS=2)
    queue_job_for(400)

    def run(_number):
        try:
            return dispatch_slice(max_time=120)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, range(2)))

    assert sum(accepted().values()) == 400
    assert accepted()["a"] == pytest.approx(200, abs=8)


def test_each_run_draws_who_goes_first(configure, monkeypatch):
    """P15"""
    monkeypatch.setattr("mailengine.pipeline.health.random", Random(15))  # or one run of a hundred is out of bounds
    configure({"a": {}, "b": {}, "c": {}}, STRATEGY="spread", CONNECTIONS=1)
    for number in range(100):
        queue(f"u{number}@example.org")
        queue(f"v{number}@example.org")
        send()

    first_of_each = accepted()
    assert all(count % 2 == 0 for count in first_of_each.values()), "both messages of a run go by the same one"
    assert all(46 <= count <= 88 for count in first_of_each.values()), first_of_each


def test_by_order_the_first_one_always_goes_first(configure):
    configure({"a": {}, "b": {}, "c": {}}, CONNECTIONS=1)
    for number in range(5):
        queue(f"u{number}@example.org")
        send()

    assert accepted() == {"a": 5}
