"""What becomes of a message after a try: the one place where an outcome is matched. Values in, a verdict out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta

from ..conf import Settings
from ..models import Attempt, Message, Priority
from ..models.messages import Status, Verdict
from ..outcomes import Kind, Outcome
from .retry import next_try_at

SECOND_UNCERTAIN = 2
"""Uncertain handovers after which only a person can say what to do."""

KEPT = "kept for a person to decide"

REPEATABLE = timedelta(hours=12)
"""For so long we rely on a provider to know an idempotency key again: half of what the shortest promise, 24 hours."""


def verdict_for(
    message: Message,
    outcome: Outcome,
    *,
    provider: str,
    now: datetime,
    settings: Settings,
    another: bool,
    others_left: bool = False,
    throttled_until: datetime | None = None,
    key_since: datetime | None = None,
    had_company: bool = False,
) -> Verdict | None:
    """What becomes of the message, or None to ask the next provider at once.

    `another`: a provider that it has not been to can take it now; `others_left`: one that has not refused it might
    later. `throttled_until`: until when the one it was at wants to be left alone. `key_since`: when it was first
    handed over with its idempotency key. `had_company`: it went in one call with others.
    """
    match outcome.kind:
        case Kind.ACCEPTED:
            return Verdict(Status.SENT)
        case Kind.REFUSED:
            if outcome.elsewhere and another and _may_change_provider(message):
                return None
            if outcome.elsewhere and others_left and _may_change_provider(message):
                return _deferred(message, outcome, now=now, settings=settings)
            if outcome.cancelled:
                return Verdict(Status.CANCELLED, f"cancelled: {outcome}")
            return Verdict(Status.DEAD, f"{'unclassified' if is_unclassified(outcome) else 'refused'}: {outcome}")
        case Kind.DEFERRED:
            return _deferred(message, outcome, now=now, settings=settings)
        case Kind.UNAVAILABLE if outcome.is_local:
            return back(message, f"local: {outcome}", now=now, settings=settings)
        case Kind.UNAVAILABLE | Kind.MISCONFIGURED:
            if another and _may_change_provider(message):
                return None
            return back(message, f"{outcome.kind}: {provider}: {outcome}", now=now, settings=settings)
        case Kind.THROTTLED:
            if another and _is_awaited(message) and _may_change_provider(message):
                return None
            reason = f"throttled: {provider}: {outcome}"
            return back(message, reason, now=now, settings=settings, until=throttled_until)
        case Kind.UNCERTAIN if had_company:
            reason = f"uncertain: {provider}: {outcome}; it went in one call with others and is {KEPT}"
            return Verdict(Status.UNCERTAIN, reason, available_at=None, is_uncertain_handover=True)
        case Kind.UNCERTAIN if outcome.is_repeatable and key_since is not None and now - key_since < REPEATABLE:
            reason = f"uncertain: {provider}: {outcome}; asked again with the same idempotency key"
            return Verdict(Status.UNCERTAIN, reason, available_at=now, is_asked_again=True)
        case Kind.UNCERTAIN:
            return uncertain(message, f"uncertain: {provider}: {outcome}", now=now, settings=settings)


def if_alike(outcome: Outcome, earlier: Iterable[Attempt], *, provider: str, attempt_count: int) -> Outcome:
    """The outcome of a handover to `provider`, or what it turns into when it has come as often as it says.

    `earlier` are the deferred attempts of the message before it, of which `attempt_count` are since a person had a
    hand in it.
    """
    # What blames a provider must be said by that provider; what blames the message may be said by any.
    alike = [
        attempt
        for attempt in earlier
        if attempt.code == outcome.code and (outcome.then is not Kind.MISCONFIGURED or attempt.provider == provider)
    ]
    times = min(len(alike), attempt_count) + 1
    return replace(outcome, kind=outcome.then) if 0 < outcome.tries <= times else outcome


def is_unclassified(outcome: Outcome) -> bool:
    """Whether it was an exception that nobody foresaw: a bug, which may be of one message or of a backend."""
    return outcome.tries > 0 and not outcome.phase


def back(message: Message, reason: str, *, now: datetime, settings: Settings, until: datetime | None = None) -> Verdict:
    """Back to what it was before the claim, with no attempt spent; due as before, or at `until`."""
    if message.claimed_from == Status.UNCERTAIN or message.uncertain_count:
        window = timedelta(seconds=max(settings.probe_interval_seconds, 1))
        return Verdict(Status.UNCERTAIN, reason, available_at=max(now + window, until or now))
    status = Status(message.claimed_from)
    return Verdict(status, reason, available_at=until, keeps_due_time=until is None)


def uncertain(message: Message, reason: str, *, now: datetime, settings: Settings) -> Verdict:
    """It may have gone: wait for proof, then once more; or keep it for a person."""
    seconds = window_seconds(message, settings=settings)
    if seconds is None:
        reason = f"{reason}; {KEPT}"
        return Verdict(Status.UNCERTAIN, reason, available_at=None, is_uncertain_handover=True)
    return Verdict(Status.UNCERTAIN, reason, available_at=now + timedelta(seconds=seconds), is_uncertain_handover=True)


def final(verdict: Verdict) -> Verdict:
    """The verdict on a message whose caller waits for it: it is sent, or ends here; kept where it may have gone."""
    match verdict.status:
        case Status.QUEUED | Status.DEFERRED:
            return Verdict(Status.DEAD, verdict.reason, spends_attempt=verdict.spends_attempt)
        case Status.UNCERTAIN:
            is_new = verdict.is_uncertain_handover or verdict.is_asked_again
            return Verdict(Status.UNCERTAIN, verdict.reason, is_uncertain_handover=is_new)
        case _:
            return verdict


def late(verdict: Verdict | None, *, now: datetime) -> Verdict:
    """The verdict on a message whose lease was over when its result came, and that is uncertain meanwhile.

    A result that proves that nothing went out lets it be sent again, as deferred mail, with no attempt spent.
    """
    if verdict is None or verdict.keeps_due_time or verdict.status == Status.QUEUED:
        reason = verdict.reason if verdict else "its provider did not take it"
        return Verdict(Status.DEFERRED, reason, available_at=now)
    return verdict


def window_seconds(message: Message, *, settings: Settings) -> float | None:
    """How long a message waits for proof after the uncertain handover that it just had; None: for a person."""
    if _is_direct(message):
        return None  # its caller waited for it, and was told or is gone
    policy = settings.policy_for(message.stream)
    if policy.uncertain == "hold" or message.uncertain_count + 1 >= SECOND_UNCERTAIN:
        return None
    return settings.uncertain_window(message.stream, priority=message.priority)


def _deferred(message: Message, outcome: Outcome, *, now: datetime, settings: Settings) -> Verdict:
    attempts = message.attempt_count + 1
    lifetime_seconds = settings.policy_for(message.stream).lifetime_seconds
    if outcome.retry_after_seconds == 0 and not message.attempt_count:
        return Verdict(Status.DEFERRED, f"deferred: {outcome}", available_at=now, spends_attempt=True)
    due_at = next_try_at(
        attempts,
        failed_at=now,
        first_failed_at=message.deferred_since or now,
        lifetime_seconds=lifetime_seconds,
        settings=settings,
        greylisted=outcome.greylisted,
    )
    if due_at is not None:
        return Verdict(Status.DEFERRED, f"deferred: {outcome}", available_at=due_at, spends_attempt=True)
    if attempts >= settings.max_attempts:
        reason = f"attempts: given up after {attempts}; the last: {outcome}"
    else:
        reason = f"lifetime: given up {lifetime_seconds:g} s after its first deferral; the last: {outcome}"
    return Verdict(Status.DEAD, reason, spends_attempt=True)


def _is_direct(message: Message) -> bool:
    """Whether it is sent by `send_direct_email()`, whose caller waits."""
    return message.claimed_from == Status.DEAD


def _is_awaited(message: Message) -> bool:
    return message.priority <= Priority.URGENT or _is_direct(message)


def _may_change_provider(message: Message) -> bool:
    """Mail that may have gone stays with its provider, unless somebody is waiting for it."""
    return not message.uncertain_count or message.priority <= Priority.URGENT
