"""For tests of projects that use mailengine: a queue whose providers fail on demand, and real servers to send to.

Each name is imported on first use: `SMTPServer` needs aiosmtpd, the others need nothing more.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .clock import Clock, FrozenClock
    from .esp_server import ESPServer
    from .mail_queue import MailQueue
    from .providers import FakeProvider, flaky_provider
    from .smtp_server import SMTPServer

__all__ = ["Clock", "ESPServer", "FakeProvider", "FrozenClock", "MailQueue", "SMTPServer", "flaky_provider"]

_HOMES = {
    "Clock": ".clock",
    "ESPServer": ".esp_server",
    "FakeProvider": ".providers",
    "FrozenClock": ".clock",
    "MailQueue": ".mail_queue",
    "SMTPServer": ".smtp_server",
    "flaky_provider": ".providers",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
