"""A database that fails when a test says so: its connections cut, also in the very moment of a commit."""

from __future__ import annotations

import importlib
import socket
import sqlite3
import time
from contextlib import contextmanager

import pytest
from django.db import connection

from .faults.proxy import Direction, Proxy, hang_up

servers_only = pytest.mark.skipif(connection.vendor == "sqlite", reason="a file has no connections to lose")


class DatabaseProxy(Proxy):
    """A wire to the test's database server, up within the `with` block.

        with DatabaseProxy() as proxy:
            proxy.next_commit = "did not arrive"

    The client of the next COMMIT is then cut off, and the server gets it ("arrived") or never does ("did not arrive").
    `down()` drops all connections and refuses new ones, until `up()`.
    """

    def __init__(self) -> None:
        super().__init__(int(connection.settings_dict["PORT"]), host=connection.settings_dict["HOST"])
        self.next_commit: str | None = None
        self.cut_count = 0

    def up(self) -> None:
        self.heal()

    def _send(self, data: bytes, source: socket.socket, sink: socket.socket, direction: Direction) -> None:
        is_commit = direction is self.to_server and b"COMMIT" in data  # in capitals: no outcome is called so
        if not (is_commit and self.next_commit):
            super()._send(data, source, sink, direction)
            return
        fate, self.next_commit = self.next_commit, None
        self.cut_count += 1
        hang_up(source)  # first: it is to look the commit up while the server may still be at it
        if fate == "arrived":
            super()._send(data, source, sink, direction)
        raise ConnectionAbortedError("cut, as told")


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
