"""A real HTTP server that speaks the sending APIs of some ESPs, and fails the way it is told to: `ESPServer`."""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
import time
import uuid
from base64 import b64decode
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email import message_from_bytes
from email.policy import HTTP, default
from email.utils import getaddresses
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, repeat
from typing import Any
from urllib.parse import parse_qs


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
    headers: Mapping[str, str] = field(default_factory=dict)
    """Those of the request, their names in lower case."""
    at: float = field(default_factory=time.monotonic, compare=False)
    """When it came, on this process's monotonic clock."""


class ESPServer:
    """A server on 127.0.0.1, up within the `with` block, for any of the ESPs in `ESPS`.

        with ESPServer() as esp:
            settings.MAILERS = {"mailgun": esp.mailer("mailgun"), "postmark": esp.mailer("postmark")}
            esp.behave = every(2, Answer(503))

    `behave` is given each mail and returns an `Answer`, a `Fault`, or None to accept it; it runs in the threads of the
    connections, one at a time. `on_accepted` is given each one that is accepted, before its sender hears of it; it
    runs in the thread of the connection, perhaps in several at once.
    Addresses in `inactive` are refused the way each ESP does. Only what was accepted is in `accepted`; `calls` counts
    all. An idempotency key is honoured by the ESPs that do.
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
                fields = _fields(headers.get("content-type", ""), body)
                addresses, mailengine_id = api.read(fields)
                recipients = tuple(address for _, address in getaddresses(addresses))
                mail = Mail(esp, recipients, mailengine_id, fields, headers)
                key = headers.get(api.key_header, "") if api.key_header else ""
                return self._answer_to(mail, api, key=key, body=body)
        return Answer(404, {"message": f"No such path: {path}"})

    def _answer_to(self, mail: Mail, api: API, *, key: str, body: bytes) -> Answer | Fault:
        with self._lock:
            self.calls += 1
            happens = self.behave(mail) if self.behave is not None else None
            if isinstance(happens, Answer) or happens in {Fault.HANG_UP, Fault.HANG}:
                return happens
            if key in self._keys:
                return happens or self._keys[key].answer_to(body)
            accepted, answer = api.answer(mail, [address for address in mail.recipients if address in self.inactive])
            if accepted:
                self.accepted.append(mail)
                if key:
                    self._keys[key] = _Remembered(body, answer)
        if accepted and self.on_accepted is not None:
            self.on_accepted(mail)
        if key in self._keys:
            self._keys[key].is_done = True
        return happens or answer


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
            return _resend_error(409, "invalid_idempotent_request", text)
        if not self.is_done:
            text = "Same idempotency key used while original request is still in progress."
            return _resend_error(409, "concurrent_idempotent_requests", text)
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


@dataclass(frozen=True)
class API:
    """What tells one ESP's API from another's."""

    root: str
    """Of its URLs; the rest of the one it sends by is `path`, a regular expression."""
    path: str
    options: Callable[[str, float], Mapping[str, Any]]
    """The URL of its root here, and a timeout -> OPTIONS that its Anymail backend can't do without."""
    read: Callable[[Mapping[str, Any]], tuple[list[str], str]]
    """Fields of a call -> the addresses, as they are written there, and the mailengine id."""
    answer: Callable[[Mail, list[str]], tuple[bool, Answer]]
    """A mail and its inactive recipients -> whether it is accepted, for the others at least, and what is said."""
    key_header: str = ""
    """The header that carries an idempotency key, in lower case, where it honours one."""


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


def _amazon_ses_read(fields: Mapping[str, Any]) -> tuple[list[str], str]:
    destination = fields.get("Destination", {})
    addresses = [address for name in ("To", "Cc", "Bcc") for address in destination.get(f"{name}Addresses", [])]
    message = message_from_bytes(b64decode(fields["Content"]["Raw"]["Data"]), policy=default)
    return addresses, _id_in_headers({name: str(value) for name, value in message.items()})


def _amazon_ses_answer(mail: Mail, inactive: list[str]) -> tuple[bool, Answer]:
    if inactive:
        return False, Answer(400, {"message": "Illegal address"}, {"x-amzn-ErrorType": "BadRequestException"})
    return True, Answer(200, {"MessageId": str(uuid.uuid4())})


def _amazon_ses_options(url: str, timeout: float) -> dict[str, Any]:
    config = {"connect_timeout": timeout, "read_timeout": timeout}
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    return {"client_params": {"endpoint_url": url, "region_name": "eu-west-1", "config": config, **keys}}


def _resend_read(fields: Mapping[str, Any]) -> tuple[list[str], str]:
    addresses = [address for name in ("to", "cc", "bcc") for address in fields.get(name, [])]
    return addresses, _id_in_headers(fields.get("headers", {}))


def _resend_answer(mail: Mail, inactive: list[str]) -> tuple[bool, Answer]:
    if inactive:
        return False, _resend_error(422, "validation_error", "Invalid `to` field.")
    return True, Answer(200, {"id": str(uuid.uuid4())})


def _resend_error(status: int, name: str, message: str) -> Answer:
    return Answer(status, {"statusCode": status, "name": name, "message": message})


def _id_in_headers(headers: Mapping[str, str]) -> str:
    """Anymail keeps metadata in a header of the mail where the ESP has no place for it."""
    metadata = json.loads(headers.get("X-Metadata", "{}"))
    return str(metadata.get("mailengine_id") or headers.get("X-Mailengine-Id", ""))


def _with(**options: Any) -> Callable[[str, float], Mapping[str, Any]]:
    """The options of an ESP that Anymail speaks to by `requests`."""
    return lambda url, timeout: {"api_url": url, "timeout": timeout, **options}


ESPS: dict[str, API] = {
    "amazon_ses": API(
        root="",
        path="/v2/email/outbound-emails",
        options=_amazon_ses_options,
        read=_amazon_ses_read,
        answer=_amazon_ses_answer,
    ),
    "mailgun": API(
        root="/v3",
        path=r"/[^/]+/messages",
        options=_with(api_key="test", sender_domain="example.org"),
        read=_mailgun_read,
        answer=_mailgun_answer,
    ),
    "postmark": API(
        root="",
        path="/email",
        options=_with(server_token="test"),  # noqa: S106 (the server takes any)
        read=_postmark_read,
        answer=_postmark_answer,
    ),
    "resend": API(
        root="",
        path="/emails",
        options=_with(api_key="test"),
        read=_resend_read,
        answer=_resend_answer,
        key_header="idempotency-key",
    ),
    "sendgrid": API(
        root="/v3",
        path="/mail/send",
        options=_with(api_key="test"),
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
