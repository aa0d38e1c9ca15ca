"""A hard end for work on sockets: `Deadline`.

A timeout bounds one wait, and a server that sends a byte now and then outlives it. So one thread of the process, the
watchdog, shuts the sockets down when their time is over: whoever waits for them wakes up with an error.
"""

from __future__ import annotations

import errno
import math
import os
import socket
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any


class Deadline:
    """An instant on `time.monotonic()` at which the sockets that it guards are shut down.

        with Deadline(time.monotonic() + 60):
            sock = connect("mx.example.org", 25, timeout=10)

    Code below finds it by `current()`. Of nested ones the earlier counts, and that is what `with` gives.
    Looking up a host name can't be ended; it is only noticed afterwards that the time is over.
    """

    def __init__(self, ends_at: float) -> None:
        self.ends_at = ends_at
        self._seconds = ends_at - time.monotonic()
        self._outer: Deadline | None = None
        self._guarded: list[Guarded] = []

    @property
    def remaining_seconds(self) -> float:
        """Not below 0."""
        return max(self.ends_at - time.monotonic(), 0.0)

    @property
    def has_passed(self) -> bool:
        return time.monotonic() >= self.ends_at

    def check(self) -> None:
        """Raise TimeoutError if it has passed: for a last look before something that can't be taken back."""
        if self.has_passed:
            raise TimeoutError(str(self))

    def guard(self, sock: socket.socket | Guarded) -> None:
        """Shut `sock` down when the time comes, unless the `with` block was left before; TimeoutError if it has come.

        It costs some microseconds, and less for a `Guarded`. The caller may wrap the socket in TLS or close it; the
        other side hears of a close when the block is left, at the latest.
        OSError if this host can't keep the time: it has no thread or no file descriptor left.
        """
        self.check()
        _watchdog.watch(self, sock if isinstance(sock, Guarded) else Guarded(sock, is_kept=False))

    def __enter__(self) -> Deadline:
        outer = current()
        if outer is not None and outer.ends_at <= self.ends_at:
            return outer
        self._outer = outer
        _local.deadline = self
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if current() is self:
            _local.deadline = self._outer
            _watchdog.forget(self)

    def __str__(self) -> str:
        return f"not done within {round(max(self._seconds, 0), 1):g} s"


class Guarded:
    """A socket that is guarded by many deadlines, one after another; `close()` it with the socket.

    What is held is a duplicate, so it makes no difference what becomes of the socket meanwhile.
    """

    def __init__(self, sock: socket.socket, *, is_kept: bool = True) -> None:
        self._duplicate = socket.fromfd(sock.fileno(), sock.family, sock.type)
        self._is_kept = is_kept

    def close(self) -> None:
        with _watchdog._changed:  # or it might just be shutting down what the number of this file now stands for
            self._duplicate.close()

    def _shut_down(self) -> None:
        with suppress(OSError):  # the other side was faster, or it is closed
            self._duplicate.shutdown(socket.SHUT_RDWR)

    def _let_go(self) -> None:
        if not self._is_kept:
            self._duplicate.close()


def current() -> Deadline | None:
    """The deadline of the `with` block that this thread is in."""
    return getattr(_local, "deadline", None)


def connect(
    host: str,
    port: int,
    *,
    timeout: float | None,
    source_address: Any = None,
    options: Iterable[tuple[int, int, int | bytes]] = (),
) -> socket.socket:
    """A connection to the first address of `host` that takes one, guarded by the current deadline.

    Like `socket.create_connection()`, but the addresses share what time is left: one that doesn't answer must not cost
    the others theirs, nor all together more than there is.
    """
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    last_error: OSError | None = None
    for tried, (family, kind, protocol, _, address) in enumerate(addresses):
        check()
        sock = socket.socket(family, kind, protocol)
        try:
            for option in options:
                sock.setsockopt(*option)
            sock.settimeout(_share(timeout, len(addresses) - tried))
            if source_address is not None:
                sock.bind(source_address)
            sock.connect(address)
            sock.settimeout(timeout)
            guard(sock)
            return sock
        except OSError as error:
            sock.close()
            last_error = error
        except BaseException:
            sock.close()
            raise
    raise last_error or OSError(f"{host} has no address")


def guard(sock: socket.socket | Guarded) -> None:
    """Let the current deadline guard `sock`, where there is one; TimeoutError if it has passed."""
    deadline = current()
    if deadline is not None:
        deadline.guard(sock)


def check() -> None:
    """Raise TimeoutError if the current deadline has passed."""
    deadline = current()
    if deadline is not None:
        deadline.check()


def _share(timeout: float | None, address_count: int) -> float | None:
    deadline = current()
    if deadline is None:
        return timeout
    share = max(deadline.remaining_seconds / address_count, 0.001)  # 0 would mean: don't wait at all
    return share if timeout is None else min(share, timeout)


class _Watchdog:
    """The thread that keeps all deadlines of the process; it starts with the first and sleeps until the next is due."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._deadlines: set[Deadline] = set()
        self._passed: set[Deadline] = set()
        self._wakes_at = math.inf
        self._thread: threading.Thread | None = None

    def watch(self, deadline: Deadline, guarded: Guarded) -> None:
        with self._changed:
            if self._thread is None or not self._thread.is_alive():
                thread = threading.Thread(target=self._run, name="mailengine-watchdog", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    guarded._let_go()
                    raise OSError(errno.EAGAIN, f"No watchdog: {error}") from error
                self._thread = thread
            elif deadline.ends_at < self._wakes_at:
                self._wakes_at = deadline.ends_at
                self._changed.notify()
            deadline._guarded.append(guarded)
            self._deadlines.add(deadline)

    def forget(self, deadline: Deadline) -> None:
        with self._changed:  # so that nothing is shut down once this has returned
            self._deadlines.discard(deadline)
            self._passed.discard(deadline)
            guarded, deadline._guarded = deadline._guarded, []
        for each in guarded:
            each._let_go()

    def forget_all(self) -> None:
        """In a new process after fork(): the connections are its parent's, and so was the thread."""
        for deadline in self._deadlines | self._passed:
            for guarded in deadline._guarded:
                guarded._let_go()
            deadline._guarded = []
        self.__init__()  # type: ignore[misc]  # the lock, too: its holder may not exist here

    def _run(self) -> None:
        with self._changed:
            while True:
                due = {deadline for deadline in self._deadlines if deadline.has_passed}
                self._deadlines -= due
                self._passed |= due
                for deadline in due:
                    for guarded in deadline._guarded:
                        guarded._shut_down()
                self._wakes_at = min((deadline.ends_at for deadline in self._deadlines), default=math.inf)
                seconds = min(max(self._wakes_at - time.monotonic(), 0), threading.TIMEOUT_MAX)
                self._changed.wait(seconds)


_local = threading.local()
_watchdog = _Watchdog()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_watchdog.forget_all)
