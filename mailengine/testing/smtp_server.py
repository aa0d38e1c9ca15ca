"""A real SMTP server that keeps what it accepts, and fails the way it is told to: `SMTPServer`."""

from __future__ import annotations

import asyncio
import re
import ssl
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from typing import Any

try:
    from aiosmtpd import smtp
except ImportError as error:
    raise ImportError("mailengine.testing.SMTPServer stands on aiosmtpd: pip install aiosmtpd") from error

HANG_UP = "hang up"
"""An answer: close the connection instead. After the final dot the mail has been accepted nevertheless."""
SILENCE = "silence"
"""An answer: none, until the client gives up. After the final dot the mail has been accepted nevertheless."""

_MAILENGINE_ID = re.compile(rb"^X-Mailengine-Id:[ \t]*(\S+)", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Step:
    """What a client just said, and how often anybody said so before: `Step("RCPT", "ann@example.org", 3, 0)`."""

    verb: str  # MAIL, RCPT, DATA, or DOT for the end of the content
    address: str  # with MAIL and RCPT
    connection: int  # counted from 1
    earlier_count: int


@dataclass(frozen=True)
class AcceptedMail:
    """One mail that the server took."""

    mailengine_id: str
    sender: str
    recipients: tuple[str, ...]
    content: bytes
    connection: int
    at: float = field(default_factory=time.monotonic, compare=False)
    """When it was accepted, on this process's monotonic clock."""

    @property
    def message(self) -> EmailMessage:
        return message_from_bytes(self.content, policy=default)


class SMTPServer:
    """A server on 127.0.0.1, up within the `with` block.

        with SMTPServer() as server:
            settings.MAILERS = {"relay": server.mailer()}
            server.replies["gone@example.org"] = "550 5.1.1 No such user"

    `replies` answers MAIL and RCPT by address. For everything else there is `answer`, a function that is given each
    `Step` and returns a reply line, `HANG_UP`, `SILENCE`, or None to say yes; it runs in the server's thread.
    A mail is accepted unless the reply to its final dot begins with 4 or 5.
    """

    def __init__(
        self,
        *,
        answer: Callable[[Step], str | None] | None = None,
        delay_seconds: float = 0,
        credentials: tuple[str, str] | None = None,
        tls_context: ssl.SSLContext | None = None,
        pipelining: bool = True,
        on_accepted: Callable[[AcceptedMail], None] | None = None,
    ) -> None:
        self.answer = answer
        self.delay_seconds = delay_seconds
        """How long the reply to each final dot takes."""
        self.credentials = credentials
        """The only user and password that AUTH, offered in clear, takes; None: AUTH is not offered."""
        self.tls_context = tls_context
        """With one, STARTTLS is offered."""
        self.pipelining = pipelining
        """Whether PIPELINING is offered, as most servers do."""
        self.on_accepted = on_accepted
        """Given each mail that was accepted, in the server's thread, before the client hears of it."""
        self.replies: dict[str, str] = {}
        self.accepted: list[AcceptedMail] = []
        self.connection_count = 0
        self.host = "127.0.0.1"
        self.port = 0
        self._step_counts: dict[str, int] = {}
        self._dialogues: set[_Dialogue] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="SMTPServer", daemon=True)
        self._listener: asyncio.Server | None = None

    def mailer(self, **options: Any) -> dict[str, Any]:
        """An entry of `MAILERS` that sends here, with these OPTIONS besides host and port."""
        options = {"host": self.host, "port": self.port, "timeout": 5, **options}
        return {"BACKEND": "mailengine.backends.SMTPBackend", "OPTIONS": options}

    def down(self) -> None:
        """Drop all connections and refuse new ones, until `up()`."""
        self._run(self._stop_listening())

    def up(self) -> None:
        """Listen again, on the same port."""
        self._run(self._listen())

    def hang_up(self) -> None:
        """Drop the connections there are; new ones are welcome."""
        self._run(self._drop_connections())

    def __enter__(self) -> SMTPServer:
        self._thread.start()
        self.up()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> None:
        if self._listener is None:
            self._listener = await self._loop.create_server(lambda: _Dialogue(self), self.host, self.port)
            self.port = self._listener.sockets[0].getsockname()[1]

    async def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        await self._drop_connections()

    async def _drop_connections(self) -> None:
        while self._dialogues:
            for dialogue in self._dialogues:
                dialogue.drop()
            await asyncio.sleep(0.001)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10)

    def _reply(self, verb: str, address: str, connection: int) -> str | None:
        earlier_count = self._step_counts.get(verb, 0)
        self._step_counts[verb] = earlier_count + 1
        if address in self.replies:
            return self.replies[address]
        return self.answer(Step(verb, address, connection, earlier_count)) if self.answer is not None else None

    def _authenticate(self, _server: object, _session: object, _envelope: object, _how: str, login: Any) -> Any:
        given = (login.login.decode(), login.password.decode())
        return smtp.AuthResult(success=given == self.credentials, handled=False)


class _Hello:
    """What is said to EHLO."""

    def __init__(self, server: SMTPServer) -> None:
        self.server = server

    async def handle_EHLO(  # noqa: N802 (aiosmtpd's name)
        self, _server: object, session: Any, _envelope: object, hostname: str, responses: list[str]
    ) -> list[str]:
        session.host_name = hostname
        return ["250-localhost", *(["250-PIPELINING"] if self.server.pipelining else []), *responses[1:]]


class _Dialogue(smtp.SMTP):
    """One connection: aiosmtpd's own dialogue, with our answers at four steps."""

    def __init__(self, server: SMTPServer) -> None:
        super().__init__(
            handler=_Hello(server),
            hostname="localhost",
            loop=server._loop,
            tls_context=server.tls_context,
            authenticator=server._authenticate,
            auth_require_tls=False,
            auth_exclude_mechanism=() if server.credentials else ("LOGIN", "PLAIN"),
        )
        self.server = server
        self.number = 0
        self._handle_hooks.update(MAIL=self.answer_mail, RCPT=self.answer_rcpt, DATA=self.answer_dot)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not self.number:  # STARTTLS comes by here a second time
            self.server.connection_count += 1
            self.number = self.server.connection_count
            self.server._dialogues.add(self)
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.server._dialogues.discard(self)
        super().connection_lost(error)

    def drop(self) -> None:
        if isinstance(self.transport, asyncio.Transport):
            self.transport.abort()

    async def answer_mail(self, *args: Any) -> str:
        _, _, envelope, address, options = args
        reply = await self.answered("MAIL", address)
        if reply[0] == "2":
            envelope.mail_from = address
            envelope.mail_options.extend(options)
        return reply

    async def answer_rcpt(self, *args: Any) -> str:
        _, _, envelope, address, _ = args
        reply = await self.answered("RCPT", address)
        if reply[0] == "2":
            envelope.rcpt_tos.append(address)
        return reply

    async def smtp_DATA(self, arg: str) -> None:  # noqa: N802 (aiosmtpd's name)
        is_due = self.envelope is not None and self.envelope.rcpt_tos  # not so if it came with what was refused
        reply = await self.answered("DATA", "") if is_due else "250"
        if reply[0] == "2":
            await super().smtp_DATA(arg)
        else:
            await self.push(reply)

    async def answer_dot(self, *args: Any) -> str:
        _, _, envelope = args
        reply = self.server._reply("DOT", "", self.number) or "250 2.0.0 Accepted"
        if reply[0] not in "45":
            found = _MAILENGINE_ID.search(envelope.content.partition(b"\r\n\r\n")[0])
            mailengine_id = found[1].decode() if found else ""
            recipients = tuple(envelope.rcpt_tos)
            mail = AcceptedMail(mailengine_id, envelope.mail_from, recipients, envelope.content, self.number)
            self.server.accepted.append(mail)
            if self.server.on_accepted is not None:
                self.server.on_accepted(mail)
        if self.server.delay_seconds:
            await asyncio.sleep(self.server.delay_seconds)
        return await self.spoken(reply)

    async def answered(self, verb: str, address: str) -> str:
        return await self.spoken(self.server._reply(verb, address, self.number) or "250 2.0.0 OK")

    async def spoken(self, reply: str) -> str:
        """The reply, unless it is not to be said aloud."""
        if reply == HANG_UP:
            self.drop()
        if reply in {HANG_UP, SILENCE}:
            await asyncio.Event().wait()  # cancelled when the connection is lost
        return reply
