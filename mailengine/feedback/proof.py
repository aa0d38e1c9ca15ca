"""Proof from webhooks: an ESP that reports on a message has it, whatever its connection had come to.

Anymail reads the webhooks of each ESP and sends its signal `tracking` for each event. The event carries our id in its
metadata, as `pipeline/compose.py` has put it there.
"""

from __future__ import annotations

import logging
from typing import Any
from uuid import UUID

from anymail.signals import EventType
from django.db import router, transaction

from ..ids import ID_METADATA
from ..models import Attempt, Message
from ..models.locks import limit_locks
from ..outcomes import Kind, Outcome, one_line
from ..providers.esp import esp_name as esp_name_of

logger = logging.getLogger("mailengine.feedback")

PROOFS = frozenset(
    {
        EventType.QUEUED,
        EventType.SENT,
        EventType.REJECTED,
        EventType.FAILED,
        EventType.BOUNCED,
        EventType.DEFERRED,
        EventType.DELIVERED,
        EventType.AUTORESPONDED,
        EventType.OPENED,
        EventType.CLICKED,
        EventType.COMPLAINED,
        EventType.UNSUBSCRIBED,
    }
)
"""Events that only a mail can have which the ESP took. What it did with it afterwards is another question."""


def read_event(sender: Any, event: Any, esp_name: str, **_: Any) -> None:
    """A receiver of Anymail's `tracking`: enter what this event proves, if anything.

    Raises nothing but errors of the database. To an ESP an error says that it is to send the same events again: right
    when they could not be entered, and an endless loop when they will never make sense.
    """
    message_id = _our_id(event.metadata)
    if message_id is None or event.event_type not in PROOFS:
        return
    outcome = Outcome(
        Kind.ACCEPTED,
        code="webhook",
        detail=f"{esp_name} reported: {event.event_type}",
        provider_message_id=one_line(event.message_id or "", length=255),
    )
    _enter(message_id, outcome, esp_name=esp_name)


def _our_id(metadata: Any) -> UUID | None:
    """The message that an event names. Anybody's JSON may stand there, and that of mail that isn't ours."""
    try:
        return UUID(str(metadata[ID_METADATA]))
    except (LookupError, TypeError, ValueError):
        return None


def _enter(message_id: UUID, outcome: Outcome, *, esp_name: str) -> None:
    using = router.db_for_write(Message)
    attempts = Attempt.objects.using(using).filter(message_id=message_id)
    outcomes = list(attempts.values_list("provider", "outcome"))
    there = {provider for provider, _outcome in outcomes if esp_name_of(provider) == esp_name}
    if outcomes and not there:
        # Its id stands in the headers of every mail. Whoever has an account somewhere can't settle mail elsewhere.
        logger.warning("an event of %s names message %s, which never was there: ignored", esp_name, message_id)
    if not any(provider in there and _is_doubtful(known) for provider, known in outcomes):
        return  # as nearly always: nothing is to be proven, and nobody waits for a lock
    with transaction.atomic(using=using):
        limit_locks(using)
        message = Message.objects.using(using).select_for_update().filter(pk=message_id).first()
        provider = Attempt.objects.using(using).prove(message_id, outcome, at=there)
        if message is None or provider is None:
            return
        message.provider = provider
        _note_recipients(message)
        was = message.status
        if Message.objects.using(using).settle_proven(message, outcome):
            logger.info("message %s: %s is proven sent by %s", message_id, was, provider)


def _is_doubtful(outcome: str) -> bool:
    return outcome in ("", Kind.UNCERTAIN)


def _note_recipients(message: Message) -> None:
    """All its addresses were handed over together: they count as accepted, but for those known to be not."""
    if message.other_recipients is not None:
        message.other_recipients = [
            {**entry, "outcome": entry["outcome"] or str(Kind.ACCEPTED)} for entry in message.recipients
        ]
