"""Holds what the sinks wrote down against the ledger, as Jepsen checks a queue: nothing lost, nothing made up.

Knows values only; `read_ledger()` alone asks the database.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from .log import Copy

FINAL_UNSENT = {"dead", "suppressed", "cancelled", "expired"}
MAY_HAVE_GONE = {"accepted", "uncertain"}


@dataclass(frozen=True)
class Try:
    """One attempt as the ledger has it; `outcome` is empty while it is open."""

    provider: str
    outcome: str
    code: str = ""


@dataclass(frozen=True)
class Entry:
    """One message as the database has it, with its attempts."""

    id: str
    addresses: tuple[str, ...]
    status: str
    reason: str = ""
    is_kept: bool = False
    """For a person, or with its paused job: nothing is scheduled, and that is as it should be."""
    is_scheduled: bool = False
    """Something will happen with it by itself."""
    is_leased: bool = False
    tries: tuple[Try, ...] = ()


@dataclass(frozen=True)
class Reckoning:
    """What the comparison came to. Each finding is a sentence that names the message."""

    message_count: int
    copy_count: int
    lost: tuple[str, ...] = ()
    """Acknowledged, taken by no sink, and in no state that explains it."""
    duplicates: int = 0
    """Copies beyond the first, summed."""
    max_copies: int = 0
    """Of one message."""
    unexpected: tuple[str, ...] = ()
    """Taken by a sink, and unknown to the database."""
    stuck: tuple[str, ...] = ()
    """Not final, and nothing will happen with it."""
    waiting: int = 0
    """Not final yet, and scheduled."""
    ledger: tuple[str, ...] = ()
    """Where the ledger says another thing than the sinks, or leaves something open."""

    @property
    def findings(self) -> tuple[str, ...]:
        """What must not be, whatever the fault was."""
        kinds = {"lost": self.lost, "unexpected": self.unexpected, "stuck": self.stuck, "ledger": self.ledger}
        return tuple(f"{kind}: {finding}" for kind, found in kinds.items() for finding in found)

    @property
    def agrees(self) -> bool:
        return not self.findings

    def __str__(self) -> str:
        counts = (
            f"{self.message_count:,} messages, {self.copy_count:,} copies: {len(self.lost)} lost, {self.duplicates} "
            f"duplicates (at most {self.max_copies} copies of one), {len(self.unexpected)} unexpected, "
            f"{len(self.stuck)} stuck, {self.waiting} waiting, {len(self.ledger)} contradictions"
        )
        more = [f"... and {len(self.findings) - 20} more"] if len(self.findings) > 20 else []
        return "\n  ".join([counts, *self.findings[:20], *more])


def reckon(copies: Sequence[Copy], entries: Iterable[Entry], *, acked: Collection[str] = ()) -> Reckoning:
    """Compare the sinks' log with the ledger. `acked`: the ids that callers were given, whatever the database has."""
    known = {entry.id: entry for entry in entries}
    by_id: dict[str, list[Copy]] = {}
    for copy in copies:
        by_id.setdefault(copy.message_id, []).append(copy)
    vanished = [message_id for message_id in acked if message_id not in known and message_id not in by_id]
    lost = [f"{message_id} was acknowledged; the database does not know it" for message_id in vanished]
    stuck: list[str] = []
    ledger: list[str] = []
    for entry in known.values():
        taken = by_id.get(entry.id, [])
        if not taken and _is_lost(entry):
            lost.append(f"{_name(entry)}: no sink took it")
        if entry.status not in {*FINAL_UNSENT, "sent"} and not (entry.is_scheduled or entry.is_kept):
            stuck.append(f"{_name(entry)}: nothing is scheduled")
        ledger += [f"{_name(entry)}: {finding}" for finding in _contradictions(entry, taken)]
    return Reckoning(
        message_count=len({*known, *acked}),
        copy_count=len(copies),
        lost=tuple(lost),
        duplicates=sum(len(taken) - 1 for taken in by_id.values()),
        max_copies=max(map(len, by_id.values()), default=0),
        unexpected=tuple(_unexpected(copies, known)),
        stuck=tuple(stuck),
        waiting=sum(entry.is_scheduled for entry in known.values()),
        ledger=tuple(ledger),
    )


def _is_lost(entry: Entry) -> bool:
    if entry.status in FINAL_UNSENT:
        return not entry.reason
    return not (entry.is_kept or entry.is_scheduled)


def _contradictions(entry: Entry, taken: Sequence[Copy]) -> Iterable[str]:
    """What the ledger says of this message that the sinks don't, and what it leaves open."""
    arrived = Counter(copy.provider for copy in taken)
    explained = Counter(tried.provider for tried in entry.tries if tried.outcome in MAY_HAVE_GONE)
    accepted = Counter(tried.provider for tried in entry.tries if tried.outcome == "accepted")
    for provider in sorted({*arrived, *explained}):
        if arrived[provider] > explained[provider]:
            yield f"{arrived[provider]} copies at {provider}, {explained[provider]} attempts that explain them"
        if accepted[provider] > arrived[provider]:
            yield f"{accepted[provider]} attempts accepted by {provider}, {arrived[provider]} copies there"
    if entry.status == "sent" and not accepted:
        yield "sent, and no attempt was accepted"
    if entry.status != "sent" and accepted:
        yield f"{entry.status}, though an attempt was accepted"
    if any(not tried.outcome for tried in entry.tries):
        yield "an attempt is still open"
    if entry.is_leased:
        yield "it is still leased"


def _unexpected(copies: Iterable[Copy], known: dict[str, Entry]) -> Iterable[str]:
    for copy in copies:
        entry = known.get(copy.message_id)
        if entry is None:
            yield f"{copy.provider} took {copy.message_id or 'mail without an id'}, which the database does not know"
        elif strange := set(map(_plain, copy.recipients)) - set(map(_plain, entry.addresses)):
            yield f"{copy.provider} took {copy.message_id} for {', '.join(sorted(strange))}, whom it is not for"


def _plain(address: str) -> str:
    """The address as an envelope has it, so that `ann@bücher.example` is found again."""
    local, _, domain = address.casefold().rpartition("@")
    with suppress(UnicodeError):
        domain = domain.encode("idna").decode()
    return f"{local}@{domain}"


def _name(entry: Entry) -> str:
    tries = ", ".join(f"{tried.provider} {tried.outcome or 'open'}" for tried in entry.tries) or "no attempts"
    return f"{entry.id} ({entry.status}; {tries}{f'; {entry.reason}' if entry.reason else ''})"


def read_ledger() -> list[Entry]:
    """Every message in the database, with its attempts."""
    from mailengine.models import Attempt, Message, MessageJob

    tries: dict[object, list[Try]] = {}
    attempts = Attempt.objects.order_by("message", "number").values_list("message_id", "provider", "outcome", "code")
    for message_id, provider, outcome, code in attempts.iterator():
        tries.setdefault(message_id, []).append(Try(provider, outcome, code))
    stopped = MessageJob.objects.filter(status=MessageJob.Status.PAUSED).values_list("pk", flat=True)
    paused = set(stopped)
    entries = []
    for message in Message.objects.order_by("pk").iterator():
        is_open = message.status in Message.OPEN_STATUSES
        is_scheduled = is_open and (message.leased_until or message.available_at) is not None
        entries.append(
            Entry(
                id=str(message.pk),
                addresses=tuple(recipient["address"] for recipient in message.recipients),
                status=str(message.status),
                reason=message.reason,
                is_kept=is_open and not is_scheduled and (message.status == "uncertain" or message.job_id in paused),
                is_scheduled=is_scheduled,
                is_leased=message.lease is not None,
                tries=tuple(tries.get(message.pk, ())),
            )
        )
    return entries
