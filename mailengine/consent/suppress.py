"""Put an address on the suppression list."""

from __future__ import annotations

from ..models import Suppression
from ..models.suppressions import EVERY_STREAM


def suppress(address: str, *, reason: Suppression.Reason, stream: str = EVERY_STREAM, detail: str = "") -> Suppression:
    """Stop mail to a normalised address, in one stream or in all; the first reason given for it stays."""
    row, _created = Suppression.objects.get_or_create(
        address=address, stream=stream, defaults={"reason": reason, "detail": detail}
    )
    return row
