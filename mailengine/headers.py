"""What may stand in the header of a mail: the one rule for subjects, names, file names and all other values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.errors import MessageError
from email.header import decode_header, make_header

from .errors import InvalidMail

UNSAFE = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""What ends a line somewhere, is no character at all (lone surrogates), or has no place in words."""
UNSAFE_IN_NAMES = re.compile(f"\t|{UNSAFE.pattern}|[\u202a-\u202e\u2066-\u2069]")
"""The same, and what makes a name read as another by reversing it; in longer words, some scripts need that."""
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
"""What PostgreSQL can't store, or UTF-8 can't encode."""

# Headers are folded at white space: with the longest name before it, such a word stays within the 998 octets of a line.
LONGEST_WORD = 900
LONGEST_ENCODED = 10_000
ENCODED_WORD = re.compile(r"=\?[^?]*\?[bq]\?", re.IGNORECASE)
WORD = re.compile(r"\s*\S+")


def header_text(what: str, value: object) -> str:
    """`value` as the text of a header: without the white space around it, and what it says if it came encoded.

    Raises `InvalidMail` for what could end the header or begin another, and for what no line can hold.
    """
    text = checked_line(what, value).strip()
    if ENCODED_WORD.search(text):
        text = checked_line(what, decoded(what, text)).strip()
    if any(len(word[0]) > LONGEST_WORD for word in WORD.finditer(text)):
        raise InvalidMail(
            f"{what} has more than {LONGEST_WORD} characters without a space, too many for a line: {text[:80]!r}…"
            " Shorten it."
        )
    return text


def checked_line(what: str, value: object) -> str:
    """`value` as text, as it is. Raises `InvalidMail` for line breaks and control characters."""
    text = as_text(what, value)
    if UNSAFE.search(text):
        raise InvalidMail(f"{what} holds a line break or a control character: {text[:80]!r}. Remove it.")
    return text


def decoded(what: str, text: str) -> str:
    """What =?...?= words in a text say. Otherwise who reads the mail would decode what nobody has judged."""
    if len(text) > LONGEST_ENCODED:  # it takes Python a time that is quadratic
        raise InvalidMail(f"{what} has a =?...?= encoding of more than {LONGEST_ENCODED:,} characters. Shorten it.")
    try:
        result = str(make_header(decode_header(text)))
    except (MessageError, LookupError, ValueError) as error:
        raise InvalidMail(f"{what} has a broken =?...?= encoding: {text[:80]!r}. Write the text itself.") from error
    if UNSAFE.search(result) or ENCODED_WORD.search(result):
        raise InvalidMail(
            f"{what} hides a control character or another encoding in its =?...?= encoding: {text[:80]!r}."
            " Write the text itself."
        )
    return result


def as_text(what: str, value: object) -> str:
    """`value` as text: words, lazy ones too, numbers, dates, "" for None. Raises `InvalidMail` for bytes and lists."""
    if type(value) is str:  # as nearly always; the other question takes long
        return value
    if isinstance(value, bytes | bytearray | memoryview | list | tuple | set | frozenset | Mapping):
        raise InvalidMail(f"{what} is {str(value)[:80]}, of type {type(value).__name__}. Give text.")
    return "" if value is None else str(value)
