"""The health of the providers as one run sees it: read often, written when a result changes it."""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID

from ..circuit import Circuit, ProbeState, probe_is_due, start_probe
from ..clock import db_now, seconds_since, stopped_at
from ..compat import mailer_aliases
from ..conf import Mode, Settings, get_settings
from ..hooks import prober
from ..models import Attempt, Message, Priority, ProviderState
from ..models.messages import Status
from ..outcomes import Kind, Outcome
from ..providers.choose import Candidate, Choice, Shares, choose, in_preference
from ..rate import Limit, free_at, left, taken
from . import promotion
from .alerts import Alert, about_provider
from .pace import Pace
from .rounds import OF_LATE_SECONDS, Effect, Result, effect_of

REFRESH_SECONDS = 1.0
"""How old the picture may be: other processes and hosts change the circuits too."""
LONGEST_MOMENT_SECONDS = 5.0
"""A provider that wants to be left alone for no longer than this is waited for; later it is the next run's."""


@dataclass(frozen=True)
class Judgement:
    """What results come to in the light of what came before them."""

    outcomes: Sequence[Outcome]
    put_back: Mapping[str, Collection[UUID]]
    """By provider: messages that it refused, before and now, by a fault of ours."""


class Health:
    """The circuits and limits of all providers, and which of them a message may go to."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        """As the operator's switches leave them, so that this run follows them."""
        self.policy = settings.circuit_policy
        self.alerts: list[Alert] = []
        """What the admins are to be told once the transaction has committed."""
        self._written_settings = settings
        self._should_probe = prober(settings)
        self._states: dict[str, ProviderState] = {}
        self._read_at = float("-inf")
        self._pace = Pace(settings)
        self._others_wait: dict[tuple[str, bool], bool] = {}
        """What it has said, for one turn of the loop."""
        self._candidates: dict[tuple[str, bool], list[Candidate]] = {}
        """By stream, and whether for bulk mail: likewise."""
        self._shares = Shares()
        self._leads: dict[tuple[str, ...], str] = {}
        """By the providers of a stream: the one that this run has drawn to go first."""
        self._to_tell: dict[str, tuple[Alert, datetime]] = {}
        """By provider: the alert that is this process's to tell, and until when it is."""
        self._counted: set[str] = set()
        """Providers whose usage has grown since it was last written."""

    # The picture

    def refresh(self, *, at_once: bool = False) -> None:
        """Read the circuits and switches anew when the picture is old."""
        self._others_wait.clear()
        self._candidates.clear()
        if at_once or time.monotonic() - self._read_at >= REFRESH_SECONDS:
            self._states = ProviderState.objects.everything(self._written_settings.providers)
            self._read_at = time.monotonic()
            switches = {alias: state.switches for alias, state in self._states.items()}
            self.settings = self._written_settings.under(switches, known=mailer_aliases())
            self._counted.clear()
            self._enter_alerts()

    @property
    def now(self) -> datetime:
        """This instant by the database's clock, as it has gone on since the last look at it."""
        first: ProviderState | None = next(iter(self._states.values()), None)
        if first is None:
            raise LookupError("no provider")
        return first.now + timedelta(seconds=seconds_since(self._read_at))

    def circuit(self, alias: str) -> Circuit:
        return self._states[alias].circuit

    # What may go, and where

    def usable_streams(self, *, is_bulk: bool = False, whatever_the_limits: bool = False) -> set[str]:
        """The streams that something can be sent in now, be it a probe; `is_bulk`: something of priority BULK."""
        return {
            stream
            for stream in self.settings.streams
            if any(
                candidate.takes_new_mail
                and (candidate.is_usable or candidate.probe_is_due or (whatever_the_limits and candidate.is_limited))
                for candidate in self._in_preference(stream, is_bulk=is_bulk)
            )
        }

    def draining(self) -> list[str]:
        """Providers that get no new mail, and can be used now."""
        return [alias for alias in self.settings.providers if self._is_draining(alias)]

    def can_send(self) -> bool:
        """Whether anything at all can be sent now, be it a probe."""
        return bool(self.usable_streams() or self.draining())

    def only_probes(self) -> bool:
        """Whether no provider can be used, so that messages go out one by one."""
        return not any(self._candidate(alias, is_bulk=False).is_usable for alias in self.settings.providers)

    def another(self, message: Message, *, tried: Collection[str]) -> bool:
        """Whether a provider that this message has not been to can take it now."""
        return choose(self._candidates_for(message), tried=tried) is not None

    def choose(
        self, message: Message, *, tried: Collection[str], planned: Mapping[str, int] | None = None, first: str = ""
    ) -> Choice | None:
        """Where this message goes now, or None.

        `planned` are handovers to each provider that are about to begin; `first` goes before the others, if it can.
        """
        candidates = self._candidates_for(message)
        if self.is_shared(message.stream):
            candidates = self._shares.in_turn(candidates, planned=planned or {})
        if first:
            candidates.sort(key=lambda candidate: candidate.alias != first)
        if message.uncertain_count and message.priority > Priority.URGENT:  # it may be there already: nowhere else
            candidates = [candidate for candidate in candidates if candidate.alias == message.provider]
        candidates = [candidate for candidate in candidates if candidate.alias not in tried]
        if message.claimed_from == Status.UNCERTAIN:
            candidates = [
                candidate
                for candidate in candidates
                if not candidate.probe_is_due or not self.others_wait(candidate.alias, in_hand=True)
            ]
        return choose(candidates)

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
        """How many handovers may be under way at this provider, in this process, as things are."""
        most = self._pace.room(alias, most=self.settings.provider(alias).connections)
        return min(most, promotion.room(self._states[alias].refusals) or most)

    def most_together(self, alias: str) -> int:
        """How many messages one call may carry, by its BATCH; one, until the provider has shown that it works."""
        return self.settings.provider(alias).batch if self._pace.has_accepted(alias) else 1

    def throttle_ends(self) -> list[float]:
        """In how many seconds each provider that asked us to slow down takes mail again; below 0: that is over.

        None while a test has stopped the clock: whoever waited for it would wait for ever.
        """
        if stopped_at() is not None:
            return []
        ends = [self.circuit(alias).throttled_until for alias in self.settings.providers]
        return [(end - self.now).total_seconds() for end in ends if end is not None]

    @property
    def pause_seconds(self) -> float:
        """For how long nothing may begin yet, since this host failed; 0 when all is well."""
        return self._pace.pause_seconds

    def is_shared(self, stream: str) -> bool:
        """Whether its providers share it by their weights."""
        return self.settings.strategy_for(stream) == "weighted"

    def _candidates_for(self, message: Message) -> list[Candidate]:
        """The providers that may take this message, best first."""
        theirs = message.provider if message.uncertain_count else ""
        candidates = self._in_preference(message.stream, is_bulk=_is_bulk(message))
        return [candidate for candidate in candidates if candidate.takes_new_mail or candidate.alias == theirs]

    def _in_preference(self, stream: str, *, is_bulk: bool = False) -> list[Candidate]:
        """The providers of a stream, best first."""
        if (stream, is_bulk) not in self._candidates:
            aliases = self.settings.aliases_for(stream)
            strategy = self.settings.strategy_for(stream)
            known = {alias: self._candidate(alias, is_bulk=is_bulk) for alias in aliases}
            lead = self._leads.setdefault(aliases, random.choice(aliases)) if strategy == "spread" and aliases else ""  # noqa: S311
            candidates = in_preference(aliases, strategy=strategy, known=known, lead=lead)
            if not self.settings.policy_for(stream).failover:
                candidates = [c for c in candidates if c.weight] if strategy == "weighted" else candidates[:1]
            self._candidates[stream, is_bulk] = candidates
        return list(self._candidates[stream, is_bulk])

    def _candidate(self, alias: str, *, is_bulk: bool) -> Candidate:
        state, policy, now = self._states[alias], self.settings.provider(alias), self.now
        in_use = policy.mode in {Mode.ENABLED, Mode.DRAINING}
        moment = (
            LONGEST_MOMENT_SECONDS if stopped_at() is None else 0
        )  # while a test has stopped the clock, none passes
        is_limited = in_use and self._free_in_seconds(alias, is_bulk=is_bulk) > moment
        return Candidate(
            alias,
            is_usable=in_use and not is_limited and state.circuit.is_usable(now=now),
            probe_is_due=in_use and not is_limited and self._probe_is_due(state, now=now),
            takes_new_mail=policy.mode is Mode.ENABLED,
            is_limited=is_limited and state.circuit.is_usable(now=now),
            took_over_at=state.took_over_at,
            weight=policy.weight,
        )

    def _is_draining(self, alias: str) -> bool:
        is_draining = self.settings.provider(alias).mode is Mode.DRAINING
        return is_draining and self._candidate(alias, is_bulk=False).is_usable

    def _probe_is_due(self, state: ProviderState, *, now: datetime) -> bool:
        elsewhere = partial(_count_elsewhere, state)
        return probe_is_due(
            ProbeState(state.alias, state.circuit, self.policy, now, elsewhere), decide=self._should_probe
        )

    # Limits

    def lock_limits(self) -> None:
        """Where any provider has limits, lock the rows and see what is left, until the transaction commits."""
        if any(self._limits(alias) for alias in self.settings.providers):
            self._show(self._lock())

    def limits_bind(self) -> bool:
        """Whether at least one provider may be given nothing at this very moment, or no bulk mail."""
        return any(self._left(alias, is_bulk=True) == 0 for alias in self.settings.providers)

    def note_begun(self, message: Message, alias: str) -> None:
        """A handover of it to this provider begins: it counts for its share, and for its limits."""
        if self.is_shared(message.stream):
            self._shares.note(alias, self._in_preference(message.stream, is_bulk=_is_bulk(message)))
        if limits := self._limits(alias):
            state = self._states[alias]
            state.usage = taken(limits, state.usage, now=self.now)
            self._counted.add(alias)

    def enter_usage(self) -> None:
        """Write what `note_begun()` has counted."""
        for alias in sorted(self._counted):
            state = self._states[alias]
            if self.settings.provider(alias).warm_up and state.warming_since is None:
                state.warming_since = self.now
            state.enter_usage()
        self._counted.clear()

    def may_begin(self, alias: str, message: Message, *, planned: int = 0) -> bool:
        """Whether this provider's limits allow this message at this very moment, besides so many that are planned."""
        count = self._left(alias, is_bulk=_is_bulk(message))
        return count is None or planned < count

    def _limits(self, alias: str) -> tuple[Limit, ...]:
        return self._states[alias].limits(self.settings.provider(alias), now=self.now)

    def _left(self, alias: str, *, is_bulk: bool) -> int | None:
        share = self._share(alias, is_bulk=is_bulk)
        return left(self._limits(alias), self._states[alias].usage, now=self.now, share=share)

    def _free_in_seconds(self, alias: str, *, is_bulk: bool) -> float:
        share, now = self._share(alias, is_bulk=is_bulk), self.now
        at = free_at(self._limits(alias), self._states[alias].usage, now=now, share=share)
        return (at - now).total_seconds()

    def _share(self, alias: str, *, is_bulk: bool) -> float:
        """The part of its limits that this mail may use."""
        return 1 - self.settings.provider(alias).reserve if is_bulk else 1.0

    # What changes

    def start_probe(self, alias: str) -> bool:
        """Take the probe that is due; False when another process was quicker. In a transaction."""
        locked = self._lock()
        state = locked[alias]
        if not self._probe_is_due(state, now=state.now):
            return False
        state.write(state.changes(start_probe(state.circuit, now=state.now, policy=self.policy)))
        self._show(locked)
        return True

    def note(self, results: Iterable[Result]) -> Judgement:
        """Count what came of these handovers. To be called in a transaction.

        Nothing is locked or written where that would change nothing, as after a good round at a healthy provider.
        """
        results = list(results)
        self._others_wait.clear()
        for result in results:
            self._pace.note(result.alias, result.outcome)
        now = self.now
        throttled = [result.message_id for result in results if result.outcome.kind is Kind.THROTTLED]
        effects = [self._effect(result, self._states[result.alias], now=now, throttled=throttled) for result in results]
        if any(effect.changes for effect in effects):
            locked = self._lock()
            effects = [self._enter(result, locked[result.alias], throttled=throttled) for result in results]
            self._show(locked)
        return _judgement(results, effects)

    def _effect(self, result: Result, state: ProviderState, *, now: datetime, throttled: Collection[UUID]) -> Effect:
        of_late = partial(
            Attempt.objects.taken_since, now - timedelta(seconds=OF_LATE_SECONDS), provider=result.alias, but=throttled
        )
        return effect_of(
            result,
            state,
            now=now,
            policy=self.policy,
            takes_over=self._takes_over(result),
            taken_of_late=of_late,
        )

    def _takes_over(self, result: Result) -> bool:
        """Whether, should it be good, its provider becomes the one that the stream sticks to."""
        if self.settings.strategy_for(result.stream) != "sticky":
            return False
        return self._in_preference(result.stream)[0].alias != result.alias

    def _enter(self, result: Result, state: ProviderState, *, throttled: Collection[UUID]) -> Effect:
        """Write in its locked row what this result changes."""
        effect = self._effect(result, state, now=state.now, throttled=throttled)
        state.write(effect.changes)
        if effect.to_tell:
            self._tell(state, effect.to_tell)
        return effect

    def _lock(self) -> dict[str, ProviderState]:
        """All rows, always: who needs a second one later in the same transaction holds it already, in order."""
        return ProviderState.objects.locked(list(self._states))

    def _show(self, locked: Mapping[str, ProviderState]) -> None:
        """Make these rows part of the picture, which was taken at `_read_at`."""
        for alias, state in locked.items():
            state.now = self._states[alias].now
            self._states[alias] = state
        self._candidates.clear()

    # Telling the admins

    def roads(self, *, but: str = "") -> list[str]:
        """By which aliases of MAILERS the admins can be told: the one for alerts, then the providers that work.

        `but` is the one that doesn't. Providers that this run may not use will do.
        """
        switches = {alias: state.switches for alias, state in self._states.items()}
        settings = get_settings().under(switches, known=mailer_aliases())
        enabled = [alias for alias, policy in settings.providers.items() if policy.mode is Mode.ENABLED]
        healthy = [a for a in enabled if a not in self._states or self.circuit(a).is_usable(now=self.now)]
        first = [settings.alert_mailer] if settings.alert_mailer else []
        return [alias for alias in dict.fromkeys([*first, *healthy]) if alias != but]

    def _tell(self, state: ProviderState, problem: str) -> None:
        """Let the admins be told after the commit, unless they were, or another process is at it."""
        before = state.alerting_until
        if state.alerted_at is not None or (before is not None and state.now < before):
            return
        roads = self.roads(but=state.alias)
        until = state.now + timedelta(seconds=(len(roads) + 1) * self.settings.send_deadline_seconds)
        state.write({"alerting_until": until})
        alert = about_provider(state.alias, problem, roads=roads, is_repeated=before is not None)
        alert.record = self._enter_alerts
        self.alerts.append(alert)
        self._to_tell[state.alias] = alert, until

    def _enter_alerts(self) -> None:
        """Write whether the admins were told, once that is known, and again until the row is found to say so."""
        for alias, (alert, until) in list(self._to_tell.items()):
            if alert.has_arrived is None:
                continue
            if not ProviderState.objects.told(alias, alerting_until=until, has_arrived=alert.has_arrived):
                del self._to_tell[alias]


def _is_bulk(message: Message) -> bool:
    return message.priority >= Priority.BULK


def _count_elsewhere(state: ProviderState) -> int:
    """How many handovers began at other providers since this one last failed."""
    since = state.failed_at or state.opened_at
    others = Attempt.objects.exclude(provider=state.alias)
    return (others.filter(begun_at__gt=since) if since else others).count()


def _judgement(results: Sequence[Result], effects: Sequence[Effect]) -> Judgement:
    put_back: dict[str, set[UUID]] = {}
    for result, effect in zip(results, effects, strict=True):
        if effect.put_back:
            put_back.setdefault(result.alias, set()).update(effect.put_back)
    # Also those that were refused a moment before the one that made it clear.
    outcomes = [
        promotion.as_ours(effect.outcome) if result.message_id in put_back.get(result.alias, ()) else effect.outcome
        for result, effect in zip(results, effects, strict=True)
    ]
    return Judgement(outcomes, put_back)
