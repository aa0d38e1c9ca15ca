"""SI2: a revoked key, an unknown one and what is no key at all can't be told apart, by the clock neither."""

from __future__ import annotations

import random
import time
from bisect import bisect_left, bisect_right
from itertools import permutations

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from mailengine.models import ApiKey

UNKNOWN = "me_aaaaaaaa_" + "x" * 43

# Committed: until then a database still has the hash of a key that is revoked.
pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def wrong(caller):
    """Secrets that are refused, by what is wrong with them."""
    revoked, known = caller(), caller()
    ApiKey.objects.filter(pk=revoked.key.pk).revoke()
    return {"revoked": revoked.secret, "unknown": UNKNOWN, "guessed": known.secret[:-4] + "AAAA", "badly formed": "me_"}


def test_keys_that_are_refused_cost_the_same_statement(wrong):
    def statements(secret):
        with CaptureQueriesContext(connection) as queries:
            assert ApiKey.objects.authenticate(secret, address="192.0.2.1") is None
        return [query["sql"].partition("WHERE")[0] for query in queries]

    assert len({str(statements(secret)) for secret in wrong.values()}) == 1
    assert len(statements(UNKNOWN)) == 1


def test_keys_that_are_refused_take_the_same_time(wrong):
    seconds = timed(lambda secret: ApiKey.objects.authenticate(secret, address="192.0.2.1"), wrong, trials=10_000)

    assert_alike(seconds, within=0.05)


def test_so_they_do_over_http(client, wrong):
    bodies = set()

    def ask(secret):
        response = client.get("/api/v1/messages", headers={"Authorization": f"Bearer {secret}"})
        bodies.add((response.status_code, response.content, tuple(sorted(response.items()))))

    seconds = timed(ask, wrong, trials=2_000)

    assert len(bodies) == 1
    assert_alike(seconds, within=0.1)


def timed(call, secrets, *, trials):
    """The seconds of so many calls by name of the secret, taken in turns, so that what else happens hits all alike."""
    seconds = {name: [] for name in secrets}
    turns = random.Random(1)
    while trials > 0:
        for name in turns.sample(list(secrets), len(secrets)):
            started = time.perf_counter()
            call(secrets[name])
            seconds[name].append(time.perf_counter() - started)
            trials -= 1
    return seconds


def assert_alike(seconds, *, within):
    """Nobody who sees two times knows better than by a coin which is whose.

    That is how often a time of the one is longer than a time of the other: half of the cases, give or take `within`
    (some six times what chance alone does with so many trials). It asks for ranks alone, which no slow moment upsets.
    """
    for one, other in permutations(seconds, 2):
        share = share_longer(seconds[one], seconds[other])
        assert abs(share - 0.5) < within, f"{one} is longer than {other} in {share:.0%}"


def share_longer(some, others):
    ranked = sorted(others)
    wins = sum(bisect_left(ranked, value) + bisect_right(ranked, value) for value in some)
    return wins / (2 * len(some) * len(ranked))
