"""Why a message must not go after all: looked at again at Begin, since much may have happened since its claim."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ..conf import Settings
from ..models import Message, MessageJob, Priority
from ..models.messages import Status, Verdict
from .verdict import KEPT, back


def objection_to(
    message: Message, *, job_status: str | None, refusals: Mapping[str, str], settings: Settings
) -> Verdict | None:
    """What becomes of the message instead of a handover, or None when it may go.

    `message` is a row of `held()`; `refusals` are suppressed addresses, each with its reason. Without any, nobody asks
    whom the message is for: what can't be composed may not say.
    """
    was_uncertain = message.uncertain_count > 0
    if message.expires_at is not None and message.expires_at <= message.now:
        if was_uncertain:
            return Verdict(Status.UNCERTAIN, f"it expired while uncertain; {KEPT}")
        return Verdict(Status.EXPIRED, "expired: not sent before its expires_at")
    if job_status == MessageJob.Status.CANCELLED:
        if was_uncertain:
            return Verdict(Status.UNCERTAIN, f"its job was cancelled while it was uncertain; {KEPT}")
        return Verdict(Status.CANCELLED, "cancelled: with its job")
    if job_status == MessageJob.Status.PAUSED:
        if was_uncertain:
            return back(message, "its job is paused", now=message.now, settings=settings)
        return Verdict(Status(message.claimed_from), "its job is paused", available_at=None)
    must_stay = was_uncertain and message.priority > Priority.URGENT  # urgent mail may go by another
    if must_stay and message.provider not in settings.providers:
        return Verdict(Status.UNCERTAIN, f"its provider {message.provider!r} is no longer configured; {KEPT}")
    if must_stay and message.provider not in settings.aliases_for(message.stream):
        reason = f"its provider {message.provider!r} carries no {message.stream} mail any more; {KEPT}"
        return Verdict(Status.UNCERTAIN, reason)
    if refusals and (pending := pending_addresses(message)):
        stopped = suppressed_addresses(message, refusals)
        if len(stopped) == len(pending):
            return Verdict(Status.SUPPRESSED, refusals[min(stopped)])
    return None


def suppressed_addresses(message: Message, refusals: Collection[str]) -> set[str]:
    """The addresses of this message that get no mail, normalised, among those still to be served."""
    return pending_addresses(message) & set(refusals)


def leave_out(message: Message, addresses: Collection[str]) -> None:
    """Mark these addresses of a message with several as suppressed."""
    message.other_recipients = [
        {**entry, "outcome": "suppressed"}
        if not entry["outcome"] and entry["address"].casefold() in addresses
        else entry
        for entry in message.recipients
    ]


def pending_addresses(message: Message) -> set[str]:
    """The addresses that are still to be served, normalised."""
    return {entry["address"].casefold() for entry in message.recipients if not entry["outcome"]}
