"""Functions of a project that stand in for ours, named by dotted path in `MAILENGINE`.

A function that fails, or gives what it must not, costs an error in the log and no mail: ours decides then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from django.db import transaction
from django.utils.module_loading import import_string

from .circuit import ProbeState, should_probe
from .conf import Settings, get_settings
from .outcomes import Outcome

logger = logging.getLogger("mailengine.hooks")


def prober(settings: Settings, *, using: str) -> Callable[[ProbeState], bool]:
    """What decides whether to probe a provider that rests: SHOULD_PROBE, or `mailengine.circuit.should_probe`.

    It is asked in the midst of transactions on the database `using`, which survive a query of its own that fails.
    """
    theirs = _function(settings.should_probe)
    if theirs is None:
        return should_probe

    def decide(state: ProbeState) -> bool:
        try:
            with transaction.atomic(using=using):
                return bool(theirs(state))
        except Exception:
            logger.exception("SHOULD_PROBE failed for %s; the probe interval decides", state.alias)
            return should_probe(state)

    return decide


def judged(outcome: Outcome, error: Exception | None, *, provider: str) -> Outcome:
    """What a handover came to in the eyes of CLASSIFIER, if the project has one.

    It is called as `classifier(outcome, error, provider)` for all that was not accepted, with our judgement and the
    error that the backend raised, or None if it returned; it gives back this outcome or another.
    """
    if outcome.is_good_round:
        return outcome
    classify = _function(get_settings().classifier)
    if classify is None:
        return outcome
    try:
        theirs = classify(outcome, error, provider)
    except Exception:
        logger.exception("CLASSIFIER failed on %s: %s of %s; our own judgement holds", outcome.kind, outcome, provider)
        return outcome
    if isinstance(theirs, Outcome):
        return theirs
    logger.error("CLASSIFIER gave %s and no Outcome for %s; our own judgement holds", type(theirs).__name__, provider)
    return outcome


def _function(path: str | None) -> Callable[..., Any] | None:
    if path is None:
        return None
    try:
        found: Callable[..., Any] = import_string(path)
    except ImportError:
        logger.exception("%s can't be imported; our own function decides", path)
        return None
    return found
