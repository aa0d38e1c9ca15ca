"""Finds the cases: every module of this package whose name begins with `cases_`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path


def names() -> list[str]:
    """Where cases are."""
    return [f"{__package__}.{path.stem}" for path in sorted(Path(__file__).parent.glob("cases_*.py"))]


def load() -> None:
    """Import them all, so that they are registered. Django must have been set up."""
    for name in names():
        import_module(name)
