"""The receiving side: servers that write down what they take, and fail at any step of the dialogue as they are told.

    sink.on(Step.MAIL, "421 4.3.2 Going down", CLOSE)     # say this, then close
    sink.on(Step.DOT, kill_worker, when=nth(3))           # the third time somebody waits for the final reply
    sink.on(Step.DOT, CLOSE, accepts=True)                # take the mail, and never say so
    sink.on(Step.BODY, RESET, after_bytes=100_000)
    sink.on(Step.GREETING, Drip("220 sink", seconds=1))   # one byte a second
    sink.heal()                                           # forget all of these

What a script leaves unsaid is said as a healthy server would: `sink.on(Step.RCPT, Pause(2))` answers 250, late. Of
several rules for a step, the latest that matches plays.
"""

from __future__ import annotations

import base64
import os
import re
import select
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

from mailengine.testing.esp_server import ESPServer, Mail

from .log import Copy, Log

if TYPE_CHECKING:
    from .workers import Worker

_MAILENGINE_ID = re.compile(rb"^X-Mailengine-Id:[ \t]*(\S+)", re.IGNORECASE | re.MULTILINE)
_ADDRESS = re.compile(r"<([^>]*)>")
_DOUBLED_DOT = re.compile(rb"^\.\.", re.MULTILINE)
EXTENSIONS = ("8BITMIME", "SMTPUTF8", *(["PIPELINING"] if os.environ.get("FAULTS_PIPELINING") != "0" else []))
"""What a sink offers unless told otherwise; `FAULTS_PIPELINING=0` plays the cases one command at a time."""
_HEAD_BYTES = 100_000
"""More than any header of ours is long."""


class Step(Enum):
    """Where in the dialogue something may happen."""

    CONNECT = "connect"
    GREETING = "greeting"
    EHLO = "ehlo"
    STARTTLS = "starttls"
    AUTH = "auth"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    BODY = "body"
    DOT = "dot"
    BETWEEN = "between messages"
    RSET = "rset"
    QUIT = "quit"


class Ending(Enum):
    """How a dialogue may stop."""

    HANG = "hang"  # not another word, and nothing read, until the client goes away
    CLOSE = "close"
    RESET = "reset"


HANG, CLOSE, RESET = Ending.HANG, Ending.CLOSE, Ending.RESET


@dataclass(frozen=True)
class Pause:
    """Wait so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Drip:
    """Say this, one byte each so many seconds."""

    text: str
    seconds: float


@dataclass(frozen=True)
class Moment:
    """Where a dialogue is: what a script may look at."""

    step: Step
    count: int
    """How often this step has been reached at this sink, this time included."""
    connection: int
    """Counted from 1."""
    address: str = ""
    """With MAIL and RCPT."""
    message_id: str = ""
    """From DOT on."""
    recipients: tuple[str, ...] = ()
    find_worker: Callable[[], Worker] = field(repr=False, default=lambda: _no_worker())

    @property
    def worker(self) -> Worker:
        """The process at the other end."""
        return self.find_worker()


Action: TypeAlias = "str | Ending | Pause | Drip | Callable[[Moment], Action | None]"
"""A str is a reply, one line of it for each line. A function is called, and what it returns, if anything, is done."""

When: TypeAlias = Callable[[Moment], bool]


def always(_: Moment) -> bool:
    return True


def nth(*numbers: int) -> When:
    """These times, counted from 1."""
    return lambda moment: moment.count in numbers


def every(number: int) -> When:
    """Each `number`-th time."""
    return lambda moment: moment.count % number == 0


def first(number: int) -> When:
    """The first `number` times."""
    return lambda moment: moment.count <= number


def to(*addresses: str) -> When:
    """For these addresses, at MAIL and RCPT."""
    return lambda moment: moment.address in addresses


def once_each(key: Callable[[Moment], object] = lambda moment: moment.message_id) -> When:
    """The first time for each message, or for each `key`."""
    seen: set[object] = set()
    lock = threading.Lock()

    def is_first(moment: Moment) -> bool:
        with lock:
            is_new = key(moment) not in seen
            seen.add(key(moment))
            return is_new

    return is_first


class Fuse:
    """A `when` that does nothing until it is lit: then it lets through the so-many-th time from now, once."""

    def __init__(self) -> None:
        self._left = 0
        self._lock = threading.Lock()

    def light(self, times: int) -> None:
        self._left = times

    def __call__(self, _: Moment) -> bool:
        with self._lock:
            self._left -= 1
            return self._left == 0


def kill_worker(moment: Moment) -> None:
    """kill -9 the process at the other end."""
    moment.worker.kill()


def freeze_worker(moment: Moment) -> None:
    """SIGSTOP the process at the other end."""
    moment.worker.freeze()


@dataclass(frozen=True)
class _Rule:
    step: Step
    actions: tuple[Action, ...]
    when: When
    accepts: bool | None
    after_bytes: int


class SMTPSink:
    """An SMTP server on 127.0.0.1, behind the provider `alias`.

    A mail is taken at its final dot, before any script for that step plays, unless the script's first word there is a
    reply of 4xx or 5xx; `accepts` says otherwise. `content` of what was taken is kept only if `keeps_content`.
    """

    def __init__(
        self,
        alias: str,
        log: Log,
        *,
        credentials: tuple[str, str] | None = None,
        tls_context: ssl.SSLContext | None = None,
        extensions: tuple[str, ...] = EXTENSIONS,
        keeps_content: bool = False,
        buffer_bytes: int | None = None,
        find_worker: Callable[[int], Worker] | None = None,
    ) -> None:
        self.alias = alias
        self.log = log
        self.credentials = credentials
        """The user and password that AUTH takes; None: AUTH is not offered. May be changed while it runs."""
        self.tls_context = tls_context
        """With one, STARTTLS is offered."""
        self.extensions = extensions
        """What EHLO names besides; None of it and no ESMTP at all: `sink.on(Step.EHLO, "502 5.5.1 What?")`."""
        self.keeps_content = keeps_content
        self.buffer_bytes = buffer_bytes
        """How much may be under way to a server that doesn't read; None: as the system has it, some megabytes."""
        self.contents: list[tuple[str, bytes]] = []
        """(message id, the mail) of each that was taken."""
        self.accepted_count = 0
        self.connection_count = 0
        self.open_count = 0
        """Connections there are now."""
        self.commands: Counter[str] = Counter()
        self.auth_lines: list[bytes] = []
        """Whatever a client sent to prove who it is."""
        self.fault_count = 0
        """How often a script has played."""
        self.host, self.port = "127.0.0.1", 0
        self.stopped = threading.Event()
        self._find_worker = find_worker
        self._rules: list[_Rule] = []
        self._counts: Counter[Step] = Counter()
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._sockets: set[socket.socket] = set()

    def on(
        self, step: Step, *actions: Action, when: When = always, accepts: bool | None = None, after_bytes: int = 0
    ) -> None:
        """Play these actions at this step; at BODY, once so many bytes of it were read."""
        self._rules.append(_Rule(step, actions, when, accepts, after_bytes))

    def heal(self) -> None:
        """Be healthy from now on."""
        self._rules = []

    def mailer(self, **options: Any) -> dict[str, Any]:
        """An entry of `MAILERS` that sends here, with these OPTIONS besides."""
        options = {"host": self.host, "port": self.port, "timeout": 5, **options}
        return {"BACKEND": "mailengine.backends.SMTPBackend", "OPTIONS": options}

    # Up and down

    def __enter__(self) -> SMTPSink:
        self.up()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stopped.set()
        self.down()

    def up(self) -> None:
        """Listen, on the same port as before."""
        listener = socket.create_server((self.host, self.port), backlog=128)
        if self.buffer_bytes is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.buffer_bytes)
        self.port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), name=f"{self.alias} sink", daemon=True).start()

    def down(self) -> None:
        """Refuse connections, and drop those there are."""
        if self._listener is not None:
            # A close alone would leave the port open for as long as a thread waits in accept().
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self.hang_up()

    def hang_up(self) -> None:
        """Drop the connections there are; new ones are welcome."""
        for sock in list(self._sockets):
            with suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, peer = listener.accept()
            except OSError:  # it was closed
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self.connection_count += 1
                self.open_count += 1
                self._sockets.add(sock)
                dialogue = _Dialogue(self, sock, self.connection_count, peer[1])
            threading.Thread(target=self._converse, args=(dialogue,), daemon=True).start()

    def _converse(self, dialogue: _Dialogue) -> None:
        first_socket = dialogue.sock
        try:
            with suppress(_Over, OSError):  # ssl's errors are OSErrors
                dialogue.run()
        finally:
            dialogue.close()
            with self._lock:
                self.open_count -= 1
                self._sockets -= {first_socket, dialogue.sock}

    # What a dialogue asks

    def _reached(self, step: Step) -> int:
        with self._lock:
            self._counts[step] += 1
            return self._counts[step]

    def _rule(self, moment: Moment) -> _Rule | None:
        for rule in reversed(self._rules):
            if rule.step is moment.step and rule.when(moment):
                self.fault_count += 1
                return rule
        return None

    def _take(self, copy: Copy, content: bytes) -> None:
        if self.keeps_content:
            self.contents.append((copy.message_id, _DOUBLED_DOT.sub(b".", content)))
        self.log.append(copy)
        with self._lock:
            self.accepted_count += 1

    def _worker_at(self, port: int) -> Worker:
        return self._find_worker(port) if self._find_worker is not None else _no_worker()


class _Over(Exception):  # noqa: N818 (no error)
    """The dialogue has come to its end."""


class _Dialogue:
    """One connection, in a thread of its own."""

    def __init__(self, sink: SMTPSink, sock: socket.socket, number: int, peer_port: int) -> None:
        self.sink = sink
        self.sock = sock
        self.number = number
        self.peer_port = peer_port
        self.buffer = b""
        self.has_sender = False
        self.recipients: list[str] = []

    def run(self) -> None:
        self.reach(Step.CONNECT)
        self.reach(Step.GREETING, "220 sink ready")
        while True:
            line = self.read_line()
            verb = line.decode("latin-1").strip().upper().partition(" ")[0]
            self.sink.commands[verb] += 1
            handle = getattr(self, f"_{verb.lower()}", None) if verb.isalpha() else None
            if handle is None:
                self.say("502 5.5.2 Unknown command")
            else:
                handle(line.decode("latin-1").strip())

    # Commands

    def _ehlo(self, _line: str) -> None:
        names = ["sink", *self.sink.extensions]
        if self.sink.tls_context is not None and not isinstance(self.sock, ssl.SSLSocket):
            names.append("STARTTLS")
        if self.sink.credentials is not None:
            names.append("AUTH PLAIN LOGIN")
        lines = [f"250-{name}" for name in names[:-1]] + [f"250 {names[-1]}"]
        self.reach(Step.EHLO, "\n".join(lines))

    def _helo(self, _line: str) -> None:
        self.say("250 sink")

    def _starttls(self, _line: str) -> None:
        self.reach(Step.STARTTLS, "220 2.0.0 Go ahead" if self.sink.tls_context else "502 5.5.1 No TLS here")
        if self.sink.tls_context is not None:
            self.sock = self.sink.tls_context.wrap_socket(self.sock, server_side=True)
            self.sink._sockets.add(self.sock)

    def _auth(self, line: str) -> None:
        self.sink.auth_lines.append(line.encode())
        _, mechanism, *initial = line.split()
        if mechanism.upper() == "PLAIN":
            given = self._decoded(initial[0] if initial else self._challenge("")).split("\0")[1:]
        else:
            user = self._decoded(initial[0] if initial else self._challenge("Username:"))
            given = [user, self._decoded(self._challenge("Password:"))]
        is_right = tuple(given) == self.sink.credentials
        self.reach(Step.AUTH, "235 2.7.0 Welcome" if is_right else "535 5.7.8 Wrong user or password")

    def _challenge(self, text: str) -> str:
        self.say(f"334 {base64.b64encode(text.encode()).decode()}")
        line = self.read_line()
        self.sink.auth_lines.append(line)
        return line.decode().strip()

    @staticmethod
    def _decoded(word: str) -> str:
        return base64.b64decode(word).decode()

    def _mail(self, line: str) -> None:
        self.recipients = []
        self.has_sender = self.reach(Step.MAIL, "250 2.1.0 OK", address=_address(line)).startswith("2")

    def _rcpt(self, line: str) -> None:
        if not self.has_sender:  # it was refused, when this had been sent already
            self.say("503 5.5.1 MAIL first")
            return
        address = _address(line)
        if self.reach(Step.RCPT, "250 2.1.5 OK", address=address).startswith("2"):
            self.recipients.append(address)

    def _data(self, _line: str) -> None:
        if not self.recipients:
            self.say("503 5.5.1 RCPT first")
            return
        if not self.reach(Step.DATA, "354 Go ahead").startswith("3"):
            return
        content = self._read_body()
        found = _MAILENGINE_ID.search(content[:_HEAD_BYTES].partition(b"\r\n\r\n")[0])
        message_id = found[1].decode() if found else ""
        facts: dict[str, Any] = {"message_id": message_id, "recipients": tuple(self.recipients)}
        moment = self._moment(Step.DOT, **facts)
        rule = self.sink._rule(moment)
        if _accepts(rule):
            copy = Copy(message_id, self.sink.alias, tuple(self.recipients), self.number)
            self.sink._take(copy, content)
        self.play(rule, moment, "250 2.0.0 Taken")
        self.reach(Step.BETWEEN, **facts)

    def _rset(self, _line: str) -> None:
        self.reach(Step.RSET, "250 2.0.0 OK")

    def _noop(self, _line: str) -> None:
        self.say("250 2.0.0 OK")

    def _quit(self, _line: str) -> None:
        self.reach(Step.QUIT, "221 2.0.0 Bye")
        raise _Over

    # Scripts

    def reach(self, step: Step, default: str = "", **facts: Any) -> str:
        """Play what is to happen at this step, else say `default`; the reply that was given, if any."""
        moment = self._moment(step, **facts)
        return self.play(self.sink._rule(moment), moment, default)

    def _moment(self, step: Step, **facts: Any) -> Moment:
        find = lambda: self.sink._worker_at(self.peer_port)  # noqa: E731
        return Moment(step, self.sink._reached(step), self.number, find_worker=find, **facts)

    def play(self, rule: _Rule | None, moment: Moment, default: str) -> str:
        said = ""
        for action in rule.actions if rule is not None else ():
            said = self._do(action, moment) or said
        if not said and default:
            self.say(default)
            said = default
        return said

    def _do(self, action: Action, moment: Moment) -> str:
        match action:
            case str():
                self.say(action)
                return action
            case Drip(text, seconds):
                for byte in f"{text}\r\n".encode():
                    self.sock.sendall(bytes([byte]))
                    self.sink.stopped.wait(seconds)
                return text
            case Pause(seconds):
                self.sink.stopped.wait(seconds)
                return ""
            case Ending.HANG:
                self._wait_for_the_end()
                raise _Over
            case Ending.RESET:
                # Lingering for no time at all makes the close a reset.
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                raise _Over
            case Ending.CLOSE:
                raise _Over
            case _:
                further = action(moment)
                return "" if further is None else self._do(further, moment)

    def _wait_for_the_end(self) -> None:
        waiter = select.poll()
        waiter.register(self.sock, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
        while not waiter.poll(200) and not self.sink.stopped.is_set():
            pass

    # Bytes

    def say(self, text: str) -> None:
        self.sock.sendall("".join(f"{line}\r\n" for line in text.split("\n")).encode())

    def read_line(self) -> bytes:
        while b"\n" not in self.buffer:
            self._read_more()
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line + b"\n"

    def _read_more(self) -> None:
        data = self.sock.recv(65_536)
        if not data:
            raise _Over
        self.buffer += data

    def _read_body(self) -> bytes:
        """Up to the final dot; what a mail needn't keep is forgotten as it comes."""
        content = bytearray()
        rules = [rule for rule in self.sink._rules if rule.step is Step.BODY]
        moment = self._moment(Step.BODY, recipients=tuple(self.recipients))
        read_count = 0
        while True:
            new, self.buffer = self.buffer, b""
            content += new
            read_count += len(new)
            for rule in [rule for rule in rules if read_count >= rule.after_bytes]:
                rules.remove(rule)
                if rule.when(moment):
                    self.sink.fault_count += 1
                    self.play(rule, moment, "")
            if content.startswith(b".\r\n"):
                self.buffer = bytes(content[3:])
                return b""
            end = content.find(b"\r\n.\r\n", max(len(content) - len(new) - 4, 0))
            if end >= 0:
                self.buffer = bytes(content[end + 5 :])
                return bytes(content[: end + 2])
            if not self.sink.keeps_content and len(content) > 2 * _HEAD_BYTES:
                del content[_HEAD_BYTES:-4]
            self._read_more()

    def close(self) -> None:
        with suppress(OSError):
            self.sock.close()


class ESPSink(ESPServer):
    """`mailengine.testing.ESPServer` behind the provider `alias`, with the same log.

    Fails as its `behave` says.
    """

    def __init__(self, alias: str, esp: str, log: Log) -> None:
        super().__init__(on_accepted=self._take)
        self.alias = alias
        self.esp = esp
        self.log = log
        self.then: Callable[[Mail], None] | None = None
        """Called when a mail was taken and written down, before the answer goes out: it may kill a worker."""

    @property
    def accepted_count(self) -> int:
        return len(self.accepted)

    def heal(self) -> None:
        """Be healthy from now on."""
        self.behave = self.then = None

    def _take(self, mail: Mail) -> None:
        self.log.append(Copy(mail.mailengine_id, self.alias, mail.recipients))
        if self.then is not None:
            self.then(mail)


def _accepts(rule: _Rule | None) -> bool:
    if rule is None:
        return True
    if rule.accepts is not None:
        return rule.accepts
    said = next((action for action in rule.actions if isinstance(action, str)), "250")
    return said[:1] not in {"4", "5"}


def _address(line: str) -> str:
    found = _ADDRESS.search(line)
    return found[1] if found else ""


def _no_worker() -> Worker:
    raise LookupError("this sink knows no workers")


def wait_until(condition: Callable[[], object], *, seconds: float = 30, what: str = "it") -> None:
    """Look again and again until the condition holds; AssertionError after so many seconds."""
    ends_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends_at, f"waited {seconds:g} s in vain: {what}"
        time.sleep(0.01)
