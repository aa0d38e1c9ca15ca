"""A real HTTP server that speaks the sending APIs of some ESPs, and fails the way it is told to: `ESPServer`."""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, repeat
from typing import Any

from .esp_apis import API, ESPS, Answer, File, Parcel, body_of, resend_error

__all__ = ["DRIP_SECONDS", "ESPS", "Answer", "ESPServer", "Fault", "File", "Mail", "every", "in_turn"]


class Fault(Enum):
    """What else can happen to a call than an answer."""

    HANG_UP = "hang up"  # without having accepted anything
    ACCEPT_AND_HANG_UP = "accept and hang up"
    ACCEPT_IN_SILENCE = "accept in silence"  # until the client gives up
    HANG = "hang"  # until the client gives up, without having accepted anything
    DRIP = "drip"  # accept, and answer byte by byte, without an end


DRIP_SECONDS = 0.05
"""Between two bytes of an answer that drips."""


@dataclass(frozen=True)
class Mail:
    """One mail as an ESP was given it."""

    esp: str
    recipients: tuple[str, ...]
    mailengine_id: str
    fields: Any
    """The body of the call: the JSON, or the form with a list for each name. A call for many is the same to each."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Those of the request, their names in lower case."""
    own_headers: Mapping[str, str] = field(default_factory=dict)
    """Those that this mail is given beside subject and addresses, as they are written there."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    attachments: tuple[File, ...] = ()
    """Its files, inline images among them, decoded."""
    at: float = field(default_factory=time.monotonic, compare=False)
    """When it came, on this process's monotonic clock."""


class ESPServer:
    """A server on 127.0.0.1, up within the `with` block, for any of the ESPs in `ESPS`.

        with ESPServer() as esp:
            settings.MAILERS = {"mailgun": esp.mailer("mailgun"), "postmark": esp.mailer("postmark")}
            esp.behave = every(2, Answer(503))

    `behave` is given each mail, of a call for many the first, and returns an `Answer`, a `Fault`, or None to accept it;
    it runs in the threads of the connections, one at a time. `on_accepted` is given each one that is accepted, before
    its sender hears of it; it runs in the thread of the connection, perhaps in several at once.
    Addresses in `inactive` are refused the way each ESP does. Only what was accepted is in `accepted`, also of a call
    for many a mail for each recipient; `calls` counts all calls. An idempotency key is honoured by the ESPs that do.
    """

    def __init__(
        self,
        *,
        behave: Callable[[Mail], Answer | Fault | None] | None = None,
        on_accepted: Callable[[Mail], None] | None = None,
    ) -> None:
        self.behave = behave
        self.on_accepted = on_accepted
        self.delay_seconds = 0.0
        """How long each answer takes."""
        self.inactive: set[str] = set()
        self.accepted: list[Mail] = []
        self.calls = 0
        self.connection_count = 0
        self.host = "127.0.0.1"
        self.port = 0
        self._lock = threading.Lock()
        self._keys: dict[str, _Remembered] = {}
        self._sockets: set[socket.socket] = set()
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def mailer(self, esp: str, **options: Any) -> dict[str, Any]:
        """An entry of `MAILERS` for this ESP's real Anymail backend that sends here, with these OPTIONS besides."""
        api = ESPS[esp]
        timeout = options.pop("timeout", 5)
        options = {**api.options(self.url + api.root, timeout), **options}
        return {"BACKEND": f"anymail.backends.{esp}.EmailBackend", "OPTIONS": options}

    def down(self) -> None:
        """Drop all connections and refuse new ones, until `up()`."""
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._server = self._thread = None
        self.hang_up()

    def up(self) -> None:
        """Listen again, on the same port."""
        self._server = _Server(self)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="ESPServer", daemon=True)
        self._thread.start()

    def hang_up(self) -> None:
        """Drop the connections there are; new ones are welcome."""
        while self._sockets:
            for connection in list(self._sockets):
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            time.sleep(0.001)

    def __enter__(self) -> ESPServer:
        self.up()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.down()

    def _answer(self, path: str, headers: Mapping[str, str], body: bytes) -> Answer | Fault:
        for esp, api in ESPS.items():
            if re.fullmatch(re.escape(api.root) + api.path, path):
                fields = body_of(headers.get("content-type", ""), body)
                parcels = api.read(fields)
                mails = [_mail(esp, parcel, fields, headers) for parcel in parcels]
                key = headers.get(api.key_header, "") if api.key_header else ""
                return self._answer_to(mails, parcels, api, key=key, body=body)
        return Answer(404, {"message": f"No such path: {path}"})

    def _answer_to(
        self, mails: list[Mail], parcels: list[Parcel], api: API, *, key: str, body: bytes
    ) -> Answer | Fault:
        with self._lock:
            self.calls += 1
            happens = self.behave(mails[0]) if self.behave is not None else None
            if isinstance(happens, Answer) or happens in {Fault.HANG_UP, Fault.HANG}:
                return happens
            if key in self._keys:
                return happens or self._keys[key].answer_to(body)
            verdict = api.answer(parcels, self.inactive)
            accepted = [mails[number] for number in verdict.accepted]
            self.accepted.extend(accepted)
            if accepted and key:
                self._keys[key] = _Remembered(body, verdict.answer)
        for mail in accepted:
            if self.on_accepted is not None:
                self.on_accepted(mail)
        if key in self._keys:
            self._keys[key].is_done = True
        return happens or verdict.answer


def _mail(esp: str, parcel: Parcel, fields: Any, headers: Mapping[str, str]) -> Mail:
    return Mail(
        esp,
        parcel.recipients,
        parcel.mailengine_id,
        fields,
        headers,
        own_headers=parcel.headers,
        metadata=parcel.metadata,
        attachments=parcel.files,
    )


@dataclass
class _Remembered:
    """The first call with an idempotency key, as Resend remembers it: https://resend.com/docs/api-reference/errors."""

    body: bytes
    answer: Answer
    is_done: bool = False

    def answer_to(self, body: bytes) -> Answer:
        """What a later call with the same key is told."""
        if body != self.body:
            text = "Same idempotency key used with a different request payload."
            return resend_error(409, "invalid_idempotent_request", text)
        if not self.is_done:
            text = "Same idempotency key used while original request is still in progress."
            return resend_error(409, "concurrent_idempotent_requests", text)
        return self.answer


def every(number: int, fault: Answer | Fault) -> Callable[[Mail], Answer | Fault | None]:
    """A behaviour: this fault at every `number`-th call."""
    calls = 0

    def behave(_mail: Mail) -> Answer | Fault | None:
        nonlocal calls
        calls += 1
        return fault if calls % number == 0 else None

    return behave


def in_turn(*faults: Answer | Fault | None) -> Callable[[Mail], Answer | Fault | None]:
    """A behaviour: these faults in order, None for a mail that is accepted; after the last all are."""
    remaining = iter(faults)
    return lambda _mail: next(remaining, None)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, esp: ESPServer) -> None:
        self.esp = esp
        super().__init__((esp.host, esp.port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer's own asks the DNS for our name, which can take seconds.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.esp.host, int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        self.esp.connection_count += 1
        self.esp._sockets.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        self.esp._sockets.discard(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a client that hangs up is no news; a bug of ours is
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    # Headers and body in one packet, at once: in two, Nagle's algorithm and delayed ACKs cost 40 ms a mail.
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.server.esp._answer(self.path, headers, body)
        time.sleep(self.server.esp.delay_seconds)
        if isinstance(answer, Fault):
            self.close_connection = True
            if answer in {Fault.HANG, Fault.ACCEPT_IN_SILENCE}:
                self.rfile.read(1)
            elif answer is Fault.DRIP:
                self._drip()
            return
        text = answer.body if isinstance(answer.body, str) else json.dumps(answer.body)
        self.send_response(answer.status)
        self.send_header("Content-Length", str(len(text.encode())))
        self.send_header("Content-Type", "text/plain" if isinstance(answer.body, str) else "application/json")
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())
        self.wfile.flush()

    def _drip(self) -> None:
        """Until the client has gone, which a write shows."""
        for byte in chain(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", repeat(ord(" "))):
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(DRIP_SECONDS)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (http.server's name)
        """Tests look at `accepted`, not at a log."""
