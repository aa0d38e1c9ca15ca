"""The health of the providers as one run sees it: read often, written when a result changes it."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from ..circuit import Circuit, Policy, after_bad, after_good, after_throttle, return_probe, start_probe
from ..conf import Settings, get_settings
from ..models import Message, ProviderState
from ..models.messages import Status
from ..outcomes import Kind, Outcome
from ..providers.choose import Candidate, Choice, choose, in_preference
from .alerts import Alert

REFRESH_SECONDS = 1.0
"""How old the picture may be: other processes and hosts change the circuits too."""


@dataclass(frozen=True)
class Result:
    """One handover that has ended, as the circuit sees it."""

    alias: str
    outcome: Outcome
    stream: str
    was_probe: bool


@dataclass
class Health:
    """The circuits of all providers, and which of them a message may go to."""

    settings: Settings
    policy: Policy = field(init=False)
    alerts: list[Alert] = field(default_factory=list)
    """What the admin is to be told once the transaction has committed."""

    def __post_init__(self) -> None:
        self.policy = Policy(
            unhealthy_threshold=self.settings.unhealthy_threshold,
            healthy_threshold=self.settings.healthy_threshold,
            probe_interval_seconds=self.settings.probe_interval_seconds,
            send_deadline_seconds=self.settings.send_deadline_seconds,
        )
        self._states: dict[str, ProviderState] = {}
        self._read_at = float("-inf")
        self._now: datetime | None = None

    def refresh(self, *, at_once: bool = False) -> None:
        """Read the circuits anew when the picture is old."""
        if at_once or time.monotonic() - self._read_at >= REFRESH_SECONDS:
            self._states = ProviderState.objects.of(self.settings.providers)
            self._read_at = time.monotonic()

    @property
    def now(self) -> datetime:
        """This instant by the database's clock, as it has gone on since the last look at it."""
        first: ProviderState | None = next(iter(self._states.values()), None)
        if first is None:
            raise LookupError("no provider")
        return first.now + timedelta(seconds=time.monotonic() - self._read_at)

    def circuit(self, alias: str) -> Circuit:
        return self._states[alias].circuit

    def usable_streams(self) -> set[str]:
        """The streams that something can be sent in now, be it a probe."""
        return {
            stream
            for stream in self.settings.streams
            if any(self._takes_mail(alias) for alias in self.settings.aliases_for(stream))
        }

    def only_probes(self) -> bool:
        """Whether no circuit is closed, so that messages go out one by one."""
        return not any(state.circuit.is_usable(now=self.now) for state in self._states.values())

    def another(self, message: Message, *, tried: Collection[str]) -> bool:
        """Whether a provider that this message has not been to can take it now."""
        return choose(self._preferred(message), now=self.now, tried=tried) is not None

    def choose(self, message: Message, *, tried: Collection[str]) -> Choice | None:
        """Where this message goes now, or None."""
        candidates = self._preferred(message)
        if message.uncertain_count and message.priority > 0:  # it may be there already: nowhere else
            candidates = [candidate for candidate in candidates if candidate.alias == message.provider]
        probing = message.claimed_from != Status.UNCERTAIN or not self.others_wait(message)
        return choose(candidates, now=self.now, tried=tried, probing=probing)

    def others_wait(self, message: Message) -> bool:
        """Whether other mail is due that was never uncertain, and makes the better probe."""
        return Message.objects.filter(status=Status.QUEUED).due().exclude(pk=message.pk).exists()

    def start_probe(self, alias: str) -> bool:
        """Take the probe that is due; False when another process was quicker. In a transaction."""
        state = self._lock()[alias]
        if not state.circuit.probe_is_due(now=state.now):
            return False
        state.record(start_probe(state.circuit, now=state.now, policy=self.policy))
        self._states[alias] = self._seen(state)
        return True

    def note(self, results: Iterable[Result]) -> None:
        """Count what came of these handovers, writing the rows that change. In a transaction."""
        changing = [result for result in results if self._would_change(result)]
        if not changing:
            return
        locked = self._lock()
        for result in changing:
            state = locked[result.alias]
            before = state.circuit
            after = self._after(before, result, now=state.now)
            changes: dict[str, object] = {}
            if result.outcome.kind is Kind.ACCEPTED and self._takes_over(result):
                changes["took_over_at"] = state.now
            if result.outcome.is_bad_round or result.outcome.kind is Kind.THROTTLED:
                changes |= {"last_error": f"{result.outcome.kind}: {result.outcome}", "last_error_at": state.now}
            if after.misconfigured and state.alerted_at is None:
                changes["alerted_at"] = state.now
                self.alerts.append(Alert(state.alias, str(result.outcome), others=self._healthy_but(state.alias)))
            elif not after.misconfigured and state.alerted_at is not None:
                changes["alerted_at"] = None
            state.record(after, **changes)
        for state in locked.values():
            self._states[state.alias] = self._seen(state)

    def _lock(self) -> dict[str, ProviderState]:
        """All rows, always: who needs a second one later in the same transaction holds it already, in order."""
        return ProviderState.objects.locked(list(self._states))

    def _after(self, circuit: Circuit, result: Result, *, now: datetime) -> Circuit:
        outcome = result.outcome
        if outcome.is_good_round:
            return after_good(circuit, now=now, policy=self.policy)
        if outcome.is_bad_round:
            misconfigured = outcome.kind is Kind.MISCONFIGURED
            return after_bad(circuit, now=now, policy=self.policy, misconfigured=misconfigured)
        if outcome.kind is Kind.THROTTLED:
            return after_throttle(circuit, now=now, retry_after_seconds=outcome.retry_after_seconds)
        # The message was at fault, which says nothing of the provider; should it have been the probe, the next may go.
        return return_probe(circuit, now=now) if result.was_probe else circuit

    def _would_change(self, result: Result) -> bool:
        if result.outcome.is_bad_round or result.outcome.kind is Kind.THROTTLED or self._takes_over(result):
            return True
        circuit = self.circuit(result.alias)
        return self._after(circuit, result, now=self.now) != circuit

    def _takes_over(self, result: Result) -> bool:
        """Whether this acceptance makes its provider the one that the stream sticks to."""
        if self.settings.strategy_for(result.stream) != "sticky" or not result.outcome.is_good_round:
            return False
        aliases = self.settings.aliases_for(result.stream)
        if len(aliases) < 2:
            return False
        return in_preference(aliases, strategy="sticky", known=self._candidates())[0].alias != result.alias

    def _takes_mail(self, alias: str) -> bool:
        circuit = self.circuit(alias)
        return circuit.is_usable(now=self.now) or circuit.probe_is_due(now=self.now)

    def _healthy_but(self, alias: str) -> Sequence[str]:
        """All other providers but those known to be unusable: also where this run may use one alone."""
        return [
            other
            for other in get_settings().providers
            if other != alias and (other not in self._states or self.circuit(other).is_usable(now=self.now))
        ]

    def _preferred(self, message: Message) -> list[Candidate]:
        aliases = self.settings.aliases_for(message.stream)
        return in_preference(aliases, strategy=self.settings.strategy_for(message.stream), known=self._candidates())

    def _candidates(self) -> dict[str, Candidate]:
        return {alias: Candidate(alias, state.circuit, state.took_over_at) for alias, state in self._states.items()}

    def _seen(self, state: ProviderState) -> ProviderState:
        """The row as part of a picture that was taken at `_read_at`."""
        state.now = self._states[state.alias].now
        return state
