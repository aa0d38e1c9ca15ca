"""A database that fails when a test says so: its connections cut, also in the very moment of a commit."""

from __future__ import annotations

import importlib
import select
import socket
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from types import TracebackType

import pytest
from django.db import connection

servers_only = pytest.mark.skipif(connection.vendor == "sqlite", reason="a file has no connections to lose")


class DatabaseProxy:
    """Passes bytes on between a port of its own and the test's database server, up within the `with` block.

        with DatabaseProxy() as proxy:
            proxy.next_commit = "did not arrive"

    The client of the next COMMIT is then cut off, and the server gets it ("arrived") or never does ("did not arrive").
    `down()` drops all connections and refuses new ones.
    """

    def __init__(self) -> None:
        now = connection.settings_dict
        self.server = (now["HOST"], int(now["PORT"]))
        self.next_commit: str | None = None
        self.cut_count = 0
        self.is_down = False
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]

    def __enter__(self) -> DatabaseProxy:
        self._start(self._listen)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self.down()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def down(self) -> None:
        self.is_down = True
        for one in list(self._sockets):
            _cut(one)

    def up(self) -> None:
        self.is_down = False

    def _start(self, work: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _listen(self) -> None:
        with suppress(OSError):  # it was shut down
            while True:
                client, _address = self._listener.accept()
                if self.is_down:
                    client.close()
                else:
                    self._start(self._carry, client, socket.create_connection(self.server))

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        pair = {client: server, server: client}
        self._sockets |= pair.keys()
        with client, server, suppress(OSError):
            while True:
                for source in select.select([client, server], [], [])[0]:
                    data = source.recv(65_536)
                    if not data:
                        return
                    if source is client and self.next_commit and b"COMMIT" in data:  # in capitals: no outcome called so
                        self._cut_commit(client, server, data)
                        return
                    pair[source].sendall(data)

    def _cut_commit(self, client: socket.socket, server: socket.socket, data: bytes) -> None:
        fate, self.next_commit = self.next_commit, None
        self.cut_count += 1
        _cut(client)  # first: it is to look the commit up while the server may still be at it
        if fate == "arrived":
            server.sendall(data)
            server.recv(65_536)


def _cut(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)


@contextmanager
def database_options(**changes):
    """The connection of this thread made anew with these entries of DATABASES."""
    before = {name: connection.settings_dict[name] for name in changes}
    connection.close()
    connection.settings_dict.update(changes)
    try:
        yield
    finally:
        connection.close()
        connection.settings_dict.update(before)


@contextmanager
def through_a_proxy():
    """A wire to the database, which this thread's connection uses."""
    options = dict(connection.settings_dict["OPTIONS"])
    if connection.vendor == "postgresql":
        options |= {"sslmode": "disable", "gssencmode": "disable"}
    with DatabaseProxy() as proxy, database_options(HOST="127.0.0.1", PORT=proxy.port, OPTIONS=options):
        yield proxy


@contextmanager
def raw_connection():
    """A connection beside Django's own, in autocommit."""
    now = connection.settings_dict
    if connection.vendor == "postgresql":
        import psycopg

        other = psycopg.connect(
            host=now["HOST"], port=now["PORT"], user=now["USER"], dbname=now["NAME"], autocommit=True
        )
    elif connection.vendor == "mysql":
        import MySQLdb

        other = MySQLdb.connect(host=now["HOST"], port=int(now["PORT"]), user=now["USER"], database=now["NAME"])
        other.autocommit(True)
    else:
        other = sqlite3.connect(now["NAME"], isolation_level=None, check_same_thread=False)
    try:
        yield other
    finally:
        other.close()


def execute(other, sql):
    cursor = other.cursor()
    cursor.execute(sql)
    return cursor


def terminate_own_connection():
    """Let the server drop this thread's connection, as an administrator or a failover would."""
    connection.ensure_connection()
    is_postgresql = connection.vendor == "postgresql"
    own = connection.connection.info.backend_pid if is_postgresql else connection.connection.thread_id()
    with raw_connection() as other:
        execute(other, f"SELECT pg_terminate_backend({own})" if is_postgresql else f"KILL CONNECTION {own}")
        sessions = "pid FROM pg_stat_activity" if is_postgresql else "id FROM information_schema.processlist"
        wait_for(lambda: (own,) not in execute(other, f"SELECT {sessions}").fetchall())


def wait_for(condition, *, seconds=20):
    ends_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends_at, "waited in vain"
        time.sleep(0.01)


def at(monkeypatch, target, act, *, when="before", times=(1,)):
    """Let `act` run before or after these calls of a function; the list of calls that it ran at is returned."""
    module, _, name = target.rpartition(":")
    owner = importlib.import_module(module)
    *path, attribute = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    original, calls, hits = getattr(owner, attribute), [], []

    def wrapped(*args, **kwargs):
        calls.append(None)
        is_due = len(calls) in times
        if is_due and when == "before":
            hits.append(len(calls))
            act()
        result = original(*args, **kwargs)
        if is_due and when == "after":
            hits.append(len(calls))
            act()
        return result

    monkeypatch.setattr(owner, attribute, wrapped)
    return hits
