"""The outcomes that the tables name, and how one gets the words of an error."""

from __future__ import annotations

import re
from dataclasses import replace

from anymail.exceptions import AnymailError

from ...outcomes import Kind, Outcome
from .errors import text_of

ACCEPTED = Outcome(Kind.ACCEPTED)
REFUSED = Outcome(Kind.REFUSED)
CANCELLED = Outcome(Kind.REFUSED, code="cancelled by pre_send", cancelled=True)
BAD_ADDRESS = Outcome(Kind.REFUSED, address_is_bad=True)
NOT_HERE = Outcome(Kind.REFUSED, elsewhere=True)
DEFERRED = Outcome(Kind.DEFERRED)
AT_ONCE = Outcome(Kind.DEFERRED, retry_after_seconds=0)
GREYLISTED = Outcome(Kind.DEFERRED, greylisted=True)
CUT_SHORT = Outcome(Kind.DEFERRED, counts_as_bad=True)
ONCE_MORE = Outcome(Kind.DEFERRED, tries=2, then=Kind.REFUSED)
OUT_OF_STEP = Outcome(Kind.DEFERRED, tries=2, then=Kind.MISCONFIGURED)
UNCLASSIFIED = Outcome(Kind.DEFERRED, tries=3, then=Kind.REFUSED)
UNAVAILABLE = Outcome(Kind.UNAVAILABLE)
NAME_UNKNOWN = Outcome(Kind.UNAVAILABLE, ours_after_seconds=600)
NO_HANDSHAKE = Outcome(Kind.UNAVAILABLE, ours_after_seconds=0)
LOCAL = Outcome(Kind.UNAVAILABLE, is_local=True)
MISCONFIGURED = Outcome(Kind.MISCONFIGURED)
THROTTLED = Outcome(Kind.THROTTLED)
UNCERTAIN = Outcome(Kind.UNCERTAIN)

ADDRESS = re.compile(r'<[^<>]*@[^<>]*>|("(\\.|[^"\\])*"|[^\s"]+)@\S+')
LONGEST_MATCHED = 1000
"""How much of an answer is looked at: time must not grow with the square of what a stranger writes."""
SPEAK_OF_NO_SECRET = frozenset({"builtins", "socket", "ssl"})
"""Modules whose OSErrors quote nothing but a file's name."""


def named(outcome: Outcome, error: BaseException, *, detail: str | None = None) -> Outcome:
    if detail is None:
        detail = "" if isinstance(error, AnymailError) else text_of(error)  # Anymail's has the payload
    return replace(outcome, code=type(error).__name__, detail=detail)


def caused(outcome: Outcome, error: BaseException) -> Outcome:
    """With the class of the error; with its text only where that is the system's own, and so quotes no key."""
    is_the_systems = isinstance(error, OSError) and type(error).__module__ in SPEAK_OF_NO_SECRET
    says_where = type(error).__name__ in {"NewConnectionError", "NameResolutionError", "ConnectTimeoutError"}
    return named(outcome, error, detail=text_of(error) if is_the_systems or says_where else "")


def without_addresses(text: str) -> str:
    """Nobody shall stop a provider by subscribing as unverified@example.org."""
    return re.sub(ADDRESS, "", text[:LONGEST_MATCHED])
