"""A mail as it is handed to the front door: checked, and stored as one `Content`.

Everything a caller can get wrong is found here, in the caller's own request, as a `ValueError` that names the field.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from email.message import Message as MIMEMessage
from typing import Any

from anymail.utils import UNSET
from django.conf import settings as django_settings
from django.core.mail import EmailMessage
from django.core.serializers.json import DjangoJSONEncoder
from django.template import Context, TemplateDoesNotExist
from django.template.backends.django import Template as DjangoTemplate
from django.template.loader import select_template
from django.utils.encoding import force_bytes

from ..addresses import Address, parse_address
from ..errors import InvalidAddress, InvalidMail, UnknownTemplate
from ..models import Attachment, Content, ContentFile
from .plaintext import text_from_html

logger = logging.getLogger(__name__)

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

_HEADER_NAME = re.compile(r"[!-9;-~]{1,76}")  # RFC 5322, section 2.2: printable ASCII without the colon
_KNOWN_BY_DJANGO = {"Cc", "From", "Reply-To", "To"}
"""Headers that EmailMessage looks up in this spelling alone; in any other it drops them."""
_MADE_FROM_THE_MAIL = {"Content-Transfer-Encoding", "Content-Type", "Mime-Version", "Subject"}
_UNSAFE_IN_HEADERS = re.compile("[\x00-\x08\x0a-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]")
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
"""What PostgreSQL can't store, or UTF-8 can't encode."""
_MIMETYPE = re.compile(r"(?=.{3,127}$)[!#-'*+.0-9A-Z^-~-]+/[!#-'*+.0-9A-Z^-~-]+( *;[ -~]*)?")  # RFC 2045, section 5.1
LONGEST_FILENAME = 150


@dataclass(frozen=True)
class Recipient:
    """One address of a mail; `kind` is to, cc or bcc."""

    address: Address
    kind: str

    def as_json(self) -> dict[str, str]:
        return {"address": self.address.spec, "name": self.address.name, "kind": self.kind, "outcome": ""}


@dataclass(frozen=True)
class File:
    """One attachment: its bytes, or those of a whole MIME part."""

    filename: str
    mimetype: str
    data: bytes
    is_part: bool = False


@dataclass(frozen=True)
class Draft:
    """The words and files of a mail, checked; not yet whom it is for."""

    subject: str
    text: str
    html: str
    from_email: str
    """Empty: the project's DEFAULT_FROM_EMAIL, as it is when the mail is sent."""
    reply_to: Sequence[str] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    extras: Mapping[str, Any] = field(default_factory=dict)
    files: Sequence[File] = ()

    def as_json(self) -> dict[str, Any]:
        """What tells this draft from another, for the idempotency key."""
        files = [[f.filename, f.mimetype, hashlib.sha256(f.data).hexdigest()] for f in self.files]
        return {**{name: getattr(self, name) for name in self.__dataclass_fields__}, "files": files}

    def store(self, *, now: datetime) -> Content:
        """Keep the words as one row and each file once."""
        content = Content.objects.create(
            subject=self.subject,
            text=self.text,
            html=self.html,
            from_email=self.from_email,
            reply_to=list(self.reply_to),
            headers=dict(self.headers),
            extras=dict(self.extras),
            created_at=now,
        )
        for position, file in enumerate(self.files):
            ContentFile.objects.create(
                content=content,
                attachment=Attachment.objects.keep(file.data),
                position=position,
                filename=file.filename,
                mimetype=file.mimetype,
                is_part=file.is_part,
            )
        return content


def draft_of(
    email: EmailMessage, *, metadata: Mapping[str, object] | None = None, tags: Iterable[str] | None = None
) -> Draft:
    """The draft of Django's EmailMessage, or Anymail's. Raises `InvalidMail` for what can't be sent."""
    text, html, further = _words(email)
    extras = _extras(email, further, metadata=metadata, tags=tags)
    return Draft(
        subject=checked_header("the subject", email.subject),
        text=checked_text("the text", text) or text_from_html(html),
        html=checked_text("the HTML", html),
        from_email=_sender(email.from_email),
        reply_to=[str(_address("reply_to", item)) for item in email.reply_to],
        headers=_headers(email.extra_headers),
        extras=extras,
        files=[_file(item) for item in email.attachments],
    )


def recipients_of(email: EmailMessage) -> list[Recipient]:
    """Everybody the mail is for, in its order. Raises `InvalidAddress`, and `InvalidMail` where there is nobody."""
    found = [
        Recipient(_address(kind, item), kind)
        for kind, items in (("to", email.to), ("cc", email.cc), ("bcc", email.bcc))
        for item in items
        if item
    ]
    if not found:
        raise InvalidMail("The mail has no recipients: give at least one address in to, cc or bcc.")
    return found


def rendered(
    template: str | Sequence[str] | None,
    context: Mapping[str, object] | None,
    *,
    subject: str,
    text: str,
    html: str | None,
) -> tuple[str, str, str]:
    """Subject, text and HTML: those given, and where one is empty what the template's file for it renders.

    `template="app/name"` stands for `app/name.subject.txt`, `app/name.txt` and `app/name.html`. Of several templates,
    each file is that of the first one that has it. Only the HTML is escaped.
    Raises `UnknownTemplate` when none of the files exists.
    """
    if template is None:
        return subject, text, html or ""
    names = [template] if isinstance(template, str) else list(template)
    endings = ("subject.txt", "txt", "html")
    parts = {ending: _part([f"{name}.{ending}" for name in names], context) for ending in endings}
    if all(part is None for part in parts.values()):
        last = names[-1]  # the most general
        files = ", ".join(f"{last}.{ending}" for ending in parts)
        raise UnknownTemplate(f"No template is called {last!r}: none of {files} was found. Create one of them.")
    title = " ".join((parts["subject.txt"] or "").split())
    return subject or title, text or parts["txt"] or "", html or parts["html"] or ""


def checked_header(what: str, value: object) -> str:
    """`value` as the text of a header. Raises `InvalidMail` for line breaks and what no header can carry."""
    text = "" if value is None else str(value)
    if _UNSAFE_IN_HEADERS.search(text):
        raise InvalidMail(f"{what} holds a line break or a control character: {text[:80]!r}. Remove it.")
    return text


def checked_text(what: str, value: object) -> str:
    """`value` as text that every database and every mail can hold. Raises `InvalidMail`."""
    text = str(value)
    found = UNSTORABLE.search(text)
    if found:
        raise InvalidMail(f"{what} holds {found[0]!r} at position {found.start()}, which no mail can carry. Remove it.")
    return text


def checked_mapping(what: str, value: object) -> dict[str, Any]:
    """`value` as a dictionary, empty for None. Raises `InvalidMail` for what is none."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidMail(f"{what} is {value!r}. Give a dictionary.")
    return dict(value)


def checked_json(what: str, value: Any) -> Any:
    """`value` as JSON gives it back. Raises `InvalidMail` for what can't be kept as JSON."""
    try:
        document = json.dumps(value, cls=DjangoJSONEncoder, allow_nan=False)
        result = json.loads(document)
    except (TypeError, ValueError) as error:
        raise InvalidMail(
            f"{what} can't be kept as JSON: {error}. Use text, numbers, lists and dictionaries."
        ) from error
    _check_strings(what, result)
    return result


def _check_strings(what: str, value: Any) -> None:
    if isinstance(value, str):
        checked_text(what, value)
    elif isinstance(value, dict):
        for name, item in value.items():
            checked_text(what, name)
            _check_strings(what, item)
    elif isinstance(value, list):
        for item in value:
            _check_strings(what, item)


def _part(names: Sequence[str], context: Mapping[str, object] | None) -> str | None:
    try:
        template = select_template(names)
    except TemplateDoesNotExist:
        return None
    is_html = names[0].endswith(".html")
    try:
        if isinstance(template, DjangoTemplate) and not is_html:
            # Subject and text are no HTML: "Tom & Co" is to arrive as that, in templates that forgot to say so too.
            words: str = template.template.render(Context(dict(context or {}), autoescape=False))
        else:
            words = template.render(dict(context or {}))
        return words
    except TemplateDoesNotExist as error:
        name = getattr(getattr(template, "origin", None), "template_name", names[-1])
        raise UnknownTemplate(f"The template {name!r} includes {str(error)!r}, which does not exist.") from error


def _words(email: EmailMessage) -> tuple[str, str, list[list[str]]]:
    """Text, HTML, and the further alternatives as [content, type]."""
    alternatives = [[_decoded(item[0], item[1]), item[1]] for item in getattr(email, "alternatives", [])]
    html = next((item for item in alternatives if item[1] == "text/html"), None)
    further = [item for item in alternatives if item is not html]
    if email.content_subtype == "html" and html is None:
        return "", str(email.body), further
    return str(email.body), html[0] if html else "", further


def _decoded(content: object, mimetype: str) -> str:
    try:
        return content.decode() if isinstance(content, bytes) else str(content)
    except UnicodeDecodeError as error:
        raise InvalidMail(f"The alternative of type {mimetype} is no text: {error}. Attach it as a file.") from error


def _extras(
    email: EmailMessage,
    further: list[list[str]],
    *,
    metadata: Mapping[str, object] | None,
    tags: Iterable[str] | None,
) -> dict[str, Any]:
    given = {name: getattr(email, name, None) for name in ANYMAIL_ATTRIBUTES}
    anymail = {name: value for name, value in given.items() if value is not None and value is not UNSET}
    if metadata is not None:
        anymail["metadata"] = {**anymail.get("metadata", {}), **checked_mapping("metadata", metadata)}
    if tags is not None:
        if isinstance(tags, str) or not isinstance(tags, Iterable):
            raise InvalidMail(f"tags is {tags!r}. Give a list of tags: [{str(tags)!r}].")
        anymail["tags"] = [*anymail.get("tags", []), *tags]
    extras: dict[str, Any] = {name: checked_json(name, value) for name, value in anymail.items()}
    if further:
        extras["alternatives"] = checked_json("the alternatives", further)
    if isinstance(email.encoding, str):
        extras["encoding"] = email.encoding
    if email.content_subtype not in {"plain", "html"}:
        extras["content_subtype"] = checked_header("content_subtype", email.content_subtype)
    if (mixed_subtype := getattr(email, "mixed_subtype", "mixed")) != "mixed":  # "related", for inline images
        extras["mixed_subtype"] = checked_header("mixed_subtype", mixed_subtype)
    return extras


def _sender(from_email: object) -> str:
    # Mail that asks for the project's own sender gets it as it is when the mail is sent, so that mending a wrong
    # DEFAULT_FROM_EMAIL also mends what waits already; and no caller sees an error because of that setting.
    if not from_email or from_email == django_settings.DEFAULT_FROM_EMAIL:
        return ""
    try:
        return str(_address("from_email", from_email))
    except InvalidAddress as error:
        if from_email != django_settings.SERVER_EMAIL:
            raise
        # An error report must not fail while an error is being reported.
        logger.error("SERVER_EMAIL: %s. The mail goes out from DEFAULT_FROM_EMAIL instead.", error)
        return ""


def _address(what: str, item: object) -> Address:
    try:
        return parse_address(str(item))
    except InvalidAddress as error:
        raise InvalidAddress(f"{what}: {error}") from error


def _headers(headers: Mapping[str, object]) -> dict[str, str]:
    checked: dict[str, str] = {}
    for name, value in checked_mapping("headers", headers).items():
        if not _HEADER_NAME.fullmatch(str(name)):
            raise InvalidMail(f"{name!r} is no name of a header. Use letters, digits and hyphens.")
        usual = str(name).title()
        if usual == "Bcc":
            raise InvalidMail("Bcc as a header would show what it is to hide. Give bcc=[...] instead.")
        if usual in _MADE_FROM_THE_MAIL or usual in {other.title() for other in checked}:
            raise InvalidMail(f"The mail would have the header {name} twice. Leave it out of headers.")
        name = usual if usual in _KNOWN_BY_DJANGO else str(name)
        checked[name] = checked_header(f"the header {name}", value)
    return checked


def _file(item: Any) -> File:
    if isinstance(item, MIMEMessage):  # MIMEBase, and MIMEPart of Django 6
        return File(_filename(item.get_filename() or ""), item.get_content_type(), item.as_bytes(), is_part=True)
    filename, content, mimetype = item
    name = _filename(filename or "")
    if mimetype and not _MIMETYPE.fullmatch(str(mimetype)):
        raise InvalidMail(f"The attachment {name!r} has the type {mimetype!r}. Give one like 'application/pdf'.")
    if isinstance(content, EmailMessage):
        content = content.message()
    try:
        data = content.as_bytes() if isinstance(content, MIMEMessage) else force_bytes(content)
    except UnicodeEncodeError as error:
        raise InvalidMail(f"The attachment {name!r} can't be encoded: {error}. Give its bytes.") from error
    return File(name, mimetype or "", data)


def _filename(name: str) -> str:
    name = checked_header("an attachment's name", name).replace("\\", "/").rpartition("/")[2]
    if len(name) > LONGEST_FILENAME:
        raise InvalidMail(f"The attachment's name {name[:40]!r}… is longer than {LONGEST_FILENAME} characters.")
    return name
