"""From what a client sends to what is queued: what it may, how much of it, and each mistake by its field."""

from __future__ import annotations

import binascii
import json
import re
from base64 import b64decode
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from email import encoders
from email.header import Header
from email.mime.base import MIMEBase
from email.utils import formataddr
from itertools import islice
from typing import Any
from uuid import UUID

from django.db import connections, router
from django.template import TemplateSyntaxError

from ..addresses import parse_address
from ..clock import read_now
from ..conf import ApiPolicy, get_settings
from ..errors import InvalidAddress, InvalidMail, MailengineError
from ..headers import UNSAFE_IN_NAMES
from ..ids import first_id_of
from ..models import ApiKey, Message, Priority
from ..models.api_keys import AUDIENCE, URGENT
from ..pipeline.checked import checked_json
from ..pipeline.draft import draft_of
from ..pipeline.enqueue import JobOrder, Order, email_of, job_order_of, order_of, place_all, terms_of
from ..pipeline.files import BINARY, checked_filename, checked_mimetype
from ..pipeline.mistakes import mistakes_in
from .access import check_scope, check_stream, may_send_as, spend
from .backpressure import check_room
from .reading import Upload
from .refusals import Refusal
from .schemas import CONTENT_ID, AddressIn, FileIn, JobIn, MessageIn, WordsIn

LONGEST_SUBJECT = 998
"""Octets, as it is encoded: RFC 5322, section 2.1.1."""
LONGEST_DATA = 4_096
"""Bytes of JSON for one recipient of a job: 2,000 of them are one row, and MariaDB takes no statement over 16 MB."""
NO_STREAM = "is none that this site has"
CLOCKS_DIFFER = timedelta(hours=1)
"""Ids have the time of hosts' clocks."""
MAY_BE_LONG = 150
"""Characters, below which no subject is that long."""
_HEADER_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")
_FORBIDDEN_HEADERS = re.compile(
    "|".join(
        (
            "From|Sender|To|Cc|Bcc|Reply-To|Subject|Date|Message-ID|MIME-Version|Content-.*|Resent-.*",
            "Return-Path|Received|Delivered-To|Authentication-Results|DKIM-Signature|ARC-.*|X-Mailengine-.*",
            "List-Unsubscribe.*|Feedback-ID|Errors-To|Return-Receipt-To|Disposition-Notification-To",
            "X-SMTPAPI|X-SES-.*|X-Mailgun-.*|X-MG-.*|X-PM-.*|X-MSYS-.*|X-Sib-.*|X-Mailin-.*|X-MC-.*|X-MJ-.*",
            "Resend-.*|Idempotency-Key",
        )
    ),
    re.IGNORECASE,
)
"""What is made from the mail, vouches for it, or tells a provider what to do with the account."""
_NAMES = {"message": "text", "html_message": "html", "from_email": "from"}
"""Arguments of `queue_mail()` that the API calls otherwise."""
INLINE = "inline"
ADDRESSES_AT_ONCE = 1_000
_ID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def queue(key: ApiKey, orders: Sequence[Order]) -> list[Message]:
    """Queue mail of this client's, in the caller's transaction; in the order of `orders`.

    Raises `Refusal` where the key may not, has no room left, or the queue has none.
    """
    for stream in dict.fromkeys(order.terms.stream for order in orders):
        check_stream(key, stream)
    for priority, stream in dict.fromkeys((order.terms.priority, order.terms.stream) for order in orders):
        check_priority(key, priority, stream=stream)
    _check_urgent(key, orders)
    spend(key, len(orders))
    return place_all(orders, client=key.client)


def check_priority(key: ApiKey, priority: int, *, stream: str) -> None:
    """Raise `Refusal` where this key may not send so soon, or the queue is too long for mail that can wait."""
    if priority < get_settings().stream(stream).priority:
        check_scope(key, URGENT)
    check_room(priority)


def order_from(key: ApiKey, item: MessageIn, uploads: Sequence[Upload] = ()) -> Order:
    """The mail that a client asks for. Raises `Refusal`, by field."""
    limits = get_settings().api
    wrong = _wrong_words(key, item, uploads, limits)
    if not (item.to or item.cc or item.bcc):
        wrong["to"] = "has nobody: give at least one address in to, cc or bcc"
    for name in ("to", "cc", "bcc"):
        people, most = getattr(item, name), getattr(limits, name)
        if len(people) > most:
            wrong[name] = f"holds {most} addresses at most, and this {len(people)}"
    given = _arguments(item, uploads, wrong)
    people_by: dict[str, Any] = {name: _people(name, getattr(item, name), wrong) for name in ("to", "cc", "bcc")}
    _raise(wrong)
    try:
        email = email_of(**_mail_of(given), **people_by)
        return order_of(email, **{name: given[name] for name in (*_TERMS, "metadata", "tags")})
    except (MailengineError, TemplateSyntaxError) as error:
        raise _refusal(error, {**given, **people_by}) from error


def job_from(key: ApiKey, item: JobIn, uploads: Sequence[Upload] = ()) -> JobOrder:
    """The job that a client asks for. Raises `Refusal`, by field."""
    if item.audience is not None:  # before anything is said about it: names of others are not this client's affair
        check_scope(key, f"{AUDIENCE}{item.audience}")
    limits = get_settings().api
    wrong = _wrong_words(key, item, uploads, limits)
    if bool(item.recipients) == (item.audience is not None):
        wrong["recipients"] = "or audience: give one of the two"
    elif len(item.recipients) > limits.recipients:
        wrong["recipients"] = f"holds {limits.recipients:,} entries at most, and this {len(item.recipients):,}"
    for number, recipient in enumerate(item.recipients):
        if recipient.data:
            _check_data(f"recipients.{number}.data", recipient.data, wrong)
    given = _arguments(item, uploads, wrong)
    _raise(wrong)
    entries = [r.email if r.data is None else (r.email, r.data) for r in item.recipients]
    try:
        draft = draft_of(email_of(**_mail_of(given)), metadata=given["metadata"], tags=given["tags"])
        recipients: Any = entries if item.audience is None else item.audience
        order = job_order_of(draft, recipients, terms_of(*(given[name] for name in _TERMS)))
    except (MailengineError, TemplateSyntaxError) as error:
        has_data = any(isinstance(entry, tuple) for entry in entries)
        further: dict[str, Any] = {"audience": item.audience, "merge_data": {} if has_data else None}
        raise _refusal(error, {**given, **further}) from error
    if order.terms.priority <= Priority.HIGH:  # nobody counts how many urgent mails of it an address gets
        raise Refusal(422, "A job is not urgent.", fields={"priority": "is normal or later for a job"})
    return replace(order, entries=list(order.entries))  # it may be stored twice, when the database fails


def check_address(name: str, text: str, wrong: dict[str, str]) -> None:
    """Enter what is wrong with an address that may have no name with it."""
    if not text.strip():
        wrong[name] = "is required"
        return
    try:
        address = parse_address(text)
    except InvalidAddress:
        wrong[name] = "is not a valid email"
    else:
        if address.name:
            wrong[name] = "is not a valid email"


def check_subject(name: str, text: str, wrong: dict[str, str]) -> None:
    """Enter it where no header can hold a subject as long as this."""
    # No encoding makes it shorter, and that of a very long one takes seconds.
    if len(text) > LONGEST_SUBJECT or (len(text) > MAY_BE_LONG and len(Header(text).encode()) > LONGEST_SUBJECT):
        wrong[name] = f"has more than {LONGEST_SUBJECT} octets as it is encoded"


def octets_of(*words: str) -> int:
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in words)


def with_name(address: str, name: str | None) -> str:
    """`"Name" <address>`; an address alone where no name is given. Raises `InvalidAddress` for what is no name."""
    if not name or not name.strip():
        return address
    if "@" in name:  # programs that read mail show the name, and hide the address
        raise InvalidAddress("a name can't hold an address")
    if UNSAFE_IN_NAMES.search(name):
        raise InvalidAddress("a name can't hold a line break, a control character or one that reverses text")
    text = formataddr((name, address), "utf-8")
    parse_address(text)
    return text


_TERMS = ("stream", "priority", "send_at", "expires_at")


def _wrong_words(key: ApiKey, item: WordsIn, uploads: Sequence[Upload], limits: ApiPolicy) -> dict[str, str]:
    """What a client may not say, or not so much of it."""
    wrong: dict[str, str] = {}
    further = json.dumps([item.headers, item.context, item.metadata, item.tags], ensure_ascii=False)
    if (size := octets_of(item.subject, item.text, item.html, further)) > limits.words_bytes:
        raise Refusal(413, f"The words of a mail have {limits.words_bytes:,} bytes at most, and these {size:,}.")
    if not may_send_as(key, item.from_.email if item.from_ else None):
        wrong["from"] = "is none that this key may send as"
    check_subject("subject", item.subject, wrong)
    if len(item.reply_to) > limits.to:
        wrong["reply_to"] = f"holds {limits.to} addresses at most, and this {len(item.reply_to)}"
    if len(item.headers) > limits.headers:
        wrong["headers"] = f"holds {limits.headers} at most, and this {len(item.headers)}"
    for name in item.headers:
        if not _HEADER_NAME.fullmatch(name):
            wrong["headers"] = f"has the name {name!r:.80}: use up to 64 letters, digits and hyphens"
        elif _FORBIDDEN_HEADERS.fullmatch(name):
            wrong[f"headers.{name}"] = "is none that a client may set"
    if (count := len(item.attachments) + len(uploads)) > limits.attachments:
        wrong["attachments"] = f"holds {limits.attachments} at most, and this {count}"
    if item.template is not None and not key.may_use_template(item.template):
        raise Refusal(403, f"This key has no scope for the template {item.template!r:.80}.")
    return wrong


def _arguments(item: WordsIn, uploads: Sequence[Upload], wrong: dict[str, str]) -> dict[str, Any]:
    """What is asked for as arguments of `queue_mail()`; what can't be such is entered in `wrong`."""
    sender = _people("from", [item.from_] if item.from_ else [], wrong)
    return {
        "subject": item.subject,
        "message": item.text,
        "html_message": item.html,
        "from_email": sender[0] if sender else None,
        "template": item.template,
        "context": item.context,
        "reply_to": _people("reply_to", item.reply_to, wrong),
        "headers": item.headers,
        "attachments": [*_files(item.attachments, wrong), *_uploaded(uploads, wrong)],
        "stream": item.stream,  # type: ignore[attr-defined]  # each kind has its own default
        "priority": item.priority,
        "send_at": item.send_at,
        "expires_at": item.expires_at,
        "metadata": item.metadata or None,
        "tags": item.tags or None,
    }


def _mail_of(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name not in {*_TERMS, "metadata", "tags"}}


def _people(field: str, people: Sequence[AddressIn], wrong: dict[str, str]) -> list[str]:
    found = []
    for number, person in enumerate(people):
        place = field if field == "from" else f"{field}.{number}"
        check_address(f"{place}.email", person.email, wrong)
        try:
            found.append(with_name(person.email, person.name))
        except InvalidAddress:
            if f"{place}.email" not in wrong:
                wrong[f"{place}.name"] = "can't be a name in a mail"
    return found


def _files(files: Sequence[FileIn], wrong: dict[str, str]) -> list[Any]:
    found = []
    for number, file in enumerate(files):
        try:
            data = b64decode("".join(file.content.split()), validate=True)
        except (binascii.Error, ValueError):
            wrong[f"attachments.{number}.content"] = "is no base64"
            continue
        try:
            found.append(_file(file.filename, data, file.type, content_id=file.content_id))
        except InvalidMail as error:
            wrong[f"attachments.{number}"] = str(error)
    return found


def _uploaded(uploads: Sequence[Upload], wrong: dict[str, str]) -> list[Any]:
    """Files of a form: those called `attachment`, and inline images, which their file name is the id of."""
    found = []
    for upload in uploads:
        if upload.field not in ("attachment", INLINE):
            wrong[""] = f"The form has a file called {upload.field!r:.80}. Call it attachment, or inline."
            continue
        content_id = upload.filename if upload.field == INLINE else None
        if content_id is not None and not re.fullmatch(CONTENT_ID, content_id):
            wrong[""] = f"The inline file {content_id!r:.80} is shown by its name as its content id: {CONTENT_ID[1:-1]}"
            continue
        try:
            found.append(_file(upload.filename, upload.data, upload.mimetype, content_id=content_id))
        except InvalidMail as error:
            wrong[""] = str(error)
    return found


def _file(filename: str, data: bytes, mimetype: str | None, *, content_id: str | None) -> Any:
    """A file as Django's EmailMessage takes it: (name, bytes, type), or an inline part."""
    if content_id is None:
        return filename, data, mimetype
    kind = checked_mimetype(mimetype or BINARY).partition(";")[0].strip()
    if kind.lower().startswith(("message/", "multipart/")):
        raise InvalidMail(f"an inline file has the type {kind!r}. Give that of an image.")
    part = MIMEBase(*kind.split("/", 1))
    part.set_payload(data)
    encoders.encode_base64(part)
    part.add_header("Content-Disposition", "inline", filename=checked_filename(filename))
    part["Content-ID"] = f"<{content_id}>"
    return part


def _refusal(error: Exception, given: Mapping[str, Any]) -> Refusal:
    """What `queue_mail()` found, together with all else that it would find after that."""
    found = mistakes_in(given)
    fields = {}
    for name, text in found.items():
        first, dot, rest = name.partition(".")
        fields[f"{_NAMES.get(first, first)}{dot}{rest}"] = NO_STREAM if name == "stream" else text
    return Refusal(422, "The mail has fields that are wrong." if fields else str(error), fields=fields)


def _check_data(place: str, data: Mapping[str, Any], wrong: dict[str, str]) -> None:
    try:
        if len(json.dumps(checked_json("it", data))) > LONGEST_DATA:
            wrong[place] = f"has more than {LONGEST_DATA:,} bytes"
    except InvalidMail as error:
        wrong[place] = str(error)


def _raise(wrong: Mapping[str, str]) -> None:
    if wrong:
        fields = {name: text for name, text in wrong.items() if name}
        raise Refusal(422, wrong.get("", "The mail has fields that are wrong."), fields=fields)


def _check_urgent(key: ApiKey, orders: Sequence[Order]) -> None:
    """Raise `Refusal`, 429, where an address would get more urgent mail in an hour than one client may send it.

    A form that mails whoever is typed into it can be made to fill somebody's mailbox.
    """
    most = get_settings().api.urgent_per_hour
    urgent = [order for order in orders if order.terms.priority <= Priority.HIGH]
    if not urgent:
        return
    now = Counter(recipient.address.key for order in urgent for recipient in order.recipients)
    using = router.db_for_write(Message)
    # One request of a client after the other, or two would see the same room.
    list(ApiKey.objects.using(using).filter(client=key.client).order_by("pk").select_for_update())
    before = _urgent_times(key, now, using=using)
    for address, count in now.items():
        times = before.get(address, [])
        if len(times) + count > most:
            instant = read_now(using)
            seconds = (min(times) + timedelta(hours=1) - instant).total_seconds() if times else 3_600
            raise Refusal(429, f"An address gets {most} urgent mails an hour at most.", retry_after=seconds)


def _urgent_times(key: ApiKey, addresses: Collection[str], *, using: str) -> dict[str, list[datetime]]:
    """When this client queued urgent mail to these addresses within the last hour, copies too."""
    hour_ago = read_now(using) - timedelta(hours=1)
    mine = Message.objects.using(using).filter(client=key.client, priority__lte=Priority.HIGH, created_at__gt=hour_ago)
    if (
        connections[using].vendor != "mysql"
    ):  # older versions of MariaDB sort ids by other bytes than those of their time
        mine = mine.filter(pk__gte=first_id_of(hour_ago - CLOCKS_DIFFER))  # by the index of a client's mail
    found: dict[str, list[datetime]] = {}
    keys = iter(addresses)
    while some := list(islice(keys, ADDRESSES_AT_ONCE)):
        for address, at in mine.filter(recipient__in=some).values_list("recipient", "created_at"):
            found.setdefault(address, []).append(at)
    with_copies = mine.filter(other_recipients__isnull=False).values_list("recipient", "other_recipients", "created_at")
    for first, others, at in with_copies.iterator():
        for address in {str(other["address"]).casefold() for other in others} - {first}:
            if address in addresses:
                found.setdefault(address, []).append(at)
    return found


def key_of_address(text: str, field: str) -> str:
    """What tells this address from others. Raises `Refusal`, which blames that field."""
    try:
        return parse_address(text).key
    except InvalidAddress as error:
        raise Refusal(422, str(error), fields={field: "is not a valid email"}) from error


def id_of(text: str) -> UUID:
    """The id in a path. Raises `Refusal`, 404: what is none belongs to nobody."""
    if not _ID.fullmatch(text):  # UUID() takes braces, underscores and more, each another path
        raise Refusal(404, "Not found.")
    return UUID(text)
