"""Silence about what nobody who runs a queue can change: `quietly()`."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from anymail.exceptions import AnymailNotSupportedWarning

_lock = threading.Lock()


@contextmanager
def quietly() -> Iterator[None]:
    """Within it Anymail's warning that it tests an ESP no longer is neither written, which cron would mail, nor raised.

    What we rely on of SendGrid has tests of its own: tests/providers/test_sendgrid.py.
    """
    # The filters are the process's own: one thread at a time may put them back as they were.
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", AnymailNotSupportedWarning)
        yield
