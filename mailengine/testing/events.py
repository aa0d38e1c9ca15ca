"""What ESPs report of mail afterwards, without a webhook: by Anymail's signal `tracking`, as its webhook views do."""

from __future__ import annotations

from datetime import datetime, timezone
from uuid import uuid4

from anymail.signals import AnymailTrackingEvent, EventType, RejectReason, tracking
from django.core.mail import EmailMessage

from ..errors import did_you_mean
from ..ids import ID_METADATA

ESP_NAME = "FakeProvider"
EVENTS = sorted(value for name, value in vars(EventType).items() if name.isupper())
REJECT_REASONS = {"bounced": RejectReason.BOUNCED, "complained": RejectReason.SPAM, "rejected": RejectReason.BLOCKED}


def report_event(event_type: str, *, message_id: str, recipient: str) -> None:
    """Let mailengine, and whoever else listens, know that a fake provider reports this of a message.

    `event_type` is one of Anymail's: "delivered", "bounced", "complained", … Raises ValueError for another.
    """
    if event_type not in EVENTS:
        raise ValueError(f"Anymail knows no event {event_type!r}.{did_you_mean(event_type, EVENTS)}")
    event = AnymailTrackingEvent(
        event_type=event_type,
        timestamp=datetime.now(timezone.utc),
        event_id=uuid4().hex,
        message_id=None,
        metadata={ID_METADATA: message_id} if message_id else {},
        recipient=recipient,
        reject_reason=REJECT_REASONS.get(event_type),
        mta_response="550 5.1.1 No such user" if event_type == "bounced" else None,
    )
    tracking.send(sender=None, event=event, esp_name=ESP_NAME)


def report_email(email: EmailMessage, event_type: str) -> None:
    """The same of each recipient of an email that a fake provider took."""
    message_id = str(getattr(email, "metadata", {}).get(ID_METADATA, ""))
    for recipient in email.recipients():
        report_event(event_type, message_id=message_id, recipient=recipient)
