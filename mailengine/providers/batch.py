"""One call of an ESP's API for many mails: who may share it, the email that stands for all, and what became of each."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from email.message import Message
from email.utils import parseaddr
from typing import Any

from django.core.mail import EmailMessage

from ..backends.wire import Mail, WireMail
from ..outcomes import Kind, Outcome
from .classify import HTTP, outcomes_of_mails
from .esp import esp_name
from .fitting import fitted

MOST = {
    # ESP: how many mails it takes in one call
    "Brevo": 1000,  # https://developers.brevo.com/docs/batch-send-transactional-emails
    "Mailgun": 1000,  # https://documentation.mailgun.com/docs/mailgun/user-manual/sending-messages/batch-sending
    "Mailjet": 50,  # https://dev.mailjet.com/reference/email/send-emails/
    "Postmark": 500,  # https://postmarkapp.com/developer/user-guide/send-email-with-api/batch-emails
    "Resend": 100,  # https://resend.com/docs/dashboard/emails/batch-sending
    "SendGrid": 1000,  # https://www.twilio.com/docs/sendgrid/api-reference/mail-send/errors
}
WRITTEN_IN_FULL = frozenset({"Postmark", "Resend"})
"""A call to them holds the words and files of a mail once for each recipient; to the others, once."""
LARGEST_CALL = 10_000_000
"""Bytes of such a call. Postmark takes 50 MB, but we have to have it in memory twice."""
BESIDE_THE_WORDS = 3000
"""Bytes, about, of what else such a call has for each mail: addresses, headers and metadata."""

_OWN = frozenset({"to", "extra_headers", "metadata", "boundary", "attachments"})
"""What each mail of a call has for itself, and the attachments, which are compared in a way of their own."""
_LEFT_BY_A_BACKEND = frozenset({"anymail_status", "mailengine_refusals", "mailengine_sha256"})
_ADDRESSES = frozenset({"from", "sender", "reply-to", "to", "cc", "bcc"})
_MERGED = ("merge_data", "merge_headers", "merge_metadata")


class NotOneCall(ValueError):  # noqa: N818  said of mails, not of a failure
    """These mails can't go in one call."""


@dataclass(frozen=True)
class CallRefused(Outcome):
    """What a mail came to whose call was refused as a whole: nothing was sent, and no mail is known to be at fault.

    It is to be handed over by itself, by `Connection.hand_over()`, which then says what is wrong with it, if anything.
    Whoever doesn't know that reads an `UNAVAILABLE` by this host's own fault: the mail waits, and nobody is charged.
    """


def most_in_a_call(alias: str, email: Mail | None = None) -> int:
    """How many mails the ESP of this provider takes in one call; 1: it has no such call, or we know none.

    With `email`: how many mails like it, since some ESPs want each mail in full.
    """
    esp = esp_name(alias)
    most = MOST.get(esp, 1)
    if isinstance(email, WireMail):
        return 1
    if email is None or esp not in WRITTEN_IN_FULL:
        return most
    # https://resend.com/docs/api-reference/emails/send-batch-emails: it drops them without a word.
    if esp == "Resend" and (email.attachments or getattr(email, "send_at", None)):
        return 1
    return max(1, min(most, LARGEST_CALL // (_size(email) + BESIDE_THE_WORDS)))


def can_share_a_call(one: Mail, other: Mail) -> bool:
    """Whether both say the same, but for recipient, own headers and metadata, and each is for one recipient alone.

    The names of their headers and metadata are the same too: Mailgun would give empty ones to who has none.
    """
    return (
        not isinstance(one, WireMail)
        and not isinstance(other, WireMail)
        and type(one) is type(other)
        and _may_share(one)
        and _may_share(other)
        and _address(one) != _address(other)
        and _names(one.extra_headers) == _names(other.extra_headers)
        and _metadata(one).keys() == _metadata(other).keys()
        and _common(one) == _common(other)
        and _same_files(one.attachments, other.attachments)
    )


def joined(mails: Sequence[Mail], alias: str) -> EmailMessage:
    """One Anymail message for all of them, which makes a mail of its own for each `to`.

    Each has its own headers and metadata in `merge_headers` and `merge_metadata`. They are what makes Anymail write
    to each recipient alone, so they are always set. Mailgun fills in Message-ID too, as was seen at
    https://github.com/TryGhost/Ghost/pull/30776. Raises NotOneCall.
    """
    emails = [mail for mail in mails if not isinstance(mail, WireMail)]
    if len(emails) < len(mails):
        raise NotOneCall("Mail that is bytes already goes by SMTP alone.")
    first, esp = emails[0], esp_name(alias)
    most = most_in_a_call(alias, first)
    if len(emails) > most:
        raise NotOneCall(f"{alias} takes {most} mails like these in a call, not {len(emails)}.")
    addresses = {_address(email) for email in emails}
    if len(addresses) < len(emails) or not all(can_share_a_call(first, email) for email in emails[1:]):
        raise NotOneCall("They differ in more than recipient, headers and metadata, or two have one recipient.")
    call = copy.copy(first)
    for name in (*_LEFT_BY_A_BACKEND, "metadata"):
        vars(call).pop(name, None)
    call.to = [email.to[0] for email in emails]
    call.extra_headers = {}
    headers = {_spec(email): dict(fitted(email, esp).extra_headers) for email in emails}
    call.merge_headers = headers  # type: ignore[attr-defined]
    call.merge_metadata = {_spec(email): dict(_metadata(email)) for email in emails}  # type: ignore[attr-defined]
    return call


def outcomes_of_call(emails: Sequence[Mail], call: Mail, outcome: Outcome, *, esp: str) -> list[Outcome]:
    """Each mail's own outcome, in the order of `emails`, from what their `call` left and came to as a whole.

    What the answer does not mention is uncertain. A refusal of the whole call is nobody's: see `CallRefused`.
    """
    status = getattr(call, "anymail_status", None)
    told = outcomes_of_mails(esp, getattr(status, "esp_response", None))
    if told is not None:
        return _of_told(emails, told)
    if outcome.kind is Kind.ACCEPTED:
        return _of_status(emails, status, esp=esp)
    if outcome.kind in {Kind.REFUSED, Kind.DEFERRED}:
        return [refused_as_a_whole(outcome)] * len(emails)
    return [replace(outcome, refusals={}, sha256=b"")] * len(emails)


def refused_as_a_whole(outcome: Outcome) -> CallRefused:
    return CallRefused(Kind.UNAVAILABLE, code=outcome.code, detail=outcome.detail, phase=outcome.phase, is_local=True)


def _of_told(emails: Sequence[Mail], told: Sequence[tuple[str, Outcome]]) -> list[Outcome]:
    """By position, as the ESP promises; by address, should the answers be others than the mails."""
    addresses = [_address(email) for email in emails]
    if len(told) == len(emails) and all(to in {"", address} for address, (to, _) in zip(addresses, told, strict=True)):
        return [outcome for _to, outcome in told]
    named = {to: outcome for to, outcome in told if to}
    return [named.get(address, _unmentioned()) for address in addresses]


def _of_status(emails: Sequence[Mail], status: Any, *, esp: str) -> list[Outcome]:
    """By what Anymail read for each address."""
    read = {address.lower(): recipient for address, recipient in getattr(status, "recipients", {}).items()}
    taken = {address: recipient for address, recipient in read.items() if recipient.status in {"sent", "queued"}}
    ids = [recipient.message_id for recipient in taken.values()]
    if esp in {"Brevo", "Resend"} and not all(ids):
        taken = {}  # fewer ids than mails: whose are they?
    return [
        Outcome(Kind.ACCEPTED, phase=HTTP, provider_message_id=str(taken[address].message_id or ""))
        if address in taken
        else _unmentioned()
        for address in map(_address, emails)
    ]


def _unmentioned() -> Outcome:
    return Outcome(Kind.UNCERTAIN, code="not mentioned", detail="The answer says nothing of this mail.", phase=HTTP)


def _may_share(email: EmailMessage) -> bool:
    """Whether it is for one recipient alone, and says nothing that would be read in another way in a call for many."""
    if len(email.to) != 1 or email.cc or email.bcc or any(name in vars(email) for name in _MERGED):
        return False
    # Anymail looks for an address in the two as they are written, and some ESPs want a domain in ASCII.
    is_plain = _spec(email).isascii() and not _ADDRESSES & _names(email.extra_headers)
    return is_plain and not any("%recipient" in text for text in _texts(email))  # Mailgun would fill it in


def _spec(email: Mail) -> str:
    return parseaddr(email.to[0])[1]


def _address(email: Mail) -> str:
    return _spec(email).lower()


def _names(headers: Mapping[str, str]) -> set[str]:
    return {name.lower() for name in headers}


def _metadata(email: EmailMessage) -> Mapping[str, Any]:
    metadata: Mapping[str, Any] = getattr(email, "metadata", None) or {}
    return metadata


def _common(email: EmailMessage) -> dict[str, Any]:
    return {name: value for name, value in vars(email).items() if name not in _OWN | _LEFT_BY_A_BACKEND}


def _texts(email: EmailMessage) -> Iterator[str]:
    yield str(email.subject)
    yield str(email.body)
    for alternative in getattr(email, "alternatives", ()):
        yield str(alternative[0])


def _same_files(some: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(some) == len(others) and all(map(_is_same_file, some, others))


def _is_same_file(one: Any, other: Any) -> bool:
    """Parts are made anew for each mail, and don't compare; their bytes need not be written for that."""
    if not isinstance(one, Message) or not isinstance(other, Message):
        return bool(one == other)
    if type(one) is not type(other) or list(one.raw_items()) != list(other.raw_items()):
        return False
    mine, theirs = one.get_payload(), other.get_payload()
    if isinstance(mine, list) and isinstance(theirs, list):
        return _same_files(mine, theirs)
    return bool(mine == theirs)


def _size(email: EmailMessage) -> int:
    """About how many bytes of JSON its words and files take."""
    words = sum(len(json.dumps(text)) for text in _texts(email))
    return words + sum(_file_size(file) for file in email.attachments)


def _file_size(file: Any) -> int:
    if isinstance(file, Message):
        payload = file.get_payload()
        return sum(map(_file_size, payload)) if isinstance(payload, list) else len(str(payload))
    content = file[1]
    if isinstance(content, EmailMessage):
        return _size(content)
    return len(content.encode() if isinstance(content, str) else bytes(content)) * 4 // 3
