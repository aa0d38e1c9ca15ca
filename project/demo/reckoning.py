"""The receiving side's log held against the ledger: values in, a `Reckoning` out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Key = tuple[str, str]
"""One message and one of its addresses."""


@dataclass(frozen=True)
class Copy:
    """One mail for one address, as a provider accepted it."""

    provider: str
    message_id: str
    address: str
    at: float = 0.0
    """When, on this process's monotonic clock."""


@dataclass(frozen=True)
class Entry:
    """What the database says of one message to one address."""

    message_id: str
    address: str
    is_sent: bool
    attempts: tuple[tuple[str, str], ...] = ()
    """(provider, outcome) in the order they were made; the outcome of one that never ended is ""."""

    def tries(self, *outcomes: str) -> Counter[str]:
        """The tries that ended so, by provider."""
        return Counter(provider for provider, outcome in self.attempts if outcome in outcomes)

    @property
    def allowed_count(self) -> int:
        """How many copies there may be: one that was accepted, and one for each try that may have been."""
        return min(self.tries("accepted").total(), 1) + self.tries("uncertain", "").total()


@dataclass(frozen=True)
class Finding:
    """One address at which the two sides differ, or where the ledger explains a second copy."""

    message_id: str
    address: str
    copies: tuple[str, ...]
    """The providers that have one, each as often as it has."""
    entry: Entry | None

    def __str__(self) -> str:
        ledger = "the database does not know this mail"
        if self.entry is not None:
            tries = [f"{provider} {outcome or 'not ended'}" for provider, outcome in self.entry.attempts]
            ledger = f"the ledger says {', '.join(tries) or 'never tried'}"
        return f"{self.address} ({self.message_id}): received by {', '.join(self.copies) or 'nobody'}; {ledger}"


@dataclass(frozen=True)
class Reckoning:
    """Where the two sides differ."""

    lost: tuple[Finding, ...]
    """Sent, says the ledger, and the provider that took it has no copy."""
    duplicated: tuple[Finding, ...]
    """More copies than the ledger explains."""
    unexpected: tuple[Finding, ...]
    """A copy that the database does not know, or from a provider that never took it, says the ledger."""
    explained: tuple[Finding, ...]
    """More than one copy, each but one by a try whose answer never came: bounded, and named in the ledger."""

    @property
    def agrees(self) -> bool:
        return not (self.lost or self.duplicated or self.unexpected)


@dataclass(frozen=True)
class Account:
    """An audience by what became of each of its entries."""

    audience: int
    parts: Mapping[str, int]

    @property
    def unaccounted(self) -> int:
        return self.audience - sum(self.parts.values())

    def __str__(self) -> str:
        parts = {**self.parts, **({"unaccounted": self.unaccounted} if self.unaccounted else {})}
        return f"{self.audience:,} = {' + '.join(f'{count:,} {name}' for name, count in parts.items() if count)}"


def reckon(copies: Iterable[Copy], entries: Iterable[Entry]) -> Reckoning:
    """Compare, address by address, what was received with what the ledger says was sent."""
    received: dict[Key, Counter[str]] = defaultdict(Counter)
    for copy in copies:
        received[copy.message_id, copy.address.casefold()][copy.provider] += 1
    known = {(entry.message_id, entry.address.casefold()): entry for entry in entries}

    found: dict[str, list[Finding]] = defaultdict(list)
    for key in sorted(known.keys() | received.keys()):
        entry, at = known.get(key), received.get(key, Counter())
        if verdict := _verdict(entry, at):
            found[verdict].append(Finding(*key, copies=tuple(sorted(at.elements())), entry=entry))
    return Reckoning(**{name: tuple(found[name]) for name in ("lost", "duplicated", "unexpected", "explained")})


def _verdict(entry: Entry | None, received: Counter[str]) -> str:
    """The list of the `Reckoning` that this address belongs to; empty when all is as it should be."""
    count = received.total()
    if entry is None or received.keys() - entry.tries("accepted", "uncertain", "").keys():
        return "unexpected"
    if count > entry.allowed_count:
        return "duplicated"
    if entry.tries("accepted") - received or (entry.is_sent and not count):
        return "lost"
    return "explained" if count > 1 else ""
