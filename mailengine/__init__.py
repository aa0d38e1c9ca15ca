"""Mail that is kept in the database and sent through providers that may fail.

The public names are resolved on first use, so that importing `mailengine` needs neither settings nor apps.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .models import Priority
    from .pipeline.audience import audience
    from .pipeline.direct import asend_direct_email, send_direct_email
    from .pipeline.dispatch import dispatch_slice
    from .pipeline.enqueue import aqueue_job, aqueue_mail, aqueue_message, queue_job, queue_mail, queue_message

__version__ = "0.1.0"

_HOMES = {
    "Priority": "models",
    "aqueue_job": "pipeline.enqueue",
    "aqueue_mail": "pipeline.enqueue",
    "aqueue_message": "pipeline.enqueue",
    "asend_direct_email": "pipeline.direct",
    "audience": "pipeline.audience",
    "dispatch_slice": "pipeline.dispatch",
    "queue_job": "pipeline.enqueue",
    "queue_mail": "pipeline.enqueue",
    "queue_message": "pipeline.enqueue",
    "send_direct_email": "pipeline.direct",
}

__all__ = [
    "Priority",
    "aqueue_job",
    "aqueue_mail",
    "aqueue_message",
    "asend_direct_email",
    "audience",
    "dispatch_slice",
    "queue_job",
    "queue_mail",
    "queue_message",
    "send_direct_email",
]


def __getattr__(name: str) -> Any:
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
