"""Backends that talk HTTP, held to one request for one attempt and to the deadline of their handover.

A request that is sent again, by whatever layer, is a second mail. So nothing here is retried and no redirect followed.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ssl import SSLEOFError
from typing import TYPE_CHECKING, Any

from django.core.mail.backends.base import BaseEmailBackend
from requests import Session
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util.retry import Retry

from ..conf import get_settings
from ..deadline import connect, guard

KEY_HEADERS = {
    # ESP: the request header for an idempotency key, at most 256 characters long and good for 24 hours
    "Resend": "Idempotency-Key",  # https://resend.com/docs/dashboard/emails/idempotency-keys
}


def key_header(backend: BaseEmailBackend | type[BaseEmailBackend]) -> str:
    """The header in which this backend's provider takes an idempotency key; empty if it takes none."""
    return KEY_HEADERS.get(getattr(backend, "esp_name", ""), "")


def prepare(backend: BaseEmailBackend) -> None:
    """Make a backend that is not open yet, and talks by boto3, send a request once only.

    Each of its waits is no longer than SEND_DEADLINE_SECONDS; together they may be, since boto3 doesn't let us at its
    sockets. The loop then gives the handover up when its lease is over.
    """
    if getattr(backend, "esp_name", "") != "Amazon SES" or "config" not in getattr(backend, "client_params", {}):
        return
    from botocore.config import Config  # there, since Anymail's backend for SES is

    theirs = backend.client_params["config"]  # type: ignore[attr-defined]
    longest = get_settings().send_deadline_seconds
    ours = Config(
        retries={"total_max_attempts": 1},
        connect_timeout=min(theirs.connect_timeout, longest),
        read_timeout=min(theirs.read_timeout, longest),
    )
    backend.client_params["config"] = theirs.merge(ours)  # type: ignore[attr-defined]


def hold(backend: BaseEmailBackend) -> None:
    """Make an open backend that talks by requests send a request once only, and end it at the deadline."""
    session = getattr(backend, "session", None)
    if not isinstance(session, Session):
        return
    session.max_redirects = 0
    for adapter in session.adapters.values():
        if isinstance(adapter, HTTPAdapter):
            adapter.max_retries = Retry(0, read=False)
            _guard_connections(adapter)


@contextmanager
def carrying(backend: BaseEmailBackend, key: str) -> Iterator[bool]:
    """Within it requests carry this idempotency key; gives whether they do."""
    header, session = key_header(backend), getattr(backend, "session", None)
    if not key or not header or not isinstance(session, Session):
        yield False
        return
    session.headers[header] = key
    try:
        yield True
    finally:
        session.headers.pop(header, None)  # a receiver of Anymail's signals may have made other headers of them


if TYPE_CHECKING:
    _Connection = HTTPConnection
else:
    _Connection = object


class _Guarded(_Connection):
    """A connection, new or kept, that the current deadline guards; what fails before a request says so."""

    def _new_conn(self) -> socket.socket:
        try:
            return connect(
                self.host,
                self.port or self.default_port,
                timeout=self.timeout,
                source_address=self.source_address,
                options=self.socket_options or (),
            )
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        except TimeoutError as error:
            raise ConnectTimeoutError(self, f"No connection to {self.host}: {error}") from error
        except OSError as error:
            raise NewConnectionError(self, f"No connection to {self.host}: {error}") from error

    def connect(self) -> None:
        try:
            super().connect()
        except (ConnectionError, TimeoutError, SSLEOFError) as error:  # in the TLS handshake, or by a proxy
            raise NewConnectionError(self, f"No connection to {self.host}: {error}") from error

    def request(self, *args: Any, **kwargs: Any) -> None:
        if self.sock is not None:
            try:
                guard(getattr(self.sock, "socket", self.sock))  # of urllib3's own wrappers for TLS
            except OSError as error:  # the time is over, or this host has run out of file descriptors
                raise NewConnectionError(self, f"Nothing was sent: {error}") from error
        super().request(*args, **kwargs)


class _GuardedHTTP(_Guarded, HTTPConnection):
    pass


class _GuardedHTTPS(_Guarded, HTTPSConnection):
    pass


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _GuardedHTTP


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _GuardedHTTPS


_POOLS = {HTTPConnectionPool: _HTTPPool, HTTPSConnectionPool: _HTTPSPool}


def _guard_connections(adapter: HTTPAdapter) -> None:
    """Pools of somebody else's making, SOCKS proxies among them, stay as they are, with their timeouts."""
    manager_for = adapter.proxy_manager_for

    def proxy_manager_for(proxy: str, **kwargs: Any) -> Any:
        return _with_guarded_pools(manager_for(proxy, **kwargs))

    adapter.proxy_manager_for = proxy_manager_for  # type: ignore[method-assign]
    _with_guarded_pools(adapter.poolmanager)


def _with_guarded_pools(manager: Any) -> Any:
    pools = manager.pool_classes_by_scheme
    manager.pool_classes_by_scheme = {scheme: _POOLS.get(pool, pool) for scheme, pool in pools.items()}
    return manager
