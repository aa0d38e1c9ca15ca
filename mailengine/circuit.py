"""The circuit breaker of one provider: values in, values out, no Django.

Closed, the provider is in use. After `unhealthy_threshold` bad rounds in a row it opens: nothing goes there but one
message at a time, the probe, each `probe_interval_seconds`. A good probe is followed at once by the next, then by two,
four, eight together, and after `healthy_threshold` good rounds the circuit closes. One that opens again soon after
closing is probed ever more rarely; one that was misconfigured isn't, since a repair should show at once.

Callers keep a `Circuit` in the database, lock it, call one function and store what comes back if it differs: a good
round on a healthy circuit gives the same value, hence writes nothing.

When to probe is `should_probe()`, unless a project has a function of its own; that there is one probe at a time, or as
many as good ones have earned, is not for it to say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

RELAPSE_INTERVALS = 10
"""A circuit that opens again within so many intervals of closing has relapsed."""
LONGEST_INTERVALS = 10
"""A relapsing circuit is probed at least once in so many intervals."""
FIRST_PAUSE_SECONDS = 30.0
"""How long a provider that asks us to slow down without saying for how long is left alone; doubles each time."""
LONGEST_PAUSE_SECONDS = 3_600.0


@dataclass(frozen=True)
class Policy:
    """What the settings say of circuits."""

    unhealthy_threshold: int = 3
    healthy_threshold: int = 2
    probe_interval_seconds: float = 60
    send_deadline_seconds: float = 60


@dataclass(frozen=True)
class Circuit:
    """The health of one provider, as all processes and hosts share it. All instants are aware."""

    is_open: bool = False
    bad_rounds: int = 0
    """In a row, while closed."""
    good_rounds: int = 0
    """In a row, while open."""
    misconfigured: bool = False
    """Opened by a fault of ours (a wrong password, say): the admin was told, and must mend it."""
    opened_at: datetime | None = None
    closed_at: datetime | None = None
    interval_factor: int = 1
    """How many probe intervals lie between two probes; above 1 after a relapse."""
    failed_at: datetime | None = None
    """While open: the last bad round."""
    probing_until: datetime | None = None
    """While open: a probe is under way, whose result can come until then."""
    probes_left: int = 0
    """While open, after a good probe: how many more may start at once."""
    throttled_until: datetime | None = None
    throttle_count: int = 0
    """How often in a row it asked us to slow down without saying for how long."""

    def is_throttled(self, *, now: datetime) -> bool:
        return self.throttled_until is not None and now < self.throttled_until

    def is_usable(self, *, now: datetime) -> bool:
        """Whether any mail may go there now."""
        return not self.is_open and not self.is_throttled(now=now)

    def interval_seconds(self, policy: Policy) -> float:
        """How long after a bad round the next probe may start."""
        return policy.probe_interval_seconds * self.interval_factor

    def next_probe_at(self, policy: Policy) -> datetime | None:
        """While open: when the next probe may start by the interval, unless a good one comes before; None: at once."""
        instants = [self.throttled_until, self.probing_until]
        if self.failed_at is not None:
            instants.append(self.failed_at + timedelta(seconds=self.interval_seconds(policy)))
        return max((instant for instant in instants if instant is not None), default=None)


@dataclass(frozen=True)
class ProbeState:
    """A provider whose circuit is open and which nobody is probing, as `should_probe()` sees it."""

    alias: str
    circuit: Circuit
    policy: Policy
    now: datetime
    count_calls_elsewhere: Callable[[], int] = field(default=lambda: 0, repr=False)

    @property
    def seconds_since_failure(self) -> float:
        """Since the last bad round; infinite when none is known."""
        failed_at = self.circuit.failed_at
        return (self.now - failed_at).total_seconds() if failed_at else float("inf")

    @property
    def calls_elsewhere(self) -> int:
        """How many handovers other providers have had since then. It is counted in the ledger when asked for."""
        return self.count_calls_elsewhere()


def should_probe(state: ProbeState) -> bool:
    """Whether to probe now: once in each interval."""
    return state.seconds_since_failure >= state.circuit.interval_seconds(state.policy)


def probe_is_due(state: ProbeState, *, decide: Callable[[ProbeState], bool] = should_probe) -> bool:
    """Whether a probe may start; `decide` is asked only where the circuit leaves it open."""
    circuit, now = state.circuit, state.now
    if not circuit.is_open or circuit.is_throttled(now=now):
        return False
    if circuit.probes_left > 0:
        return True
    is_under_way = circuit.probing_until is not None and now < circuit.probing_until
    return not is_under_way and decide(state)


def start_probe(circuit: Circuit, *, now: datetime, policy: Policy) -> Circuit:
    """The circuit with one probe under way, which `probe_is_due()` allowed.

    Should the prober die, the next probe may start when its result can no longer come.
    """
    if circuit.probes_left > 0:
        return replace(circuit, probes_left=circuit.probes_left - 1)
    return replace(circuit, probing_until=_result_is_lost_at(circuit, now=now, policy=policy))


def return_probe(circuit: Circuit) -> Circuit:
    """The circuit after a probe that said nothing about the provider: the next may start as soon as it is wanted."""
    return replace(circuit, probing_until=None)


def after_good(circuit: Circuit, *, now: datetime, policy: Policy) -> Circuit:
    """The circuit after a handover that the provider accepted."""
    if not circuit.is_throttled(now=now):  # else it was under way when we were asked to wait, and ends no wait
        circuit = replace(circuit, throttled_until=None, throttle_count=0)
    if not circuit.is_open:
        return replace(circuit, bad_rounds=0)
    good = circuit.good_rounds + 1
    if good < policy.healthy_threshold:
        lost_at = _result_is_lost_at(circuit, now=now, policy=policy)
        return replace(circuit, good_rounds=good, probing_until=lost_at, probes_left=_ramp(good))
    return Circuit(
        closed_at=now,
        interval_factor=circuit.interval_factor,
        throttled_until=circuit.throttled_until,
        throttle_count=circuit.throttle_count,
    )


def after_bad(circuit: Circuit, *, now: datetime, policy: Policy, misconfigured: bool = False) -> Circuit:
    """The circuit after a handover that failed by the provider's fault, or by our configuration of it."""
    if circuit.is_open:
        still = replace(circuit, good_rounds=0, probes_left=0, failed_at=now, probing_until=None)
        return replace(still, misconfigured=True, interval_factor=1) if misconfigured else still
    bad = circuit.bad_rounds + 1
    if bad < policy.unhealthy_threshold and not misconfigured:
        return replace(circuit, bad_rounds=bad)
    return replace(
        circuit,
        is_open=True,
        bad_rounds=bad,
        good_rounds=0,
        misconfigured=misconfigured,
        opened_at=now,
        interval_factor=_factor_on_opening(circuit, now=now, policy=policy, misconfigured=misconfigured),
        failed_at=now,
        probes_left=0,
    )


def after_throttle(circuit: Circuit, *, now: datetime, retry_after_seconds: float | None) -> Circuit:
    """The circuit after the provider asked us to slow down: it waits, which isn't bad."""
    if retry_after_seconds is None:
        if circuit.is_throttled(now=now):  # asked on another connection already: eight at once are no eight refusals
            return circuit
        wait = min(FIRST_PAUSE_SECONDS * 2 ** min(circuit.throttle_count, 10), LONGEST_PAUSE_SECONDS)
        circuit = replace(circuit, throttle_count=circuit.throttle_count + 1)
    else:
        wait = min(max(retry_after_seconds, 1.0), LONGEST_PAUSE_SECONDS)
    until = now + timedelta(seconds=wait)
    return replace(circuit, throttled_until=max(until, circuit.throttled_until or until))


def _ramp(good_rounds: int) -> int:
    """How many probes may follow at once after so many good ones: 1, 2, 4, 8, …"""
    return int(2 ** min(good_rounds - 1, 10))


def _result_is_lost_at(circuit: Circuit, *, now: datetime, policy: Policy) -> datetime:
    """When no result can come any more of a probe that starts now: its process died."""
    return now + timedelta(seconds=max(circuit.interval_seconds(policy), policy.send_deadline_seconds))


def _factor_on_opening(circuit: Circuit, *, now: datetime, policy: Policy, misconfigured: bool) -> int:
    if misconfigured or circuit.closed_at is None:
        return 1
    relapse_seconds = RELAPSE_INTERVALS * policy.probe_interval_seconds
    if (now - circuit.closed_at).total_seconds() > relapse_seconds:
        return 1
    return min(circuit.interval_factor * 2, LONGEST_INTERVALS)
