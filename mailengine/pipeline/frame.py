"""What Django writes around the words of a mail, learnt from Django: `Frame`.

A mail of the same structure, with samples for all its words, is rendered by Django and taken apart at those samples.
A second one shows whether the frame is understood: what is put into it must be what Django renders.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import format_datetime
from functools import lru_cache
from uuid import UUID, uuid4

from ..addresses import Address
from ..backends.wire import render
from ..models import Attachment, Content, ContentFile, Message
from ..models.messages import Status
from .checked import checked_address
from .compose import Words, compose, headers_of, recipients_of, sender_of
from .encoding import CRLF, Encoded, encoded_file, encoded_text
from .folding import Unfit, header, header_of_addresses

HEADERS = "headers"
ID = "id"
"""The id of a message in hexadecimal: MIME boundaries have it."""
TEXT, HTML, FILES = 0, 1, 2
"""Places of the words; from `FILES` on, those of the files."""

_SAMPLE_ID = uuid4()
_SAMPLE_TIME = datetime(2001, 2, 3, 4, 5, 6, tzinfo=timezone.utc)
_ENDINGS = ("\n", "é\n", "x" * 2_000 + "\n", "é" * 2_000 + "\n")
"""Of texts that are encoded in different ways: one of them is encoded as any other text is."""


@dataclass(frozen=True)
class File:
    """What a frame depends on in one of the files of a mail."""

    filename: str
    mimetype: str
    is_text: bool = True
    """Whether its bytes are UTF-8, which counts for the types `text/...`."""
    is_part: bool = False
    whole: bytes | None = None
    """Its bytes, where Django takes them apart and they are written in another way: they belong to the frame."""


@dataclass(frozen=True)
class Structure:
    """All that a frame depends on."""

    text: str | None
    """How its text is encoded; None where it is empty."""
    html: str | None
    files: tuple[File, ...] = ()
    alternatives: tuple[tuple[str, str], ...] = ()
    """Further ones, with their words."""
    subtypes: tuple[tuple[str, str], ...] = ()
    """What a mail says of its own subtypes."""

    @property
    def is_common(self) -> bool:
        """Whether mails that say something else may have it."""
        return not self.alternatives and all(file.whole is None for file in self.files)


@dataclass(frozen=True)
class Frame:
    """Bytes, and between them the places of headers, ids, words and files."""

    items: tuple[bytes | str | int, ...]

    def filled(self, headers: bytes, message_id: UUID, words: Mapping[int, Encoded]) -> bytes:
        values: dict[str | int, bytes] = {HEADERS: headers, ID: message_id.hex.encode()}
        values |= {place: b"".join(encoded.pieces) for place, encoded in words.items()}
        content = b"".join(item if isinstance(item, bytes) else values[item] for item in self.items)
        return content if content.endswith(CRLF) else content + CRLF


def frame_of(structure: Structure) -> Frame:
    """Raises `Unfit`."""
    found = _common_frame(structure) if structure.is_common else _frame(structure)
    if isinstance(found, str):
        raise Unfit(found)
    return found


def head_of(content: Content, sender: Address) -> bytes:
    """The headers of all mails of this content, with places for `values_of()` each. Raises `Unfit`."""
    own = {name.lower() for name in content.headers}
    head = b"%(subject)s" + _constant("From", content.headers.get("From", str(sender))) + b"%(addresses)s"
    if reply_to := content.headers.get("Reply-To", ", ".join(content.reply_to)):
        head += _constant("Reply-To", reply_to)
    for name, value in headers_of(_any_message(), content, sender):
        if name.lower() in {"from", "to", "cc", "reply-to"}:
            continue
        if name == "Date" and "date" not in own:
            head += b"%(date)s"
        elif name.lower() in own:
            head += _constant(name, value)
        else:
            head += _constant(name, value).replace(str(_SAMPLE_ID).encode(), b"%(id)s")
    return head


def values_of(message: Message, subject: str, addresses: bytes) -> dict[bytes, bytes]:
    """What a message has for itself in the headers, and its id as boundaries have it."""
    digits = message.pk.hex
    return {
        b"subject": header("Subject", subject),
        b"addresses": addresses,
        b"date": _date(message.send_at or message.created_at),
        b"id": f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}".encode(),
        b"hex": digits.encode(),
    }


def addresses_of(message: Message, own: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """The headers To and Cc, as `own` has them or as the message has; and whom it is still to be handed over to."""
    if message.other_recipients is None and message.status != Status.SENT and not own:
        address = checked_address("to", message.recipient)
        return header_of_addresses("To", [address]), [address.spec]
    recipients = [entry for entry in recipients_of(message) if entry[2] != "suppressed"]
    lines = b""
    envelope: list[str] = []
    for kind in ("to", "cc", "bcc"):
        of_kind = [(address, outcome) for address, its_kind, outcome in recipients if its_kind == kind]
        envelope += [address.spec for address, outcome in of_kind if not outcome]
        name = kind.capitalize()
        if kind != "bcc" and name in own:
            lines += header(name, own[name])
        elif kind != "bcc" and of_kind:
            lines += header_of_addresses(name, [address for address, _outcome in of_kind])
    return lines, envelope


def escaped(content: bytes) -> bytes:
    """`content` for a `%` that puts something into it."""
    return content.replace(b"%", b"%%")


def _constant(name: str, value: str) -> bytes:
    return escaped(header(name, value))


@lru_cache(maxsize=1)
def _any_message() -> Message:
    return Message(pk=_SAMPLE_ID, created_at=_SAMPLE_TIME)


@lru_cache(maxsize=256)
def _date(when: datetime) -> bytes:
    return header("Date", format_datetime(when))


# Learning from Django


@lru_cache(maxsize=256)
def _common_frame(structure: Structure) -> Frame | str:
    return _frame(structure)


def _frame(structure: Structure) -> Frame | str:
    """The frame; or why there is none, for the cache to keep."""
    try:
        headers, message_id, words, rendered = _sample(structure, is_plain=True)
        frame = _taken_apart(rendered, headers, message_id, words)
        headers, message_id, words, rendered = _sample(structure, is_plain=False)
        if frame.filled(headers, message_id, words) != rendered:
            return "Django puts its parts together in a way that is not known"
    except Unfit as error:
        return str(error)
    return frame


def _sample(structure: Structure, *, is_plain: bool) -> tuple[bytes, UUID, dict[int, Encoded], bytes]:
    """The headers, the id and the encoded words of a mail, and all of it as Django renders it."""
    content = Content(subject="For all", from_email="sender@example.org", reply_to=[], headers={}, extras={})
    message = Message(pk=uuid4(), created_at=_SAMPLE_TIME, recipient="reader@example.org")
    if not is_plain:
        content.headers = {"X-First": "1", "References": "<1@example.org>"}
        content.reply_to = ["Help <help@example.org>"]
        kinds = ("to", "cc", "bcc")
        message.other_recipients = [
            {"address": f"{kind}@example.org", "name": "Änn", "kind": kind, "outcome": ""} for kind in kinds
        ]
    content.extras = dict(structure.subtypes)
    content.extras["alternatives"] = [list(alternative) for alternative in structure.alternatives]
    words: dict[int, Encoded] = {}
    if structure.text is not None:
        content.text, words[TEXT] = _sample_text(structure.text)
    if structure.html is not None:
        content.html, words[HTML] = _sample_text(structure.html)
    files: list[ContentFile] = []
    data: dict[str, bytes] = {}
    for number, file in enumerate(structure.files):
        attachment = Attachment(sha256=str(number))
        files.append(
            ContentFile(attachment=attachment, filename=file.filename, mimetype=file.mimetype, is_part=file.is_part)
        )
        if file.whole is not None:
            data[attachment.sha256] = file.whole
        else:
            data[attachment.sha256] = uuid4().hex.encode() + (b"" if file.is_text else b"\xff")
            words[FILES + number] = encoded_file(data[attachment.sha256])
    sender = sender_of(content)
    addresses, _envelope = addresses_of(message, content.headers)
    headers = head_of(content, sender) % values_of(message, content.subject, addresses)
    rendered = render(compose(message, Words(content, files), read=lambda attachment: data[attachment.sha256]))
    return headers, message.pk, words, rendered


def _sample_text(how: str) -> tuple[str, Encoded]:
    for ending in _ENDINGS:
        text = uuid4().hex + ending
        encoded = encoded_text(text)
        if encoded.how == how:
            return text, encoded
    raise Unfit(f"a text is encoded in a way that is not known: {how}")


def _taken_apart(rendered: bytes, headers: bytes, message_id: UUID, words: Mapping[int, Encoded]) -> Frame:
    marks: dict[bytes, str | int] = {headers: HEADERS, message_id.hex.encode(): ID}
    marks |= {b"".join(encoded.pieces): place for place, encoded in words.items()}
    pieces = re.split(b"(%s)" % b"|".join(map(re.escape, marks)), rendered)
    items = tuple(marks.get(piece, piece) for piece in pieces if piece)
    places = sorted(str(item) for item in items if not isinstance(item, bytes) and item != ID)
    if places != sorted(map(str, (HEADERS, *words))):
        raise Unfit("Django writes its headers or words in a way that is not known")
    return Frame(items)
