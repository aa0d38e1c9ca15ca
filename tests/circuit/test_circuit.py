"""The circuit's state table: values in, values out."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from mailengine.circuit import (
    FIRST_PAUSE_SECONDS,
    LONGEST_INTERVALS,
    LONGEST_PAUSE_SECONDS,
    RELAPSE_INTERVALS,
    Circuit,
    Policy,
    ProbeState,
    after_bad,
    after_good,
    after_throttle,
    probe_is_due,
    return_probe,
    start_probe,
)

NOON = datetime(2030, 1, 1, 12, tzinfo=timezone.utc)
POLICY = Policy(unhealthy_threshold=3, healthy_threshold=2, probe_interval_seconds=60, send_deadline_seconds=60)
PATIENT = replace(POLICY, healthy_threshold=6)
"""Wants so many good rounds that the ramp can be seen."""


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def opened(policy: Policy = POLICY, *, now: datetime = NOON, circuit: Circuit | None = None, **how) -> Circuit:
    circuit = circuit or Circuit()
    while not circuit.is_open:
        circuit = after_bad(circuit, now=now, policy=policy, **how)
    return circuit


def closed_again(circuit: Circuit, *, now: datetime) -> Circuit:
    while circuit.is_open:
        circuit = after_good(circuit, now=now, policy=POLICY)
    return circuit


def is_due(circuit: Circuit, *, now: datetime, policy: Policy = POLICY, **how) -> bool:
    return probe_is_due(ProbeState("relay", circuit, policy, now), **how)


def probes_allowed(circuit: Circuit, *, now: datetime, policy: Policy = POLICY) -> int:
    """How many probes may start at this instant, none of them having a result yet."""
    count = 0
    while is_due(circuit, now=now, policy=policy):
        circuit = start_probe(circuit, now=now, policy=policy)
        count += 1
    return count


# Closed


def test_a_new_provider_is_in_use():
    """G24"""
    assert Circuit().is_usable(now=NOON)
    assert not is_due(Circuit(), now=NOON)


def test_a_good_round_on_a_healthy_circuit_changes_nothing():
    circuit = Circuit(closed_at=NOON, interval_factor=2)
    assert after_good(circuit, now=at(1), policy=POLICY) == circuit


def test_it_opens_after_so_many_bad_rounds_in_a_row():
    circuit = Circuit()
    for _ in range(POLICY.unhealthy_threshold - 1):
        circuit = after_bad(circuit, now=NOON, policy=POLICY)
        assert circuit.is_usable(now=NOON)
    circuit = after_bad(circuit, now=NOON, policy=POLICY)
    assert (circuit.is_open, circuit.opened_at, circuit.is_usable(now=NOON)) == (True, NOON, False)


def test_a_good_round_between_them_starts_the_count_anew():
    circuit = Circuit()
    for _ in range(10):
        circuit = after_bad(circuit, now=NOON, policy=POLICY)
        circuit = after_bad(circuit, now=NOON, policy=POLICY)
        circuit = after_good(circuit, now=NOON, policy=POLICY)
    assert circuit == Circuit()


def test_a_misconfiguration_opens_it_at_once():
    circuit = after_bad(Circuit(), now=NOON, policy=POLICY, misconfigured=True)
    assert (circuit.is_open, circuit.misconfigured) == (True, True)


# Open: the probes


def test_the_first_probe_is_due_after_one_interval():
    circuit = opened()
    assert not is_due(circuit, now=at(59))
    assert is_due(circuit, now=at(60))


def test_there_is_one_probe_at_a_time():
    assert probes_allowed(opened(), now=at(60)) == 1


@pytest.mark.parametrize(("deadline", "lost_at"), [(60, 60), (90, 90), (10, 60)])
def test_a_probe_whose_process_died_is_replaced_when_its_result_can_no_longer_come(deadline, lost_at):
    policy = replace(POLICY, send_deadline_seconds=deadline)
    circuit = start_probe(opened(policy), now=NOON, policy=policy)
    assert not is_due(circuit, now=at(lost_at - 1))
    assert is_due(circuit, now=at(lost_at))


def test_after_a_bad_probe_the_next_waits_an_interval():
    circuit = start_probe(opened(), now=at(60), policy=POLICY)
    circuit = after_bad(circuit, now=at(65), policy=POLICY)
    assert not is_due(circuit, now=at(124))
    assert is_due(circuit, now=at(125))


def test_after_a_probe_that_says_nothing_the_next_may_go_at_once():
    circuit = start_probe(opened(), now=at(60), policy=POLICY)
    circuit = return_probe(circuit)
    assert probes_allowed(circuit, now=at(61)) == 1


def test_a_probe_returned_after_the_circuit_closed_changes_nothing():
    assert return_probe(Circuit()) == Circuit()


def test_good_probes_are_followed_by_one_two_four_and_eight():
    circuit = opened(PATIENT)
    ramp = []
    for _ in range(4):
        circuit = after_good(circuit, now=at(61), policy=PATIENT)
        ramp.append(probes_allowed(circuit, now=at(61), policy=PATIENT))
    assert ramp == [1, 2, 4, 8]


def test_a_probe_lost_on_the_ramp_is_replaced_too():
    circuit = after_good(opened(PATIENT), now=at(61), policy=PATIENT)
    circuit = start_probe(circuit, now=at(61), policy=PATIENT)
    assert not is_due(circuit, now=at(120))
    assert is_due(circuit, now=at(121))


def test_a_bad_probe_ends_the_ramp():
    circuit = opened(PATIENT)
    for _ in range(3):
        circuit = after_good(circuit, now=at(61), policy=PATIENT)
    circuit = after_bad(circuit, now=at(62), policy=PATIENT)
    assert (probes_allowed(circuit, now=at(63)), circuit.good_rounds) == (0, 0)


def test_it_closes_after_so_many_good_rounds():
    circuit = after_good(opened(), now=at(61), policy=POLICY)
    assert circuit.is_open
    circuit = after_good(circuit, now=at(62), policy=POLICY)
    assert circuit == Circuit(closed_at=at(62))


def test_a_huge_threshold_does_not_make_a_huge_ramp():
    circuit = replace(opened(), good_rounds=10_000)
    circuit = after_good(circuit, now=NOON, policy=replace(POLICY, healthy_threshold=20_000))
    assert circuit.probes_left == 1_024


@pytest.mark.parametrize(
    ("circuit", "expected"),
    [
        (Circuit(is_open=True), None),
        (Circuit(is_open=True, failed_at=NOON), at(60)),
        (Circuit(is_open=True, failed_at=NOON, interval_factor=4), at(240)),
        (Circuit(is_open=True, failed_at=NOON, probing_until=at(90)), at(90)),
        (Circuit(is_open=True, failed_at=NOON, throttled_until=at(300)), at(300)),
    ],
)
def test_it_says_when_the_next_probe_may_start(circuit, expected):
    assert circuit.next_probe_at(POLICY) == expected


# A function of the project's own decides


@pytest.mark.parametrize("answer", [True, False])
def test_another_function_may_decide_whether_to_probe(answer):
    """P16: it is told how long ago the provider failed, and how many calls others have had since."""
    seen = []

    def decide(state: ProbeState) -> bool:
        seen.append((state.alias, state.seconds_since_failure, state.calls_elsewhere))
        return answer

    state = ProbeState("relay", opened(), POLICY, at(5), count_calls_elsewhere=lambda: 42)
    assert probe_is_due(state, decide=decide) is answer
    assert seen == [("relay", 5.0, 42)]


@pytest.mark.parametrize(
    ("circuit", "is_due_at_once"),
    [
        (Circuit(), False),
        (Circuit(is_open=True, throttled_until=at(1)), False),
        (Circuit(is_open=True, probing_until=at(1)), False),
        (Circuit(is_open=True, probing_until=at(1), probes_left=1), True),
    ],
)
def test_it_is_asked_only_where_the_circuit_leaves_it_open(circuit, is_due_at_once):
    def decide(state: ProbeState) -> bool:
        raise AssertionError

    assert is_due(circuit, now=NOON, decide=decide) is is_due_at_once


def test_of_a_failure_that_nobody_knows_the_instant_of_any_interval_is_over():
    state = ProbeState("relay", Circuit(is_open=True), POLICY, NOON)
    assert (state.seconds_since_failure, state.calls_elsewhere, probe_is_due(state)) == (float("inf"), 0, True)


# Relapse


def test_each_relapse_doubles_the_interval_up_to_ten():
    circuit, now, factors = Circuit(), NOON, []
    for _ in range(6):
        circuit = opened(circuit=circuit, now=now)
        factors.append(circuit.interval_factor)
        assert circuit.next_probe_at(POLICY) == now + timedelta(seconds=60 * circuit.interval_factor)
        now += timedelta(hours=1)
        circuit = closed_again(circuit, now=now)
        now += timedelta(seconds=30)
    assert factors == [1, 2, 4, 8, LONGEST_INTERVALS, LONGEST_INTERVALS]


@pytest.mark.parametrize(("intervals", "factor"), [(RELAPSE_INTERVALS, 2), (RELAPSE_INTERVALS + 0.1, 1)])
def test_only_an_opening_soon_after_closing_is_a_relapse(intervals, factor):
    circuit = Circuit(closed_at=NOON)
    assert opened(circuit=circuit, now=at(60 * intervals)).interval_factor == factor


def test_a_misconfigured_circuit_never_doubles():
    circuit = Circuit(closed_at=NOON, interval_factor=8)
    assert opened(circuit=circuit, now=at(1), misconfigured=True).next_probe_at(POLICY) == at(61)


def test_a_relapsed_circuit_found_misconfigured_is_probed_each_interval():
    """The repair must show within one interval, whatever happened before."""
    circuit = opened(circuit=Circuit(closed_at=NOON, interval_factor=8), now=at(1))
    circuit = after_bad(circuit, now=at(700), policy=POLICY, misconfigured=True)
    assert (circuit.misconfigured, circuit.next_probe_at(POLICY)) == (True, at(760))


def test_it_stays_misconfigured_until_it_closes():
    circuit = after_bad(Circuit(), now=NOON, policy=POLICY, misconfigured=True)
    circuit = after_bad(circuit, now=at(60), policy=POLICY)
    assert circuit.misconfigured
    assert not closed_again(circuit, now=at(120)).misconfigured


# Throttled


@pytest.mark.parametrize(
    ("asked", "waits"), [(120, 120), (0, 1), (-5, 1), (0.5, 1), (86_400, LONGEST_PAUSE_SECONDS), (None, 30)]
)
def test_it_waits_as_long_as_it_is_asked_within_reason(asked, waits):
    circuit = after_throttle(Circuit(), now=NOON, retry_after_seconds=asked)
    assert not circuit.is_usable(now=at(waits - 0.1))
    assert circuit.is_usable(now=at(waits))


def test_waiting_is_not_bad():
    circuit = after_throttle(Circuit(), now=NOON, retry_after_seconds=60)
    assert (circuit.is_open, circuit.bad_rounds) == (False, 0)


def test_without_a_time_the_pause_doubles_up_to_an_hour():
    circuit, now, pauses = Circuit(), NOON, []
    for _ in range(9):
        circuit = after_throttle(circuit, now=now, retry_after_seconds=None)
        pauses.append((circuit.throttled_until - now).total_seconds())
        now = circuit.throttled_until
    assert pauses == [FIRST_PAUSE_SECONDS * 2**n for n in range(7)] + [LONGEST_PAUSE_SECONDS] * 2


def test_a_provider_throttled_for_weeks_is_still_asked_each_hour():
    circuit = after_throttle(Circuit(throttle_count=5_000), now=NOON, retry_after_seconds=None)
    assert circuit.throttled_until == at(LONGEST_PAUSE_SECONDS)


def test_several_connections_told_at_once_double_nothing():
    circuit = Circuit()
    for _ in range(8):
        circuit = after_throttle(circuit, now=NOON, retry_after_seconds=None)
    assert circuit.throttled_until == at(FIRST_PAUSE_SECONDS)


def test_a_shorter_wait_does_not_shorten_a_longer_one():
    circuit = after_throttle(Circuit(), now=NOON, retry_after_seconds=600)
    assert after_throttle(circuit, now=at(1), retry_after_seconds=5).throttled_until == at(600)


def test_what_was_under_way_when_it_was_asked_to_wait_ends_no_wait():
    circuit = after_throttle(Circuit(bad_rounds=1), now=NOON, retry_after_seconds=60)
    circuit = after_good(circuit, now=at(1), policy=POLICY)
    assert (circuit.is_usable(now=at(2)), circuit.bad_rounds) == (False, 0)


def test_a_good_round_after_the_wait_forgets_it():
    circuit = after_throttle(Circuit(), now=NOON, retry_after_seconds=None)
    assert after_good(circuit, now=at(31), policy=POLICY) == Circuit()


def test_a_throttled_open_circuit_is_not_probed():
    circuit = after_throttle(opened(), now=at(1), retry_after_seconds=300)
    assert not is_due(circuit, now=at(60))
    assert is_due(circuit, now=at(301))


def test_closing_ends_no_wait():
    circuit = closed_again(after_throttle(opened(), now=at(1), retry_after_seconds=300), now=at(2))
    assert not circuit.is_open
    assert not circuit.is_usable(now=at(300))
    assert circuit.is_usable(now=at(301))
