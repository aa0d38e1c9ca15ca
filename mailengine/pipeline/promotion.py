"""Refusals that are really ours: when a provider refuses one message after the other in the same words, whoever they
are for, it is us it refuses. Values in, values out.

A provider's row keeps its *streak*: the refusals since it last accepted anything that was begun after the first of
them, as [signature, domain, message id, instant].
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from uuid import UUID

from ..outcomes import Kind, Outcome
from ..providers.classify import ADDRESS

Streak = list[list[str]]

DOMAINS = 5
"""Alike refusals for so many domains in a row are no coincidence."""
DOMAINS_OF_BAD_ADDRESSES = 25
"""The same, where the code says that the address is bad: a rotten list is likelier there."""
MOST_KEPT = 100
"""Refusals that a streak remembers; past these, only new domains are worth a write,
and take the place of the oldest while the circuit is open."""


def counts(outcome: Outcome) -> bool:
    """Whether this is a refusal that may be meant for us. What another provider might take says nothing of us."""
    if not outcome.phase or outcome.elsewhere or outcome.cancelled:
        return False
    return outcome.kind is Kind.REFUSED or (outcome.kind is Kind.DEFERRED and outcome.tries > 0)


def after(
    streak: Streak,
    outcome: Outcome,
    *,
    recipient: str,
    message_id: UUID,
    begun_at: datetime,
    ended_at: datetime,
    is_open: bool,
) -> Streak:
    """The streak with the outcome of a handover that was begun and had ended then.

    An acceptance ends it; but one that was begun before the first refusal had come says nothing of the time since.
    While the circuit is open, probes that are refused in other words don't end it.
    """
    if outcome.kind is Kind.ACCEPTED:
        return streak if streak and begun_at < datetime.fromisoformat(streak[0][3]) else []
    if not counts(outcome):
        return streak
    entry = [signature(outcome), recipient.rpartition("@")[2].lower(), str(message_id), ended_at.isoformat()]
    before = streak if is_open else alike(streak, outcome)
    is_news = len(before) < MOST_KEPT or entry[1] not in domains(alike(before, outcome))
    if not is_news or entry[:3] in [known[:3] for known in before]:
        return before
    # A circuit may stay open for weeks; which messages were refused at first is of no more use by then.
    return [*before, entry][-MOST_KEPT:] if is_open else [*before, entry]


def is_ours(streak: Streak, outcome: Outcome) -> bool:
    """Whether this outcome, already part of the streak, is refused for our sake and not for its own."""
    most = DOMAINS_OF_BAD_ADDRESSES if outcome.address_is_bad else DOMAINS
    return counts(outcome) and len(domains(alike(streak, outcome))) >= most


def as_ours(outcome: Outcome) -> Outcome:
    """The same, with nobody to blame but us."""
    return replace(outcome, kind=Kind.MISCONFIGURED, address_is_bad=False, refusals={})


def room(streak: Streak) -> int | None:
    """How many handovers may be under way while these refusals stand; None: as many as you like.

    So few that the ones under way, should all be refused, just make the streak long enough to be noticed.
    """
    if not streak:
        return None
    latest = streak[-1][0]
    return max(1, DOMAINS - len(domains([entry for entry in streak if entry[0] == latest])))


def alike(streak: Streak, outcome: Outcome) -> Streak:
    """The refusals of the streak that say the same as this one."""
    return [entry for entry in streak if entry[0] == signature(outcome)]


def domains(streak: Streak) -> set[str]:
    return {domain for _signature, domain, *_ in streak}


def message_ids(streak: Streak) -> set[UUID]:
    return {UUID(message_id) for _signature, _domain, message_id, _ in streak}


def signature(outcome: Outcome) -> str:
    return f"{outcome.phase} {outcome.code}"


def problem(streak: Streak, outcome: Outcome) -> str:
    """What to tell the admins: in the provider's words, but without anybody's address."""
    return f"the last {len(alike(streak, outcome))} refusals were alike: {ADDRESS.sub('…', str(outcome))}"
