"""Django's SMTP backend, taught to say how far it got: `SMTPBackend`, for entries of `MAILERS`."""

from __future__ import annotations

import hashlib
import re
import smtplib
import socket
import time
from collections.abc import Sequence
from email.utils import parseaddr
from typing import Any

import django
from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage
from django.core.mail.backends.smtp import EmailBackend as DjangoSMTPBackend
from django.utils.encoding import force_str
from django.utils.module_loading import import_string

from ..compat import mailer_aliases, mailer_backend_path, mailer_options
from ..conf import get_settings
from ..deadline import Deadline
from .dialogue import Dialogue, Phase, Progress, TLSDialogue, hang_up, set_phase
from .wire import MODERN_MAIL, WireMail, render

DEFAULT_ALIAS = "default"
DEFAULT_TIMEOUT_SECONDS = 60.0
_PLAIN_ADDRESS = re.compile(r"[\w+-]+(?:\.[\w+-]+)*@[a-z0-9-]{1,63}(?:\.[a-z0-9-]{1,63})+", re.ASCII | re.IGNORECASE)
"""What needs no parser to be seen as a bare address that any envelope can carry."""


class SMTPBackend(DjangoSMTPBackend):
    """Django's SMTP backend, with four things more.

    - An error that leaves `open()` or `send_messages()` carries the phase of the dialogue: see `phase_of()`.
    - Each email handed over gets `mailengine_sha256`, the digest of the very bytes, and `mailengine_refusals`, which
      maps the addresses that the server would not have to its reply (code, text) while it took the others.
    - Each email, connecting included, has `SEND_DEADLINE_SECONDS`, or until the `deadline.current()` if that is sooner;
      then it ends in a TimeoutError, whatever the server does. One wait for the server is no longer than the option
      `timeout` (60 s).
    - Where the server offers PIPELINING, the envelope is one write. What comes of a mail is the same with it and
      without.

    Mail is rendered, 7-bit clean for any server, before the connection is made: ValueError (for a non-ASCII
    local part too) means that no byte left this host.
    """

    timeout: float

    def __init__(self, fail_silently: bool = False, **options: Any) -> None:
        if django.VERSION < (6, 1):
            options = _options_as_on_6_1(type(self), options)
            fail_silently = options.pop("fail_silently", fail_silently)
        super().__init__(fail_silently=fail_silently, **options)
        if django.VERSION < (6, 1):
            self.alias = options.get("alias")
        self._send_deadline_seconds = get_settings().send_deadline_seconds
        self.timeout = min(self.timeout or DEFAULT_TIMEOUT_SECONDS, self._send_deadline_seconds)
        self._last_sender = ("", "")

    @property
    def connection_class(self) -> type[smtplib.SMTP]:
        return TLSDialogue if self.use_ssl else Dialogue

    def open(self) -> bool | None:
        """As Django's; a connection that broke is replaced, and is the caller's to close if it was before."""
        is_broken = self.connection is not None and self.connection.sock is None
        if is_broken:
            self.connection = None
        with self._send_deadline():
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
                    try:
                        recipients = self._envelope_recipients(email)
                        if not recipients:
                            continue
                        sender = self._envelope_sender(email.from_email)
                        mail = email if isinstance(email, WireMail) else _as_bytes(email)
                    except Exception as error:
                        set_phase(error, Phase.CONNECT)
                        raise
                    with self._send_deadline() as deadline:
                        if self.connection is None or self.connection.sock is None:
                            opened = self.open()
                            if opened is None or not self.connection:
                                break  # fail_silently, and no connection was to be had
                            opened_here = opened_here or opened
                        sent_count += self._send_mail(email, sender, recipients, mail)
                        if deadline.has_passed:
                            self.connection.close()  # it may have been shut down after the server's yes
            finally:
                if opened_here or self.connection is None:
                    self.close()  # what failed to open as well
        return sent_count

    def begin(self, mail: WireMail) -> socket.socket | None:
        """Begin to send this mail by the connection that is open, and wait for nothing.

        Gives the socket; whenever there is something to read from it, `go_on()` takes the next step. None where that
        can't be: without PIPELINING, over TLS, for a large mail, or for one that `send_messages()` would refuse.
        """
        connection = self.connection
        if not isinstance(connection, Dialogue) or not connection.can_begin(mail):
            return None
        try:
            recipients = list(self._envelope_recipients(mail))
            sender = self._envelope_sender(mail.from_email)
            _note_bytes(mail, mail)
            return connection.sock if recipients and connection.begin(sender, recipients, mail) else None
        except ValueError:
            return None

    def go_on(self) -> Progress:
        """The next step of the mail that was begun. `STUCK`: `send_messages()` goes on with it from where it is."""
        connection = self.connection
        return connection.go_on() if isinstance(connection, Dialogue) else Progress.STUCK

    def lose_patience(self) -> None:
        """The server has not answered within the option `timeout`: let `send_messages()` wait no longer."""
        if isinstance(self.connection, Dialogue):
            self.connection.has_lost_patience = True

    def _send_mail(
        self, email: EmailMessage | WireMail, sender: str, recipients: dict[str, str], mail: WireMail
    ) -> bool:
        _note_bytes(email, mail)
        try:
            refused = self.connection.hand_over(  # type: ignore[union-attr]  # open() has been called
                sender, list(recipients), mail
            )
        except (smtplib.SMTPException, TimeoutError):
            if not self.fail_silently:
                raise
            return False
        if refused:
            email.mailengine_refusals = {  # type: ignore[union-attr]
                recipients[address]: reply for address, reply in refused.items()
            }
        return True

    def _send_deadline(self) -> Deadline:
        return Deadline(time.monotonic() + self._send_deadline_seconds)

    def _envelope_recipients(self, email: EmailMessage | WireMail) -> dict[str, str]:
        """Each recipient once: the address as SMTP needs it -> the bare address as the email has it."""
        return {
            self._envelope_address(address): address if _PLAIN_ADDRESS.fullmatch(address) else parseaddr(address)[1]
            for address in map(force_str, email.recipients())
        }

    def _envelope_sender(self, address: str) -> str:
        """As `_envelope_address()`; it mostly is that of the mail before, and has a name that takes long to parse."""
        if address != self._last_sender[0]:
            self._last_sender = (address, self._envelope_address(force_str(address)))
        return self._last_sender[1]

    def _envelope_address(self, address: str) -> str:
        """`Ann <ann@bücher.example>` as `ann@xn--bcher-kva.example`; ValueError for what no envelope can carry."""
        if _PLAIN_ADDRESS.fullmatch(address):
            return address
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
        hang_up(connection)


def _as_bytes(email: EmailMessage) -> WireMail:
    return WireMail(email.from_email, email.recipients(), [render(email)])


def _note_bytes(email: EmailMessage | WireMail, mail: WireMail) -> None:
    digest = hashlib.sha256()
    for piece in mail.pieces:
        digest.update(piece)
    email.mailengine_refusals = {}  # type: ignore[union-attr]
    email.mailengine_sha256 = digest.digest()  # type: ignore[union-attr]


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
