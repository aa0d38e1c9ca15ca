"""From a message's rows to the email that is handed over: the same rows give the same bytes, each time.

That sameness is what lets a mailbox or a provider recognise a second copy, and what lets the history rebuild what went
out: the Message-ID, the Date and the MIME boundaries come from the row, not from the moment.
"""

from __future__ import annotations

from base64 import encodebytes
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.headerregistry import HeaderRegistry, UnstructuredHeader
from email.message import Message as MIMEMessage
from email.mime.base import MIMEBase
from email.policy import default
from email.utils import format_datetime
from functools import cached_property
from typing import Any

from django.conf import settings as django_settings
from django.core.mail import EmailMultiAlternatives
from django.db.models.functions import Length
from django.utils.dateparse import parse_date, parse_datetime

from ..addresses import Address, parse_address
from ..backends.wire import MODERN_MAIL
from ..compat import mime_part
from ..errors import InvalidAddress, InvalidMail, MailengineError
from ..headers import WORD, header_text
from ..ids import ID_METADATA
from ..models import Attachment, Content, ContentFile, Message
from .checked import checked_address, checked_headers, checked_text, listed
from .extras import ANYMAIL_ATTRIBUTES, checked_extras
from .files import checked_filename, checked_mimetype
from .merge import compile_template, render_header

ID_HEADER = "X-Mailengine-Id"
SHORT_WORDS = 100_000
"""In characters: words of which many may be loaded at once."""


class NoSender(MailengineError):  # noqa: N818  named as the family in errors.py is
    """DEFAULT_FROM_EMAIL is no address: mail that relies on it waits until it is mended."""


@dataclass(frozen=True)
class Words:
    """The content of a mail and the names of its files, loaded once for all messages that share it."""

    content: Content
    files: Sequence[ContentFile]

    @property
    def loaded_size(self) -> int:
        """What is in memory of it: its words, about so many bytes."""
        further = [words for words, _mimetype in self.content.extras.get("alternatives", ())]
        return sum(map(len, [self.content.text, self.content.html, *further]))

    @cached_property
    def size(self) -> int:
        """What a mail of it takes at least, in bytes: its words, and its files, which are not loaded yet."""
        return self.loaded_size + sum(file.attachment.size for file in self.files)


class ComposedEmail(EmailMultiAlternatives):
    """An email whose bytes depend on nothing but itself: MIME boundaries are made from the message's id."""

    boundary = ""

    def message(self, **kwargs: Any) -> Any:
        if MODERN_MAIL:
            # Headers of attached parts stay as they were written: to fold them anew is to decode what they say.
            policy = kwargs.get("policy", default)
            kwargs["policy"] = policy.clone(header_factory=HEADER_FACTORY, refold_source="none")
        message = super().message(**kwargs)
        for number, part in enumerate(_multiparts(message)):
            if part.get_boundary() is None:
                part.set_boundary(f"=_{self.boundary}_{number}")
        return message

    if MODERN_MAIL:

        def _add_attachment(self, msg: Any, filename: str | None, content: Any, mimetype: str) -> None:
            """As Django's, but a text file keeps its bytes: written as text, its lines would end in another way."""
            kind, _slash, subtype = mimetype.partition("/")
            if kind == "text" and isinstance(content, str):
                charset = {"charset": "utf-8"}
                msg.add_attachment(content.encode(), maintype=kind, subtype=subtype, filename=filename, params=charset)
            else:
                super()._add_attachment(msg, filename, content, mimetype)  # type: ignore[misc]

    else:

        def _create_attachment(self, filename: str | None, content: Any, mimetype: str) -> MIMEMessage:
            """As Django's, but a text file keeps its bytes: written as text, its lines would end in another way."""
            if mimetype.startswith("text/") and isinstance(content, str):
                content = content.encode()
            return super()._create_attachment(filename, content, mimetype)  # type: ignore[misc, no-any-return]

        def _create_mime_attachment(self, content: Any, mimetype: str) -> MIMEMessage:
            """As Django's, which has the content five times in memory on its way to base64."""
            kind, _slash, subtype = mimetype.partition("/")
            if kind == "message" or not isinstance(content, bytes):
                return super()._create_mime_attachment(content, mimetype)  # type: ignore[misc, no-any-return]
            part = MIMEBase(kind, subtype)
            if kind == "text":
                part.set_param("charset", "utf-8")
            part.set_payload(encodebytes(content).decode("ascii"))
            part["Content-Transfer-Encoding"] = "base64"
            return part


class WholeWords(UnstructuredHeader):
    """A header without a structure, folded at white space alone.

    Python's own fold encodes ASCII words that are longer than a line, and then no mailbox finds the link in
    List-Unsubscribe or the mail that References names.
    """

    def fold(self, *, policy: Any) -> str:
        text, name = str(self), self.name  # type: ignore[attr-defined]  # see HeaderRegistry
        if not text.isascii():
            return str(super().fold(policy=policy))  # type: ignore[misc]
        lines = [f"{name}:"]
        for word in WORD.findall(f" {text}"):
            if len(lines[-1]) + len(word) > policy.max_line_length and lines[-1] != f"{name}:":
                lines.append("")
            lines[-1] += word
        return "".join(f"{line}{policy.linesep}" for line in lines)


HEADER_FACTORY = HeaderRegistry(default_class=WholeWords)


def load_words(content_id: int) -> Words:
    """The content and what it says of its files. Raises `InvalidMail` for what no mail can be made of."""
    content = Content.objects.get(pk=content_id)
    return _words_of(content, list(content.files.select_related("attachment")))


def load_short_words(content_ids: Collection[int]) -> Iterator[Words]:
    """The words of these contents by two queries, as far as they are short, and mail can be made of them."""
    contents = (
        Content.objects.filter(pk__in=content_ids)
        .annotate(length=Length("text") + Length("html"))
        .filter(length__lt=SHORT_WORDS)
    )
    files: dict[int, list[ContentFile]] = defaultdict(list)
    for file in ContentFile.objects.filter(content__in=content_ids).select_related("attachment").order_by("position"):
        files[file.content_id].append(file)
    for content in contents:
        with suppress(InvalidMail, ValueError, TypeError, LookupError):  # said when it is loaded for itself
            yield _words_of(content, files[content.pk])


def _words_of(content: Content, files: Sequence[ContentFile]) -> Words:
    content = checked_content(content)
    for file in files:
        file.filename = checked_filename(file.filename)
        file.mimetype = checked_mimetype(file.mimetype, what="a file")
    return Words(content, files)


def checked_content(content: Content) -> Content:
    """The content, judged once more: whatever wrote the row, no mail of it has a header that it wasn't to have.

    Not saved: the row stays as it is.
    """
    content.subject = header_text("the subject", content.subject)
    content.text = checked_text("the text", content.text)
    content.html = checked_text("the HTML", content.html)
    content.reply_to = [str(checked_address("reply_to", item)) for item in listed("reply_to", content.reply_to)]
    content.headers = checked_headers(content.headers)
    content.extras = checked_extras(content.extras)
    _instant(content.extras.get("send_at"))  # raises ValueError for what is none
    return content


def compose(message: Message, words: Words, *, read: Callable[[Attachment], bytes] = Attachment.read) -> ComposedEmail:
    """The email for those recipients of the message that are still to be served; `read` gives the bytes of a file.

    Raises `InvalidMail` when the merge data can't be put into these words, `NoSender`, and what `read` raises.
    """
    content = words.content
    sender = sender_of(content)
    subject, text, html = merged(content, message.merge_data)
    email = ComposedEmail(subject=subject, body=text, from_email=str(sender))
    email.boundary = message.pk.hex
    email.reply_to = list(content.reply_to)
    email.extra_headers = dict(headers_of(message, content, sender))
    _address(email, list(recipients_of(message)))
    if html:
        email.attach_alternative(html, "text/html")
    _add_extras(email, content.extras, message)
    for file in words.files:
        data = read(file.attachment)
        if file.is_part:
            email.attach(mime_part(data))
        else:
            email.attach(file.filename or None, data, file.mimetype or None)
    return email


def sender_of(content: Content) -> Address:
    if content.from_email:
        return parse_address(content.from_email)
    try:
        return parse_address(django_settings.DEFAULT_FROM_EMAIL)
    except InvalidAddress as error:
        raise NoSender(f"DEFAULT_FROM_EMAIL: {error}") from error


def merged(content: Content, data: Mapping[str, object] | None) -> tuple[str, str, str]:
    if data is None:
        return content.subject, content.text, content.html
    return (
        render_header(compile_template(content.subject), data),
        compile_template(content.text).render(data, html=False),
        compile_template(content.html).render(data, html=True),
    )


def headers_of(message: Message, content: Content, sender: Address) -> Iterator[tuple[str, str]]:
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


def recipients_of(message: Message) -> Iterator[tuple[Address, str, str]]:
    """Address, kind and outcome of each recipient, judged once more. Raises `InvalidMail`."""
    stored = message.other_recipients
    if stored is not None and not _are_recipients(stored):
        # What follows asks whom it is for, and goes by the first recipient alone; the row stays as it is.
        message.other_recipients = None
        raise InvalidMail(f"its recipients are stored as {stored!r:.80}, which is no list of them.")
    for entry in message.recipients:
        address = checked_address(entry["kind"], Address(entry["name"], entry["address"]))
        yield address, entry["kind"], entry["outcome"]


def _are_recipients(stored: object) -> bool:
    return (
        isinstance(stored, list)
        and bool(stored)
        and all(
            isinstance(entry, Mapping)
            and entry.get("kind") in ("to", "cc", "bcc")
            and all(isinstance(entry.get(name), str) for name in ("address", "name", "outcome"))
            for entry in stored
        )
    )


def _address(email: ComposedEmail, recipients: Sequence[tuple[Address, str, str]]) -> None:
    """Set the envelope, and in the headers also those who have been served before."""
    shown = [entry for entry in recipients if entry[2] != "suppressed"]
    for kind in ("to", "cc", "bcc"):
        lines = [str(address) for address, its_kind, _outcome in shown if its_kind == kind]
        pending = [str(address) for address, its_kind, outcome in shown if its_kind == kind and not outcome]
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
