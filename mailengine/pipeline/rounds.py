"""What a handover that has ended changes for its provider. Values in, values out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from ..circuit import Circuit, Policy, after_bad, after_good, after_throttle, return_probe
from ..models import ProviderState
from ..outcomes import Kind, Outcome
from ..rate import busiest_second
from . import promotion

OF_LATE_SECONDS = 5.0
"""In which a provider that asks us to slow down has shown what it takes: a single second may have been a quiet one."""


@dataclass(frozen=True)
class Result:
    """One handover that has ended, as its provider's circuit sees it."""

    alias: str
    outcome: Outcome
    stream: str
    was_probe: bool
    recipient: str
    message_id: UUID
    begun_at: datetime
    ended_at: datetime
    """At the latest; what begins in the commit that enters it begins no earlier."""


@dataclass(frozen=True)
class Effect:
    """What a result comes to in the light of what its provider's row says."""

    outcome: Outcome
    """As the circuit judges it: what looks like the message's fault, or the provider's, may be ours."""
    changes: Mapping[str, object]
    """In the row; of a good round at a healthy provider, none."""
    put_back: Collection[UUID] = ()
    """Messages that were refused, now and before, by a fault of ours."""
    to_tell: str = ""
    """What the admins have to mend, unless they were told."""


def effect_of(
    result: Result,
    state: ProviderState,
    *,
    now: datetime,
    policy: Policy,
    takes_over: bool = False,
    taken_of_late: Callable[[], Collection[datetime]] = tuple,
) -> Effect:
    """What this result does, its provider's row being `state`.

    `takes_over`: its stream sticks to the provider that worked last, and that was another one. `taken_of_late`
    says when the handovers began that it has taken in the last `OF_LATE_SECONDS`; it is asked only where that matters.
    """
    outcome, problem = result.outcome, str(result.outcome)
    streak = promotion.after(
        state.refusals,
        outcome,
        recipient=result.recipient,
        message_id=result.message_id,
        begun_at=result.begun_at,
        ended_at=result.ended_at,
        is_open=state.is_open,
    )
    put_back: Collection[UUID] = ()
    if promotion.is_ours(streak, outcome):
        problem = promotion.problem(streak, outcome)
        if not promotion.is_ours(state.refusals, outcome):
            put_back = promotion.message_ids(promotion.alike(streak, outcome))
        outcome = promotion.as_ours(outcome)
    circuit = _after(state.circuit, outcome, result, now=now, policy=policy)
    if _is_ours_by_now(outcome, circuit, now=now):
        outcome = replace(outcome, kind=Kind.MISCONFIGURED)
        circuit = _after(state.circuit, outcome, result, now=now, policy=policy)
    fields: dict[str, object] = {"refusals": streak}
    if takes_over and outcome.is_good_round:
        fields["took_over_at"] = now
    if outcome.is_bad_round or outcome.kind is Kind.THROTTLED:
        fields |= {"last_error": f"{outcome.kind}: {problem}", "last_error_at": now}
    if outcome.kind is Kind.THROTTLED:
        fields |= _slowed(state, result, now=now, taken_of_late=taken_of_late)
    if not circuit.misconfigured:
        fields |= {"alerted_at": None, "alerting_until": None}
    needs_a_person = circuit.misconfigured and outcome.is_bad_round
    return Effect(outcome, state.changes(circuit, **fields), put_back, problem if needs_a_person else "")


def _after(circuit: Circuit, outcome: Outcome, result: Result, *, now: datetime, policy: Policy) -> Circuit:
    if outcome.is_good_round:
        return after_good(circuit, now=now, policy=policy)
    if outcome.is_bad_round:
        return after_bad(circuit, now=now, policy=policy, misconfigured=outcome.kind is Kind.MISCONFIGURED)
    if outcome.kind is Kind.THROTTLED:
        return after_throttle(circuit, now=now, retry_after_seconds=outcome.retry_after_seconds)
    # The message was at fault, which says nothing of the provider; should it have been the probe, the next may go.
    return return_probe(circuit) if result.was_probe else circuit


def _slowed(
    state: ProviderState, result: Result, *, now: datetime, taken_of_late: Callable[[], Collection[datetime]]
) -> dict[str, object]:
    """Half of what a provider was given when it asked us to slow down; once for all that was under way by then."""
    if state.slowed_at is not None and result.begun_at <= state.slowed_at:
        return {}
    rates = [limit.most for limit in state.slowing(now=now)]
    if taken := busiest_second(taken_of_late()):
        rates.append(taken)
    return {"slowed_to": max(min(rates) // 2, 1), "slowed_at": now} if rates else {}


def _is_ours_by_now(outcome: Outcome, circuit: Circuit, *, now: datetime) -> bool:
    """Whether a provider can't be reached for so long that our settings must be the cause; `circuit` is after it."""
    seconds = outcome.ours_after_seconds
    if outcome.kind is not Kind.UNAVAILABLE or seconds is None or circuit.opened_at is None or not circuit.is_open:
        return False
    return (now - circuit.opened_at).total_seconds() >= seconds
