"""The files of a mail as they are handed to the front door: checked, and made such that any server takes them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from email import encoders, message_from_bytes
from email.errors import MessageError
from email.message import Message as MIMEMessage
from typing import Any
from urllib.parse import unquote

from django.core.mail import EmailMessage
from django.utils.encoding import force_bytes
from django.utils.functional import Promise

from ..errors import InvalidMail
from ..headers import LONGEST_WORD, UNSAFE_IN_NAMES, as_text, header_text

LONGEST_FILENAME = 150
LONGEST_MIMETYPE = 127
DEEPEST_PARTS = 30
LONGEST_LINE = 998
"""Octets: RFC 5322, section 2.1.1."""

BINARY = "application/octet-stream"
_ATOM = r"[!#$&+.0-9A-Z^_`a-z{|}~-]+"  # RFC 2045, section 5.1, without what RFC 2231 gives a meaning: * ' %
# No parameter may hold an encoding of its own: Django 6 writes the decoded form, line breaks included.
MIMETYPE = re.compile(rf"""{_ATOM}/{_ATOM}(?: *; *{_ATOM}=(?:{_ATOM}|"(?:(?!["\\?%*])[ -~])*"))* *;?""")
_FOLD = re.compile(r"\r?\n(?=[ \t])")


@dataclass(frozen=True)
class File:
    """One attachment: its bytes, or those of a whole MIME part."""

    filename: str
    mimetype: str
    data: bytes
    is_part: bool = False


def file_of(item: Any) -> File:
    """An attachment as Django's EmailMessage has it: (file name, content, type), or a MIME part.

    Raises `InvalidMail` for what is none, or can't be sent.
    """
    if isinstance(item, MIMEMessage):  # MIMEBase, and MIMEPart of Django 6
        what = "an attached MIME part"
        _check_headers(item, what=what)
        data = _bytes_of_message(what, item, line_length=LONGEST_WORD)  # lest Python encode a long Content-ID
        part = _parsed(data, what=what)
        name, mimetype = checked_filename(part.get_filename() or ""), checked_mimetype(part.get_content_type())
        return File(name, mimetype, sendable(data, what=what), is_part=True)
    try:
        filename, content, mimetype = item
    except (TypeError, ValueError) as error:
        raise InvalidMail(f"An attachment is {item!r:.80}. Give (file name, content, type), or a MIME part.") from error
    name = checked_filename(filename)
    what = f"the attachment {name!r}"
    mimetype = checked_mimetype(mimetype or "", what=what)
    data = _bytes_of(what, content)
    if mimetype.lower() == "message/rfc822":
        data = sendable(data, what=what)
    elif mimetype.lower().startswith(("message/", "multipart/")):
        raise InvalidMail(f"{what} has the type {mimetype!r}. Attach it as a MIME part, or as {BINARY!r}.")
    elif mimetype.lower().startswith("text/") and b"\0" in data:
        mimetype = BINARY  # as Django does with text that is not UTF-8: this may be UTF-16
    return File(name, mimetype, data)


def checked_filename(name: object) -> str:
    """The name without its folders, and with single quotes for double ones. Raises `InvalidMail`."""
    text = header_text("an attachment's name", name)
    if UNSAFE_IN_NAMES.search(text):
        raise InvalidMail(
            f"an attachment's name holds a tab or a character that reverses text: {text[:80]!r}. Remove it."
        )
    text = text.replace("\\", "/").rpartition("/")[2].replace('"', "'")
    if len(text) > LONGEST_FILENAME:
        raise InvalidMail(f"The attachment's name {text[:40]!r}… is longer than {LONGEST_FILENAME} characters.")
    return text


def checked_mimetype(value: object, *, what: str = "an attachment") -> str:
    """The type as it is given, or "" for none. Raises `InvalidMail`."""
    mimetype = as_text(f"the type of {what}", value)
    if mimetype and (len(mimetype) > LONGEST_MIMETYPE or not MIMETYPE.fullmatch(mimetype)):
        raise InvalidMail(f"{what} has the type {mimetype[:80]!r}. Give one like 'application/pdf'.")
    return mimetype


def sendable(data: bytes, *, what: str) -> bytes:
    """A whole MIME part, or mail, such that it can be in any other: bodies that not every server takes become base64.

    Raises `InvalidMail` where the headers are what can't be sent.
    """
    message = _parsed(data, what=what)
    unfit = [part for part in message.walk() if not part.is_multipart() and not _is_sendable(_raw(part))]
    for part in unfit:
        content = part.get_payload(decode=True)
        del part["Content-Transfer-Encoding"]
        part.set_payload(content)
        encoders.encode_base64(part)
    if unfit:
        data = message.as_bytes()
    if not _is_sendable(data):
        raise InvalidMail(f"{what} has headers that are not ASCII, or too long a line. Attach it as {BINARY!r}.")
    return data


def _parsed(data: bytes, *, what: str) -> MIMEMessage:
    """A part, or mail, with parts within parts for so many levels: Python reads and writes them by calling itself."""
    refused = f"{what} has parts within parts for more than {DEEPEST_PARTS} levels. Attach it as {BINARY!r}."
    try:
        message = message_from_bytes(data)
    except RecursionError as error:
        raise InvalidMail(refused) from error
    level: list[Any] = [message]
    for _ in range(DEEPEST_PARTS):
        level = [child for part in level if part.is_multipart() for child in part.get_payload()]
        if not level:
            return message
    raise InvalidMail(refused)


def _raw(part: MIMEMessage) -> bytes:
    payload = part.get_payload()
    return payload.encode(errors="surrogateescape") if isinstance(payload, str) else b""


def _is_sendable(data: bytes) -> bool:
    if not data.isascii() or b"\0" in data:
        return False
    return len(data) <= LONGEST_LINE or max(map(len, data.splitlines())) <= LONGEST_LINE


def _check_headers(part: MIMEMessage, *, what: str) -> None:
    """Judge the headers of a part and of the parts in it; those of an attached mail are its own affair."""
    for name, value in part.raw_items():
        where = f"the header {name} of {what}"
        # Line breaks hide in parameters, too: RFC 2231.
        header_text(where, unquote(_FOLD.sub("", as_text(where, value))))
    if part.get_content_maintype() == "multipart":
        for child in part.get_payload():
            if isinstance(child, MIMEMessage):
                _check_headers(child, what=what)


def _bytes_of(what: str, content: object) -> bytes:
    if isinstance(content, EmailMessage):
        content = content.message()
    if isinstance(content, MIMEMessage):
        return _bytes_of_message(what, content)
    if not isinstance(content, str | bytes | bytearray | memoryview | Promise):
        raise InvalidMail(f"{what} has a {type(content).__name__} as its content. Give its bytes, or text.")
    try:
        return force_bytes(bytes(content) if isinstance(content, bytearray) else content)
    except UnicodeEncodeError as error:
        raise InvalidMail(f"{what} can't be encoded: {error}. Give its bytes.") from error


def _bytes_of_message(what: str, message: MIMEMessage, *, line_length: int | None = None) -> bytes:
    try:
        if line_length is None:
            return message.as_bytes()
        return message.as_bytes(policy=message.policy.clone(max_line_length=line_length))
    # The email package writes whatever was put into a message, and fails in as many ways as there are wrong things.
    except (MessageError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise InvalidMail(f"{what} can't be written: {type(error).__name__}: {error}.") from error
