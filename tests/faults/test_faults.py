"""The quick cases, once each, on the database under test. `make faults` plays all of them, and with many seeds."""

from __future__ import annotations

import pytest
from django.db import connection

from . import cases
from .case import CASES, Missed, Skipped
from .workers import Nursery
from .world import World, forget_everything, play

pytest.register_assert_rewrite(*cases.names())  # or a bare assert of theirs says nothing
cases.load()
QUICK = [case for case in CASES.values() if case.quick]
TRIES = 10


@pytest.fixture(scope="module")
def nursery(django_db_setup):
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.code)
def test_a_fault(case, nursery, tmp_path):
    """C0: nothing is lost, stuck or made up, duplicates keep to their bound, and the ledger says what the sinks say."""
    if connection.vendor not in case.databases:
        pytest.skip(f"{case.code} makes no sense on {connection.vendor}")
    for seed in range(TRIES):
        (folder := tmp_path / str(seed)).mkdir()
        try:
            with World(nursery, folder, is_quick=True) as world:
                play(case, world, seed=seed)
            return
        except Missed:
            forget_everything()  # or the next try would send what is left
        except Skipped as skipped:
            pytest.skip(str(skipped))
    pytest.fail(f"{case.code} missed its window {TRIES} times")
