"""When to try again, and when to stop."""

from __future__ import annotations

import random
from datetime import datetime, timedelta

from ..conf import Settings

GREYLISTED_SECONDS = 300
"""A greylisting server wants to see the same mail again after this long: https://www.rfc-editor.org/rfc/rfc6647"""
SPREAD = 0.2


def wait_seconds(attempts: int, *, settings: Settings, greylisted: bool = False, chance: float | None = None) -> float:
    """How long to wait after the `attempts`-th failure: twice as long each time, give or take 20 %.

    So that a recipient's server coming back isn't met by everybody at once. On retry times: RFC 5321, section 4.5.4.1.
    `chance` from 0 to 1 stands in for the random number.
    """
    longest = settings.backoff_longest_seconds
    wait = min(settings.backoff_first_seconds * 2.0 ** min(attempts - 1, 30), longest)
    wait *= 1 + SPREAD * (2 * (random.random() if chance is None else chance) - 1)  # noqa: S311  not a secret
    if greylisted:
        wait = max(wait, GREYLISTED_SECONDS)
    return min(wait, longest)


def next_try_at(
    attempts: int,
    *,
    failed_at: datetime,
    first_failed_at: datetime,
    lifetime_seconds: float,
    settings: Settings,
    greylisted: bool = False,
    chance: float | None = None,
) -> datetime | None:
    """When to try a message again after its `attempts`-th failure, or None to give it up.

    Its last try is at the end of its lifetime, which began with its first failure.
    """
    ends_at = first_failed_at + timedelta(seconds=lifetime_seconds)
    if attempts >= settings.max_attempts or failed_at >= ends_at:
        return None
    wait = wait_seconds(attempts, settings=settings, greylisted=greylisted, chance=chance)
    return min(failed_at + timedelta(seconds=wait), ends_at)
