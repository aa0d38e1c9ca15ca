"""A TCP proxy to put in front of a database or a sink: it cuts, stalls, delays, or loses one direction."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType


class Proxy:
    """Passes bytes on between a port of its own on 127.0.0.1 and another server's, up within the `with` block.

    `to_server` and `to_client` are the two directions: `proxy.to_client.lose()` lets answers vanish.
    """

    def __init__(self, port: int) -> None:
        self.target_port = port
        self.to_server, self.to_client = Direction(), Direction()
        self.connection_count = 0
        self.refuses = False
        """Whether new connections are dropped at once."""
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self._listener.getsockname()[1])

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.heal()
        self.cut()

    def cut(self) -> None:
        """Drop the connections there are."""
        for sock in list(self._sockets):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def down(self) -> None:
        """Drop them, and the new ones too."""
        self.refuses = True
        self.cut()

    def stall(self) -> None:
        """Let nothing through either way, and let nobody know: a partition."""
        self.to_server.stall()
        self.to_client.stall()

    def heal(self) -> None:
        """Be a wire again; what was held back goes on its way."""
        self.refuses = False
        self.to_server.heal()
        self.to_client.heal()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # it was closed
                return
            self.connection_count += 1
            server = None
            if not self.refuses:
                with suppress(OSError):
                    server = socket.create_connection(("127.0.0.1", self.target_port), timeout=10)
            if server is None:
                client.close()
                continue
            server.settimeout(None)
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sockets.add(sock)
            threading.Thread(target=self._carry, args=(client, server), daemon=True).start()

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        with client, server:
            back = threading.Thread(target=self._pass_on, args=(server, client, self.to_client), daemon=True)
            back.start()
            self._pass_on(client, server, self.to_server)
            back.join()

    def _pass_on(self, source: socket.socket, sink: socket.socket, direction: Direction) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                if direction.lets_through(data):
                    sink.sendall(data)
        self._sockets.discard(source)
        for sock in (source, sink):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class Direction:
    """One way through a proxy."""

    def __init__(self) -> None:
        self.delay_seconds = 0.0
        """How late each piece arrives."""
        self.cut_at: bytes = b""
        """With some bytes: the piece that has them is lost, and its connection cut."""
        self.was_cut = threading.Event()
        """Whether `cut_at` was met."""
        self._is_losing = False
        self._is_open = threading.Event()
        self._is_open.set()

    def stall(self) -> None:
        self._is_open.clear()

    def lose(self) -> None:
        """Let what comes vanish."""
        self._is_losing = True

    def heal(self) -> None:
        self.delay_seconds, self.cut_at, self._is_losing = 0.0, b"", False
        self._is_open.set()

    def lets_through(self, data: bytes) -> bool:
        """Whether this piece goes on, once it may; ConnectionAbortedError where the connection is to be cut."""
        if self.delay_seconds:
            threading.Event().wait(self.delay_seconds)
        self._is_open.wait()
        if self.cut_at and self.cut_at in data:
            self.cut_at = b""
            self.was_cut.set()
            raise ConnectionAbortedError("cut, as told")
        return not self._is_losing
