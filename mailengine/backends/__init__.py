"""Backends for `MAILERS`: `EmailBackend` queues what Django sends, `SMTPBackend` sends what is queued.

Each is imported on first use, so that neither needs what the other does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .queueing import EmailBackend
    from .smtp import SMTPBackend

__all__ = ["EmailBackend", "SMTPBackend"]

_HOMES = {"EmailBackend": ".queueing", "SMTPBackend": ".smtp"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
