"""UUIDv7: unique without coordination, and sorted by the time of creation (RFC 9562, section 5.7)."""

from __future__ import annotations

import os
import threading
import time
from datetime import datetime
from uuid import UUID

ID_METADATA = "mailengine_id"
"""Under which name a mail carries its message's id to an ESP, and the ESP's events carry it back."""

_lock = threading.Lock()
_last = 0


def uuid7() -> UUID:
    """A new id: 48 bits of milliseconds, then 74 random bits that only grow within one millisecond of one process."""
    global _last
    milliseconds = time.time_ns() // 1_000_000
    candidate = milliseconds << 74 | int.from_bytes(os.urandom(10), "big") >> 7
    with _lock:
        # Within a millisecond, or after the clock was set back, go on from the last one by a random step, so that ids
        # stay in the order of their making and can't be guessed from each other.
        _last = candidate if candidate >> 74 > _last >> 74 else _last + 1 + int.from_bytes(os.urandom(4), "big")
        value = _last
    high, low = value >> 62, value & (1 << 62) - 1
    # version 7 stands between the 48 bits of time and 12 of the random bits, the variant before the other 62
    return UUID(int=(high >> 12) << 80 | 7 << 76 | (high & 0xFFF) << 64 | 2 << 62 | low)


def first_id_of(instant: datetime) -> UUID:
    """The smallest id that can have been made at this instant or later, by the clock of who made it."""
    return UUID(int=int(instant.timestamp() * 1_000) << 80)
