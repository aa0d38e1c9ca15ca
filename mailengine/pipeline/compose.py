"""From a message's rows to the email that is handed over: the same rows give the same bytes, each time.

That sameness is what lets a mailbox or a provider recognise a second copy, and what lets the history rebuild what went
out: the Message-ID, the Date and the MIME boundaries come from the row, not from the moment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message as MIMEMessage
from email.utils import format_datetime
from typing import Any

from django.conf import settings as django_settings
from django.core.mail import EmailMultiAlternatives
from django.utils.dateparse import parse_date, parse_datetime

from ..addresses import Address, parse_address
from ..compat import mime_part
from ..errors import InvalidAddress, MailengineError
from ..models import Content, Message
from .draft import ANYMAIL_ATTRIBUTES
from .merge import compile_words, render_header

ID_HEADER = "X-Mailengine-Id"
ID_METADATA = "mailengine_id"


class NoSender(MailengineError):  # noqa: N818  named as the family in errors.py is
    """DEFAULT_FROM_EMAIL is no address: mail that relies on it waits until it is mended."""


@dataclass(frozen=True)
class File:
    """One attachment as it is attached."""

    filename: str
    mimetype: str
    data: bytes
    is_part: bool


@dataclass(frozen=True)
class Words:
    """The content of a mail with its files, loaded once for all messages that share it."""

    content: Content
    files: Sequence[File]


class ComposedEmail(EmailMultiAlternatives):
    """An email whose bytes depend on nothing but itself: MIME boundaries are made from the message's id."""

    boundary = ""

    def message(self, **kwargs: Any) -> Any:
        message = super().message(**kwargs)
        for number, part in enumerate(_multiparts(message)):
            if part.get_boundary() is None:
                part.set_boundary(f"=_{self.boundary}_{number}")
        return message


def load_words(content_id: int) -> Words:
    """The content and the bytes of its files. Raises `OSError` when the storage can't give them."""
    content = Content.objects.get(pk=content_id)
    files = [
        File(use.filename, use.mimetype, use.attachment.read(), use.is_part)
        for use in content.files.select_related("attachment")
    ]
    return Words(content, files)


def compose(message: Message, words: Words) -> ComposedEmail:
    """The email for those recipients of the message that are still to be served.

    Raises `InvalidMail` when the merge data can't be put into these words, and `NoSender`.
    """
    content = words.content
    sender = _sender(content)
    subject, text, html = _merged(content, message.merge_data)
    email = ComposedEmail(subject=subject, body=text, from_email=str(sender))
    email.boundary = message.pk.hex
    email.reply_to = list(content.reply_to)
    email.extra_headers = dict(_headers(message, content, sender))
    _address(email, message.recipients)
    if html:
        email.attach_alternative(html, "text/html")
    _add_extras(email, content.extras, message)
    for file in words.files:
        if file.is_part:
            email.attach(mime_part(file.data))
        else:
            email.attach(file.filename or None, file.data, file.mimetype or None)
    return email


def _sender(content: Content) -> Address:
    if content.from_email:
        return parse_address(content.from_email)
    try:
        return parse_address(django_settings.DEFAULT_FROM_EMAIL)
    except InvalidAddress as error:
        raise NoSender(f"DEFAULT_FROM_EMAIL: {error}") from error


def _merged(content: Content, data: Mapping[str, object] | None) -> tuple[str, str, str]:
    if data is None:
        return content.subject, content.text, content.html
    return (
        render_header(compile_words(content.subject), data),
        compile_words(content.text).render(data, html=False),
        compile_words(content.html).render(data, html=True),
    )


def _headers(message: Message, content: Content, sender: Address) -> Iterator[tuple[str, str]]:
    own = {name.lower() for name in content.headers}
    domain = sender.spec.rpartition("@")[2]
    ours = {
        "Message-ID": f"<{message.pk}@{domain}>",
        "Date": format_datetime(message.send_at or message.created_at),
        "Auto-Submitted": "auto-generated",  # RFC 3834: nobody's holiday notice is to answer it
        ID_HEADER: str(message.pk),
    }
    yield from ((name, value) for name, value in ours.items() if name.lower() not in own)
    yield from content.headers.items()


def _address(email: ComposedEmail, recipients: Sequence[Mapping[str, str]]) -> None:
    """Set the envelope, and in the headers also those who have been served before."""
    shown = [entry for entry in recipients if entry["outcome"] != "suppressed"]
    for kind in ("to", "cc", "bcc"):
        lines = [str(Address(entry["name"], entry["address"])) for entry in shown if entry["kind"] == kind]
        pending = [
            str(Address(entry["name"], entry["address"]))
            for entry in shown
            if entry["kind"] == kind and not entry["outcome"]
        ]
        setattr(email, kind, pending)
        if kind != "bcc" and lines != pending:
            email.extra_headers.setdefault(kind.capitalize(), ", ".join(lines))


def _add_extras(email: ComposedEmail, extras: Mapping[str, Any], message: Message) -> None:
    for content, mimetype in extras.get("alternatives", ()):
        email.attach_alternative(content, mimetype)
    email.encoding = extras.get("encoding")
    email.content_subtype = extras.get("content_subtype", "plain")
    if "mixed_subtype" in extras and hasattr(email, "mixed_subtype"):  # until Django 5.2
        email.mixed_subtype = extras["mixed_subtype"]
    for name in ANYMAIL_ATTRIBUTES:
        if name in extras:
            setattr(email, name, _instant(extras[name]) if name == "send_at" else extras[name])
    email.metadata = {**extras.get("metadata", {}), ID_METADATA: str(message.pk)}  # type: ignore[attr-defined]


def _instant(value: Any) -> Any:
    """Anymail's `send_at` as it was given: as JSON, dates and times are text."""
    return (parse_datetime(value) if "T" in value else parse_date(value)) or value if isinstance(value, str) else value


def _multiparts(part: MIMEMessage) -> Iterator[MIMEMessage]:
    """The multipart containers that make up this mail itself, not those of a mail attached to it."""
    if part.get_content_maintype() == "multipart":
        yield part
        for child in part.get_payload():
            if isinstance(child, MIMEMessage):
                yield from _multiparts(child)
