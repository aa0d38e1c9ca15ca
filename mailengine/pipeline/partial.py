"""One handover to several addresses, of which the provider took some."""

from __future__ import annotations

from datetime import datetime

from ..conf import Settings
from ..ids import uuid7
from ..models import Message
from ..models.messages import Status
from ..outcomes import Kind, Outcome
from .verdict import verdict_for


def note_outcomes(message: Message, outcome: Outcome) -> None:
    """Enter for each address of the message what became of it."""
    if message.other_recipients is None or outcome.kind is not Kind.ACCEPTED:
        return
    refusals = {address.casefold(): refusal for address, refusal in outcome.refusals.items()}
    message.other_recipients = [
        entry
        if entry["outcome"]
        else {
            **entry,
            "outcome": str(refusals[key].kind if (key := entry["address"].casefold()) in refusals else "accepted"),
        }
        for entry in message.recipients
    ]


def split_refused(message: Message, outcome: Outcome, *, now: datetime, settings: Settings) -> list[Message]:
    """Make each address that was refused for now a message of its own, deferred; they are returned.

    It has the same headers, and that address alone in its envelope.
    """
    made = []
    for address, refusal in outcome.refusals.items():
        if refusal.kind is not Kind.DEFERRED:
            continue
        alone = Message(
            id=uuid7(),
            job_id=None,
            content_id=message.content_id,
            recipient=address.casefold(),
            other_recipients=[
                {**entry, "outcome": ""} if entry["address"].casefold() == address.casefold() else entry
                for entry in message.recipients
            ],
            merge_data=message.merge_data,
            stream=message.stream,
            priority=message.priority,
            send_at=message.send_at,
            expires_at=message.expires_at,
            created_at=message.created_at,
        )
        verdict = verdict_for(alone, refusal, provider=message.provider, now=now, settings=settings, another=False)
        if verdict is None or verdict.status != Status.DEFERRED:
            continue
        alone.status, alone.reason, alone.available_at = verdict.status, verdict.reason, verdict.available_at
        alone.attempt_count, alone.deferred_since, alone.provider = 1, now, message.provider
        alone.save(force_insert=True)
        made.append(alone)
    return made
