"""One handover to several addresses, of which the provider took some."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from ..conf import Settings
from ..ids import uuid7
from ..models import Message
from ..outcomes import Kind, Outcome
from .verdict import verdict_for


def note_outcomes(message: Message, outcome: Outcome) -> None:
    """Enter for each address of the message what became of it; who is tried again has no outcome yet."""
    if message.other_recipients is not None and outcome.kind in {Kind.ACCEPTED, Kind.DEFERRED}:
        refusals = {address.casefold(): refusal.kind for address, refusal in outcome.refusals.items()}
        message.other_recipients = [
            entry if entry["outcome"] else {**entry, "outcome": _outcome_of(entry, outcome.kind, refusals)}
            for entry in message.recipients
        ]


def _outcome_of(entry: Mapping[str, str], kind: Kind, refusals: Mapping[str, Kind]) -> str:
    refusal = refusals.get(entry["address"].casefold())
    if kind is Kind.ACCEPTED:
        if refusal is None or refusal is Kind.REFUSED:
            return str(refusal or kind)
        return str(Kind.DEFERRED)  # it goes on as a message of its own, whoever was at fault
    # Nobody was accepted, and the message is tried again: for those who were not refused for good.
    return str(refusal) if refusal is Kind.REFUSED else ""


def split_refused(message: Message, outcome: Outcome, *, now: datetime, settings: Settings) -> list[Message]:
    """Of a message that others accepted, make each address that was refused for now a message of its own.

    It has the same headers, and that address alone in its envelope; it is deferred, or a dead letter when this was its
    last try. They are returned.
    """
    made: list[Message] = []
    if outcome.kind is not Kind.ACCEPTED:
        return made
    for address, refusal in outcome.refusals.items():
        if refusal.kind in (Kind.REFUSED, Kind.ACCEPTED):
            continue
        if refusal.kind is not Kind.DEFERRED:  # the server's fault or ours, though it took the mail for others
            refusal = Outcome(Kind.DEFERRED, code=refusal.code, detail=refusal.detail)
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
            client=message.client,
            created_at=message.created_at,
        )
        verdict = verdict_for(alone, refusal, provider=message.provider, now=now, settings=settings, another=False)
        if verdict is None:
            continue
        alone.status, alone.reason, alone.available_at = verdict.status, verdict.reason, verdict.available_at
        alone.attempt_count, alone.deferred_since, alone.provider = 1, now, message.provider
        alone.save(force_insert=True)
        made.append(alone)
    return made
