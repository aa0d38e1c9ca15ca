"""The front door: `queue_mail()`, `queue_message()`, `queue_job()`.

Each joins the caller's transaction, so that mail is queued if and only if that commits; none opens a connection to a
provider, and none raises for a provider's sake.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from email.message import Message as MIMEMessage
from itertools import chain, islice
from typing import Any, TypeVar
from uuid import UUID

from asgiref.sync import sync_to_async
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django.db import models, router, transaction
from django.utils.functional import Promise
from django.utils.timezone import is_naive

from ..addresses import parse_address, split_addresses
from ..clock import DatabaseNow, db_now, read_now
from ..conf import get_settings
from ..errors import InvalidAddress, InvalidMail
from ..headers import UNSTORABLE, checked_line
from ..ids import uuid7s
from ..models import Content, IdempotencyKey, JobRecipients, Message, MessageJob, Priority
from ..models.bulk import another, insert, insert_all
from ..models.waking import wake_workers
from .audience import find_audience, is_name
from .checked import checked_json, checked_mapping, listed
from .draft import Draft, Recipient, draft_of, recipients_of, rendered, store_drafts
from .kicks import kick
from .merge import compile_template
from .outage import persist

YEARS = range(1970, 9_999)
"""What every database can hold, in every time zone."""
PIECE = 2_000
"""Recipients in one piece of a job's list, which is also what is expanded in one transaction."""
PATIENCE_SECONDS = 3.0
"""For how long a request under an idempotency key is asked again when the database fails in passing."""

T = TypeVar("T")


@dataclass(frozen=True)
class Terms:
    """How and when a mail is to be sent."""

    stream: str
    priority: int
    send_at: datetime | None
    expires_at: datetime | None


@dataclass(frozen=True)
class Order:
    """One mail as somebody asked for it: checked, and not queued yet."""

    draft: Draft
    recipients: Sequence[Recipient]
    terms: Terms

    def as_json(self) -> dict[str, Any]:
        """What tells it from another, for an idempotency key."""
        recipients = [recipient.as_json() for recipient in self.recipients]
        return {"draft": self.draft.as_json(), "recipients": recipients, "terms": vars(self.terms)}


@dataclass(frozen=True)
class JobOrder:
    """One mail to each of many, likewise."""

    draft: Draft
    terms: Terms
    audience: str
    entries: Iterable[list[Any]]
    """The recipients as `JobRecipients` keeps them, where it is no audience; some can be read only once."""
    merge_data: Mapping[str, Any] | None

    def as_json(self) -> dict[str, Any]:
        recipients, terms = list(self.entries), vars(self.terms)
        audience = {"audience": self.audience, "merge_data": self.merge_data}
        return {"draft": self.draft.as_json(), "recipients": recipients, "terms": terms, **audience}


def queue_mail(
    subject: str,
    message: str,
    from_email: str | None,
    recipient_list: Sequence[str],
    *,
    html_message: str | None = None,
    template: str | None = None,
    context: Mapping[str, object] | None = None,
    cc: Sequence[str] | None = None,
    bcc: Sequence[str] | None = None,
    reply_to: Sequence[str] | None = None,
    headers: Mapping[str, str] | None = None,
    attachments: Sequence[Any] | None = None,
    stream: str = "transactional",
    priority: Priority | int | str | None = None,
    send_at: datetime | None = None,
    expires_at: datetime | None = None,
    idempotency_key: str | None = None,
    metadata: Mapping[str, object] | None = None,
    tags: Iterable[str] | None = None,
) -> Message:
    """One mail in the queue, as its `Message`; sent after the caller's transaction commits, if it does.

    The first four arguments are those of `django.core.mail.send_mail`. Several recipients get one mail together, as
    with Django. `template="app/name"` renders `app/name.subject.txt`, `.txt` and `.html` once with `context`.
    Not sent before `send_at` nor after `expires_at` (aware datetimes). The same `idempotency_key` with the same
    arguments gives the first message back.

    Raises `InvalidMail` or another `ValueError` for what can't be sent, and `IdempotencyConflict` for a key that was
    used for other content.
    """
    email = email_of(
        subject, message, from_email, html_message, template, context, reply_to, headers, attachments,
        to=recipient_list, cc=cc, bcc=bcc,
    )  # fmt: skip
    return queue_message(
        email,
        stream=stream,
        priority=priority,
        send_at=send_at,
        expires_at=expires_at,
        idempotency_key=idempotency_key,
        metadata=metadata,
        tags=tags,
    )


def queue_message(
    email: EmailMessage,
    *,
    stream: str = "transactional",
    priority: Priority | int | str | None = None,
    send_at: datetime | None = None,
    expires_at: datetime | None = None,
    idempotency_key: str | None = None,
    metadata: Mapping[str, object] | None = None,
    tags: Iterable[str] | None = None,
) -> Message:
    """Django's EmailMessage, or Anymail's, in the queue; otherwise as `queue_mail()`.

    What is kept are its words, recipients, headers and files, and what Anymail adds to it; a worker makes a new email
    from these. So what a subclass does in its own `message()` is lost: give such mail its headers and parts instead.
    """
    order = order_of(
        email,
        stream=stream,
        priority=priority,
        send_at=send_at,
        expires_at=expires_at,
        metadata=metadata,
        tags=tags,
    )
    using = router.db_for_write(Message)
    if idempotency_key is None:
        with transaction.atomic(using=using):
            return place(order)
    keys = IdempotencyKey.objects.using(using)
    return patiently(
        lambda: keys.once(idempotency_key, scope="message", request=order.as_json(), make=lambda: place(order)),
        using=using,
    )


def order_of(
    email: EmailMessage,
    *,
    stream: str,
    priority: Priority | int | str | None,
    send_at: datetime | None,
    expires_at: datetime | None,
    metadata: Mapping[str, object] | None,
    tags: Iterable[str] | None,
) -> Order:
    """The arguments of `queue_message()`, checked. Raises as it does."""
    draft = draft_of(email, metadata=metadata, tags=tags)
    return Order(draft, recipients_of(email), terms_of(stream, priority, send_at, expires_at))


def place(order: Order, *, client: str = "") -> Message:
    """Queue this mail in the caller's transaction; `client` is who asked for it by HTTP."""
    using, terms = router.db_for_write(Message), order.terms
    now: datetime | DatabaseNow = db_now()
    if terms.expires_at is not None:
        now = read_now(using)
        _check_times(terms, now=now)
    message = store_message(order.draft, order.recipients, terms, now=now, client=client)
    wake_workers(using)
    if terms.send_at is None:
        kick(message, using=using)
    return message


def place_all(orders: Sequence[Order], *, client: str = "") -> list[Message]:
    """Queue these mails, in their order, in the caller's transaction: all by a few statements.

    Those that say the same share their words. Of several, no signals of models are sent.
    """
    if len(orders) < 2:
        return [place(order, client=client) for order in orders]
    using = router.db_for_write(Message)
    now = read_now(using)
    for order in orders:
        _check_times(order.terms, now=now)
    contents = store_drafts([order.draft for order in orders], now=now)
    like, ids = Message(client=client), (UUID(value) for value in uuid7s(len(orders)))
    made = [
        another(like, {"id": pk, "content_id": content.pk, **_fields_of(content, order.recipients, order.terms)})
        for pk, content, order in zip(ids, contents, orders, strict=True)
    ]
    insert_all(made, using=using)
    wake_workers(using)
    kicked = {stream for stream in {message.stream for message in made} if get_settings().policy_for(stream).kick}
    for message in made:
        if message.send_at is None and message.stream in kicked:
            kick(message, using=using)
    return made


def queue_job(
    subject: str,
    message: str,
    from_email: str | None,
    recipients: str | Iterable[str | tuple[str, Mapping[str, object]]],
    *,
    html_message: str | None = None,
    merge_data: Mapping[str, Mapping[str, object]] | None = None,
    source: models.Model | str | None = None,
    created_by: Any = None,
    template: str | None = None,
    context: Mapping[str, object] | None = None,
    reply_to: Sequence[str] | None = None,
    headers: Mapping[str, str] | None = None,
    attachments: Sequence[Any] | None = None,
    stream: str = "bulk",
    priority: Priority | int | str | None = None,
    send_at: datetime | None = None,
    expires_at: datetime | None = None,
    idempotency_key: str | None = None,
    metadata: Mapping[str, object] | None = None,
    tags: Iterable[str] | None = None,
) -> MessageJob:
    """One mail to each of many, as a `MessageJob` that `process_mail_jobs` expands.

    `recipients` is an iterable or queryset of addresses or of (address, merge data); or a string: with an "@" or a
    delimiter (comma, semicolon, white space, line break) it is addresses, otherwise the name of an audience made with
    `@mailengine.audience("name")`. Naming an audience costs the same however many it has. `merge_data` maps address
    to merge data; `{{ name }}` in subject, text and HTML is then replaced for each recipient. Malformed addresses and
    duplicates are counted when the job is expanded, and the others get their mail. `source` is the object, or its
    name, that the job was made from; `created_by` the user.

    Raises as `queue_mail()`, and `UnknownAudience`.
    """
    email = email_of(subject, message, from_email, html_message, template, context, reply_to, headers, attachments)
    draft, terms = draft_of(email, metadata=metadata, tags=tags), terms_of(stream, priority, send_at, expires_at)
    order = job_order_of(draft, recipients, terms, merge_data=merge_data)
    further = {"source": source_of(source), "created_by": created_by}
    using = router.db_for_write(MessageJob)
    if idempotency_key is None:
        with transaction.atomic(using=using):
            return place_job(order, **further)
    order = replace(order, entries=list(order.entries))
    keys = IdempotencyKey.objects.using(using)
    return patiently(
        lambda: keys.once(
            idempotency_key, scope="job", request=order.as_json(), make=lambda: place_job(order, **further)
        ),
        using=using,
    )


def job_order_of(
    draft: Draft,
    recipients: str | Iterable[str | tuple[str, Mapping[str, object]]],
    terms: Terms,
    *,
    merge_data: Mapping[str, Mapping[str, object]] | None = None,
) -> JobOrder:
    """A job of these arguments of `queue_job()`, checked. Raises as it does."""
    audience, entries = _recipients(recipients)
    data = None if merge_data is None else _merge_data_by_key(merge_data)
    first, entries = _peek(entries)
    if not audience and first is None:
        raise InvalidMail("The job has no recipients: give addresses, or the name of an audience.")
    if data is not None or (first is not None and len(first) > 2):
        check_merge_fields(draft.subject, draft.text, draft.html)
    return JobOrder(draft, terms, audience, entries, data)


def place_job(order: JobOrder, **further: Any) -> MessageJob:
    """Queue this job in the caller's transaction; `further` are more fields of it."""
    using = router.db_for_write(MessageJob)
    now = read_now(using)
    _check_times(order.terms, now=now)
    job = MessageJob.objects.create(
        content=order.draft.store(now=now),
        audience=order.audience,
        merge_data=order.merge_data,
        created_at=now,
        **{**vars(order.terms), **further},
    )
    JobRecipients.objects.store(job, _pieces(iter(order.entries)))
    wake_workers(using)
    return job


def patiently(request: Callable[[], T], *, using: str) -> T:
    """What a request under a key gives, in a transaction; asked again for a moment if the database fails in passing.

    The key makes that safe. MariaDB needs it: when the first of many twins dies, it calls the others a deadlock.
    """
    ends_at = time.monotonic() + PATIENCE_SECONDS

    def ask() -> T:
        with transaction.atomic(using=using):
            return request()

    return persist(ask, using=using, must_stop=lambda: time.monotonic() >= ends_at)


aqueue_mail = sync_to_async(queue_mail, thread_sensitive=True)
aqueue_message = sync_to_async(queue_message, thread_sensitive=True)
aqueue_job = sync_to_async(queue_job, thread_sensitive=True)


def store_message(
    draft: Draft, recipients: Sequence[Recipient], terms: Terms, *, now: datetime | DatabaseNow, **further: Any
) -> Message:
    """Write the rows of one mail; `further` are more fields of the message."""
    content = draft.store(now=now)
    message = Message(content=content, **{**_fields_of(content, recipients, terms), **further})
    insert(message, using=router.db_for_write(Message))
    return message


def _fields_of(content: Content, recipients: Sequence[Recipient], terms: Terms) -> dict[str, Any]:
    """What tells a message with these words from another."""
    first = next((r for r in recipients if r.kind == "to"), recipients[0])
    alone = len(recipients) == 1 and str(first.address) == first.address.key and first.kind == "to"
    return {
        "recipient": first.address.key,
        "other_recipients": None if alone else [r.as_json() for r in recipients],
        "available_at": terms.send_at or content.created_at,
        "created_at": content.created_at,
        **vars(terms),
    }


def check_merge_fields(*words: str) -> None:
    """Raise `InvalidMail` for what isn't a merge field but looks like one."""
    for text in words:
        compile_template(text)


def email_of(
    subject: str,
    message: str,
    from_email: str | None,
    html_message: str | None,
    template: str | None,
    context: Mapping[str, object] | None,
    reply_to: Sequence[str] | None,
    headers: Mapping[str, str] | None,
    attachments: Sequence[Any] | None,
    *,
    to: Sequence[str] | None = None,
    cc: Sequence[str] | None = None,
    bcc: Sequence[str] | None = None,
) -> EmailMessage:
    """Django's EmailMessage from the arguments of `queue_mail()`."""
    subject, text, html = rendered(template, context, subject=subject, text=message, html=html_message)
    email = EmailMultiAlternatives(
        subject=subject,
        body=text,
        from_email=from_email,
        to=listed("recipient_list", to),
        cc=listed("cc", cc),
        bcc=listed("bcc", bcc),
        reply_to=listed("reply_to", reply_to),
        headers=checked_mapping("headers", headers),
    )
    for number, item in enumerate(listed("attachments", attachments), start=1):
        attach(email, number, item)
    if html:
        email.attach_alternative(html, "text/html")
    return email


def attach(email: EmailMessage, number: int, item: Any) -> None:
    try:
        if isinstance(item, MIMEMessage):
            email.attachments.append(item)  # each Django wants another class of it, and we keep its bytes
        elif isinstance(item, tuple | list):
            email.attach(*item)
        else:
            email.attach(item)
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidMail(
            f"attachment {number} can't be attached: {error}."
            " Give (file name, content) or (file name, content, type), or a MIME part."
        ) from error


def terms_of(
    stream: str, priority: Priority | int | str | None, send_at: datetime | None, expires_at: datetime | None
) -> Terms:
    """The terms that these arguments of `queue_mail()` stand for. Raises `UnknownStream`, and `InvalidMail`."""
    if not isinstance(stream, str):
        raise InvalidMail(f"stream is {stream!r:.80}. Give the name of one.")
    policy = get_settings().stream(stream)
    times: dict[str, Any] = {"send_at": send_at, "expires_at": expires_at}
    for name, value in times.items():
        if value is not None and (not isinstance(value, datetime) or is_naive(value) or value.year not in YEARS):
            raise InvalidMail(f"{name} is {value!r}. Give an aware datetime, such as django.utils.timezone.now().")
    return Terms(stream, policy.priority if priority is None else _priority(priority), send_at, expires_at)


def _priority(value: Priority | int | str) -> int:
    if isinstance(value, str):
        name = value.strip().upper()
        value = (
            int(Priority[name])
            if name in Priority.names
            else int(name)
            if name.isdecimal() and len(name) <= 3
            else value
        )
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 100:
        return int(value)
    raise InvalidMail(f"priority is {value!r}. Give one of mailengine.Priority, or a number from 0 to 100.")


def _check_times(terms: Terms, *, now: datetime) -> None:
    if terms.expires_at is not None and terms.expires_at <= max(now, terms.send_at or now):
        raise InvalidMail(f"expires_at is {terms.expires_at}, before the mail could be sent. Give a later time.")


def _recipients(recipients: str | Iterable[Any]) -> tuple[str, Iterator[list[Any]]]:
    """The name of an audience, or "" and entries of [line, address] or [line, address, merge data]."""
    if isinstance(recipients, Promise):
        recipients = str(recipients)
    if isinstance(recipients, str):
        if not is_name(recipients):
            return "", ([line, _storable(item)] for line, item in split_addresses(recipients))
        return (find_audience(recipients).name, iter(())) if recipients else ("", iter(()))
    if isinstance(recipients, bytes | Mapping) or not isinstance(recipients, Iterable):
        raise InvalidMail(f"recipients is {recipients!r}. Give addresses, or the name of an audience.")
    return "", (_entry(line, item) for line, item in enumerate(recipients, start=1))


def _entry(line: int, item: Any) -> list[Any]:
    match item:
        case str(address) | (str(address),):  # the second is a row of values_list() without flat=True
            return [line, _storable(address)]
        case (str(address), Mapping() as data):
            return [line, _storable(address), checked_json(f"the merge data of recipient {line}", dict(data))]
    raise InvalidMail(f"recipient {line} is {item!r}. Give an address, or (address, merge data).")


def _storable(address: str) -> str:
    """The address, or what any database can hold in its place and expansion will count as malformed."""
    return UNSTORABLE.sub("\x1a", address)


def _merge_data_by_key(merge_data: Mapping[str, Mapping[str, object]]) -> dict[str, Any]:
    by_key = {}
    for address, data in checked_mapping("merge_data", merge_data).items():
        try:
            key = parse_address(str(address)).key
        except InvalidAddress as error:
            raise InvalidAddress(f"merge_data: {error}") from error
        by_key[key] = checked_json(f"merge_data of {key}", checked_mapping(f"merge_data of {key}", data))
    return by_key


def _peek(entries: Iterator[list[Any]]) -> tuple[list[Any] | None, Iterator[list[Any]]]:
    first = next(entries, None)
    return first, entries if first is None else chain([first], entries)


def _pieces(entries: Iterator[list[Any]]) -> Iterator[list[Any]]:
    while piece := list(islice(entries, PIECE)):
        yield piece


def source_of(source: models.Model | str | None) -> str:
    """What a job's row says that it was made from: "app.model:pk" of an object."""
    if isinstance(source, models.Model):
        return f"{source._meta.label_lower}:{source.pk}"
    return "" if source is None else checked_line("source", source)[:200]
