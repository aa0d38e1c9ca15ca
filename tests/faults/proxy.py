"""A TCP proxy to put in front of a database or a sink: it cuts, stalls or delays."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from types import TracebackType


class Proxy:
    """Passes bytes on between a port of its own on 127.0.0.1 and that of a server, up within the `with` block.

    `to_server` and `to_client` are the two directions: `proxy.to_client.delay_seconds = 1` lets answers come late.
    """

    def __init__(self, port: int, *, host: str = "127.0.0.1") -> None:
        self.target = host, port
        self.to_server, self.to_client = Direction(), Direction()
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
        hang_up(self._listener)
        self._listener.close()
        self.heal()
        self.cut()

    def cut(self) -> None:
        """Drop the connections there are."""
        for sock in list(self._sockets):
            hang_up(sock)

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
            server = None
            if not self.refuses:
                with suppress(OSError):
                    server = socket.create_connection(self.target, timeout=10)
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
                direction.hold_up()
                self._send(data, source, sink, direction)
        self._sockets.discard(source)
        for sock in (source, sink):
            hang_up(sock)

    def _send(self, data: bytes, source: socket.socket, sink: socket.socket, direction: Direction) -> None:
        """Let this piece go on; OSError where it is to be the last of its connection."""
        sink.sendall(data)


class Direction:
    """One way through a proxy."""

    def __init__(self) -> None:
        self.delay_seconds = 0.0
        """How late each piece arrives."""
        self._is_open = threading.Event()
        self._is_open.set()

    def stall(self) -> None:
        self._is_open.clear()

    def heal(self) -> None:
        self.delay_seconds = 0.0
        self._is_open.set()

    def hold_up(self) -> None:
        """Wait until a piece may go on."""
        if self.delay_seconds:
            time.sleep(self.delay_seconds)
        self._is_open.wait()


def hang_up(sock: socket.socket) -> None:
    """Shut it, so that whoever waits for something from it hears of that at once."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
