"""What a mail has besides words, recipients, headers and files: further alternatives, and what Anymail adds."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ..errors import InvalidMail
from ..headers import checked_line
from .checked import checked_address, checked_headers, checked_mapping, checked_text, listed
from .files import checked_mimetype

ANYMAIL_ATTRIBUTES = (
    "envelope_sender",
    "esp_extra",
    "merge_data",
    "merge_global_data",
    "merge_headers",
    "merge_metadata",
    "metadata",
    "send_at",
    "tags",
    "template_id",
    "track_clicks",
    "track_opens",
)
"""What Anymail adds to Django's EmailMessage: https://anymail.dev/en/stable/sending/anymail_additions/"""

_ATOM = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,60}")


def checked_extras(extras: object) -> dict[str, Any]:
    """What else a mail has, of the shape that composing it relies on. Raises `InvalidMail`."""
    checked = checked_mapping("extras", extras)
    for name, value in checked.items():
        check = _SHAPES.get(name)
        if check is not None:
            check(name, value)
    return checked


def alternative_of(item: Any) -> list[str]:
    try:
        content, mimetype = item
    except (TypeError, ValueError) as error:
        raise InvalidMail(f"An alternative is {item!r:.80}. Give (content, type).") from error
    mimetype = checked_mimetype(mimetype, what="an alternative")
    what = "the HTML" if mimetype == "text/html" else f"the alternative of type {mimetype}"
    try:
        text = content.decode() if isinstance(content, bytes) else content
    except UnicodeDecodeError as error:
        raise InvalidMail(f"{what} is no text: {error}. Attach it as a file.") from error
    if not mimetype or mimetype.lower().startswith(("message/", "multipart/")):
        raise InvalidMail(f"{what} can't be an alternative. Attach it as a file.")
    return [checked_text(what, text), mimetype]


def _check_tags(what: str, value: Any) -> None:
    for tag in listed(what, value):
        if not isinstance(tag, str):
            raise InvalidMail(f"{what} holds {tag!r:.80}. Give text.")
        checked_line(what, tag)


def _check_metadata(what: str, value: Any) -> None:
    # Many providers put it into headers.
    for name, item in checked_mapping(what, value).items():
        checked_line(f"a name in {what}", name)
        _check_lines(f"{what}[{name!r:.80}]", item)


def _check_lines(what: str, value: Any) -> None:
    """No text within `value` has more than one line, however deep it is."""
    if isinstance(value, str):
        checked_line(what, value)
    elif isinstance(value, dict):
        for name, item in value.items():
            checked_line(f"a name in {what}", name)
            _check_lines(what, item)
    elif isinstance(value, list):
        for item in value:
            _check_lines(what, item)


def _check_merge_metadata(what: str, value: Any) -> None:
    for address, metadata in checked_mapping(what, value).items():
        _check_metadata(f"{what}[{address!r:.80}]", metadata)


def _check_mappings(what: str, value: Any) -> None:
    for address, data in checked_mapping(what, value).items():
        checked_mapping(f"{what}[{address!r}]", data)


def _check_merge_headers(what: str, value: Any) -> None:
    _check_mappings(what, value)
    for headers in value.values():
        checked_headers(headers)


def _check_flag(what: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise InvalidMail(f"{what} is {value!r:.80}. Give True or False.")


def _check_encoding(what: str, value: Any) -> None:
    try:
        is_usable = isinstance(value, str) and _ATOM.fullmatch(value) and "a\n".encode(value) == b"a\n"
    except (LookupError, UnicodeError):
        is_usable = False
    if not is_usable:
        raise InvalidMail(f"{what} is {value!r:.80}. Give one like 'utf-8' or 'iso-8859-1'.")


def _check_subtype(what: str, value: Any) -> None:
    if not isinstance(value, str) or not _ATOM.fullmatch(value):
        raise InvalidMail(f"{what} is {value!r:.80}. Give one like 'html'.")


_SHAPES: dict[str, Callable[[str, Any], object]] = {
    "alternatives": lambda what, value: [alternative_of(item) for item in listed(what, value)],
    "content_subtype": _check_subtype,
    "encoding": _check_encoding,
    "envelope_sender": lambda what, value: checked_address(what, value),
    "esp_extra": checked_mapping,
    "merge_data": _check_mappings,
    "merge_global_data": checked_mapping,
    "merge_headers": _check_merge_headers,
    "merge_metadata": _check_merge_metadata,
    "metadata": _check_metadata,
    "mixed_subtype": _check_subtype,
    "tags": _check_tags,
    "template_id": _check_lines,
    "track_clicks": _check_flag,
    "track_opens": _check_flag,
}
"""What Anymail and Django rely on, by name."""
