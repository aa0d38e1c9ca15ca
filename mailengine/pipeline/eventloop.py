"""One thread for all connections on which a server answers as expected: `EventLoop`.

A thread for each would do the same, but Python's lock would go from one to another at each read and write, and that
takes longer than the reading and writing.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

from ..backends.dialogue import Progress

logger = logging.getLogger("mailengine.dispatch")

LOOK_SECONDS = 0.1
"""How often it looks for servers that let us wait for too long."""


class Handover(Protocol):
    """What it drives. None of these may wait, or raise."""

    def begin(self) -> socket.socket | None:
        """Take the first step; None: it can't be driven, and nothing has begun."""

    def go_on(self) -> Progress:
        """Take the next step, now that the socket has something to read."""

    def is_overdue(self) -> bool:
        """Whether it has waited for too long."""


H = TypeVar("H", bound=Handover)


class EventLoop(Generic[H]):
    """Drives handovers as long as nothing needs more than to read a reply and to write what comes next.

    Should it fail itself, all that it drove gets a thread, and it takes no more.

    `when_sent` gets those that were sent, `when_stuck` one that needs a thread of its own to go on. Both are called in
    the thread of the loop, which starts with the first handover; once it has failed, `put()` may call `when_stuck` too.
    """

    def __init__(self, *, when_sent: Callable[[list[H]], None], when_stuck: Callable[[H], None]) -> None:
        self._when_sent, self._when_stuck = when_sent, when_stuck
        self._arrived: deque[H] = deque()
        self._driven: dict[H, socket.socket] = {}
        self._thread: threading.Thread | None = None
        self._is_ringing = False
        self._is_closing = False
        self._is_broken = False
        self._looks_at = 0.0

    def put(self, handover: H) -> None:
        """Drive this one. RuntimeError or OSError where it can't: this host has no thread or no file left, say."""
        if self._is_broken:
            raise RuntimeError("the event loop has failed")
        if self._thread is None:
            self._start()
        self._arrived.append(handover)
        self._ring()
        if self._is_broken:
            self._pass_on()  # it may have looked for the last time before this one arrived

    def close(self) -> None:
        """Let the thread end once it drives nothing any more."""
        self._is_closing = True
        if self._thread is not None:
            self._ring()

    def join(self, *, timeout: float) -> None:
        """Wait for its end."""
        if self._thread is not None:
            self._thread.join(timeout)

    def _start(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._bell, self._button = socket.socketpair()
        self._selector.register(self._bell, selectors.EVENT_READ)
        thread = threading.Thread(target=self._run, name="mailengine-loop", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            self._release()
            raise
        self._thread = thread

    def _ring(self) -> None:
        if not self._is_ringing:  # it looks at what has arrived after it has set this back
            self._is_ringing = True
            with suppress(OSError):  # the thread may have ended
                self._button.send(b"!")

    def _run(self) -> None:
        try:
            while self._arrived or self._driven or not self._is_closing:
                self._turn()
        except Exception:
            logger.exception("the event loop failed; mail goes by threads from now on")
            self._is_broken = True
            for handover in self._driven:
                self._when_stuck(handover)
            self._driven.clear()
            self._pass_on()
        self._release()

    def _pass_on(self) -> None:
        """What has arrived gets a thread: each once, whoever of the two threads takes it out."""
        with suppress(IndexError):
            while True:
                self._when_stuck(self._arrived.popleft())

    def _turn(self) -> None:
        sent: list[H] = []
        for key, _event in self._selector.select(LOOK_SECONDS if self._driven else None):
            if key.fileobj is self._bell:
                self._bell.recv(64)
                self._is_ringing = False
                continue
            handover: H = key.data
            progress = handover.go_on()
            if progress is not Progress.WAITS:
                self._let_go(handover)
                if progress is Progress.SENT:
                    sent.append(handover)
                else:
                    self._when_stuck(handover)
        if sent:
            self._when_sent(sent)
        while self._arrived:
            self._begin(self._arrived.popleft())
        if time.monotonic() >= self._looks_at:
            self._looks_at = time.monotonic() + LOOK_SECONDS
            for handover in [each for each in self._driven if each.is_overdue()]:
                self._let_go(handover)
                self._when_stuck(handover)

    def _begin(self, handover: H) -> None:
        sock = handover.begin()
        if sock is None:
            self._when_stuck(handover)
            return
        try:
            self._selector.register(sock, selectors.EVENT_READ, handover)
        except (OSError, ValueError, KeyError):  # this host can't watch so many, say
            self._when_stuck(handover)
            return
        self._driven[handover] = sock

    def _let_go(self, handover: H) -> None:
        self._selector.unregister(self._driven.pop(handover))

    def _release(self) -> None:
        self._selector.close()
        self._bell.close()
        self._button.close()
