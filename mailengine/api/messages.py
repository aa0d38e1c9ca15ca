"""`/api/v1/messages`: queue mail, look it up, withdraw it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal
from uuid import UUID

from django.conf import settings
from django.db import router as databases
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from ninja import Body, Query, Router, Status
from pydantic import Discriminator, Field, Tag

from ..conf import get_settings
from ..models import ApiKey, Attempt, Message
from ..models.api_keys import CANCEL, READ
from ..pipeline.enqueue import Order
from .access import check_scope
from .document import with_files
from .door import BearerKey, caller_of, uploads_of
from .once import once
from .orders import id_of, key_of_address, order_from, queue
from .paging import Paging, page_of
from .refusals import PROBLEM, QUERY, Refusal
from .schemas import (
    FINDING,
    LISTING,
    MOVING,
    ONE_MISTAKE,
    QUEUEING,
    Email,
    Id,
    Instant,
    MessageIn,
    MessageInFullOut,
    MessagesOut,
    QueuedOut,
    StreamFilter,
)

router = Router(tags=["messages"])
READING = BearerKey(shape=PROBLEM)
WRITING = BearerKey(shape=PROBLEM, limit="body_bytes", takes_files=True)

OneOrMany = Annotated[
    Annotated[MessageIn, Tag("one")]
    | Annotated[list[MessageIn], ONE_MISTAKE, Field(json_schema_extra={"minItems": 1}), Tag("many")],
    Discriminator(lambda document: "many" if isinstance(document, list) else "one"),
]


class MessageFilters(Paging):
    """Which messages; all of these together."""

    status: Literal[tuple(Message.Status.values)] | None = None  # type: ignore[valid-type]
    stream: StreamFilter | None = None
    job: UUID | None = None
    recipient: Email | None = Field(None, description="The first To, or the address of a job's message")
    queued_from: Instant | None = None
    queued_until: Instant | None = None


@router.post(
    "",
    auth=WRITING,
    response={201: QueuedOut | list[QueuedOut], **QUEUEING},
    operation_id="createMessages",
    openapi_extra=with_files(MessageIn),
    summary="Queue one mail, or many",
)
def create(request: HttpRequest, response: HttpResponse, payload: Body[OneOrMany]) -> Any:
    """An object is one mail, and its answer an object; an array is up to 1,000 of them, all or none, and an array.

    Files are given as base64 within the JSON, or, for one mail, as the parts `attachment` and `inline` of a
    multipart/form-data body, whose part `message` is the JSON.
    """
    key = caller_of(request)

    def prepare() -> list[Order]:
        if isinstance(payload, list):
            return _orders(key, payload, has_files=bool(uploads_of(request)))
        return [order_from(key, payload, uploads_of(request))]

    answer = once(request, key, prepare, lambda orders: [{"id": m.pk, "status": m.status} for m in queue(key, orders)])
    if isinstance(payload, list):
        return Status(201, answer)
    response["Location"] = f"{request.path}/{answer[0]['id']}"
    return Status(201, answer[0])


@router.get(
    "",
    auth=READING,
    response={200: MessagesOut, **LISTING},
    by_alias=True,
    operation_id="listMessages",
    summary="List messages",
)
def list_messages(request: HttpRequest, filters: Query[MessageFilters]) -> Any:
    """Those of this client, the newest first."""
    key = caller_of(request)
    check_scope(key, READ)
    found = _messages(key)
    for name in ("status", "stream"):
        if getattr(filters, name) is not None:
            found = found.filter(**{name: getattr(filters, name)})
    if filters.job is not None:
        found = found.filter(job__public_id=filters.job)
    if filters.recipient is not None:
        found = found.filter(recipient=key_of_address(filters.recipient, f"{QUERY}recipient"))
    if filters.queued_from is not None:
        found = found.filter(created_at__gte=filters.queued_from)
    if filters.queued_until is not None:
        found = found.filter(created_at__lt=filters.queued_until)
    words = ("content__text", "content__html")  # they may be long, and nobody asked for them
    return page_of(found.defer(*words, "merge_data"), filters, by="id", show=_shown)


@router.get(
    "/{message_id}",
    auth=READING,
    response={200: MessageInFullOut, **FINDING},
    by_alias=True,
    operation_id="getMessage",
    summary="Look a message up",
)
def retrieve(request: HttpRequest, message_id: Id) -> dict[str, Any]:
    """What became of it: each attempt to hand it over, and all that happened to it."""
    key = caller_of(request)
    check_scope(key, READ)
    return _shown_in_full(find_message(key, message_id))


@router.post(
    "/{message_id}/cancel",
    auth=READING,
    response={200: MessageInFullOut, **MOVING},
    by_alias=True,
    operation_id="cancelMessage",
    summary="Withdraw a message",
)
def cancel(request: HttpRequest, message_id: Id) -> Any:
    """409 where it has been handed over, or is just being: that can't be taken back."""
    key = caller_of(request)
    check_scope(key, CANCEL)

    def withdraw(message: Message) -> dict[str, Any]:
        if not Message.objects.filter(pk=message.pk).cancel(f"cancelled: by {key.client}"):
            status = find_message(key, message_id).status
            raise Refusal(409, f"It is {status}: only what is queued or deferred can be withdrawn.")
        return _shown_in_full(find_message(key, message_id))

    return once(request, key, lambda: find_message(key, message_id), withdraw)


def find_message(key: ApiKey, message_id: str) -> Message:
    """A message of this client. Raises `Refusal`, 404, in the same words for that of another."""
    message = _messages(key).filter(pk=id_of(message_id)).first()
    if message is None:
        raise Refusal(404, "Not found.")
    return message


def _messages(key: ApiKey) -> QuerySet[Message]:
    # From where they are written: a client asks for what it has queued a moment ago.
    home = Message.objects.using(databases.db_for_write(Message))
    return home.filter(client=key.client).select_related("content", "job").defer("job__problems", "job__merge_data")


def _orders(key: ApiKey, items: Sequence[MessageIn], *, has_files: bool) -> list[Order]:
    """Their orders. Raises `Refusal`, with the mistakes of all of them."""
    most = get_settings().api.messages
    if has_files:
        raise Refusal(422, "Files in a form go with one mail. Give them as base64 within each of many.")
    if not 1 <= len(items) <= most:
        raise Refusal(422, f"A request holds 1 to {most:,} mails, and this {len(items):,}.")
    orders, wrong = [], {}
    for number, item in enumerate(items):
        try:
            orders.append(order_from(key, item))
        except Refusal as refusal:
            if refusal.status != 422:
                raise
            fields = refusal.fields or {"": refusal.detail}
            wrong.update({f"{number}.{name}" if name else f"{number}": text for name, text in fields.items()})
    if wrong:
        raise Refusal(422, "Some mails are wrong: none was queued.", fields=wrong)
    return orders


def _shown(message: Message) -> dict[str, Any]:
    content = message.content
    return {
        "id": message.pk,
        "status": message.status,
        "reason": message.reason,
        "delivery": message.delivery or None,
        "stream": message.stream,
        "priority": message.priority,
        "subject": content.subject,
        "from": content.from_email or settings.DEFAULT_FROM_EMAIL,
        "recipients": message.recipients,
        "job": message.job.public_id if message.job else None,
        "provider": message.provider or None,
        "provider_message_id": message.provider_message_id or None,
        "queued_at": message.created_at,
        "send_at": message.send_at,
        "due_at": message.available_at,
        "expires_at": message.expires_at,
        "sent_at": message.sent_at,
        "metadata": content.extras.get("metadata", {}),
        "tags": content.extras.get("tags", []),
    }


def _shown_in_full(message: Message) -> dict[str, Any]:
    attempts = list(Attempt.objects.filter(message=message).order_by("number"))
    return {
        **_shown(message),
        "attempts": [
            {
                "number": attempt.number,
                "provider": attempt.provider,
                "begun_at": attempt.begun_at,
                "ended_at": attempt.ended_at,
                "outcome": attempt.outcome or None,
                "code": attempt.code,
                "detail": attempt.detail,
            }
            for attempt in attempts
        ],
        "events": _events(message, attempts),
    }


def _events(message: Message, attempts: Sequence[Attempt]) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = [{"type": "queued", "at": message.created_at}]
    for attempt in attempts:
        events.append({"type": "begun", "at": attempt.begun_at, "provider": attempt.provider})
        if attempt.ended_at is not None:
            detail = f"{attempt.code} {attempt.detail}".strip()
            outcome = {"type": attempt.outcome, "at": attempt.ended_at, "provider": attempt.provider, "detail": detail}
            events.append(outcome)
    events.sort(key=lambda event: event["at"])
    if message.status in Message.FINAL_STATUSES:
        events.append({"type": message.status, "at": message.sent_at, "detail": message.reason})
    if message.delivery:
        events.append({"type": message.delivery, "at": None, "provider": message.provider})
    return events
