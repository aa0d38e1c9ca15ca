"""A mail as it is handed to the front door: checked, and stored as one `Content`.

Everything a caller can get wrong is found here, in the caller's own request, as a `ValueError` that names the field.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

from anymail.utils import UNSET
from django.conf import settings as django_settings
from django.core.mail import EmailMessage
from django.core.serializers.json import DjangoJSONEncoder
from django.db import connections, router
from django.template import Context, TemplateDoesNotExist, VariableDoesNotExist
from django.template.backends.django import Template as DjangoTemplate
from django.template.loader import select_template
from django.urls import NoReverseMatch

from ..addresses import Address
from ..clock import DatabaseNow
from ..errors import InvalidAddress, InvalidMail, UnknownTemplate
from ..headers import UNSAFE, header_text
from ..models import Attachment, Content, ContentFile
from ..models.bulk import another, insert, insert_long
from .checked import checked_address, checked_headers, checked_json, checked_mapping, checked_text, listed
from .extras import ANYMAIL_ATTRIBUTES, alternative_of, checked_extras
from .files import File, file_of
from .plaintext import text_from_html

logger = logging.getLogger(__name__)

LONGEST_TEMPLATE_NAME = 200
_CONTEXT_LACKS = (
    NoReverseMatch, VariableDoesNotExist, ArithmeticError, AttributeError, LookupError, TypeError, ValueError,
)  # fmt: skip
"""What tags and filters raise for a value that is not there, or is none of their kind."""
MOST_CHARACTERS = 1_000_000
"""Of words in one statement, give or take one mail."""


@dataclass(frozen=True)
class Recipient:
    """One address of a mail; `kind` is to, cc or bcc."""

    address: Address
    kind: str

    def as_json(self) -> dict[str, str]:
        return {"address": self.address.spec, "name": self.address.name, "kind": self.kind, "outcome": ""}


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

    def store(self, *, now: datetime | DatabaseNow) -> Content:
        """Keep the words as one row and each file once."""
        content = Content(**self._words, created_at=now)
        insert(content, using=router.db_for_write(Content))
        self._keep_files(content)
        return content

    @cached_property
    def _identity(self) -> object:
        """Equal for drafts that are the same mail."""
        further = json.dumps([list(self.reply_to), dict(self.headers), dict(self.extras)], cls=DjangoJSONEncoder)
        return self.subject, self.text, self.html, self.from_email, further, tuple(self.files)

    @property
    def _words(self) -> dict[str, Any]:
        """The fields of its content."""
        return {
            "subject": self.subject,
            "text": self.text,
            "html": self.html,
            "from_email": self.from_email,
            "reply_to": list(self.reply_to),
            "headers": dict(self.headers),
            "extras": dict(self.extras),
        }

    def _keep_files(self, content: Content) -> None:
        for position, file in enumerate(self.files):
            ContentFile.objects.create(
                content=content,
                attachment=Attachment.objects.keep(file.data),
                position=position,
                filename=file.filename,
                mimetype=file.mimetype,
                is_part=file.is_part,
            )


def store_drafts(drafts: Sequence[Draft], *, now: datetime) -> list[Content]:
    """Keep the words of all these by a few statements, those that are the same as one row; in the order of `drafts`."""
    using = router.db_for_write(Content)
    if not connections[using].features.can_return_rows_from_bulk_insert:  # MySQL
        return [draft.store(now=now) for draft in drafts]
    rows: dict[object, tuple[Draft, Content]] = {}
    like = Content(created_at=now)
    for draft in drafts:
        if draft._identity not in rows:
            rows[draft._identity] = (draft, another(like, draft._words))
    for piece in _pieces([content for _draft, content in rows.values()]):
        insert_long(piece, using=using)
    for draft, content in rows.values():
        draft._keep_files(content)
    return [rows[draft._identity][1] for draft in drafts]


def _pieces(contents: Iterable[Content]) -> Iterator[list[Content]]:
    """Them, in lists that fit into one statement each: MariaDB takes 16 MB by default, and not more."""
    piece: list[Content] = []
    size = 0
    for content in contents:
        if piece and size > MOST_CHARACTERS:
            yield piece
            piece, size = [], 0
        piece.append(content)
        size += len(content.text) + len(content.html) + len(content.subject) + 300
    yield piece


def draft_of(
    email: EmailMessage, *, metadata: Mapping[str, object] | None = None, tags: Iterable[str] | None = None
) -> Draft:
    """The draft of Django's EmailMessage, or Anymail's. Raises `InvalidMail` for what can't be sent."""
    text, html, further = _words(email)
    extras = _extras(email, further, metadata=metadata, tags=tags)
    return Draft(
        subject=header_text("the subject", email.subject),
        text=checked_text("the text", text) or text_from_html(html),
        html=html,
        from_email=checked_sender(email.from_email),
        reply_to=[str(checked_address("reply_to", item)) for item in listed("reply_to", email.reply_to)],
        headers=checked_headers(email.extra_headers),
        extras=extras,
        files=[file_of(item) for item in listed("attachments", email.attachments)],
    )


def recipients_of(email: EmailMessage) -> list[Recipient]:
    """Everybody the mail is for, in its order. Raises `InvalidAddress`, and `InvalidMail` where there is nobody."""
    found = [
        Recipient(checked_address(kind, item), kind)
        for kind in ("to", "cc", "bcc")
        for item in listed(kind, getattr(email, kind))
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
    Raises `UnknownTemplate` when none of the files exists, and `InvalidMail` when the context is none for them.
    """
    if template is None:
        return subject, text, html or ""
    names = [template] if isinstance(template, str) else listed("template", template)
    context = checked_mapping("context", context)
    parts = {ending: _part(names, ending, context) for ending in ("subject.txt", "txt", "html")}
    if all(part is None for part in parts.values()):
        last = str(names[-1])[:80] if names else ""  # the most general
        files = ", ".join(f"{last}.{ending}" for ending in parts)
        raise UnknownTemplate(f"No template is called {last!r}: none of {files} was found. Create one of them.")
    title = " ".join((parts["subject.txt"] or "").split())
    return subject or title, text or parts["txt"] or "", html or parts["html"] or ""


def _part(names: Sequence[object], ending: str, context: dict[str, Any]) -> str | None:
    try:
        template = select_template([f"{name}.{ending}" for name in names if _may_be_a_file(name)])
    except TemplateDoesNotExist:
        return None
    try:
        if isinstance(template, DjangoTemplate) and ending != "html":
            # Subject and text are no HTML: "Tom & Co" is to arrive as that, in templates that forgot to say so too.
            words: str = template.template.render(Context(dict(context), autoescape=False))
        else:
            words = template.render(dict(context))
        return words
    except TemplateDoesNotExist as error:
        name = getattr(getattr(template, "origin", None), "template_name", f"{names[-1]}.{ending}")
        raise UnknownTemplate(f"The template {name!r} includes {str(error)!r}, which does not exist.") from error
    except _CONTEXT_LACKS as error:
        # Its text may show values and URLs, and this one is shown to clients of the HTTP API: it stays in the cause.
        raise InvalidMail(
            f"A template of {names[-1]!r:.80} can't be rendered with this context: {type(error).__name__}."
            " Look at what it asks for."
        ) from error


def _may_be_a_file(name: object) -> bool:
    """Whether a file system can be asked for it: with others the loaders fail."""
    if not isinstance(name, str) or UNSAFE.search(name) or len(name.encode()) > LONGEST_TEMPLATE_NAME:
        return False
    # Django's loaders follow dots: app/../other/name would be a way round whoever may use app/ alone.
    return "\\" not in name and not {"", ".", ".."} & set(name.split("/"))


def _words(email: EmailMessage) -> tuple[str, str, list[list[str]]]:
    """Text, HTML, and the further alternatives as [content, type]."""
    alternatives = [alternative_of(item) for item in listed("alternatives", getattr(email, "alternatives", None))]
    html = next((item for item in alternatives if item[1] == "text/html"), None)
    further = [item for item in alternatives if item is not html]
    body = checked_text("the text" if email.content_subtype != "html" or html else "the HTML", email.body)
    if email.content_subtype == "html" and html is None:
        return "", body, further
    return body, html[0] if html else "", further


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
        theirs = checked_mapping("metadata", anymail.get("metadata"))
        anymail["metadata"] = {**theirs, **checked_mapping("metadata", metadata)}
    if tags is not None:
        anymail["tags"] = [*listed("tags", anymail.get("tags")), *listed("tags", tags)]
    if "tags" in anymail:
        anymail["tags"] = listed("tags", anymail["tags"])
    extras: dict[str, Any] = {name: checked_json(name, value) for name, value in anymail.items()}
    if further:
        extras["alternatives"] = further
    if isinstance(email.encoding, str):
        extras["encoding"] = email.encoding
    if email.content_subtype not in ("plain", "html"):
        extras["content_subtype"] = email.content_subtype
    if (mixed_subtype := getattr(email, "mixed_subtype", "mixed")) != "mixed":  # "related", for inline images
        extras["mixed_subtype"] = mixed_subtype
    return checked_extras(extras)


def checked_sender(from_email: object) -> str:
    # Mail that asks for the project's own sender gets it as it is when the mail is sent, so that mending a wrong
    # DEFAULT_FROM_EMAIL also mends what waits already; and no caller sees an error because of that setting.
    if not from_email or from_email == django_settings.DEFAULT_FROM_EMAIL:
        return ""
    try:
        return str(checked_address("from_email", from_email))
    except InvalidAddress as error:
        if from_email != django_settings.SERVER_EMAIL:
            raise
        # An error report must not fail while an error is being reported.
        logger.error("SERVER_EMAIL: %s. The mail goes out from DEFAULT_FROM_EMAIL instead.", error)
        return ""
