"""May we write to this address? Everybody who asks, asks here."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from django.db import router

from ..models import Suppression
from ..models.bulk import select_among
from ..models.suppressions import EVERY_STREAM


def refusals_for(addresses: Collection[str], *, stream: str) -> Mapping[str, str]:
    """The addresses that get no mail of this stream, each with the reason as a sentence; normalised addresses."""
    using = router.db_for_read(Suppression)
    known = select_among(Suppression, ["address"], key="address", values=addresses, using=using)
    if not known:  # as nearly always
        return {}
    rows = Suppression.objects.filter(address__in=[address for (address,) in known], stream__in=[EVERY_STREAM, stream])
    return {row.address: _sentence(row) for row in rows}


def refusal_for(address: str, *, stream: str) -> str | None:
    """Why this address gets no mail of this stream, or None when it does."""
    return refusals_for([address], stream=stream).get(address)


def _sentence(row: Suppression) -> str:
    scope = f"mail of the stream {row.stream}" if row.stream else "all mail"
    since = row.created_at.date().isoformat()
    return f"suppressed: {row.get_reason_display()}; {scope} to it is stopped since {since}"
