"""Django's SMTP backend, taught to say how far it got: `SMTPBackend`, for entries of `MAILERS`."""

from __future__ import annotations

import hashlib
import re
import smtplib
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from email.utils import parseaddr
from enum import Enum
from typing import Any, BinaryIO

import django
from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage
from django.core.mail.backends.smtp import EmailBackend as DjangoSMTPBackend
from django.utils.module_loading import import_string

from ..compat import mailer_aliases, mailer_backend_path, mailer_options
from ..conf import get_settings
from ..deadline import Deadline, check, connect, current, guard
from .wire import MODERN_MAIL, WireMail, render

DEFAULT_ALIAS = "default"
DEFAULT_TIMEOUT_SECONDS = 60.0
GOODBYE_SECONDS = 2.0
"""How long we wait for an answer that changes nothing any more: to QUIT, to RSET after a refusal, or after a connection
broke in the body."""

_NO_DELAY = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or the final dot waits for the ACK of what went before it
_CUT_OFF = (smtplib.SMTPServerDisconnected, ConnectionError, TimeoutError, ssl.SSLError)
"""What comes of a socket that was shut down; and of others, but then the time isn't over."""
_LEADING_DOT = re.compile(rb"^\.", re.MULTILINE)


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


class SMTPBackend(DjangoSMTPBackend):
    """Django's SMTP backend, with three things more.

    - An error that leaves `open()` or `send_messages()` carries the phase of the dialogue: see `phase_of()`.
    - Each email handed over gets `mailengine_sha256`, the digest of the very bytes, and `mailengine_refusals`, which
      maps the addresses that the server would not have to its reply (code, text) while it took the others.
    - Each email, connecting included, has `SEND_DEADLINE_SECONDS`, or until the `deadline.current()` if that is sooner;
      then it ends in a TimeoutError, whatever the server does. One wait for the server is no longer than the option
      `timeout` (60 s).

    Mail is rendered, 7-bit clean for any server, before the connection is made: ValueError (for a non-ASCII
    local part too) means that no byte left this host.
    """

    def __init__(self, fail_silently: bool = False, **options: Any) -> None:
        if django.VERSION < (6, 1):
            options = _options_as_on_6_1(type(self), options)
            fail_silently = options.pop("fail_silently", fail_silently)
        super().__init__(fail_silently=fail_silently, **options)
        if django.VERSION < (6, 1):
            self.alias = options.get("alias")
        self.timeout = min(self.timeout or DEFAULT_TIMEOUT_SECONDS, get_settings().send_deadline_seconds)

    @property
    def connection_class(self) -> type[smtplib.SMTP]:
        return _TLSDialogue if self.use_ssl else _Dialogue

    def open(self) -> bool | None:
        """As Django's; a connection that broke is replaced, and is the caller's to close if it was before."""
        is_broken = self.connection is not None and self.connection.sock is None
        if is_broken:
            self.connection = None
        with _send_deadline():
            opened = super().open()
        return False if opened and is_broken else opened

    def send_messages(self, email_messages: Sequence[EmailMessage | WireMail]) -> int:
        """Send each in turn and return how many the server took; the first error ends it.

        A `WireMail` goes as it is.
        """
        sent_count = 0
        opened_here = False
        with self._lock:
            try:
                for email in email_messages:
                    with _marking_errors(Phase.CONNECT):
                        recipients = self._envelope_recipients(email)
                        if not recipients:
                            continue
                        sender = self._envelope_address(email.from_email)
                        content = b"".join(email.pieces) if isinstance(email, WireMail) else render(email)
                    with _send_deadline() as deadline:
                        opened = self.open()
                        if opened is None or not self.connection:
                            break  # fail_silently, and no connection was to be had
                        opened_here = opened_here or opened
                        sent_count += self._send_content(email, sender, recipients, content)
                        if deadline.has_passed:
                            self.connection.close()  # it may have been shut down after the server's yes
            finally:
                if opened_here or self.connection is None:
                    self.close()  # what failed to open as well
        return sent_count

    def _send_content(
        self, email: EmailMessage | WireMail, sender: str, recipients: dict[str, str], content: bytes
    ) -> bool:
        email.mailengine_refusals = {}  # type: ignore[union-attr]
        email.mailengine_sha256 = hashlib.sha256(content).digest()  # type: ignore[union-attr]
        try:
            refused = self.connection.sendmail(  # type: ignore[union-attr]  # open() has been called
                sender, list(recipients), content
            )
        except (smtplib.SMTPException, TimeoutError):
            if not self.fail_silently:
                raise
            return False
        email.mailengine_refusals = {  # type: ignore[union-attr]
            recipients[address]: reply for address, reply in refused.items()
        }
        return True

    def _envelope_recipients(self, email: EmailMessage | WireMail) -> dict[str, str]:
        """Each recipient once: the address as SMTP needs it -> the bare address as the email has it."""
        return {self._envelope_address(address): parseaddr(address)[1] for address in email.recipients()}

    def _envelope_address(self, address: str) -> str:
        """`Ann <ann@bücher.example>` as `ann@xn--bcher-kva.example`; ValueError for what no envelope can carry."""
        if MODERN_MAIL:
            return str(self.prep_address(address))
        from django.core.mail.message import sanitize_address

        bare_address = parseaddr(address)[1]
        if not bare_address:
            raise ValueError(f"Invalid address {address!r}")
        if not bare_address.rpartition("@")[0].isascii():
            # Django 5.2 would write to =?utf-8?b?...?=@, which is another mailbox.
            raise ValueError(f"Invalid address {address!r}: the part before the @ has non-ASCII characters")
        return parseaddr(sanitize_address(address, "utf-8"))[1]

    def _close_connection(self, connection: smtplib.SMTP) -> None:
        """Hang up, politely if that is quick. Whatever the server makes of it, mail it took stays taken."""
        with suppress(OSError), _goodbye(connection.sock):  # smtplib's and ssl's errors are among these
            connection.quit()
        with suppress(OSError):
            connection.close()


@contextmanager
def _marking_errors(phase: Phase) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        set_phase(error, phase)
        raise


def _send_deadline() -> Deadline:
    return Deadline(time.monotonic() + get_settings().send_deadline_seconds)


@contextmanager
def _goodbye(sock: socket.socket | None) -> Iterator[None]:
    """Little time for what changes nothing any more, and none at all once the time of the mail is over."""
    with Deadline(time.monotonic() + GOODBYE_SECONDS) as deadline:
        if sock is not None:
            deadline.guard(sock)
        yield


class _Dialogue(smtplib.SMTP):
    """smtplib's client, which knows how far it got, and marks its errors with that."""

    phase = Phase.CONNECT

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with self._marking_errors():
            super().__init__(*args, **kwargs)

    def _get_socket(self, host: str, port: int, timeout: float | None) -> socket.socket:
        return connect(host, port, timeout=timeout, source_address=self.source_address, options=[_NO_DELAY])

    def getreply(self) -> tuple[int, bytes]:
        if self.phase is Phase.CONNECT:
            self.phase = Phase.GREETING  # connected: the first thing to read is the greeting
        if self.file is None and self.sock is not None:
            self.file = _WholeLines(self.sock.makefile("rb"))
        return super().getreply()

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

    def sendmail(self, *args: Any, **kwargs: Any) -> dict[str, tuple[int, bytes]]:
        self.phase = Phase.MAIL  # no longer the DONE of the mail before
        with self._marking_errors():
            if self.sock is not None:
                guard(self.sock)
            return super().sendmail(*args, **kwargs)

    def mail(self, sender: str, options: Sequence[str] = ()) -> tuple[int, bytes]:
        self.phase = Phase.MAIL
        check()
        code, reply = super().mail(sender, options)
        return _any_yes(code), reply

    def rcpt(self, recip: str, options: Sequence[str] = ()) -> tuple[int, bytes]:
        self.phase = Phase.RCPT
        code, reply = super().rcpt(recip, options)
        return _any_yes(code), reply

    def data(self, msg: Any) -> tuple[int, bytes]:
        """Hand over the content, and give back the server's final reply; any 2xx counts as 250."""
        self.phase = Phase.DATA
        code, reply = self.docmd("data")
        if 200 <= code <= 299:
            self.close()
            raise smtplib.SMTPServerDisconnected(f"Out of step: it said {code} to DATA")  # and has got nothing
        if code != 354:
            if 400 <= code <= 599 and code != 421:
                self._rset()  # its transaction may still be open, and the next MAIL would be out of order
            else:
                self.close()
            raise smtplib.SMTPDataError(code, reply)
        self.phase = Phase.BODY
        self._send_body(msg if msg.endswith(b"\r\n") else msg + b"\r\n")
        self.phase = Phase.AWAIT
        code, reply = self.getreply()
        if 200 <= code <= 299:
            self.phase = Phase.DONE
        return _any_yes(code), reply

    def _send_body(self, body: bytes) -> None:
        sock = self.sock
        if sock is None:
            raise smtplib.SMTPServerDisconnected("Not connected any more")
        try:
            sock.sendall(_LEADING_DOT.sub(b"..", body))
            check()  # this process may have been frozen, and somebody else have sent the mail by now
            sock.sendall(b".\r\n")
        except OSError as error:
            reply = self._premature_reply(sock)
            self.close()
            if reply is not None:
                raise smtplib.SMTPDataError(*reply) from error
            raise smtplib.SMTPServerDisconnected(f"Connection lost within the body: {error}") from error

    def _premature_reply(self, sock: socket.socket) -> tuple[int, bytes] | None:
        """What the server said before it hung up on us, if it said no: `552 too big`, say."""
        with suppress(OSError):
            sock.settimeout(GOODBYE_SECONDS)
            code, reply = self.getreply()
            if 400 <= code <= 599:
                return code, reply
        return None

    def _rset(self) -> None:
        """Clean up after a refusal. The refusal has been read: trouble now must not hide it."""
        try:
            with _goodbye(self.sock):
                self.rset()
        except OSError:
            self.close()

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


class _WholeLines:
    """A file of replies, of which smtplib reads lines; it would take half a line for an answer: `25`, or `550 5.`.

    After a line that is too long, a code of more than three digits, or lines of one reply that begin with different
    codes, nobody knows what is said, nor what comes next: an OSError, on which smtplib hangs up.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._code = b""
        """Of the lines before, where the reply goes on."""

    def readline(self, size: int) -> bytes:
        line = self._file.readline(size)
        if len(line) == size:
            raise OSError("a line of the reply is too long")
        if not line.endswith(b"\n"):
            return b""  # the connection broke
        code, after = line[:3], line[3:4]
        if after.isdigit() or self._code not in {b"", code}:
            raise OSError(f"the reply makes no sense: {(self._code + b' ' + line).strip()!r:.80}")
        self._code = code if after == b"-" else b""
        return line

    def close(self) -> None:
        self._file.close()


class _TLSDialogue(_Dialogue, smtplib.SMTP_SSL):
    """The same over TLS from the first byte."""

    def _get_socket(self, host: str, port: int, timeout: float | None) -> socket.socket:
        return self.context.wrap_socket(super()._get_socket(host, port, timeout), server_hostname=host)


def _is_cut_off(error: Exception) -> bool:
    return isinstance(error, _CUT_OFF) and not isinstance(error, ssl.SSLCertVerificationError)


def _any_yes(code: int) -> int:
    """Any 2xx as 250: smtplib would take others for a refusal."""
    return 250 if 200 <= code <= 299 else code


def _options_as_on_6_1(backend_class: type[SMTPBackend], options: dict[str, Any]) -> dict[str, Any]:
    """What Django 6.1 would have built the backend with: its entry of `MAILERS`, and nothing of `EMAIL_HOST_USER`.

    Django 5.2 builds `EMAIL_BACKEND` without options; and options it was not given it takes from `EMAIL_*`, where
    another server's password may be.
    """
    if not options:
        options = _options_from_settings(backend_class)
    if "host" not in options:
        return options  # a project of before MAILERS: EMAIL_HOST and its like
    port = 465 if options.get("use_ssl") else 587 if options.get("use_tls") else 25
    unset = {"port": port, "username": "", "password": "", "use_tls": False, "use_ssl": False}
    unset |= {"ssl_keyfile": "", "ssl_certfile": "", "timeout": DEFAULT_TIMEOUT_SECONDS}
    return unset | {name: value for name, value in options.items() if value is not None}


def _options_from_settings(backend_class: type[SMTPBackend]) -> dict[str, Any]:
    """The OPTIONS and alias of the entry of `MAILERS` that names this class; empty where none does."""
    name = backend_class.__name__
    aliases = [
        alias
        for alias in mailer_aliases()
        if (path := mailer_backend_path(alias)).endswith(f".{name}") and import_string(path) is backend_class
    ]
    if len(aliases) > 1 and DEFAULT_ALIAS not in aliases:
        raise ImproperlyConfigured(
            f"{name} was built without options, and MAILERS has it as {', '.join(map(repr, aliases))}. "
            f"Build it with the options of one of them, or name one {DEFAULT_ALIAS!r}."
        )
    if not aliases:
        return {}
    alias = DEFAULT_ALIAS if DEFAULT_ALIAS in aliases else aliases[0]
    return {"alias": alias, **mailer_options(alias)}
