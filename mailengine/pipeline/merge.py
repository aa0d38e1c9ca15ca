"""Merge fields: `{{ name }}` and `{{ name|default:"reader" }}` in the words of a mail, and nothing more.

Not Django's templates: editors write these words, and a template language in their hands reads objects and runs loops.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from django.utils.html import escape

from ..errors import InvalidMail
from ..headers import UNSAFE, UNSTORABLE, header_text

FIELD = re.compile(
    r"""
    \{\{ \s* (?P<name> [^\W\d]\w* (?: \.\w+ )* ) \s*
    (?: \| \s* default \s* : \s* (?: "(?P<double> [^"]* )" | '(?P<single> [^']* )' ) \s* )?
    \}\}
    """,
    re.VERBOSE,
)


@dataclass(frozen=True)
class Field:
    """One `{{ name }}`, with what it says where the data has nothing."""

    name: str
    default: str

    def value_in(self, data: Mapping[str, object]) -> str | None:
        """What the data has under this name, or None for nothing: no such name, None and "" are alike."""
        value: object = data
        for key in self.name.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return None if value is None else str(value) or None


@dataclass(frozen=True)
class Template:
    """A text taken apart at its merge fields: literal parts and fields, in their order."""

    parts: tuple[str | Field, ...]

    @property
    def fields(self) -> frozenset[str]:
        """The names that the text asks its merge data for."""
        return frozenset(part.name for part in self.parts if isinstance(part, Field))

    def by_lines(self) -> tuple[Template, ...]:
        """The same text in as few whole lines as can be had together, either without fields or with fields in them.

        Each but the last ends in a newline.
        """
        blocks: list[list[str | Field]] = [[]]
        for part in self.parts:
            if isinstance(part, Field) or not blocks[-1]:
                blocks[-1].append(part)
                continue
            # Behind a field, its line ends it; and the line that the next field is in begins another.
            line, newline, others = part.partition("\n")
            blocks[-1].append(line + newline)
            if newline:
                blocks.append([others] if others else [])
        whole: list[list[str | Field]] = []
        for block in blocks:
            if len(block) > 1 and isinstance(block[0], str):
                lines, newline, line = block[0].rpartition("\n")
                if newline:
                    whole.append([lines + newline])
                block[0] = line
            whole.append([part for part in block if part])
        return tuple(Template(tuple(block)) for block in whole if block)

    def render(self, data: Mapping[str, object], *, html: bool) -> str:
        """The text with its fields filled in. Values are escaped in HTML; defaults, words of the author, are not."""
        return "".join(part if isinstance(part, str) else _fill(part, data, html=html) for part in self.parts)


@lru_cache(maxsize=64)
def compile_template(text: str) -> Template:
    """The merge fields of a text. `{% ... %}` has no meaning here and stays as it is.

    Raises InvalidMail for any `{{` that doesn't begin a merge field: better now than in everybody's mail.
    """
    parts: list[str | Field] = []
    position = 0
    while (opening := text.find("{{", position)) >= 0:
        field = FIELD.match(text, opening)
        if field is None:
            raise _not_a_field(text, opening)
        if opening > position:
            parts.append(text[position:opening])
        parts.append(Field(field["name"], field["double"] or field["single"] or ""))
        position = field.end()
    if position < len(text):
        parts.append(text[position:])
    return Template(tuple(parts))


def render_header(template: Template, data: Mapping[str, object]) -> str:
    """The text for a header. Raises InvalidMail for a value that could begin another header; it is named, not shown."""
    for part in template.parts:
        if isinstance(part, Field) and UNSAFE.search(part.value_in(data) or ""):
            raise InvalidMail(
                f"{{{{ {part.name} }}}} brings a line break or control character into a header."
                " Remove it from the merge data."
            )
    return header_text("the subject with its merge data", template.render(data, html=False))


def _fill(field: Field, data: Mapping[str, object], *, html: bool) -> str:
    value = field.value_in(data)
    if value is None:
        return field.default
    if UNSTORABLE.search(value):
        raise InvalidMail(f"{{{{ {field.name} }}}} brings a character that no mail can carry. Remove it.")
    return escape(value) if html else value


def _not_a_field(text: str, opening: int) -> InvalidMail:
    line = text.count("\n", 0, opening) + 1
    closing = text.find("}}", opening, opening + 60)
    seen = text[opening : closing + 2] if closing >= 0 else text[opening : opening + 20].splitlines()[0]
    return InvalidMail(
        f"Line {line}: {seen!r} is not a merge field."
        ' Write {{ name }} or {{ name|default:"reader" }}; there are no other filters and no calls.'
    )
