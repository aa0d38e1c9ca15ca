"""The words of a content as bytes, rendered once, with places for what each of its mails has for itself: `Mould`.

Each mail that is cast is, byte for byte, what `render(compose(...))` gives for the message. What can't be had that way
is `Unfit`, and is composed by Django.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from django.conf import settings as django_settings

from ..backends.wire import WireMail
from ..models import Attachment, ContentFile, Message
from .compose import Words, sender_of
from .encoding import CHARSET, CRLF, Block, Encoded, begins_a_line_with_a_dot, encoded_blocks, encoded_text
from .folding import Unfit
from .frame import FILES, HEADERS, HTML, ID, TEXT, File, Structure, addresses_of, escaped, frame_of, head_of, values_of
from .merge import Template, compile_template, render_header

BINARY = "application/octet-stream"
"""The type of a file of which nothing else is known, as Django has it."""


@dataclass(frozen=True)
class _Plan:
    """A frame with the headers of a content: bytes for a `%`, and places of words between them."""

    items: tuple[bytes | int, ...]
    has_dots: bool


@dataclass(frozen=True)
class _Merged:
    """The words of a content with merge fields: what has none is encoded once."""

    subject: Template
    text: tuple[Block | Template, ...]
    html: tuple[Block | Template, ...]


class Mould:
    """Casts the mails of one content. Raises `Unfit` where none can be cast, and what `read` and `compose()` raise.

    `read` gives the bytes of a file, `encode` gives them as they are in a mail. Where the mould is for many mails
    (`is_shared`), it may cost more than one of them does.
    """

    def __init__(
        self,
        words: Words,
        *,
        read: Callable[[Attachment], bytes],
        encode: Callable[[Attachment], Encoded],
        is_shared: bool = True,
    ) -> None:
        content = words.content
        self.content = content
        self.sender = sender_of(content)
        charsets = {django_settings.DEFAULT_CHARSET, content.extras.get("encoding") or CHARSET}
        if charsets != {CHARSET}:
            raise Unfit(f"its texts are not in {CHARSET}")
        self._head = head_of(content, self.sender)
        self._own_addresses = {name: content.headers[name] for name in ("To", "Cc") if name in content.headers}
        self._files = tuple(_file(file, read) for file in words.files)
        self._alternatives = tuple((text, mimetype) for text, mimetype in content.extras.get("alternatives", ()))
        if not is_shared and (self._alternatives or any(file.whole is not None for file in self._files)):
            raise Unfit("its structure is its own")
        self._files_encoded = {
            FILES + number: encode(file.attachment)
            for number, file in enumerate(words.files)
            if self._files[number].whole is None
        }
        self._literal: Mapping[int, Encoded] | None = None
        """All parts of a mail without merge data."""
        self._merged: _Merged | None = None
        self._plans: dict[tuple[str | None, str | None], _Plan] = {}

    def cast(self, message: Message) -> WireMail:
        """The mail for those recipients of the message that are still to be served. Raises as `compose()`, or `Unfit`.

        Large pieces of it are those of all others.
        """
        subject, parts = self._words_for(message.merge_data)
        plan = self._plan(parts)
        addresses, envelope = addresses_of(message, self._own_addresses)
        values = values_of(message, subject, addresses)
        has_dots = plan.has_dots
        pieces: list[bytes] = []
        stuffed: list[bytes] = []
        for item in plan.items:
            if isinstance(item, bytes):
                own = (item % values,)
                pieces += own
                stuffed += own
            else:
                pieces += parts[item].pieces
                stuffed += parts[item].stuffed
                has_dots = has_dots or parts[item].has_dots
        if not pieces[-1].endswith(CRLF):
            pieces.append(CRLF)
            stuffed.append(CRLF)
        return WireMail(self.sender.spec, envelope, pieces, has_dots, None if plan.has_dots else stuffed)

    def _words_for(self, data: Mapping[str, object] | None) -> tuple[str, Mapping[int, Encoded]]:
        """The subject, and the parts of a mail with this merge data."""
        content = self.content
        if data is None:
            if self._literal is None:
                texts = {TEXT: content.text, HTML: content.html}
                encoded = {place: encoded_text(text) for place, text in texts.items() if text}
                self._literal = encoded | self._files_encoded
            return content.subject, self._literal
        if self._merged is None:
            self._merged = _Merged(
                compile_template(content.subject),
                _blocks(compile_template(content.text)),
                _blocks(compile_template(content.html)),
            )
        subject = render_header(self._merged.subject, data)
        parts = dict(self._files_encoded)
        for place, blocks in ((TEXT, self._merged.text), (HTML, self._merged.html)):
            filled = [_filled(block, data, html=place == HTML) for block in blocks]
            if filled := [block for block in filled if block.text]:
                parts[place] = encoded_blocks(filled)
        return subject, parts

    def _plan(self, parts: Mapping[int, Encoded]) -> _Plan:
        text = parts[TEXT].how if TEXT in parts else None
        html = parts[HTML].how if HTML in parts else None
        key = text, html
        plan = self._plans.get(key)
        if plan is None:
            extras = self.content.extras
            subtypes = [(name, extras[name]) for name in ("content_subtype", "mixed_subtype") if name in extras]
            structure = Structure(text, html, self._files, self._alternatives, tuple(subtypes))
            plan = self._plans[key] = self._planned(frame_of(structure).items)
        return plan

    def _planned(self, frame: tuple[bytes | str | int, ...]) -> _Plan:
        items: list[bytes | int] = []
        for item in frame:
            if isinstance(item, int):
                items.append(item)
                continue
            content = {HEADERS: self._head, ID: b"%(hex)s"}[item] if isinstance(item, str) else escaped(item)
            if items and isinstance(items[-1], bytes):
                items[-1] += content
            else:
                items.append(content)
        # What is put between them begins no line: a header is folded at a space, which is then the first of the line.
        has_dots = any(begins_a_line_with_a_dot(item) for item in items if isinstance(item, bytes))
        return _Plan(tuple(items), has_dots)


def _blocks(template: Template) -> tuple[Block | Template, ...]:
    blocks = template.by_lines()
    return tuple(block if block.fields else Block(block.render({}, html=False)) for block in blocks)


def _filled(block: Block | Template, data: Mapping[str, object], *, html: bool) -> Block:
    return block if isinstance(block, Block) else Block(block.render(data, html=html))


def _file(file: ContentFile, read: Callable[[Attachment], bytes]) -> File:
    mimetype = file.mimetype or mimetypes.guess_type(file.filename)[0] or BINARY
    if file.is_part or mimetype.lower().startswith(("message/", "multipart/")):
        return File(file.filename, file.mimetype, is_part=file.is_part, whole=read(file.attachment))
    is_text = not mimetype.lower().startswith("text/") or _is_text(read(file.attachment))
    return File(file.filename, file.mimetype, is_text)


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
