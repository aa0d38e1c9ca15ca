"""The words of the tables in this folder for what an outcome leads to, each with all that it says."""

from __future__ import annotations

from dataclasses import replace

from mailengine.outcomes import Kind, Outcome

JUDGEMENTS = {
    "accepted": Outcome(Kind.ACCEPTED),
    "refused": Outcome(Kind.REFUSED),
    "refused, bad address": Outcome(Kind.REFUSED, address_is_bad=True),
    "not here": Outcome(Kind.REFUSED, elsewhere=True),
    "cancelled": Outcome(Kind.REFUSED, cancelled=True),
    "deferred": Outcome(Kind.DEFERRED),
    "deferred, greylisted": Outcome(Kind.DEFERRED, greylisted=True),
    "deferred, bad round": Outcome(Kind.DEFERRED, counts_as_bad=True),
    "deferred, 2nd refused": Outcome(Kind.DEFERRED, tries=2, then=Kind.REFUSED),
    "deferred, 2nd misconfigured": Outcome(Kind.DEFERRED, tries=2, then=Kind.MISCONFIGURED),
    "deferred, 3rd refused": Outcome(Kind.DEFERRED, tries=3, then=Kind.REFUSED),
    "unavailable": Outcome(Kind.UNAVAILABLE),
    "unavailable, ours after 10 min": Outcome(Kind.UNAVAILABLE, ours_after_seconds=600),
    "unavailable, ours once open": Outcome(Kind.UNAVAILABLE, ours_after_seconds=0),
    "local": Outcome(Kind.UNAVAILABLE, is_local=True),
    "misconfigured": Outcome(Kind.MISCONFIGURED),
    "throttled": Outcome(Kind.THROTTLED),
    "throttled 7 s": Outcome(Kind.THROTTLED, retry_after_seconds=7),
    "uncertain": Outcome(Kind.UNCERTAIN),
}
NEWS = {"code": "", "detail": "", "phase": "", "provider_message_id": "", "sha256": b"", "refusals": {}}
"""What an outcome tells besides what it leads to."""


def judgement(outcome: Outcome) -> str:
    """The outcome in those words, or with all its fields where it has none."""
    bare = replace(outcome, **NEWS)
    return next((words for words, known in JUDGEMENTS.items() if known == bare), repr(bare))
