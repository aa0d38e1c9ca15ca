"""What clients send and get: the bodies of `/api/v1/`, and the pieces that all interfaces share."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar
from uuid import UUID

from django.utils.dateparse import parse_datetime
from django.utils.timezone import is_naive
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ..addresses import parse_address
from ..errors import InvalidAddress
from ..models import Message, MessageJob, Priority, Suppression
from ..models.suppressions import EVERY_STREAM

T = TypeVar("T")

PRIORITIES = {name.lower(): int(Priority[name]) for name in Priority.names}


class Known(BaseModel):
    """An object that has no other fields than these, each of its own JSON type."""

    # Not ninja's Schema: that would validate it twice, and what is within it four times.
    model_config = ConfigDict(extra="forbid", strict=True)


class AddressIn(Known):
    email: str = Field(examples=["ann@example.org"])
    name: str | None = None


def _from_text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        address = parse_address(value)
    except InvalidAddress as error:
        raise ValueError(str(error)) from error
    return {"email": address.spec, "name": address.name or None}


def _instant(value: Any) -> datetime:
    try:
        instant = parse_datetime(value) if isinstance(value, str) else None
    except ValueError:
        instant = None
    if instant is None or is_naive(instant):
        raise ValueError("is no time with an offset, such as 2030-01-31T09:00:00+01:00")
    return instant


Person = Annotated[AddressIn, BeforeValidator(_from_text, json_schema_input_type=str | AddressIn)]
"""An address with a name or without one, as an object or as text: `Ann <ann@example.org>`."""
Instant = Annotated[
    datetime,
    BeforeValidator(_instant, json_schema_input_type=Annotated[str, Field(json_schema_extra={"format": "date-time"})]),
]


PriorityIn = Annotated[
    int,
    BeforeValidator(
        lambda value: PRIORITIES.get(value, value) if isinstance(value, str) else value,
        json_schema_input_type=Annotated[int, Field(ge=0, le=100)] | Literal[tuple(PRIORITIES)],
    ),
    Field(ge=0, le=100),
]


class FileIn(Known):
    """An attached file. With a `content_id` it is an inline image, which the HTML shows by `cid:` and that id."""

    filename: str = Field(examples=["invoice.pdf"])
    content: str = Field(description="Base64", json_schema_extra={"contentEncoding": "base64"})
    type: str | None = Field(None, examples=["application/pdf"], description="null: by the file's name")
    content_id: str | None = Field(None, pattern=r"^[A-Za-z0-9._+@-]{1,128}$")


class WordsIn(Known):
    """What a mail says, and how it is sent."""

    from_: Person | None = Field(None, alias="from", description="null: the site's own sender")
    reply_to: list[Person] = []
    subject: str = ""
    text: str = Field("", description="Left out, it is made from the HTML")
    html: str = ""
    template: str | None = Field(
        None, description="Its files stand in for subject, text and HTML that are left out", examples=["shop/welcome"]
    )
    context: dict[str, Any] = Field({}, description="What the template sees")
    headers: dict[str, str] = Field({}, examples=[{"X-Order": "4711"}])
    attachments: list[FileIn] = []
    priority: PriorityIn | None = Field(None, description="Smaller is sooner: urgent is 0, bulk 40; null: the stream's")
    send_at: Instant | None = Field(None, description="Not before")
    expires_at: Instant | None = Field(None, description="Not after")
    metadata: dict[str, Any] = Field({}, examples=[{"order": 4711}])
    tags: list[str] = []


class MessageIn(WordsIn):
    """One mail, to several people together."""

    to: list[Person] = Field([], examples=[["Ann <ann@example.org>"]])
    cc: list[Person] = []
    bcc: list[Person] = []
    stream: str = "transactional"


class RecipientIn(Known):
    email: str
    data: dict[str, Any] | None = Field(None, description="What {{ name }} in subject, text and HTML is replaced by")


Recipient = Annotated[
    RecipientIn,
    BeforeValidator(
        lambda value: {"email": value} if isinstance(value, str) else value, json_schema_input_type=str | RecipientIn
    ),
]


class JobIn(WordsIn):
    """One mail to each of many: to `recipients`, or to an audience that the site knows by name."""

    recipients: list[Recipient] | None = Field(None, examples=[["ann@example.org"]])
    audience: str | None = None
    stream: str = "bulk"


class QueuedOut(BaseModel):
    id: UUID
    status: str


class RecipientOut(BaseModel):
    address: str
    name: str
    kind: Literal["to", "cc", "bcc"]
    outcome: str = Field(description="accepted, refused, deferred or suppressed; empty: still to be served")


class AttemptOut(BaseModel):
    """One try at one provider."""

    number: int
    provider: str
    begun_at: datetime
    ended_at: datetime | None
    outcome: str | None = Field(description="null: under way")
    code: str
    detail: str


class EventOut(BaseModel):
    """Something that happened to a message."""

    type: str = Field(description="queued, begun, an outcome of an attempt, a status it ended in, or delivery news")
    at: datetime | None = Field(description="null: not recorded")
    provider: str | None = None
    detail: str = ""


class MessageOut(BaseModel):
    """A message; times are ISO 8601, with their offset."""

    id: UUID
    status: Literal[tuple(Message.Status.values)]  # type: ignore[valid-type]
    reason: str
    delivery: str | None = Field(description="What was reported after a provider took it; null: nothing")
    stream: str
    priority: int
    subject: str
    from_: str = Field(alias="from")
    recipients: list[RecipientOut]
    job: UUID | None
    provider: str | None
    provider_message_id: str | None
    queued_at: datetime
    send_at: datetime | None
    due_at: datetime | None
    expires_at: datetime | None
    sent_at: datetime | None
    metadata: dict[str, Any]
    tags: list[str]


class MessageInFullOut(MessageOut):
    attempts: list[AttemptOut]
    events: list[EventOut] = Field(description="In the order of their times; those without one come last")


class MalformedOut(BaseModel):
    line: int
    address: str
    why: str


class JobOut(BaseModel):
    """A job, and how far it has come."""

    id: UUID
    status: Literal[tuple(MessageJob.Status.values)]  # type: ignore[valid-type]
    reason: str
    stream: str
    priority: int
    subject: str
    from_: str = Field(alias="from")
    audience: str | None
    queued_at: datetime
    send_at: datetime | None
    expires_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    recipients: int | None = Field(description="null: they are not all counted yet")
    messages: int
    duplicates: int
    malformed: int


class JobInFullOut(JobOut):
    progress: dict[str, int] = Field(description="Its messages by status")
    malformed_recipients: list[MalformedOut] = Field(description="The first hundred")


class SuppressionIn(Known):
    address: str = Field(examples=["ann@example.org"])
    stream: str = Field(EVERY_STREAM, description="Empty: mail of every stream")
    reason: Literal["manual", "unsubscribed", "bounced", "complained"] = "manual"
    detail: str = ""


class SuppressionOut(BaseModel):
    address: str
    stream: str = Field(description="Empty: mail of every stream")
    reason: Literal[tuple(Suppression.Reason.values)]  # type: ignore[valid-type]
    detail: str
    since: datetime


class LiftedOut(BaseModel):
    lifted: int


class PageOut(BaseModel, Generic[T]):
    """Some of them, and the cursor of the next page; null: that was the last."""

    items: list[T]
    next: str | None


class ErrorOut(BaseModel):
    """A field that is wrong: a JSON pointer into the body, or a parameter."""

    detail: str
    pointer: str | None = None
    parameter: str | None = None


class Problem(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[ErrorOut] = []


REFUSALS = dict.fromkeys((400, 401, 403, 404, 409, 413, 415, 422, 429, 503), Problem)
