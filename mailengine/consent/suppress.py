"""Put an address on the suppression list, or take it off."""

from __future__ import annotations

from ..models import Suppression
from ..models.suppressions import EVERY_STREAM


def suppress(address: str, *, reason: Suppression.Reason, stream: str = EVERY_STREAM, detail: str = "") -> Suppression:
    """Stop mail to a normalised address, in one stream or in all; the first reason given for it stays."""
    row, _created = Suppression.objects.get_or_create(
        address=address, stream=stream, defaults={"reason": reason, "detail": detail}
    )
    return row


def lift(address: str, *, stream: str = EVERY_STREAM) -> bool:
    """Allow mail to this address again; whether it was stopped."""
    deleted, _rows = Suppression.objects.filter(address=address, stream=stream).delete()
    return deleted > 0
