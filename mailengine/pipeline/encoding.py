"""Texts and files as they stand in the body of a mail, byte for byte as Python and Django encode them."""

from __future__ import annotations

import re
from base64 import encodebytes
from binascii import b2a_base64, b2a_qp
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email import quoprimime
from email.message import MIMEPart
from functools import cached_property, lru_cache
from itertools import chain
from typing import Any

from ..backends.wire import MODERN_MAIL, SEVEN_BIT, dots_doubled, make_seven_bit

CHARSET = "utf-8"
CRLF = b"\r\n"
BASE64_BYTES = 57 * 2_000
"""So many bytes of a file are encoded at a time: whole lines of base64."""
LONGEST_LINE = 78 if MODERN_MAIL else 998
"""In octets, of text that need not be encoded for its length."""
LONGEST_QUOTED = 78 if MODERN_MAIL else 76
"""Of quoted-printable."""
LOOKED_AT = 10
"""By so many of its lines Python decides how a text is encoded."""

if not MODERN_MAIL:
    from django.core.mail.message import SafeMIMEText

_LINE_END = re.compile(rb"\r\n|\r|\n")
_SAFE = bytes(code for code in range(256) if not quoprimime.body_check(code)) + b"\r\n"
_PIECE = re.compile(
    rf"(?=.{{{LONGEST_QUOTED + 1}}}).{{{LONGEST_QUOTED - 3}}}(?:(?==)|[^=](?:(?==)|[^=]))"  # cut as `_cut()` does
    r"|.*\n|.+"
)
_SPACES = (" ", "\t")
_QUOTED = [chr(code) if code in _SAFE else f"={code:02X}" for code in range(256)]


@dataclass(frozen=True)
class Encoded:
    """A text or file as it stands in the body of a mail."""

    pieces: tuple[bytes, ...]
    how: str = ""
    """Its Content-Transfer-Encoding, as Django chooses it; what it has as 8 bits becomes quoted-printable."""
    has_dots: bool = False
    """Whether a line of it begins with a dot."""

    @cached_property
    def stuffed(self) -> tuple[bytes, ...]:
        """The same with such dots doubled: it begins a line."""
        return (dots_doubled(b"".join(self.pieces)),) if self.has_dots else self.pieces


class Block:
    """Lines of a text; what is found out of them is kept, for all the texts that they are in."""

    def __init__(self, text: str) -> None:
        self.text = text
        """Ends in a newline, unless it is the last of its text."""
        self._begins: dict[int, bytes] = {}

    @cached_property
    def content(self) -> bytes:
        return self.text.encode()

    @cached_property
    def lines(self) -> list[bytes]:
        return self.content.splitlines()

    @cached_property
    def is_short(self) -> bool:
        """Whether Django leaves its lines as they are, for their length."""
        if MODERN_MAIL:
            return max(map(len, self.lines), default=0) <= LONGEST_LINE
        return not any(
            len(line.encode()) > LONGEST_LINE for line in self.text.splitlines() if len(line) > LONGEST_LINE // 4
        )

    @cached_property
    def as_it_is(self) -> Encoded:
        return _lines(self._ended(CRLF.join(self.lines)))

    @cached_property
    def quoted_printable(self) -> Encoded:
        begin, others = self.begin(LOOKED_AT), self.lines[LOOKED_AT:]
        return _lines(self._ended(CRLF.join([begin, _quoted_printable(others)]) if others else begin))

    def begin(self, count: int) -> bytes:
        """So many of its lines in quoted-printable, without the end of the last."""
        if count not in self._begins:
            self._begins[count] = _quoted_printable(self.lines[:count])
        return self._begins[count]

    @cached_property
    def from_eight_bits(self) -> Encoded:
        """As `encoders.encode_quopri()` gives it."""
        content = b2a_qp(self.content, quotetabs=True).replace(b" ", b"=20")
        return _lines(_LINE_END.sub(CRLF, content) if b"\r" in content else content.replace(b"\n", CRLF))

    def _ended(self, content: bytes) -> bytes:
        """With the end of the last line: Django 6 writes one in any case."""
        return content + CRLF if MODERN_MAIL or self.text.endswith(("\n", "\r")) else content


def encoded_file(data: bytes) -> Encoded:
    """The bytes in base64."""
    chunks = (data[start : start + BASE64_BYTES] for start in range(0, len(data), BASE64_BYTES))
    return Encoded(tuple(encodebytes(chunk).replace(b"\n", CRLF) for chunk in chunks))


def encoded_text(text: str) -> Encoded:
    """The text, which isn't empty."""
    return encoded_blocks([Block(text)])


def encoded_blocks(blocks: Sequence[Block]) -> Encoded:
    """The text of these blocks together; none of them is empty."""
    if _is_as_python():
        return _encoded_blocks(blocks)
    return _by_python("".join(block.text for block in blocks))


def begins_a_line_with_a_dot(content: bytes) -> bool:
    """Whether any line of it does; `content` begins with a line."""
    return content.startswith(b".") or b"\n." in content


# In a fraction of Python's time


@lru_cache(maxsize=1)
def _is_as_python() -> bool:
    """Whether what follows is what this Python does; another may encode texts in another way."""
    cuts = [f"{'x' * count}{end}" for count in range(71, 83) for end in ("x", " ", "\t", "=", "é")]
    samples = ["a", "a\r\n.b\rc\n\n", "é", "é" * 200, "x" * 79, "x" * 200 + "é" * 20, "x" * 20 + "é" * 8, "x" * 999]
    samples += [
        "\n".join(cuts),
        "\n".join(["é", *cuts]),
        "é" * 200 + "\n" * 20,
        "\n".join([*reversed(cuts), "é" * 500]),
    ]
    return all(_encoded_blocks([Block(sample)]) == _by_python(sample) for sample in samples)


if MODERN_MAIL:

    def _encoded_blocks(blocks: Sequence[Block]) -> Encoded:
        if all(block.text.isascii() and block.is_short for block in blocks):
            return _together("7bit", [block.as_it_is for block in blocks])
        if _is_shorter_in_base64(blocks):
            content = CRLF.join([*chain.from_iterable(block.lines for block in blocks), b""])
            return _together("base64", [encoded_file(content)])
        return _together("quoted-printable", [block.quoted_printable for block in blocks])

else:

    def _encoded_blocks(blocks: Sequence[Block]) -> Encoded:
        if not all(block.is_short for block in blocks):
            return _together("quoted-printable", [block.quoted_printable for block in blocks])
        if all(block.text.isascii() for block in blocks):
            return _together("7bit", [block.as_it_is for block in blocks])
        return _together("8bit", [block.from_eight_bits for block in blocks])


def _is_shorter_in_base64(blocks: Sequence[Block]) -> bool:
    """Judged by the first lines, as Python does."""
    missing, quoted_size, size = LOOKED_AT, 0, 0
    for block in blocks:
        count = min(missing, len(block.lines))
        quoted = block.begin(count if count < len(block.lines) else LOOKED_AT)
        quoted_size += len(quoted) - quoted.count(b"\r") + 1
        size += sum(map(len, block.lines[:count])) + len(CRLF) * count
        missing -= count
        if not missing:
            break
    return quoted_size > len(b2a_base64(bytes(size)))


def _together(name: str, parts: Sequence[Encoded]) -> Encoded:
    pieces = tuple(chain.from_iterable(part.pieces for part in parts))
    return Encoded(pieces, name, any(part.has_dots for part in parts))


def _lines(content: bytes) -> Encoded:
    return Encoded((content,), "", begins_a_line_with_a_dot(content))


def _quoted_printable(lines: Sequence[bytes]) -> bytes:
    """As `quoprimime.body_encode()` gives it."""
    content = b"\n".join(lines)
    # The C code would quote a space at the end of a line as it likes, and a dot that is alone in its line.
    if b"." in lines or any(line.endswith((b" ", b"\t")) for line in lines):
        text = content.decode("latin-1").translate(_QUOTED)
        return "\r\n".join(chain.from_iterable(map(_cut, text.split("\n")))).encode("ascii")
    text = b2a_qp(content).replace(b"=\n", b"").decode("ascii")  # without its line breaks, which are elsewhere
    pieces = _PIECE.findall(text)
    # That puts a soft break behind what ends a line by itself, too: it stands alone in its line, as no other can.
    return "=\n".join(pieces).replace("\n=\n", "\n").replace("\n", "\r\n").encode("ascii")


def _cut(line: str) -> Iterator[str]:
    """A line of quoted-printable: in several where it is too long, or ends in a space."""
    start = 0
    last = len(line) - LONGEST_QUOTED - 1
    while start <= last:
        stop = start + LONGEST_QUOTED - 1
        if line[stop - 2] == "=":  # not within what stands for one character
            stop -= 2
        elif line[stop - 1] == "=":
            stop -= 1
        yield f"{line[start:stop]}="
        start = stop
    room = start - last
    if line[-1:] not in _SPACES:
        yield line[start:]
    elif room >= 3:
        yield f"{line[start:-1]}={ord(line[-1]):02X}"
    elif room == 2:
        yield f"{line[start:]}="
        yield ""
    else:
        yield f"{line[start:-1]}="
        yield f"={ord(line[-1]):02X}"


# In Python's own


def _by_python(text: str) -> Encoded:
    part: Any
    if MODERN_MAIL:
        part = MIMEPart(policy=SEVEN_BIT)
        part.set_content(text, charset=CHARSET)
    else:
        part = SafeMIMEText(text, "plain", CHARSET)
    how = str(part["Content-Transfer-Encoding"])
    make_seven_bit(part)
    content = part.get_payload().encode("ascii")
    content = _LINE_END.sub(CRLF, content)
    return Encoded((content,), how, begins_a_line_with_a_dot(content))
