"""Two interfaces that other programs speak already: `POST /email/send` with `GET /email/status/<id>`, and `POST /mail`.

Names and the shapes of answers are theirs; what is done is what `queue_mail()` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from django.core.mail import EmailMultiAlternatives
from django.http import HttpRequest
from ninja import Body, Router
from pydantic import BaseModel, Field

from ..conf import get_settings
from ..errors import InvalidAddress, InvalidMail
from ..models import ApiKey
from ..models.api_keys import READ
from ..pipeline.enqueue import Order, order_of
from .access import check_scope, may_send_as
from .door import BearerKey, caller_of
from .messages import find_message
from .once import once
from .orders import check_address, check_subject, octets_of, queue, with_name
from .refusals import Refusal, Shape
from .schemas import NAME, ONE_MISTAKE, SUBJECT, WORDS, AddressIn, Email, Id, Known

STREAM = "transactional"


class EmailIn(Known):
    """A mail to one person."""

    fromEmail: Email = Field(examples=["news@example.org"])
    toEmail: Email = Field(examples=["ann@example.org"])
    body: str = Field(examples=["Hello Ann."], json_schema_extra={"pattern": r"^[^\x00]*[^\x00\s][^\x00]*$"})
    fromName: str | None = Field(None, examples=["The news"], json_schema_extra=NAME)
    toName: str | None = Field(None, examples=["Ann"], json_schema_extra=NAME)
    subject: str | None = Field(None, examples=["News"], json_schema_extra=SUBJECT)


class SendIn(Known):
    email: EmailIn


class SendOut(BaseModel):
    """It is in the queue: look it up under its id."""

    messageId: UUID


class StatusOut(BaseModel):
    """What became of a message; times are ISO 8601, with their offset."""

    messageId: UUID
    status: str = Field(
        description="queued, sending, sent, deferred, uncertain, dead, suppressed, cancelled or expired"
    )
    reason: str
    delivery: str | None = Field(description="What was reported after a provider took it; null: nothing")
    provider: str | None
    queuedAt: datetime
    dueAt: datetime | None
    sentAt: datetime | None


class ErrorsOut(BaseModel):
    """A sentence for each wrong field by its name, and under `base` for the request as a whole."""

    errors: dict[str, str]


class RefusedOut(ErrorsOut):
    """The same for mails, by the place of the field, such as `1.to.0.email`; nothing was queued."""

    queued: Literal[False] = False


class PartIn(Known):
    type: str = Field(examples=["text/plain"], json_schema_extra={"enum": ["text/plain", "text/html"]})
    value: str = Field(examples=["Hello Ann."], json_schema_extra=WORDS)


Addresses = Annotated[list[AddressIn], ONE_MISTAKE]


class MailIn(Known):
    """A mail to several people together."""

    to: Addresses = Field(json_schema_extra={"minItems": 1})
    from_: AddressIn = Field(alias="from")
    subject: str = Field(examples=["News"], json_schema_extra=SUBJECT)
    content: Annotated[list[PartIn], ONE_MISTAKE] = Field(
        json_schema_extra={"minItems": 1, "maxItems": 2}, description="Each type at most once"
    )
    cc: Addresses = []
    bcc: Addresses = []


Mails = Annotated[list[MailIn], ONE_MISTAKE, Field(json_schema_extra={"minItems": 1})]


class MailOut(BaseModel):
    queued: Literal[True] = True
    tracking_ids: list[UUID] = Field(alias="tracking-ids")


LABELS = {
    "email": "Email",
    "fromEmail": "From email",
    "toEmail": "To email",
    "body": "Body",
    "fromName": "From name",
    "toName": "To name",
    "subject": "Subject",
}


def _in_their_shape(refusal: Refusal) -> Mapping[str, Any]:
    fields = {path.removeprefix("email.") or "base": text for path, text in refusal.fields.items()}
    return {"errors": {name: _labelled(name, text) for name, text in fields.items()} or _base(refusal)}


def _base(refusal: Refusal) -> dict[str, str]:
    return {"base": refusal.detail}


def _labelled(name: str, text: str) -> str:
    label = LABELS.get(name)
    return f"{label} {text}" if label else text


def _by_place(refusal: Refusal) -> Mapping[str, Any]:
    return {
        "queued": False,
        "errors": {path or "base": text for path, text in refusal.fields.items()} or _base(refusal),
    }


router = Router(tags=["as other programs know it"])
FOR_EMAIL = BearerKey(shape=Shape(_in_their_shape), limit="email_bytes", too_large=400)
FOR_MAIL = BearerKey(shape=Shape(_by_place), limit="body_bytes")
QUEUEING_REFUSALS = (400, 401, 403, 409, 411, 415, 422, 429, 503)
FINDING_REFUSALS = (400, 401, 403, 404, 503)


@router.post(
    "/email/send",
    auth=FOR_EMAIL,
    response={200: SendOut, **dict.fromkeys(QUEUEING_REFUSALS, ErrorsOut)},
    operation_id="sendEmail",
    summary="Queue a mail to one person",
)
def send(request: HttpRequest, payload: SendIn) -> Any:
    """It is queued once this answers, in a commit of its own."""
    key = caller_of(request)
    return once(
        request, key, lambda: _order_of_email(key, payload.email), lambda order: {"messageId": _queue(key, [order])[0]}
    )


@router.get(
    "/email/status/{message_id}",
    auth=FOR_EMAIL,
    response={200: StatusOut, **dict.fromkeys(FINDING_REFUSALS, ErrorsOut)},
    operation_id="getEmailStatus",
    summary="Look a mail up",
)
def status(request: HttpRequest, message_id: Id) -> dict[str, Any]:
    """What became of a message that a key of the same client queued."""
    key = caller_of(request)
    check_scope(key, READ)
    message = find_message(key, message_id)
    return {
        "messageId": str(message.pk),
        "status": message.status,
        "reason": message.reason,
        "delivery": message.delivery or None,
        "provider": message.provider or None,
        "queuedAt": message.created_at,
        "dueAt": message.available_at,
        "sentAt": message.sent_at,
    }


@router.post(
    "/mail",
    auth=FOR_MAIL,
    response={200: MailOut, **dict.fromkeys((*QUEUEING_REFUSALS, 413), RefusedOut)},
    operation_id="sendMail",
    by_alias=True,
    summary="Queue some mails, all or none",
)
def mail(request: HttpRequest, payload: Body[Mails]) -> Any:
    """All of them are queued, in one commit, or none is."""
    key = caller_of(request)
    return once(
        request,
        key,
        lambda: _orders_of_mails(key, payload),
        lambda orders: {"queued": True, "tracking-ids": _queue(key, orders)},
    )


def _order_of_email(key: ApiKey, email: EmailIn) -> Order:
    """Its order. Raises `Refusal`, by field."""
    wrong: dict[str, str] = {}
    for name in ("fromEmail", "toEmail"):
        check_address(name, getattr(email, name), wrong)
    check_subject("subject", email.subject or "", wrong)
    if not email.body.strip():
        wrong["body"] = "is required"
    if "fromEmail" not in wrong and not may_send_as(key, email.fromEmail):
        wrong["fromEmail"] = "is none that this key may send as"
    if wrong:
        raise Refusal(422, "The mail has fields that are wrong.", fields=wrong)
    mail = EmailMultiAlternatives(
        email.subject or "",
        email.body,
        _with_name(email.fromEmail, email.fromName, "fromName"),
        [_with_name(email.toEmail, email.toName, "toName")],
    )
    return _order(mail, blame="subject")


def _orders_of_mails(key: ApiKey, mails: list[MailIn]) -> list[Order]:
    """Their orders. Raises `Refusal`, by place."""
    most, wrong = get_settings().api.mails, {}
    if not 1 <= len(mails) <= most:
        wrong[str(min(len(mails), most))] = f"A request holds 1 to {most} mails, and this {len(mails)}."
    orders = []
    for number, item in enumerate(mails[:most]):
        orders += _order_of_mail(key, item, f"{number}", wrong)
    if wrong:
        raise Refusal(422, "Some mails are wrong.", fields=wrong)
    return orders


def _order_of_mail(key: ApiKey, item: MailIn, place: str, wrong: dict[str, str]) -> list[Order]:
    """Its order, or none where something is `wrong` with it."""
    limits = get_settings().api
    before = len(wrong)
    for name, least in (("to", 1), ("cc", 0), ("bcc", 0)):
        people, most = getattr(item, name), getattr(limits, name)
        if not least <= len(people) <= most:
            wrong[f"{place}.{name}"] = f"holds {least} to {most} addresses, and this {len(people)}"
        for number, person in enumerate(people[:most]):
            check_address(f"{place}.{name}.{number}.email", person.email, wrong)
    check_address(f"{place}.from.email", item.from_.email, wrong)
    if f"{place}.from.email" not in wrong and not may_send_as(key, item.from_.email):
        wrong[f"{place}.from.email"] = "is none that this key may send as"
    check_subject(f"{place}.subject", item.subject, wrong)
    words: dict[str, str] = {}
    for number, part in enumerate(item.content):
        if part.type not in ("text/plain", "text/html") or part.type in words:
            wrong[f"{place}.content.{number}.type"] = "is text/plain or text/html, each at most once"
        words[part.type] = part.value
    if octets_of(*words.values()) > limits.words_bytes:
        wrong[f"{place}.content"] = f"has more than {limits.words_bytes:,} bytes"
    if not item.content:
        wrong[f"{place}.content"] = "has no part: give one of text/plain or text/html"
    if len(wrong) > before:
        return []
    try:
        email = EmailMultiAlternatives(item.subject, words.get("text/plain", ""), _person(item.from_))
        for name in ("to", "cc", "bcc"):
            setattr(email, name, [_person(person) for person in getattr(item, name)])
        if "text/html" in words:
            email.attach_alternative(words["text/html"], "text/html")
        return [_order(email)]
    except InvalidMail as error:
        wrong[place] = str(error)
        return []


def _queue(key: ApiKey, orders: list[Order]) -> list[str]:
    """Their ids. In the caller's transaction."""
    return [str(message.pk) for message in queue(key, orders)]


def _order(email: EmailMultiAlternatives, *, blame: str = "") -> Order:
    try:
        return order_of(email, stream=STREAM, priority=None, send_at=None, expires_at=None, metadata=None, tags=None)
    except InvalidMail as error:
        if not blame:
            raise
        raise Refusal(422, str(error), fields={blame: f"can't be sent: {error}"}) from error


def _person(person: AddressIn) -> str:
    return _with_name(person.email, person.name, "name")


def _with_name(address: str, name: str | None, field: str) -> str:
    try:
        return with_name(address, name)
    except InvalidAddress as error:
        raise Refusal(422, str(error), fields={field: "can't be a name in a mail"}) from error
