"""Put addresses on the suppression list, and take them off it."""

from __future__ import annotations

from collections.abc import Collection

from ..models import Suppression
from ..models.suppressions import EVERY_STREAM


def suppress(address: str, *, reason: Suppression.Reason, stream: str = EVERY_STREAM, detail: str = "") -> Suppression:
    """Stop mail to a normalised address, in one stream or in all; the first reason given for it stays."""
    row, _created = Suppression.objects.get_or_create(
        address=address, stream=stream, defaults={"reason": reason, "detail": detail}
    )
    return row


def lift(addresses: Collection[str], *, reason: Suppression.Reason, stream: str = EVERY_STREAM) -> int:
    """Let mail go to these normalised addresses again that was stopped for this reason; how many there were."""
    count, _by_model = Suppression.objects.filter(address__in=addresses, reason=reason, stream=stream).delete()
    return count
