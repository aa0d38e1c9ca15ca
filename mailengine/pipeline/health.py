"""The health of the providers as one run sees it: read often, written when a result changes it."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID

from ..circuit import Circuit, Policy, after_bad, after_good, after_throttle, return_probe, start_probe
from ..clock import db_now
from ..conf import Settings, get_settings
from ..models import Message, ProviderState
from ..models.messages import Status
from ..outcomes import Kind, Outcome
from ..providers.choose import Candidate, Choice, choose, in_preference
from . import promotion
from .alerts import Alert, about_provider

REFRESH_SECONDS = 1.0
"""How old the picture may be: other processes and hosts change the circuits too."""


FIRST_LOCAL_PAUSE_SECONDS = 1.0
"""How long nothing begins after a fault of this host (it is out of sockets, say); twice as long each time in a row."""
LONGEST_LOCAL_PAUSE_SECONDS = 30.0
LOCAL_FAULTS_TO_TELL = 3

logger = logging.getLogger("mailengine.dispatch")


@dataclass(frozen=True)
class Result:
    """One handover that has ended, as the circuit sees it."""

    alias: str
    outcome: Outcome
    stream: str
    was_probe: bool
    recipient: str
    message_id: UUID


@dataclass(frozen=True)
class Judgement:
    """What results come to in the light of what came before them."""

    outcomes: Sequence[Outcome]
    put_back: Mapping[str, Collection[UUID]] = field(default_factory=dict)
    """By provider: messages that it refused, before and now, by a fault of ours."""


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
        self._others_wait: dict[tuple[str, bool], bool] = {}
        """What it has said, for one turn of the loop."""
        self._alerts_under_way: dict[str, tuple[Alert, datetime]] = {}
        """By provider, each with the instant until which it is this process's to tell."""
        self._pace: dict[str, int] = defaultdict(lambda: 1)
        self._local_faults = 0
        """In a row."""
        self._paused_until = 0.0

    def refresh(self, *, at_once: bool = False) -> None:
        """Read the circuits anew when the picture is old."""
        self._others_wait.clear()
        if at_once or time.monotonic() - self._read_at >= REFRESH_SECONDS:
            self._states = ProviderState.objects.of(self.settings.providers)
            self._read_at = time.monotonic()
            for alias, (alert, until) in list(self._alerts_under_way.items()):
                if self._states[alias].alerting_until == until:
                    self._enter_alert(alias, alert, until)
                else:  # it is entered, or the incident is over
                    del self._alerts_under_way[alias]

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
        now = self.now
        candidates = [candidate for candidate in candidates if candidate.alias not in tried]
        if message.claimed_from == Status.UNCERTAIN:
            candidates = [
                candidate
                for candidate in candidates
                if not candidate.circuit.probe_is_due(now=now) or not self.others_wait(candidate.alias, in_hand=True)
            ]
        return choose(candidates, now=now)

    def others_wait(self, alias: str, *, in_hand: bool = False) -> bool:
        """Whether mail is due that was never uncertain, may go by this provider, and so makes the better probe.

        `in_hand`: be it in the queue, or with a worker already.
        """
        if (alias, in_hand) not in self._others_wait:
            carried = {stream for stream in self.settings.streams if alias in self.settings.aliases_for(stream)}
            others = Message.objects.all()
            # Mail of a stream that the settings no longer have goes as transactional mail does.
            if "transactional" in carried:
                others = others.exclude(stream__in=set(self.settings.streams) - carried)
            else:
                others = others.filter(stream__in=carried)
            # Two questions, each with an index of its own.
            claimed = others.filter(status=Status.SENDING, claimed_from=Status.QUEUED, leased_until__gte=db_now())
            waits = others.filter(status=Status.QUEUED).due().exists() or (in_hand and claimed.exists())
            self._others_wait[alias, in_hand] = waits
        return self._others_wait[alias, in_hand]

    def room(self, alias: str) -> int:
        """How many handovers may be under way at this provider, in this process, as things are.

        It begins with one, and each acceptance doubles that: what is wrong with a provider shows with few messages.
        """
        most = self.settings.provider(alias).connections or self.settings.connections
        return min(self._pace[alias], most, promotion.room(self._states[alias].refusals) or most)

    def start_probe(self, alias: str) -> bool:
        """Take the probe that is due; False when another process was quicker. In a transaction."""
        state = self._lock()[alias]
        if not state.circuit.probe_is_due(now=state.now):
            return False
        state.record(start_probe(state.circuit, now=state.now, policy=self.policy))
        self._states[alias] = self._seen(state)
        return True

    def note(self, results: Iterable[Result]) -> Judgement:
        """Count what came of these handovers, writing the rows that change. To be called in a transaction."""
        results = list(results)
        self._others_wait.clear()
        for result in results:
            self._note_local(result.outcome)
            self._note_pace(result)
        if not any(self._would_change(result) for result in results):
            return Judgement([result.outcome for result in results])
        locked = self._lock()
        put_back: dict[str, set[UUID]] = {}
        outcomes = [self._enter(result, locked[result.alias], put_back) for result in results]
        for state in locked.values():
            self._states[state.alias] = self._seen(state)
        # Those that were refused a moment before the one that made it clear.
        for index, result in enumerate(results):
            if result.message_id in put_back.get(result.alias, ()):
                outcomes[index] = promotion.as_ours(outcomes[index])
        return Judgement(outcomes, put_back)

    def _enter(self, result: Result, state: ProviderState, put_back: dict[str, set[UUID]]) -> Outcome:
        """Write in its locked row what this result changes; the outcome as the circuit judges it."""
        outcome, problem = result.outcome, str(result.outcome)
        before = state.circuit
        streak = self._streak(result, state)
        if promotion.is_ours(streak, outcome):
            problem = promotion.problem(streak, outcome)
            if not promotion.is_ours(state.refusals, outcome):
                put_back.setdefault(state.alias, set()).update(promotion.message_ids(promotion.alike(streak, outcome)))
            outcome = promotion.as_ours(outcome)
        after = self._after(before, replace(result, outcome=outcome), now=state.now)
        if _is_ours_by_now(outcome, after, now=state.now):
            outcome = replace(outcome, kind=Kind.MISCONFIGURED)
            after = self._after(before, replace(result, outcome=outcome), now=state.now)
        changes: dict[str, object] = {"refusals": streak}
        if outcome.kind is Kind.ACCEPTED and self._takes_over(result):
            changes["took_over_at"] = state.now
        if outcome.is_bad_round or outcome.kind is Kind.THROTTLED:
            changes |= {"last_error": f"{outcome.kind}: {problem}", "last_error_at": state.now}
        if not after.misconfigured:
            changes |= {"alerted_at": None, "alerting_until": None}
        elif outcome.is_bad_round and state.alerted_at is None:
            changes |= self._tell(state, problem)
        state.record(after, **changes)
        return outcome

    def _tell(self, state: ProviderState, problem: str) -> dict[str, object]:
        """Let the admins be told after the commit, unless somebody is at it; what this changes in the row."""
        alias, before = state.alias, state.alerting_until
        if before is not None and state.now < before:
            return {}
        roads = self.roads(but=alias)
        seconds = (len(roads) + 1) * self.settings.send_deadline_seconds
        until = state.now + timedelta(seconds=seconds)
        alert = about_provider(alias, problem, roads=roads, is_repeated=before is not None)
        alert.record = partial(self._enter_alert, alias, alert, until)
        self.alerts.append(alert)
        self._alerts_under_way[alias] = alert, until
        return {"alerting_until": until}

    def _enter_alert(self, alias: str, alert: Alert, until: datetime) -> None:
        """Write whether the admins were told, once that is known; to do so twice changes nothing."""
        if alert.has_arrived is not None:
            ProviderState.objects.told(alias, alerting_until=until, has_arrived=alert.has_arrived)

    def roads(self, *, but: str = "") -> list[str]:
        """By which aliases of MAILERS the admins can be told: the one for alerts, then the providers that work.

        `but` is the one that doesn't. Providers that this run may not use will do.
        """
        settings = get_settings()
        healthy = [a for a in settings.providers if a not in self._states or self.circuit(a).is_usable(now=self.now)]
        first = [settings.alert_mailer] if settings.alert_mailer else []
        return [alias for alias in dict.fromkeys([*first, *healthy]) if alias != but]

    @property
    def pause_seconds(self) -> float:
        """For how long nothing may begin yet, since this host failed; 0 when all is well."""
        return max(self._paused_until - time.monotonic(), 0.0)

    def _note_pace(self, result: Result) -> None:
        if result.outcome.is_good_round:
            self._pace[result.alias] = min(2 * self._pace[result.alias], self.settings.connections)
        elif result.outcome.is_bad_round:
            self._pace[result.alias] = 1

    def _note_local(self, outcome: Outcome) -> None:
        """Pause after a fault of this host, longer each time in a row."""
        if not outcome.is_local:
            self._local_faults = 0
        elif not self.pause_seconds:  # else it was under way already: eight connections that fail at once fail once
            self._local_faults += 1
            self._paused_until = time.monotonic() + local_pause_seconds(self._local_faults)
            if self._local_faults == LOCAL_FAULTS_TO_TELL:
                logger.error("this host can't send, %s times in a row: %s", self._local_faults, outcome.code)

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
        if self._streak(result, self._states[result.alias]) != self._states[result.alias].refusals:
            return True
        return self._after(circuit, result, now=self.now) != circuit

    def _streak(self, result: Result, state: ProviderState) -> promotion.Streak:
        recipient, message_id = result.recipient, result.message_id
        is_open = state.circuit.is_open
        return promotion.after(
            state.refusals, result.outcome, recipient=recipient, message_id=message_id, is_open=is_open
        )

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

    def _preferred(self, message: Message) -> list[Candidate]:
        aliases = self.settings.aliases_for(message.stream)
        return in_preference(aliases, strategy=self.settings.strategy_for(message.stream), known=self._candidates())

    def _candidates(self) -> dict[str, Candidate]:
        return {alias: Candidate(alias, state.circuit, state.took_over_at) for alias, state in self._states.items()}

    def _seen(self, state: ProviderState) -> ProviderState:
        """The row as part of a picture that was taken at `_read_at`."""
        state.now = self._states[state.alias].now
        return state


def local_pause_seconds(faults: int) -> float:
    """How long nothing begins after so many faults of this host in a row."""
    return float(min(FIRST_LOCAL_PAUSE_SECONDS * 2 ** min(faults - 1, 10), LONGEST_LOCAL_PAUSE_SECONDS))


def _is_ours_by_now(outcome: Outcome, circuit: Circuit, *, now: datetime) -> bool:
    """Whether a provider can't be reached for so long that our settings must be the cause; `circuit` is after it."""
    seconds = outcome.ours_after_seconds
    if outcome.kind is not Kind.UNAVAILABLE or seconds is None or circuit.opened_at is None or not circuit.is_open:
        return False
    return (now - circuit.opened_at).total_seconds() >= seconds
