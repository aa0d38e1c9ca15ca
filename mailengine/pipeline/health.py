"""Which provider a message may go to, and what its handovers change in the health of providers."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from uuid import UUID

from django.db import router

from ..circuit import ProbeState, probe_is_due, start_probe
from ..clock import db_now, stopped_at
from ..conf import Mode, Settings
from ..hooks import prober
from ..models import Attempt, Message, Priority, ProviderState
from ..models.messages import Status
from ..outcomes import Kind, Outcome
from ..providers.choose import Candidate, Choice, Shares, choose, in_preference
from . import promotion
from .incidents import Incidents
from .limits import Limits, is_bulk
from .pace import Pace
from .picture import Picture
from .rounds import OF_LATE_SECONDS, Effect, Result, effect_of


@dataclass(frozen=True)
class Judgement:
    """What results come to in the light of what came before them."""

    outcomes: Sequence[Outcome]
    put_back: Mapping[str, Collection[UUID]]
    """By provider: messages that it refused, before and now, by a fault of ours."""


class Health:
    """All providers as one run sees them: their circuits, their limits, and what an operator has switched."""

    def __init__(self, settings: Settings) -> None:
        self.picture = Picture(settings)
        self.limits = Limits(self.picture)
        self.incidents = Incidents(self.picture)
        self.policy = settings.circuit_policy
        self._should_probe = prober(settings, using=router.db_for_write(ProviderState))
        self._pace = Pace(settings)
        self._others_wait: dict[tuple[str, bool], bool] = {}
        """What it has said, for one turn of the loop."""
        self._candidates: dict[tuple[str, bool], list[Candidate]] = {}
        """By stream, and whether for bulk mail: likewise."""
        self._first_choices: dict[tuple[str, bool], Choice | None] = {}
        """Of mail about which there is nothing special: likewise."""
        self._shares = Shares()
        self._leads: dict[tuple[str, ...], str] = {}
        """By the providers of a stream: the one that this run has drawn to go first."""

    @property
    def settings(self) -> Settings:
        """As the operator's switches leave them."""
        return self.picture.settings

    def refresh(self, *, at_once: bool = False) -> None:
        """Read the rows anew when the picture is old. To be called outside of what counts for limits."""
        self._others_wait.clear()
        self._forget_candidates()
        if self.picture.refresh(at_once=at_once):
            self.limits.forget()
            self.incidents.enter()

    def begin_anew(self) -> None:
        """Draw again which provider goes first, where that is left to chance."""
        self._leads.clear()
        self._forget_candidates()

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
        """Providers that get no new mail, and can be used now, be it for a probe."""
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
        if not (tried or message.was_in_doubt or self.is_shared(message.stream)):
            choice = self._first_choice(message)
            if choice is None or not first or first == choice.alias:
                return choice
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

    def _first_choice(self, message: Message) -> Choice | None:
        """Where mail goes that was nowhere yet: asked for nearly each message, and the same for all of its kind."""
        kind = message.stream, is_bulk(message)
        if kind not in self._first_choices:
            candidates = self._in_preference(message.stream, is_bulk=is_bulk(message))
            self._first_choices[kind] = choose([candidate for candidate in candidates if candidate.takes_new_mail])
        return self._first_choices[kind]

    def carriers(self, stream: str) -> Collection[str]:
        """The providers that mail of this stream may go to, now or later."""
        if self.settings.strategy_for(stream) in {"sticky", "spread"}:  # another may be preferred by then
            return self.settings.aliases_for(stream)
        return _aliases(self._in_preference(stream))

    def others_wait(self, alias: str, *, in_hand: bool = False) -> bool:
        """Whether mail is due that was never uncertain, may go by this provider, and so makes the better probe.

        `in_hand`: be it in the queue, or with a worker already.
        """
        if (alias, in_hand) not in self._others_wait:
            carried = {
                stream
                for stream in self.settings.streams
                if alias in _aliases(c for c in self._in_preference(stream) if c.takes_new_mail)
            }
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
        return min(most, promotion.room(self.picture.states[alias].refusals) or most)

    def most_together(self, alias: str, *, at_best: bool = False) -> int:
        """How many messages one call may carry, by its BATCH; one, until the provider has shown that it works.

        `at_best`: as if it had.
        """
        policy = self.settings.providers.get(alias)  # None: retired, while its last handovers are under way
        return policy.batch if policy and (at_best or self._pace.has_accepted(alias)) else 1

    def throttle_ends(self) -> list[float]:
        """In how many seconds each provider that asked us to slow down takes mail again; below 0: that is over.

        None while a test has stopped the clock: whoever waited for it would wait for ever.
        """
        if stopped_at() is not None:
            return []
        ends = [self.picture.circuit(alias).throttled_until for alias in self.settings.providers]
        return [(end - self.picture.now).total_seconds() for end in ends if end is not None]

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
        candidates = self._in_preference(message.stream, is_bulk=is_bulk(message))
        is_theirs_left_out = theirs in self.settings.aliases_for(message.stream) and theirs not in _aliases(candidates)
        if is_theirs_left_out:  # where no other stands in, and the one preferred is another by now
            candidates.append(self._candidate(theirs, is_bulk=is_bulk(message)))
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
        state, policy = self.picture.states[alias], self.settings.provider(alias)
        in_use = policy.mode in {Mode.ENABLED, Mode.DRAINING}
        is_limited = in_use and self.limits.forbid_for_long(alias, is_bulk=is_bulk)
        is_usable = in_use and state.circuit.is_usable(now=self.picture.now)
        return Candidate(
            alias,
            is_usable=is_usable and not is_limited,
            probe_is_due=in_use and not is_limited and self._probe_is_due(alias),
            takes_new_mail=policy.mode is Mode.ENABLED,
            is_limited=is_usable and is_limited,
            took_over_at=state.took_over_at,
            weight=policy.weight,
        )

    def _is_draining(self, alias: str) -> bool:
        if self.settings.provider(alias).mode is not Mode.DRAINING:
            return False
        candidate = self._candidate(alias, is_bulk=False)
        return candidate.is_usable or candidate.probe_is_due

    def _probe_is_due(self, alias: str) -> bool:
        state = self.picture.states[alias]
        seen = ProbeState(alias, state.circuit, self.policy, self.picture.now, partial(_count_elsewhere, state))
        return probe_is_due(seen, decide=self._should_probe)

    # What changes

    def lock_limits(self) -> None:
        """Where any provider has limits, see what they leave, until the transaction commits."""
        if self.limits.exist():
            self._lock()

    def note_begun(self, message: Message, alias: str) -> None:
        """A handover of it to this provider begins: it counts for its share, and for its limits."""
        if self.is_shared(message.stream):
            self._shares.note(alias, self._in_preference(message.stream, is_bulk=is_bulk(message)))
        self.limits.count(alias)

    def start_probe(self, alias: str) -> bool:
        """Take the probe that is due; False when another process was quicker. In a transaction."""
        self.limits.enter()  # it would be overlooked in the rows as they stand there
        self._lock()
        if not self._probe_is_due(alias):
            return False
        state, now = self.picture.states[alias], self.picture.now
        state.write(state.changes(start_probe(state.circuit, now=now, policy=self.policy)))
        self._forget_candidates()
        return True

    def note(self, results: Iterable[Result]) -> Judgement:
        """Count what came of these handovers. To be called in a transaction.

        Nothing is locked or written where that would change nothing, as after a good round at a healthy provider.
        """
        results = list(results)
        self._others_wait.clear()
        for result in results:
            self._pace.note(result.alias, result.outcome)
        throttled = [result.message_id for result in results if result.outcome.kind is Kind.THROTTLED]
        effects = self._effects(results, throttled=throttled)
        if any(effect.changes for effect in effects):
            self._lock()
            effects = [self._enter(result, throttled=throttled) for result in results]
        return _judgement(results, effects)

    def _effects(self, results: Iterable[Result], *, throttled: Collection[UUID]) -> list[Effect]:
        """What each changes, as the rows are. A good round does what the one before it did, if that was nothing."""
        effects: list[Effect] = []
        without_effect: dict[tuple[str, str], Effect] = {}
        for result in results:
            kind = result.alias, result.stream
            is_plain = result.outcome.is_good_round and not result.was_probe
            effect = without_effect.get(kind) if is_plain else None
            if effect is None:
                effect = self._effect(result, throttled=throttled)
                if is_plain and not effect.changes and not self.picture.states[result.alias].refusals:
                    without_effect[kind] = effect
            elif effect.outcome is not result.outcome:
                effect = replace(effect, outcome=result.outcome)
            effects.append(effect)
        return effects

    def _effect(self, result: Result, *, throttled: Collection[UUID]) -> Effect:
        now = self.picture.now
        of_late = partial(
            Attempt.objects.taken_since, now - timedelta(seconds=OF_LATE_SECONDS), provider=result.alias, but=throttled
        )
        return effect_of(
            result,
            self.picture.states[result.alias],
            now=now,
            policy=self.policy,
            takes_over=self._takes_over(result),
            taken_of_late=of_late,
        )

    def _takes_over(self, result: Result) -> bool:
        """Whether, should it be good, its provider becomes the one that the stream sticks to."""
        if self.settings.strategy_for(result.stream) != "sticky":
            return False
        return result.alias in _aliases(self._in_preference(result.stream)[1:])

    def _enter(self, result: Result, *, throttled: Collection[UUID]) -> Effect:
        """Write in its locked row what this result changes."""
        effect = self._effect(result, throttled=throttled)
        state = self.picture.states[result.alias]
        state.write(effect.changes)
        self._forget_candidates()
        if effect.to_tell:
            self.incidents.tell(state, effect.to_tell)
        return effect

    def _lock(self) -> None:
        self.picture.lock()
        self._forget_candidates()

    def _forget_candidates(self) -> None:
        self._candidates.clear()
        self._first_choices.clear()


def _aliases(candidates: Iterable[Candidate]) -> list[str]:
    return [candidate.alias for candidate in candidates]


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
