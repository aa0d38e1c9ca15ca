"""A real HTTP server that speaks the sending APIs of some ESPs, and fails the way it is told to: `ESPServer`."""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email import message_from_bytes
from email.policy import HTTP
from email.utils import getaddresses
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs


class Fault(Enum):
    """What else can happen to a call than an answer."""

    HANG_UP = "hang up"  # without having accepted anything
    ACCEPT_AND_HANG_UP = "accept and hang up"
    ACCEPT_IN_SILENCE = "accept in silence"  # until the client gives up


@dataclass(frozen=True)
class Answer:
    """An HTTP answer: `Answer(429, headers={"Retry-After": "7"})`."""

    status: int
    body: str | Mapping[str, Any] = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Mail:
    """One mail as an ESP was given it."""

    esp: str
    recipients: tuple[str, ...]
    mailengine_id: str
    fields: Mapping[str, Any]
    """The call itself: the JSON body, or the form with a list for each name."""
    at: float = field(default_factory=time.monotonic, compare=False)
    """When it came, on this process's monotonic clock."""


class ESPServer:
    """A server on 127.0.0.1, up within the `with` block, for any of the ESPs in `ESPS`.

        with ESPServer() as esp:
            settings.MAILERS = {"mailgun": esp.mailer("mailgun"), "postmark": esp.mailer("postmark")}
            esp.behave = every(2, Answer(503))

    `behave` is given each mail and returns an `Answer`, a `Fault`, or None to accept it; it runs in the threads of the
    connections, one at a time. Addresses in `inactive` are refused the way each ESP does. Only what was accepted is
    in `accepted`; `calls` counts all.
    """

    def __init__(self, *, behave: Callable[[Mail], Answer | Fault | None] | None = None) -> None:
        self.behave = behave
        self.delay_seconds = 0.0
        """How long each answer takes."""
        self.inactive: set[str] = set()
        self.accepted: list[Mail] = []
        self.calls = 0
        self.connection_count = 0
        self.host = "127.0.0.1"
        self.port = 0
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def mailer(self, esp: str, **options: Any) -> dict[str, Any]:
        """An entry of `MAILERS` for this ESP's real Anymail backend that sends here, with these OPTIONS besides."""
        api = ESPS[esp]
        options = {"api_url": self.url + api.root, "timeout": 5, **api.options, **options}
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

    def _answer(self, path: str, content_type: str, body: bytes) -> Answer | Fault:
        for esp, api in ESPS.items():
            if re.fullmatch(re.escape(api.root) + api.path, path):
                return self._answer_as(esp, api, _fields(content_type, body))
        return Answer(404, {"message": f"No such path: {path}"})

    def _answer_as(self, esp: str, api: API, fields: Mapping[str, Any]) -> Answer | Fault:
        addresses, mailengine_id = api.read(fields)
        recipients = tuple(address for _, address in getaddresses(addresses))
        mail = Mail(esp, recipients, mailengine_id, fields)
        with self._lock:
            self.calls += 1
            happens = self.behave(mail) if self.behave is not None else None
            if isinstance(happens, Answer) or happens is Fault.HANG_UP:
                return happens
            accepted, answer = api.answer(mail, [address for address in recipients if address in self.inactive])
            if accepted:
                self.accepted.append(mail)
        return happens or answer


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


@dataclass(frozen=True)
class API:
    """What tells one ESP's API from another's."""

    root: str
    """Of its URLs; the rest of the one it sends by is `path`, a regular expression."""
    path: str
    options: Mapping[str, Any]
    """OPTIONS that its Anymail backend can't do without."""
    read: Callable[[Mapping[str, Any]], tuple[list[str], str]]
    """Fields of a call -> the addresses, as they are written there, and the mailengine id."""
    answer: Callable[[Mail, list[str]], tuple[bool, Answer]]
    """A mail and its inactive recipients -> whether it is accepted, for the others at least, and what is said."""


def _mailgun_read(fields: Mapping[str, Any]) -> tuple[list[str], str]:
    addresses = [address for name in ("to", "cc", "bcc") for address in fields.get(name, [])]
    return addresses, fields.get("v:mailengine_id", fields.get("h:X-Mailengine-Id", [""]))[0]


def _mailgun_answer(mail: Mail, inactive: list[str]) -> tuple[bool, Answer]:
    if inactive:
        return False, Answer(400, {"message": "'to' parameter is not a valid address. please check documentation"})
    return True, Answer(200, {"id": f"<{uuid.uuid4().hex}@mailgun.test>", "message": "Queued. Thank you."})


def _postmark_read(fields: Mapping[str, Any]) -> tuple[list[str], str]:
    headers = {header["Name"]: header["Value"] for header in fields.get("Headers", [])}
    addresses = [fields[name] for name in ("To", "Cc", "Bcc") if fields.get(name)]
    return addresses, fields.get("Metadata", {}).get("mailengine_id") or headers.get("X-Mailengine-Id", "")


def _postmark_answer(mail: Mail, inactive: list[str]) -> tuple[bool, Answer]:
    names = ", ".join(inactive)
    reason = "Inactive recipients are ones that have generated a hard bounce or a spam complaint."
    if inactive and len(inactive) == len(mail.recipients):
        text = "You tried to send to a recipient that has been marked as inactive."
        return False, Answer(
            422, {"ErrorCode": 406, "Message": f"{text}\nFound inactive addresses: {names}.\n{reason}"}
        )
    text = f"Message OK, but will not deliver to these inactive addresses: {names}. {reason}" if inactive else "OK"
    answer = {"ErrorCode": 0, "Message": text, "MessageID": str(uuid.uuid4()), "To": mail.fields.get("To", "")}
    return True, Answer(200, answer)


def _sendgrid_read(fields: Mapping[str, Any]) -> tuple[list[str], str]:
    addresses = [
        entry["email"]
        for personalization in fields["personalizations"]
        for name in ("to", "cc", "bcc")
        for entry in personalization.get(name, [])
    ]
    arguments = {**fields.get("custom_args", {}), **fields["personalizations"][0].get("custom_args", {})}
    return addresses, arguments.get("mailengine_id") or fields.get("headers", {}).get("X-Mailengine-Id", "")


def _sendgrid_answer(mail: Mail, inactive: list[str]) -> tuple[bool, Answer]:
    if inactive:
        place = "personalizations.0.to.0.email"
        return False, Answer(400, {"errors": [{"message": "Does not contain a valid address.", "field": place}]})
    return True, Answer(202, headers={"X-Message-Id": uuid.uuid4().hex})


ESPS: dict[str, API] = {
    "mailgun": API(
        root="/v3",
        path=r"/[^/]+/messages",
        options={"api_key": "test", "sender_domain": "example.org"},
        read=_mailgun_read,
        answer=_mailgun_answer,
    ),
    "postmark": API(
        root="",
        path="/email",
        options={"server_token": "test"},
        read=_postmark_read,
        answer=_postmark_answer,
    ),
    "sendgrid": API(
        root="/v3",
        path="/mail/send",
        options={"api_key": "test"},
        read=_sendgrid_read,
        answer=_sendgrid_answer,
    ),
}


def _fields(content_type: str, body: bytes) -> dict[str, Any]:
    """The fields of a call, whichever of the three ways they came."""
    if content_type.startswith("multipart/form-data"):
        form: dict[str, Any] = {}
        envelope = message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body, policy=HTTP)
        for part in envelope.iter_parts():
            name = str(part.get_param("name", header="content-disposition"))
            content = part.get_payload(decode=True)
            is_file = part.get_filename() is not None
            form.setdefault(name, []).append(content if is_file else bytes(content).decode())
        return form
    if content_type.startswith("application/x-www-form-urlencoded"):
        return dict(parse_qs(body.decode(), keep_blank_values=True))
    fields: dict[str, Any] = json.loads(body)
    return fields


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
        esp = self.server.esp
        answer = esp._answer(self.path, self.headers.get("Content-Type", ""), body)
        if esp.delay_seconds:
            time.sleep(esp.delay_seconds)
        if answer is Fault.ACCEPT_IN_SILENCE:
            self.rfile.read(1)
        if isinstance(answer, Fault):
            self.close_connection = True
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

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (http.server's name)
        """Tests look at `accepted`, not at a log."""
