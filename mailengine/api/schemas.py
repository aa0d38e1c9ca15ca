"""What clients send and get: the bodies of `/api/v1/`, and the pieces that all interfaces share."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar
from uuid import UUID

from django.utils.dateparse import parse_datetime
from django.utils.timezone import is_naive
from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, WithJsonSchema

from ..addresses import parse_address
from ..errors import InvalidAddress
from ..models import Message, MessageJob, Priority, Suppression
from ..models.suppressions import EVERY_STREAM
from ..pipeline.enqueue import YEARS

T = TypeVar("T")

CONTENT_ID = "^[A-Za-z0-9._+@-]{1,128}$"

PRIORITIES = {name.lower(): int(Priority[name]) for name in Priority.names}


Email = Annotated[str, Field(json_schema_extra={"format": "email"})]
"""An address without a name. What is one is judged in `addresses`, not by the schema."""
NAME: dict[str, Any] = {"pattern": r"^[^@\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]*$"}
LINE: dict[str, Any] = {"pattern": r"^[^\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]*$"}
SUBJECT: dict[str, Any] = {"maxLength": 998, **LINE}
WORDS: dict[str, Any] = {"pattern": r"^[^\x00]*$"}
"""For the document: what `headers` refuses in a name, in any other line, and in a text, in words of its own."""
Id = Annotated[str, WithJsonSchema({"type": "string", "format": "uuid"})]
"""The id in a path: what is none is found nowhere."""


class _OneMistake(FailFast):
    __hash__ = object.__hash__  # before Python 3.12 what a union is made of has to have one


ONE_MISTAKE = _OneMistake()
"""Of a list: its first wrong entry is named, and no other. A million of them would cost more than they are worth."""


class Known(BaseModel):
    """An object that has no other fields than these, each of its own JSON type."""

    # Not ninja's Schema: that would validate it twice, and what is within it four times.
    model_config = ConfigDict(extra="forbid", strict=True)


class AddressIn(Known):
    email: Email = Field(examples=["ann@example.org"])
    name: str | None = Field(None, examples=["Ann"], json_schema_extra=NAME)


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
    if instant is None or is_naive(instant) or instant.year not in YEARS:
        raise ValueError("is no time with an offset, such as 2030-01-31T09:00:00+01:00")
    return instant


_Text = Annotated[str, Field(examples=["Ann <ann@example.org>"], json_schema_extra={"format": "mailbox"})]
Person = Annotated[AddressIn, BeforeValidator(_from_text, json_schema_input_type=_Text | AddressIn)]
"""An address with a name or without one, as an object or as text: `Ann <ann@example.org>`."""
People = Annotated[list[Person], ONE_MISTAKE]
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


StreamFilter = Annotated[str, Field(max_length=64, pattern=r"^[^\x00]*$")]
"""The name of a stream that may be known no more; what no database can look for is none."""


class FileIn(Known):
    """An attached file. With a `content_id` it is an inline image, which the HTML shows by `cid:` and that id."""

    filename: str = Field(examples=["invoice.pdf"])
    content: str = Field(description="Base64", json_schema_extra={"contentEncoding": "base64"})
    type: str | None = Field(None, examples=["application/pdf"], description="null: by the file's name")
    content_id: str | None = Field(None, pattern=CONTENT_ID)


class WordsIn(Known):
    """What a mail says, and how it is sent."""

    from_: Person | None = Field(None, alias="from", description="null: the site's own sender")
    reply_to: People = Field(default_factory=list)
    subject: str = Field("", json_schema_extra=SUBJECT, description="998 octets at most, as it is encoded")
    text: str = Field("", description="Left out, it is made from the HTML", json_schema_extra=WORDS)
    html: str = Field("", json_schema_extra=WORDS)
    template: str | None = Field(
        None,
        description="Of the site, as shop/welcome: its files stand in for subject, text and HTML that are left out",
    )
    context: dict[str, Any] = Field(default_factory=dict, description="What the template sees")
    headers: dict[str, str] = Field(
        {},
        examples=[{"X-Order": "4711"}],
        description="Of the client's own: none that is made from the mail, or that tells a provider what to do",
        json_schema_extra={"propertyNames": {"pattern": "^[A-Za-z0-9-]{1,64}$"}},
    )
    attachments: Annotated[list[FileIn], ONE_MISTAKE] = Field(default_factory=list)
    priority: PriorityIn | None = Field(None, description="Smaller is sooner: urgent is 0, bulk 40; null: the stream's")
    send_at: Instant | None = Field(None, description="Not before")
    expires_at: Instant | None = Field(None, description="Not after")
    metadata: dict[str, Any] = Field(default_factory=dict, examples=[{"order": 4711}])
    tags: Annotated[list[str], ONE_MISTAKE] = Field(default_factory=list)


class MessageIn(WordsIn):
    """One mail, to several people together."""

    to: People = Field(default_factory=list, examples=[["Ann <ann@example.org>"]])
    cc: People = Field(default_factory=list)
    bcc: People = Field(default_factory=list)
    stream: str = "transactional"


class RecipientIn(Known):
    email: Email
    data: dict[str, Any] | None = Field(None, description="What {{ name }} in subject, text and HTML is replaced by")


Recipient = Annotated[
    RecipientIn,
    BeforeValidator(
        lambda value: {"email": value} if isinstance(value, str) else value, json_schema_input_type=str | RecipientIn
    ),
]


class JobIn(WordsIn):
    """One mail to each of many: to `recipients`, or to an audience that the site knows by name."""

    recipients: Annotated[list[Recipient], ONE_MISTAKE] = Field(default_factory=list, examples=[["ann@example.org"]])
    # A list of addresses would be no name: queue_job() takes either, and here each is counted otherwise.
    audience: str | None = Field(None, pattern=r"^[^@,;\s]+$", max_length=100)
    stream: str = "bulk"


class QueuedOut(BaseModel):
    """It is in the queue: look it up under its id."""

    id: UUID
    status: str = Field(examples=["queued"])


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
    address: Email = Field(examples=["ann@example.org"])
    stream: str = Field(EVERY_STREAM, description="Empty: mail of every stream")
    reason: Literal["manual", "unsubscribed", "bounced", "complained"] = "manual"
    detail: str = Field("", max_length=500, json_schema_extra=LINE)


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


class MessagesOut(PageOut[MessageOut]):
    """A page of messages."""


class JobsOut(PageOut[JobOut]):
    """A page of jobs."""


class SuppressionsOut(PageOut[SuppressionOut]):
    """A page of suppressions."""


class ErrorOut(BaseModel):
    """A field that is wrong: a JSON pointer into the body, or a parameter."""

    detail: str
    pointer: str | None = None
    parameter: str | None = None


class Problem(BaseModel):
    """Why it was not done, as RFC 9457 has it: nothing of the request was."""

    type: str = Field(description="about:blank: the status says what kind of problem it is", examples=["about:blank"])
    title: str = Field(description="What HTTP calls the status", examples=["Unprocessable Content"])
    status: int = Field(examples=[422])
    detail: str = Field(description="What is wrong, for people", examples=["The mail has fields that are wrong."])
    errors: list[ErrorOut] = Field([], description="Left out where it is none of the fields")


def _refusals(*further: int) -> dict[int, type[Problem]]:
    return dict.fromkeys(sorted((400, 401, 403, 503, *further)), Problem)


LISTING = _refusals(422)
FINDING = _refusals(404)
MOVING = _refusals(404, 409, 422)
ENTERING = _refusals(409, 411, 413, 415, 422)
QUEUEING = _refusals(409, 411, 413, 415, 422, 429)
