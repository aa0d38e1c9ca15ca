"""How each ESP of `ESPServer` writes down what it is given, and what it answers: `ESPS`."""

from __future__ import annotations

import json
import re
import uuid
from base64 import b64decode
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage, Message
from email.policy import HTTP, default
from email.utils import getaddresses
from typing import Any
from urllib.parse import parse_qs


@dataclass(frozen=True)
class Answer:
    """An HTTP answer: `Answer(429, headers={"Retry-After": "7"})`."""

    status: int
    body: str | Mapping[str, Any] | Sequence[Any] = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class File:
    """An attachment or an inline image, decoded."""

    name: str
    content: bytes
    mimetype: str = ""
    """Without parameters; empty where an ESP is not told it."""
    cid: str = ""
    """Of an inline image: what the HTML calls it, without brackets."""


@dataclass(frozen=True)
class Parcel:
    """What an ESP makes one mail of."""

    addresses: Sequence[str]
    """As they are written there, with names."""
    headers: Mapping[str, str]
    """Those given beside subject and addresses."""
    metadata: Mapping[str, Any]
    files: tuple[File, ...] = ()

    @property
    def recipients(self) -> tuple[str, ...]:
        return tuple(address for _, address in getaddresses(self.addresses))

    @property
    def mailengine_id(self) -> str:
        headers = {name.lower(): value for name, value in self.headers.items()}
        return str(self.metadata.get("mailengine_id") or headers.get("x-mailengine-id", ""))


@dataclass(frozen=True)
class Verdict:
    """What an ESP says to a call, and which of its mails, by their number, it takes."""

    answer: Answer
    accepted: Collection[int] = ()


@dataclass(frozen=True)
class API:
    """What tells one ESP's API from another's."""

    root: str
    """Of its URLs; the rest of those it sends by is `path`, a regular expression."""
    path: str
    options: Callable[[str, float], Mapping[str, Any]]
    """The URL of its root here, and a timeout -> OPTIONS that its Anymail backend can't do without."""
    read: Callable[[Any], list[Parcel]]
    """The body of a call -> the mails that are made of it: several if it is a call for many."""
    answer: Callable[[Sequence[Parcel], Collection[str]], Verdict]
    """The mails of a call, and the addresses that are inactive -> what is said."""
    key_header: str = ""
    """The header that carries an idempotency key, in lower case, where it honours one."""


def body_of(content_type: str, body: bytes) -> Any:
    """The JSON of a call, or its form with a list for each name; a file in it is a `File`."""
    if content_type.startswith("multipart/form-data"):
        form: dict[str, list[Any]] = {}
        envelope = message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body, policy=HTTP)
        for part in envelope.iter_parts():
            # As browsers write it: UTF-8, without any encoding.
            disposition = dict(part.raw_items())["Content-Disposition"].encode("ascii", "surrogateescape").decode()
            names = dict(re.findall(r'\b(name|filename)="([^"]*)"', disposition))
            content = _content_of(part)
            value = (
                File(names["filename"], content, part.get_content_type()) if "filename" in names else content.decode()
            )
            form.setdefault(names["name"], []).append(value)
        return form
    if content_type.startswith("application/x-www-form-urlencoded"):
        return parse_qs(body.decode(), keep_blank_values=True)
    return json.loads(body)


def _content_of(part: Message) -> bytes:
    content = part.get_payload(decode=True)
    return content if isinstance(content, bytes) else b""


# Mailgun: https://documentation.mailgun.com/docs/mailgun/user-manual/sending-messages/batch-sending


def _mailgun_read(form: Mapping[str, Any]) -> list[Parcel]:
    values = {name: given[0] for name, given in form.items() if isinstance(given[0], str)}
    files = (*form.get("attachment", ()), *(File("", f.content, f.mimetype, f.name) for f in form.get("inline", ())))
    if "recipient-variables" not in form:
        addresses = [address for name in ("to", "cc", "bcc") for address in form.get(name, ())]
        return [Parcel(addresses, _prefixed("h:", values), _prefixed("v:", values), files)]
    variables = json.loads(values["recipient-variables"])
    parcels = []
    for address in form["to"]:
        own = variables.get(getaddresses([address])[0][1], {})
        mine = {name: _filled_in(value, own) for name, value in values.items()}
        parcels.append(Parcel([address], _prefixed("h:", mine), _prefixed("v:", mine), files))
    return parcels


def _prefixed(prefix: str, values: Mapping[str, str]) -> dict[str, str]:
    return {name[len(prefix) :]: value for name, value in values.items() if name.startswith(prefix)}


def _filled_in(value: str, variables: Mapping[str, Any]) -> str:
    """A variable that nobody has given stays as it is written."""
    return re.sub(r"%recipient\.([^%]+)%", lambda found: str(variables.get(found[1], found[0])), value)


def _mailgun_answer(parcels: Sequence[Parcel], inactive: Collection[str]) -> Verdict:
    """One bad address refuses them all, and one id is for all of them."""
    if _inactive(parcels, inactive):
        text = "'to' parameter is not a valid address. please check documentation"
        return Verdict(Answer(400, {"message": text}))
    answer = Answer(200, {"id": f"<{uuid.uuid4().hex}@mailgun.test>", "message": "Queued. Thank you."})
    return Verdict(answer, range(len(parcels)))


# Postmark: https://postmarkapp.com/developer/api/email-api

POSTMARK_REFUSES = frozenset({"cc", "bcc", "date", "from", "reply-to", "subject", "to"})
"""Headers that it has fields of its own for, or writes itself: https://github.com/symfony/symfony/issues/60254."""


def _postmark_read(body: Any) -> list[Parcel]:
    return [_postmark_parcel(fields) for fields in (body if isinstance(body, list) else [body])]


def _postmark_parcel(fields: Mapping[str, Any]) -> Parcel:
    return Parcel(
        [fields[name] for name in ("To", "Cc", "Bcc") if fields.get(name)],
        {header["Name"]: header["Value"] for header in fields.get("Headers", ())},
        fields.get("Metadata", {}),
        tuple(
            File(file["Name"], b64decode(file["Content"]), _bare(file["ContentType"]), _bare_cid(file.get("ContentID")))
            for file in fields.get("Attachments", ())
        ),
    )


def _postmark_answer(parcels: Sequence[Parcel], inactive: Collection[str]) -> Verdict:
    """Of a call for many each mail has an answer of its own, and the call as a whole is a 200."""
    told = [_postmark_told(parcel, inactive) for parcel in parcels]
    alone = Answer(422 if told[0]["ErrorCode"] else 200, told[0])
    answer = alone if len(parcels) == 1 else Answer(200, told)
    return Verdict(answer, [number for number, one in enumerate(told) if not one["ErrorCode"]])


def _postmark_told(parcel: Parcel, inactive: Collection[str]) -> dict[str, Any]:
    for name in parcel.headers:
        if name.lower() in POSTMARK_REFUSES:
            return {"ErrorCode": 300, "Message": f"Header '{name}' not allowed."}
    gone = _inactive([parcel], inactive)
    names = ", ".join(gone)
    reason = "Inactive recipients are ones that have generated a hard bounce or a spam complaint."
    if gone and len(gone) == len(parcel.recipients):
        text = "You tried to send to a recipient that has been marked as inactive."
        return {"ErrorCode": 406, "Message": f"{text}\nFound inactive addresses: {names}.\n{reason}"}
    text = f"Message OK, but will not deliver to these inactive addresses: {names}. {reason}" if gone else "OK"
    return {"ErrorCode": 0, "Message": text, "MessageID": str(uuid.uuid4()), "To": parcel.addresses[0]}


# SendGrid: https://www.twilio.com/docs/sendgrid/api-reference/mail-send/mail-send


def _sendgrid_read(fields: Mapping[str, Any]) -> list[Parcel]:
    files = tuple(
        File(file["filename"], b64decode(file["content"]), _bare(file["type"]), file.get("content_id") or "")
        for file in fields.get("attachments", ())
    )
    return [
        Parcel(
            [entry["email"] for name in ("to", "cc", "bcc") for entry in one.get(name, ())],
            {**fields.get("headers", {}), **one.get("headers", {})},
            {**fields.get("custom_args", {}), **one.get("custom_args", {})},
            files,
        )
        for one in fields["personalizations"]
    ]


def _sendgrid_answer(parcels: Sequence[Parcel], inactive: Collection[str]) -> Verdict:
    if _inactive(parcels, inactive):
        place = "personalizations.0.to.0.email"
        return Verdict(Answer(400, {"errors": [{"message": "Does not contain a valid address.", "field": place}]}))
    return Verdict(Answer(202, headers={"X-Message-Id": uuid.uuid4().hex}), range(len(parcels)))


# Amazon SES: https://docs.aws.amazon.com/ses/latest/APIReference-V2/API_SendEmail.html


def _amazon_ses_read(fields: Mapping[str, Any]) -> list[Parcel]:
    destination = fields.get("Destination", {})
    addresses = [address for name in ("To", "Cc", "Bcc") for address in destination.get(f"{name}Addresses", ())]
    message = message_from_bytes(b64decode(fields["Content"]["Raw"]["Data"]), policy=default)
    headers = {name: str(value) for name, value in message.items()}
    return [Parcel(addresses, headers, _metadata_in(headers), tuple(_files_in(message)))]


def _files_in(message: EmailMessage) -> Iterator[File]:
    for part in message.walk():
        if part.get_content_disposition() in {"attachment", "inline"}:
            is_inline = part.get_content_disposition() == "inline"
            cid = str(part.get("Content-ID", "")).strip("<>") if is_inline else ""
            yield File(part.get_filename() or "", _content_of(part), part.get_content_type(), cid)


def _amazon_ses_answer(parcels: Sequence[Parcel], inactive: Collection[str]) -> Verdict:
    if _inactive(parcels, inactive):
        return Verdict(Answer(400, {"message": "Illegal address"}, {"x-amzn-ErrorType": "BadRequestException"}))
    return Verdict(Answer(200, {"MessageId": str(uuid.uuid4())}), [0])


def _amazon_ses_options(url: str, timeout: float) -> dict[str, Any]:
    config = {"connect_timeout": timeout, "read_timeout": timeout}
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    return {"client_params": {"endpoint_url": url, "region_name": "eu-west-1", "config": config, **keys}}


# Resend: https://resend.com/docs/api-reference/emails/send-batch-emails


def _resend_read(body: Any) -> list[Parcel]:
    return [_resend_parcel(fields) for fields in (body if isinstance(body, list) else [body])]


def _resend_parcel(fields: Mapping[str, Any]) -> Parcel:
    headers = fields.get("headers", {})
    return Parcel(
        [address for name in ("to", "cc", "bcc") for address in fields.get(name, ())],
        headers,
        _metadata_in(headers),
        tuple(
            File(
                file["filename"], b64decode(file["content"]), _bare(file["content_type"]), file.get("content_id") or ""
            )
            for file in fields.get("attachments", ())
        ),
    )


def _resend_answer(parcels: Sequence[Parcel], inactive: Collection[str]) -> Verdict:
    """One bad address refuses them all: https://resend.com/changelog/batch-validation-modes."""
    if _inactive(parcels, inactive):
        return Verdict(resend_error(422, "validation_error", "Invalid `to` field."))
    ids = [{"id": str(uuid.uuid4())} for _ in parcels]
    return Verdict(Answer(200, ids[0] if len(parcels) == 1 else {"data": ids}), range(len(parcels)))


def resend_error(status: int, name: str, message: str) -> Answer:
    return Answer(status, {"statusCode": status, "name": name, "message": message})


# Brevo: https://developers.brevo.com/docs/batch-send-transactional-emails


def _brevo_read(fields: Mapping[str, Any]) -> list[Parcel]:
    files = tuple(File(file["name"], b64decode(file["content"])) for file in fields.get("attachment", ()))
    parcels = []
    for version in fields.get("messageVersions", [fields]):
        headers = {**fields.get("headers", {}), **version.get("headers", {})}
        addresses = [entry["email"] for name in ("to", "cc", "bcc") for entry in version.get(name, ())]
        parcels.append(Parcel(addresses, headers, json.loads(headers.get("X-Mailin-custom", "{}")), files))
    return parcels


def _brevo_answer(parcels: Sequence[Parcel], inactive: Collection[str]) -> Verdict:
    if _inactive(parcels, inactive):
        return Verdict(Answer(400, {"code": "invalid_parameter", "message": "email is not valid in to"}))
    ids = [f"<{uuid.uuid4().hex}@brevo.test>" for _ in parcels]
    body = {"messageId": ids[0]} if len(parcels) == 1 else {"messageIds": ids}
    return Verdict(Answer(201, body), range(len(parcels)))


# Mailjet: https://dev.mailjet.com/email/guides/send-api-v31/

MAILJET_REFUSES = frozenset({"date", "list-id", "message-id", "user-agent", "x-mailer"})
"""Some of the headers that it writes itself, and refuses from anybody else."""


def _mailjet_read(fields: Mapping[str, Any]) -> list[Parcel]:
    common = fields.get("Globals", {})
    files = _mailjet_files(common)
    parcels = []
    for message in fields["Messages"]:
        whole = {**common, **message}
        addresses = [entry["Email"] for name in ("To", "Cc", "Bcc") for entry in whole.get(name, ())]
        metadata = json.loads(whole.get("EventPayload") or "{}")
        parcels.append(Parcel(addresses, whole.get("Headers", {}), metadata, _mailjet_files(message) or files))
    return parcels


def _mailjet_files(fields: Mapping[str, Any]) -> tuple[File, ...]:
    return tuple(
        File(file["Filename"], b64decode(file["Base64Content"]), file["ContentType"], file.get("ContentID", ""))
        for name in ("Attachments", "InlinedAttachments")
        for file in fields.get(name, ())
    )


def _mailjet_answer(parcels: Sequence[Parcel], inactive: Collection[str]) -> Verdict:
    """Each mail has an answer of its own; the call is a 400 as soon as one of them is refused."""
    told = [_mailjet_told(parcel, inactive) for parcel in parcels]
    accepted = [number for number, one in enumerate(told) if one["Status"] == "success"]
    return Verdict(Answer(200 if len(accepted) == len(told) else 400, {"Messages": told}), accepted)


def _mailjet_told(parcel: Parcel, inactive: Collection[str]) -> dict[str, Any]:
    for name in parcel.headers:
        if name.lower() in MAILJET_REFUSES:
            text = 'Header cannot be customized using the "Headers" collection. Please use the dedicated property.'
            return _mailjet_error("send-0011", text, f'Headers["{name}"]')
    gone = _inactive([parcel], inactive)
    if gone:
        return _mailjet_error("mj-0013", f'"{gone[0]}" is an invalid email address.', "To[0].Email")
    ids = [{"Email": address, "MessageID": uuid.uuid4().int >> 70} for address in parcel.recipients]
    return {"Status": "success", "To": ids, "Cc": [], "Bcc": []}


def _mailjet_error(code: str, text: str, related_to: str) -> dict[str, Any]:
    error = {"ErrorCode": code, "StatusCode": 400, "ErrorMessage": text, "ErrorRelatedTo": [related_to]}
    return {"Status": "error", "Errors": [{"ErrorIdentifier": str(uuid.uuid4()), **error}]}


def _inactive(parcels: Sequence[Parcel], inactive: Collection[str]) -> list[str]:
    return [address for parcel in parcels for address in parcel.recipients if address in inactive]


def _metadata_in(headers: Mapping[str, str]) -> Mapping[str, Any]:
    """Anymail keeps metadata in a header of the mail where the ESP has no place for it."""
    metadata: dict[str, Any] = json.loads(headers.get("X-Metadata", "{}"))
    return metadata


def _bare(content_type: str) -> str:
    return content_type.partition(";")[0].strip()


def _bare_cid(content_id: str | None) -> str:
    return (content_id or "").removeprefix("cid:")


def _with(**options: Any) -> Callable[[str, float], Mapping[str, Any]]:
    """The options of an ESP that Anymail speaks to by `requests`."""
    return lambda url, timeout: {"api_url": url, "timeout": timeout, **options}


ESPS: dict[str, API] = {
    "amazon_ses": API(
        root="",
        path="/v2/email/outbound-emails",
        options=_amazon_ses_options,
        read=_amazon_ses_read,
        answer=_amazon_ses_answer,
    ),
    "brevo": API(
        root="/v3",
        path="/smtp/email",
        options=_with(api_key="test"),
        read=_brevo_read,
        answer=_brevo_answer,
    ),
    "mailgun": API(
        root="/v3",
        path=r"/[^/]+/messages",
        options=_with(api_key="test", sender_domain="example.org"),
        read=_mailgun_read,
        answer=_mailgun_answer,
    ),
    "mailjet": API(
        root="/v3.1",
        path="/send",
        options=_with(api_key="test", secret_key="test"),  # noqa: S106 (the server takes any)
        read=_mailjet_read,
        answer=_mailjet_answer,
    ),
    "postmark": API(
        root="",
        path="/email(/batch)?",
        options=_with(server_token="test"),  # noqa: S106 (the server takes any)
        read=_postmark_read,
        answer=_postmark_answer,
    ),
    "resend": API(
        root="",
        path="/emails(/batch)?",
        options=_with(api_key="test"),
        read=_resend_read,
        answer=_resend_answer,
        key_header="idempotency-key",
    ),
    "sendgrid": API(
        root="/v3",
        path="/mail/send",
        options=_with(api_key="test"),
        read=_sendgrid_read,
        answer=_sendgrid_answer,
    ),
}
