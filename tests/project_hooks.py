"""Functions that tests let stand in for mailengine's own."""

from __future__ import annotations

from dataclasses import replace

from django.db import connection

from mailengine.circuit import ProbeState
from mailengine.outcomes import Kind, Outcome

ANSWERS: dict[str, bool] = {"probe": True}
SEEN: list[object] = []


def should_probe(state: ProbeState) -> bool:
    SEEN.append(state)
    return ANSWERS["probe"]


def judge(outcome: Outcome, error: Exception | None, provider: str) -> Outcome:
    """A refused connection is our own firewall."""
    SEEN.append((outcome.kind, type(error), provider))
    return replace(outcome, kind=Kind.MISCONFIGURED) if isinstance(error, ConnectionRefusedError) else outcome


def fail(*args: object) -> object:
    raise RuntimeError("a function of the project's own")


def ask_in_vain(*args: object) -> object:
    with connection.cursor() as cursor:
        return cursor.execute("SELECT an_answer FROM no_such_table")


def say_nothing(*args: object) -> object:
    return "nothing that makes sense"
