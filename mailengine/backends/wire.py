"""Mail as it goes over the wire: `render()` makes the bytes of an email, a `WireMail` has them already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from email import encoders
from email.generator import BytesGenerator
from email.message import Message
from email.policy import SMTP as SMTP_POLICY
from io import BytesIO

import django
from django.core.mail import EmailMessage

MODERN_MAIL = django.VERSION >= (6, 0)
"""Whether Django builds mail with Python's modern email API, and checks envelope addresses itself."""
PIECE = 100_000
"""So many characters of a part at least are written at a time."""

SEVEN_BIT = SMTP_POLICY.clone(cte_type="7bit")
"""We never ask for 8BITMIME, so mail must not depend on it; and the same email gives the same bytes at each server."""


@dataclass(eq=False)
class WireMail:
    """A mail that is bytes already, for an `SMTPBackend`: it stands where an EmailMessage would.

    `pieces`, one after another, are what `render()` would give: lines that end in CRLF, the last one too, 7-bit clean,
    not dot-stuffed. Large ones are shared with other mails of the same words.
    """

    from_email: str
    """The sender in the envelope. This and `to` are bare addresses in ASCII, as SMTP has them."""
    to: Sequence[str]
    """Everybody in the envelope."""
    pieces: Sequence[bytes]
    has_dots: bool = True
    """Whether a line of it begins with a dot; True as well where nobody has looked."""
    stuffed: Sequence[bytes] | None = None
    """The pieces with such dots doubled, where somebody keeps them so."""
    mailengine_sha256: bytes = b""
    """Of the bytes, once they were handed over."""
    mailengine_refusals: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    """See `SMTPBackend`."""

    def recipients(self) -> list[str]:
        return [address for address in self.to if address]


Mail = EmailMessage | WireMail
"""What is handed over; a `WireMail` only to those that take it."""


def dots_doubled(lines: bytes) -> bytes:
    """These lines with a dot at the beginning of one doubled: RFC 5321, section 4.5.2."""
    doubled = lines.replace(b"\n.", b"\n..")
    return b"." + doubled if doubled.startswith(b".") else doubled


def render(email: EmailMessage) -> bytes:
    """The email as it goes over the wire: CRLF at the end of each line, and no byte above 127."""
    if MODERN_MAIL:
        message = email.message(policy=SEVEN_BIT)
    else:
        message = email.message()
        for part in message.walk():
            make_seven_bit(part)
    with BytesIO() as file:
        _Generator(file, mangle_from_=False, policy=message.policy).flatten(message, linesep="\r\n")
        content = file.getvalue()
    return content if content.endswith(b"\r\n") else content + b"\r\n"


def make_seven_bit(part: Message) -> None:
    """Encode the body of a part that Django 5.2 would have sent as 8 bits."""
    if str(part["Content-Transfer-Encoding"]).lower() == "8bit" and not part.is_multipart():
        del part["Content-Transfer-Encoding"]
        encoders.encode_quopri(part)


class _Generator(BytesGenerator):
    """Python's, which would make a list of all lines of a part: for a large file, twice its size in memory."""

    def _write_lines(self, lines: str) -> None:
        start = 0
        while start < len(lines):
            end = lines.find("\n", start + PIECE) + 1 or len(lines)
            super()._write_lines(lines[start:end])  # type: ignore[misc]  # private, and so since Python 3.3
            start = end
