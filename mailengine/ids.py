"""UUIDv7: unique without coordination, and sorted by the time of creation (RFC 9562, section 5.7)."""

from __future__ import annotations

import os
import struct
import threading
import time
from itertools import accumulate
from uuid import UUID

ID_METADATA = "mailengine_id"
"""Under which name a mail carries its message's id to an ESP, and the ESP's events carry it back."""

_lock = threading.Lock()
_last = 0


def uuid7() -> UUID:
    """A new id: 48 bits of milliseconds, then 74 random bits that only grow within one millisecond of one process."""
    return uuid7s(1)[0]


def uuid7s(count: int) -> list[UUID]:
    """So many new ids, in order; together they cost a third of what they do one by one."""
    global _last
    if count < 1:
        return []
    milliseconds = time.time_ns() // 1_000_000
    candidate = milliseconds << 74 | int.from_bytes(os.urandom(10), "big") >> 7
    # Within a millisecond, or after the clock was set back, ids go on from the last one by random steps, so that they
    # stay in the order of their making and can't be guessed from each other. After 200,000 ids the steps may have
    # used up a millisecond, and take from the next.
    steps = [1 + (step >> 8) for step in struct.unpack(f">{count}Q", os.urandom(8 * count))]
    with _lock:
        first = candidate if candidate >> 74 > _last >> 74 else _last + steps[0]
        values = list(accumulate(steps[1:], initial=first))
        _last = values[-1]
    return [_uuid(value) for value in values]


def _uuid(value: int) -> UUID:
    high, low = value >> 62, value & (1 << 62) - 1
    # version 7 stands between the 48 bits of time and 12 of the random bits, the variant before the other 62
    return UUID(int=(high >> 12) << 80 | 7 << 76 | (high & 0xFFF) << 64 | 2 << 62 | low)
