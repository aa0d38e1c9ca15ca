"""What is said to an SMTP server, and what is heard: a `Dialogue` knows how far it got.

It is smtplib's client with an envelope and a body of its own; `SMTPBackend` is Django's interface to it.
"""

from __future__ import annotations

import smtplib
import socket
import ssl
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from typing import Any, TypeAlias

from ..deadline import Deadline, Guarded, check, connect, current, guard
from .wire import WireMail, dots_doubled

GOODBYE_SECONDS = 2.0
"""How long we wait for an answer that changes nothing any more: to QUIT, to RSET after a refusal, or after a connection
broke in the body."""

SMALL = 64_000
"""Up to so many bytes a mail and its final dot are one write; it fits into what the kernel keeps for a connection."""

_NO_DELAY = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or the final dot waits for the ACK of what went before it
_CUT_OFF = (smtplib.SMTPServerDisconnected, ConnectionError, TimeoutError, ssl.SSLError)
"""What comes of a socket that was shut down; and of others, but then the time isn't over."""
_COMMANDS = 4_096
"""So many bytes of commands, or a few more, are sent before their replies are read. Not all of a large envelope: who
writes without reading may wait for a server that waits for its replies to be read."""
_READ = 4_096
_MOST_PIECES = 512  # of what one write takes; systems allow 1,024 at least
_NO_TIME = 0.001  # 0 would mean something else
_CAN_TRY = hasattr(socket.socket, "sendmsg")  # Windows has none

Reply: TypeAlias = tuple[int, bytes]
"""Its code, and the text behind it."""


class Progress(Enum):
    """What came of a step of a dialogue that must not wait."""

    WAITS = "waits"  # for the socket to have something to read
    SENT = "sent"  # the server said yes
    STUCK = "stuck"  # all but a plain yes: whoever goes on with it by `send_messages()` may have to wait


class Phase(Enum):
    """How far a dialogue with an SMTP server got. Only in `AWAIT` is it open whether the server took the mail."""

    CONNECT = "connect"
    GREETING = "greeting"
    EHLO = "ehlo"
    STARTTLS = "starttls"
    AUTH = "auth"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    BODY = "body"  # some of the mail went out; without its final dot no server may keep it
    AWAIT = "await"  # all of it went out, the final dot included; the reply was not read
    DONE = "done"  # the server said yes


def phase_of(error: BaseException) -> Phase | None:
    """The phase in which an `SMTPBackend` raised `error`; None for an error of anybody else."""
    return getattr(error, "mailengine_phase", None)


def set_phase(error: BaseException, phase: Phase) -> None:
    error.mailengine_phase = phase  # type: ignore[attr-defined]


def hang_up(connection: smtplib.SMTP) -> None:
    """Hang up, politely if that is quick. Whatever the server makes of it, mail it took stays taken."""
    with suppress(OSError), _goodbye(connection.sock):  # smtplib's and ssl's errors are among these
        if connection.sock is not None:
            connection.sock.settimeout(GOODBYE_SECONDS)
        connection.quit()
    with suppress(OSError):
        connection.close()


@contextmanager
def _goodbye(sock: socket.socket | None) -> Iterator[None]:
    """Little time for what changes nothing any more, and none at all once the time of the mail is over."""
    with Deadline(time.monotonic() + GOODBYE_SECONDS) as deadline:
        if sock is not None:
            deadline.guard(sock)
        yield


class Dialogue(smtplib.SMTP):
    """smtplib's client, which knows how far it got, and marks its errors with that."""

    phase = Phase.CONNECT
    has_lost_patience = False
    """Whether the server had its time to answer: `hand_over()` reads what is there, and waits no longer."""
    file: _Replies | None
    timeout: float
    _guarded: Guarded | None = None
    _unsent: list[bytes]
    """The commands of an envelope that are still to be sent, the first of them last."""
    _unanswered = 0
    """How many of those that were sent have had no reply yet."""
    _most_ahead = 1
    _begun: WireMail | None = None
    """The mail that `begin()` has begun; how far it got since is the phase."""
    _unwritten: list[bytes | memoryview]
    """What is left of its content, where not all could be written at once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with self._marking_errors():
            super().__init__(*args, **kwargs)

    def _get_socket(self, host: str, port: int, timeout: float | None) -> socket.socket:
        return connect(host, port, timeout=timeout, source_address=self.source_address, options=[_NO_DELAY])

    def getreply(self) -> Reply:
        if self.phase is Phase.CONNECT:
            self.phase = Phase.GREETING  # connected: the first thing to read is the greeting
        if self.file is None:
            if self.sock is None:
                raise smtplib.SMTPServerDisconnected("Not connected any more")
            self.file = _Replies(self.sock)
        try:
            reply = self.file.short_one()
        except OSError as error:
            self.close()
            raise smtplib.SMTPServerDisconnected(f"Connection unexpectedly closed: {error}") from error
        reply = reply or super().getreply()
        if self.has_lost_patience and self.sock is not None:  # it does answer: the next reply has its time again
            self.has_lost_patience = False
            self.sock.settimeout(self.timeout)
        return reply

    def ehlo(self, name: str = "") -> tuple[int, bytes]:
        self.phase = Phase.EHLO
        return super().ehlo(name)

    def helo(self, name: str = "") -> tuple[int, bytes]:
        self.phase = Phase.EHLO
        return super().helo(name)

    def starttls(self, *args: Any, **kwargs: Any) -> tuple[int, bytes]:
        with self._marking_errors():
            self.ehlo_or_helo_if_needed()
            self.phase = Phase.STARTTLS
            return super().starttls(*args, **kwargs)

    def login(self, *args: Any, **kwargs: Any) -> tuple[int, bytes]:
        with self._marking_errors():
            self.ehlo_or_helo_if_needed()
            self.phase = Phase.AUTH
            return super().login(*args, **kwargs)

    def close(self) -> None:
        guarded, self._guarded = self._guarded, None
        try:
            super().close()
        finally:
            if guarded is not None:
                guarded.close()

    def hand_over(self, sender: str, recipients: Sequence[str], mail: WireMail) -> dict[str, Reply]:
        """Send it, and give the replies to those recipients that the server would not have while it took others.

        It raises what smtplib's `sendmail()` would. Any 2xx is a yes, which smtplib would take for a refusal.
        """
        is_begun, self._begun = self._begun is mail, None
        if not is_begun:
            self.phase = Phase.MAIL  # no longer the DONE of the mail before
        refused: dict[str, Reply] = {}
        with self._marking_errors():
            if self.sock is not None:
                self.has_lost_patience = self.has_lost_patience and is_begun
                self.sock.settimeout(_NO_TIME if self.has_lost_patience else self.timeout)
                self._guarded = self._guarded or Guarded(self.sock)
                guard(self._guarded)
            if not is_begun:
                self.ehlo_or_helo_if_needed()
                self.phase = Phase.MAIL
                self._plan_envelope(sender, recipients, mail)
            if self.phase is Phase.MAIL:
                refused = self._send_envelope(sender, recipients)
                self.phase = Phase.BODY
                self._unwritten = _content(mail)
            if self.phase is Phase.BODY:
                pieces, self._unwritten = self._unwritten, []  # a connection that rests holds no mail in memory
                self._send_body(pieces)
                del pieces
                self.phase = Phase.AWAIT
            code, reply = self.getreply()
            if not _is_yes(code):
                self._clean_up(code)
                raise smtplib.SMTPDataError(code, reply)
            self.phase = Phase.DONE
        return refused

    def can_begin(self, mail: WireMail) -> bool:
        """Whether `begin()` is for this mail, on this connection."""
        is_plain = isinstance(self.sock, socket.socket) and not isinstance(self.sock, ssl.SSLSocket)
        return is_plain and _CAN_TRY and self.has_extn("pipelining") and sum(map(len, mail.pieces)) <= SMALL

    def begin(self, sender: str, recipients: Sequence[str], mail: WireMail) -> bool:
        """Say the whole envelope in one write that does not wait; False, and nothing is begun, where that can't be.

        From then on the replies are left unread until all are there, and each is a yes: so `hand_over()` of the same
        mail finds the dialogue as if it had said the envelope itself.
        """
        self._plan_envelope(sender, recipients, mail)
        commands = b"".join(reversed(self._unsent))
        sock = self.sock
        if sock is None or len(commands) > _COMMANDS or not isinstance(self.file, _Replies) or self.file.has_heard:
            return False
        self.phase = Phase.MAIL
        try:
            if sock.gettimeout() != 0:  # with any other, Python waits for the socket before each call
                sock.settimeout(0)
            is_said = sock.send(commands) == len(commands)
        except OSError:
            is_said = False
        if not is_said:  # whatever the server got of it, it can't have taken that for a mail
            self.close()
            return False
        self._begun, self._unanswered, self._unsent = mail, len(self._unsent), []
        self.has_lost_patience = False
        return True

    def go_on(self) -> Progress:
        """The next step of the mail that was begun, when there is something to read."""
        mail, sock, replies = self._begun, self.sock, self.file
        if mail is None or sock is None or not isinstance(replies, _Replies) or not replies.listen_at_once():
            return Progress.STUCK
        if self.phase is Phase.MAIL:
            answer = replies.are_yes(self._unanswered, last=b"354")
            if not answer:
                return Progress.WAITS if answer is None else Progress.STUCK
            replies.forget()
            self._unanswered = 0
            self.phase = Phase.BODY
            self._unwritten = content = _content(mail)
            size = sum(map(len, content))
            try:
                sent = sock.sendmsg(content[:_MOST_PIECES])
            except OSError:
                sent = 0  # the next write says why
            if sent < size:
                _drop(content, sent)
                return Progress.STUCK
            self.phase, self._unwritten = Phase.AWAIT, []
            return Progress.WAITS
        answer = replies.are_yes(1)
        if not answer:
            return Progress.WAITS if answer is None else Progress.STUCK
        replies.forget()
        self.phase, self._begun = Phase.DONE, None
        return Progress.SENT

    def _plan_envelope(self, sender: str, recipients: Sequence[str], mail: WireMail) -> None:
        size = f" SIZE={sum(map(len, mail.pieces))}" if self.has_extn("size") else ""
        commands = [f"MAIL FROM:<{sender}>{size}", *[f"RCPT TO:<{address}>" for address in recipients], "DATA"]
        self._unsent = _lines(commands)[::-1]
        self._unanswered = 0
        self._most_ahead = _COMMANDS if self.has_extn("pipelining") else 1
        check()

    def _send_envelope(self, sender: str, recipients: Sequence[str]) -> dict[str, Reply]:
        """Up to the server's 354, after which it waits for the content."""
        code, reply = self._next_reply()
        if not _is_yes(code):
            self._clean_up(code)
            raise smtplib.SMTPSenderRefused(code, reply, sender)
        self.phase = Phase.RCPT
        refused = {}
        for address in recipients:
            code, reply = self._next_reply()
            if not _is_yes(code):
                refused[address] = (code, reply)
                if code == 421:
                    break
        if code == 421 or len(refused) == len(recipients):
            self._clean_up(code)
            raise smtplib.SMTPRecipientsRefused(refused)
        self.phase = Phase.DATA
        code, reply = self._next_reply()
        if _is_yes(code):
            self.close()
            raise smtplib.SMTPServerDisconnected(f"Out of step: it said {code} to DATA")  # and has got nothing
        if code != 354:
            if 400 <= code <= 599:
                self._clean_up(code)  # its transaction may still be open, and the next MAIL would be out of order
            else:
                self.close()
            raise smtplib.SMTPDataError(code, reply)
        return refused

    def _next_reply(self) -> Reply:
        """The reply to the next command. Those that are not sent yet go together where the server takes that."""
        if not self._unanswered:
            commands = b""
            while self._unsent and len(commands) < self._most_ahead:
                commands += self._unsent.pop()
                self._unanswered += 1
            self.send(commands)
        reply = self.getreply()
        self._unanswered -= 1
        return reply

    def _clean_up(self, code: int) -> None:
        """Be ready for the next mail after a refusal. It has been read: trouble now must not hide it."""
        if code == 421:
            self.close()
            return
        try:
            with _goodbye(self.sock):
                self._hear_the_rest()
                self.rset()
        except OSError:
            self.close()

    def _hear_the_rest(self) -> None:
        """Whatever it says to commands that had been sent before the refusal was read."""
        code = 0
        for _ in range(self._unanswered):
            code, _reply = self.getreply()
        if code == 354 and not self._unsent:
            self.send(b".\r\n")  # it would have content for nobody; this is how to give it none: RFC 2920, section 3.1
            self.getreply()
        self._unanswered = 0

    def _send_body(self, content: Sequence[bytes | memoryview]) -> None:
        sock = self.sock
        if sock is None:
            raise smtplib.SMTPServerDisconnected("Not connected any more")
        *pieces, dot = content
        try:
            # This process may have been frozen, and somebody else have sent the mail by now: each write looks at the
            # time first, and the one that ends in the dot is none that waits for long.
            if sum(map(len, pieces)) <= SMALL:
                _write(sock, [*pieces, dot])
            else:
                _write(sock, pieces)
                _write(sock, [dot])
        except OSError as error:
            reply = self._premature_reply(sock)
            self.close()
            if reply is not None:
                raise smtplib.SMTPDataError(*reply) from error
            raise smtplib.SMTPServerDisconnected(f"Connection lost within the body: {error}") from error

    def _premature_reply(self, sock: socket.socket) -> Reply | None:
        """What the server said before it hung up on us, if it said no: `552 too big`, say."""
        with suppress(OSError):
            sock.settimeout(GOODBYE_SECONDS)
            code, reply = self.getreply()
            if 400 <= code <= 599:
                return code, reply
        return None

    @contextmanager
    def _marking_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            set_phase(error, self.phase)
            deadline = current()
            if deadline is None or not deadline.has_passed or not _is_cut_off(error):
                raise
            self.close()
            late = TimeoutError(f"{deadline}; it got as far as: {self.phase.value}")
            set_phase(late, self.phase)
            raise late from None  # what broke the connection was the end of its time


class TLSDialogue(Dialogue, smtplib.SMTP_SSL):
    """The same over TLS from the first byte."""

    def _get_socket(self, host: str, port: int, timeout: float | None) -> socket.socket:
        return self.context.wrap_socket(super()._get_socket(host, port, timeout), server_hostname=host)


class _Replies:
    """What a server says. smtplib reads lines of it, and would take half a line for an answer: `25`, or `550 5.`.

    After a line that is too long, a code of more than three digits, or lines of one reply that begin with different
    codes, nobody knows what is said, nor what comes next: an OSError, on which smtplib hangs up.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._heard = b""
        self._code = b""
        """Of the lines before, where the reply goes on."""

    def short_one(self) -> Reply | None:
        """The next reply, if it is one line with a code and no more has been heard that smtplib would have to judge."""
        if b"\n" not in self._heard:
            self._listen()
        line, end, rest = self._heard.partition(b"\n")
        if not end or line[3:4] != b" " or len(line) > _READ or not line[:3].isdigit():
            return None
        self._heard = rest
        return int(line[:3]), line[4:].strip(b" \t\r")

    @property
    def has_heard(self) -> bool:
        """Whether anything was heard that nobody has read."""
        return bool(self._heard)

    def listen_at_once(self) -> bool:
        """Take what is there, from a socket that does not wait.

        False: the connection broke, or somebody has more to say than fits into a few replies.
        """
        try:
            heard = self._sock.recv(_READ)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._heard += heard
        return bool(heard) and len(self._heard) <= _READ

    def are_yes(self, count: int, *, last: bytes = b"2") -> bool | None:
        """Whether `count` replies and nothing else were heard, each of one line, a yes; None: some is missing yet.

        The code of the last begins with `last`.
        """
        *lines, rest = self._heard.split(b"\n")
        wanted = [b"2"] * (count - 1) + [last]
        if len(lines) + bool(rest) > count:
            return False
        for line, start in zip(lines, wanted, strict=False):
            if not line.startswith(start) or not line[:3].isdigit() or line[3:4] != b" ":
                return False
        return True if len(lines) == count else None

    def forget(self) -> None:
        """What was heard has been read."""
        self._heard = b""

    def readline(self, size: int) -> bytes:
        end = self._heard.find(b"\n") + 1
        while not end and len(self._heard) < size:
            if not self._listen():
                return b""  # the connection broke; what came of a line is none
            end = self._heard.find(b"\n") + 1
        if not end or end >= size:
            raise OSError("a line of the reply is too long")
        line, self._heard = self._heard[:end], self._heard[end:]
        code, after = line[:3], line[3:4]
        if after.isdigit() or self._code not in {b"", code}:
            raise OSError(f"the reply makes no sense: {(self._code + b' ' + line).strip()!r:.80}")
        self._code = code if after == b"-" else b""
        return line

    def close(self) -> None:
        """The socket is smtplib's to close."""

    def _listen(self) -> int:
        heard = self._sock.recv(_READ)
        self._heard += heard
        return len(heard)


def _is_cut_off(error: Exception) -> bool:
    return isinstance(error, _CUT_OFF) and not isinstance(error, ssl.SSLCertVerificationError)


def _is_yes(code: int) -> bool:
    return 200 <= code <= 299


def _lines(commands: Sequence[str]) -> list[bytes]:
    """ValueError if one of them would be two, or has other letters than SMTP knows."""
    joined = "".join(commands)
    if "\r" in joined or "\n" in joined:
        raise ValueError("An address of the envelope has a line break in it")
    return [f"{command}\r\n".encode("ascii") for command in commands]


def _content(mail: WireMail) -> list[bytes | memoryview]:
    """The mail as it goes out after a 354, the final dot last: RFC 5321, section 4.5.2."""
    pieces = (mail.stuffed or [dots_doubled(b"".join(mail.pieces))]) if mail.has_dots else mail.pieces
    end = next(filter(None, reversed(pieces)), b"")
    return [*pieces, b".\r\n" if end.endswith(b"\r\n") else b"\r\n.\r\n"]


def _write(sock: socket.socket, pieces: Sequence[bytes | memoryview]) -> None:
    """All of it, or an OSError: then its last byte has not been given to the system."""
    if isinstance(sock, ssl.SSLSocket) or not hasattr(sock, "sendmsg"):  # Windows has none
        for chunk in _chunks(pieces):
            check()
            sock.sendall(chunk)
        return
    waiting: list[bytes | memoryview] = list(pieces)
    while waiting:
        check()
        _drop(waiting, sock.sendmsg(waiting[:_MOST_PIECES]))


def _drop(pieces: list[bytes | memoryview], size: int) -> None:
    """Take so many bytes off their beginning."""
    done = 0
    while done < len(pieces) and size >= len(pieces[done]):
        size -= len(pieces[done])
        done += 1
    del pieces[:done]
    if size:
        pieces[0] = memoryview(pieces[0])[size:]


def _chunks(pieces: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """The same bytes in pieces that are not small, but for the last."""
    small: list[bytes | memoryview] = []
    size = 0
    for piece in pieces:
        small.append(piece)
        size += len(piece)
        if size >= SMALL:
            yield b"".join(small)
            small, size = [], 0
    if small:
        yield b"".join(small)
