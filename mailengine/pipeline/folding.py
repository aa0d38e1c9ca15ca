"""Headers and texts in the form in which Django writes them into a mail, one by one: what a `Mould` is filled with.

Python's own code decides on each; what it makes of a value depends on nothing else in the mail, so it is remembered.
"""

from __future__ import annotations

import re
from base64 import encodebytes
from dataclasses import dataclass
from email.headerregistry import AddressHeader
from email.message import MIMEPart
from email.policy import compat32
from functools import lru_cache
from typing import Any

from ..addresses import PLAIN, Address
from ..backends.wire import MODERN_MAIL, SEVEN_BIT, make_seven_bit
from .compose import HEADER_FACTORY, WholeWords

CHARSET = "utf-8"
CRLF = b"\r\n"
SHORT = 74
"""A header of so many characters, name and value, is never folded: a line has 78, the colon and the space included."""
BASE64_BYTES = 57 * 2_000
"""So many bytes of a file are encoded at a time: whole lines of base64."""

_WORDS = re.compile(r"[!-~]+(?: [!-~]+)*")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9]+(?: [A-Za-z0-9]+)*")
_LINE_END = re.compile(rb"\r\n|\r|\n")
_HEADER = re.compile(rb"[^\r\n]+\r\n(?:[ \t][^\r\n]*\r\n)*")


How = tuple[tuple[str, str], ...]
"""How a text is encoded: the headers of its part, in their order."""


class Unfit(Exception):  # noqa: N818  named for what the mail is
    """This mail is better left to Django; the text says why."""


@dataclass(frozen=True)
class Encoded:
    """A text or file as it stands in the body of a mail."""

    pieces: tuple[bytes, ...]
    how: How = ()
    has_dots: bool = False
    """Whether a line of it begins with a dot."""


@lru_cache(maxsize=2048)
def header(name: str, value: str) -> bytes:
    """The header, folded, with the end of its last line."""
    if len(name) + len(value) <= SHORT and _WORDS.fullmatch(value) and "=?" not in value and _is_unstructured(name):
        return f"{name}: {value}\r\n".encode()
    return _folded(name, value)


def header_of_addresses(name: str, addresses: list[Address]) -> bytes:
    """The same for these addresses, which nobody else may have: they aren't remembered."""
    if len(addresses) == 1:
        address = addresses[0]
        is_plain = PLAIN.fullmatch(address.spec) and (not address.name or _PLAIN_NAME.fullmatch(address.name))
        text = str(address)
        if is_plain and len(name) + len(text) <= SHORT:
            return f"{name}: {text}\r\n".encode()
        return _folded(name, text)
    return _folded(name, ", ".join(map(str, addresses)))


def encoded_file(data: bytes) -> Encoded:
    """The bytes in base64."""
    chunks = (data[start : start + BASE64_BYTES] for start in range(0, len(data), BASE64_BYTES))
    return Encoded(tuple(encodebytes(chunk).replace(b"\n", CRLF) for chunk in chunks))


def begins_a_line_with_a_dot(content: bytes) -> bool:
    """Whether any line of it does; `content` begins with a line."""
    return content.startswith(b".") or b"\n." in content


def _on_the_wire(payload: str) -> bytes:
    content = payload.encode("ascii")
    return _LINE_END.sub(CRLF, content) if b"\r" in content else content.replace(b"\n", CRLF)


def _folded(name: str, value: str) -> bytes:
    try:
        line = _written(name, value)
    except Exception as error:  # the email package fails in many ways; whoever composes it all will say what is wrong
        raise Unfit(f"{name} can't be written: {type(error).__name__}: {error}") from error
    if not _HEADER.fullmatch(line):
        raise Unfit(f"{name} would be several headers")
    return line


if MODERN_MAIL:
    _MODERN = SEVEN_BIT.clone(header_factory=HEADER_FACTORY, refold_source="none", linesep="\r\n")

    class _Unparsed:
        """Headers as they are given: to parse them takes longer than to encode a text."""

        max_count = None

        def __getitem__(self, name: str) -> _Unparsed:
            return self

        def __call__(self, name: str, value: str) -> str:
            return value

    _UNPARSED = SEVEN_BIT.clone(header_factory=_Unparsed())

    @lru_cache(maxsize=256)
    def _is_unstructured(name: str) -> bool:
        return name == "Subject" or issubclass(HEADER_FACTORY[name], WholeWords)

    def _written(name: str, value: str) -> bytes:
        """As `EmailMessage.message()` sets it and Python's generator writes it."""
        name, parsed = _MODERN.header_store_parse(name, value)
        if isinstance(parsed, AddressHeader) and not all(address.domain.isascii() for address in parsed.addresses):
            raise ValueError("a domain is not ASCII")
        return _MODERN.fold_binary(name, parsed)

    def encoded_text(text: str) -> Encoded:
        """The text as the body of a part."""
        part: Any = MIMEPart(policy=_UNPARSED)
        part.set_content(text, charset=CHARSET)
        content = _on_the_wire(part.get_payload())
        return Encoded((content,), tuple(part.items()), begins_a_line_with_a_dot(content))

else:
    from django.core.mail.message import SafeMIMEText, forbid_multi_line_headers

    _LEGACY = compat32.clone(linesep="\r\n")

    @lru_cache(maxsize=1)
    def _is_unstructured(name: str) -> bool:
        return True  # ASCII is written as it is, in whichever header

    def _written(name: str, value: str) -> bytes:
        """As `SafeMIMEText` sets it and Python's generator writes it."""
        return _LEGACY.fold_binary(*forbid_multi_line_headers(name, value, CHARSET))

    def encoded_text(text: str) -> Encoded:
        """The text as the body of a part."""
        part: Any = SafeMIMEText(text, "plain", CHARSET)
        how = tuple(part.items())  # as Django has it: of what it has as 8 bits, that header moves to the end
        make_seven_bit(part)
        content = _on_the_wire(part.get_payload())
        return Encoded((content,), how, begins_a_line_with_a_dot(content))
