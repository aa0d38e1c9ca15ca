"""Headers as Django writes them into a mail, one by one.

Python's own code decides on each; what it makes of a value depends on nothing else in the mail, so it is remembered.
"""

from __future__ import annotations

import re
from email.headerregistry import AddressHeader
from email.policy import compat32
from functools import lru_cache

from ..addresses import PLAIN, Address
from ..backends.wire import MODERN_MAIL, SEVEN_BIT
from .compose import HEADER_FACTORY, WholeWords
from .encoding import CHARSET

SHORT = 74
"""A header of so many characters, name and value, is never folded: a line has 78, the colon and the space included."""

_WORDS = re.compile(r"[!-~]+(?: [!-~]+)*")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9]+(?: [A-Za-z0-9]+)*")
_HEADER = re.compile(rb"[^\r\n]+\r\n(?:[ \t][^\r\n]*\r\n)*")


class Unfit(Exception):  # noqa: N818  named for what the mail is
    """This mail is better left to Django; the text says why."""


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

    @lru_cache(maxsize=256)
    def _is_unstructured(name: str) -> bool:
        return name == "Subject" or issubclass(HEADER_FACTORY[name], WholeWords)

    def _written(name: str, value: str) -> bytes:
        """As `EmailMessage.message()` sets it and Python's generator writes it."""
        name, parsed = _MODERN.header_store_parse(name, value)
        if isinstance(parsed, AddressHeader) and not all(address.domain.isascii() for address in parsed.addresses):
            raise ValueError("a domain is not ASCII")
        return _MODERN.fold_binary(name, parsed)

else:
    from django.core.mail.message import forbid_multi_line_headers

    _LEGACY = compat32.clone(linesep="\r\n")

    @lru_cache(maxsize=1)
    def _is_unstructured(name: str) -> bool:
        return True  # ASCII is written as it is, in whichever header

    def _written(name: str, value: str) -> bytes:
        """As its messages set it and Python's generator writes it."""
        return _LEGACY.fold_binary(*forbid_multi_line_headers(name, value, CHARSET))
