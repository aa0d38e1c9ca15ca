"""Values that people, forms and attackers put into the fields of a mail, and the fields that take them."""

from __future__ import annotations

from email.message import MIMEPart
from email.mime.base import MIMEBase
from email.mime.image import MIMEImage

from django.core.mail import EmailMultiAlternatives
from django.utils.functional import lazystr

from mailengine import queue_mail, queue_message

FORGED = "Bcc: eve@example.net"


class Text(str):
    """A str of a project's own, as templates and forms give them."""


LINE_ENDS = {
    "CR": "\r",
    "LF": "\n",
    "CRLF": "\r\n",
    "a fold": "\r\n ",
    "VT": "\x0b",
    "FF": "\x0c",
    "FS": "\x1c",
    "NEL": "\x85",
    "LS": "\u2028",
    "PS": "\u2029",
    "NUL": "\0",
}
CHARACTERS = {
    "a bell": "\a",
    "an escape": "\x1b",
    "a delete": "\x7f",
    "C1": "\x9b",
    "a high surrogate": "\ud83d",
    "a low surrogate": "\ude00",
    "reversed surrogates": "\ude00\ud83d",
}
UNSAFE = {
    **{name: f"a{end}{FORGED}" for name, end in LINE_ENDS.items()},
    **{f"{name} last": f"a{end}" for name, end in LINE_ENDS.items()},
    **{name: f"a{character}b" for name, character in CHARACTERS.items()},
    "an encoded line break": "=?utf-8?q?a=0d=0aBcc:_eve@example.net?=",
    "a line break in base64": "=?utf-8?b?YQ0KQmNjOiBldmVAZXhhbXBsZS5uZXQ=?=",
    "an encoding in an encoding": "=?utf-8?q?=3D=3Futf-8=3Fq=3Fa=0D=3F=3D?=",
    "an unknown encoding": "=?nope?q?abc?=",
    "a word longer than a line": "x" * 1_200,
    "a space longer than a line": "a" + " " * 1_200 + "b",
    "a lazy line break": lazystr(f"a\n{FORGED}"),
}
"""In no header."""
PLAIN = {
    "ASCII": "abc",
    "a percent line break": f"a%0d%0a{FORGED}",
    "an encoded word": "=?utf-8?q?Gr=C3=BC=C3=9Fe?=",
    "half an encoded word": "what =? is, and ?= too",
    "a tab": "a\tb",
    "bidi": "a\u202egpj.exe",
    "isolates": "a\u2066b\u2069",
    "a zero-width space": "a\u200bb",
    "a byte order mark": "\ufeffab",
    "a non-character": "a\ufffeb",
    "private use": "\ue000",
    "right to left": "שלום",
    "emoji": "😀" * 200,
    "NFC": "é",
    "NFD": "e\u0301",
    "many words": "word " * 400,
    "many octets": "ä" * 800,
    "nothing": "",
    "spaces": "   ",
    "spaces around": "  a  ",
    "quotes": 'a"b',
    "angles": "a <eve@example.net> d",
    "an address": "eve@example.net",
    "a comma": "a, b",
    "a semicolon": "a; b",
    "a comment": "a (b) c",
    "a backslash": "a\\b\\",
    "a group": "a:b;",
    "a fullwidth at": "a\uff20b.example",
    "a no-break space": "a\xa0b",
    "a str of its own": Text("abcd"),
    "a lazy text": lazystr("abcde"),
}
OF_ANOTHER_TYPE = {
    "bytes": b"abc",
    "bytes with a line break": b"a\r\nBcc: eve@example.net",
    "a number": 7,
    "not a number": float("nan"),
    "True": True,
    "a list": ["a", "b"],
    "a dictionary": {"a": 1},
    "an object": object(),
    "None": None,
}
VALUES = {**UNSAFE, **PLAIN, **OF_ANOTHER_TYPE}

MAIL = {
    "subject": "Hello",
    "message": "Text",
    "from_email": "Shop <shop@example.org>",
    "recipient_list": ["ann@example.org"],
}


def email(**attributes):
    made = EmailMultiAlternatives("Hello", "Text", "Shop <shop@example.org>", ["ann@example.org"])
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def with_alternative(content, mimetype):
    made = email()
    made.alternatives = [(content, mimetype)]
    return made


def old_part(**headers):
    part = MIMEImage(b"\x89PNG", "png")
    for name, value in headers.items():
        part[name.replace("_", "-")] = value
    return part


def new_part(**headers):
    part = MIMEPart()
    part.set_content(b"\x89PNG", maintype="image", subtype="png")
    for name, value in headers.items():
        part[name.replace("_", "-")] = value
    return part


def old_part_named(filename):
    part = MIMEBase("image", "png")
    part.set_payload("AAAA")
    part["Content-Transfer-Encoding"] = "base64"
    part.add_header("Content-Disposition", "attachment", filename=filename)
    return part


def new_part_named(filename):
    part = MIMEPart()
    part.set_content(b"\x89PNG", maintype="image", subtype="png", filename=filename)
    return part


def _changed(field):
    return lambda value: queue_mail(**{**MAIL, field: value})


def _email(field):
    return lambda value: queue_message(email(**{field: value}))


def _header(name):
    return lambda value: queue_mail(**MAIL, headers={name: value})


# Each field with a word that its errors must hold.
WORDS = {
    "message": ("text", _changed("message")),
    "html_message": ("HTML", _changed("html_message")),
    "HTML alone": ("HTML", lambda value: queue_mail(**{**MAIL, "message": "", "html_message": value})),
    "body": ("text", _email("body")),
    "an alternative": ("alternative", lambda value: queue_message(with_alternative(value, "text/calendar"))),
}
HEADERS = {
    "subject": ("subject", _changed("subject")),
    "an email's subject": ("subject", _email("subject")),
    "a header": ("X-A", _header("X-A")),
    "List-Unsubscribe": (
        "List-Unsubscribe",
        lambda value: _header("List-Unsubscribe")(f"<https://example.org/{value}>"),
    ),
    "References": ("References", _header("References")),
    "Message-ID": ("Message-ID", _header("Message-ID")),
    "Date": ("Date", _header("date")),
    "To as a header": ("To", _header("To")),
    "From as a header": ("from", _header("from")),
    "Cc as a header": ("Cc", _header("Cc")),
    "Reply-To as a header": ("Reply-To", _header("Reply-To")),
    "Sender": ("Sender", _header("Sender")),
    "a header's name": ("header", lambda value: queue_mail(**MAIL, headers={_hashable(value): "1"})),
}
ADDRESSES = {
    "from_email": ("from_email", _changed("from_email")),
    "its name": ("from_email", lambda value: _changed("from_email")(f"{value} <shop@example.org>")),
    "its quoted name": ("from_email", lambda value: _changed("from_email")(f'"{value}" <shop@example.org>')),
    "to": ("to", lambda value: _changed("recipient_list")([value])),
    "a name in to": ("to", lambda value: _changed("recipient_list")([f"{value} <ann@example.org>"])),
    "a quoted name in to": ("to", lambda value: _changed("recipient_list")([f'"{value}" <ann@example.org>'])),
    "a local part": ("to", lambda value: _changed("recipient_list")([f"{value}@example.org"])),
    "a domain": ("to", lambda value: _changed("recipient_list")([f"ann@{value}.example"])),
    "cc": ("cc", lambda value: _changed("cc")([f'"{value}" <bob@example.org>'])),
    "bcc": ("bcc", lambda value: _changed("bcc")([f'"{value}" <bob@example.org>'])),
    "reply_to": ("reply_to", lambda value: _changed("reply_to")([f'"{value}" <ann@example.org>'])),
}
FILES = {
    "a file's name": ("attachment", lambda value: _changed("attachments")([(value, b"x", "application/pdf")])),
    "a text file's name": ("attachment", lambda value: _changed("attachments")([(value, "x", "text/plain")])),
    "a file's type": ("type", lambda value: _changed("attachments")([("a", b"x", value)])),
    "a type's parameter": ("type", lambda value: _changed("attachments")([("a", b"x", f"image/png; x={value}")])),
    "a type's quoted parameter": (
        "type",
        lambda value: _changed("attachments")([("a", b"x", f'image/png; x="{value}"')]),
    ),
    "a charset": ("type", lambda value: _changed("attachments")([("a.txt", "x", f"text/plain; charset={value}")])),
    "a file's content": ("attachment", lambda value: _changed("attachments")([("a.txt", value, "text/plain")])),
    "an attached mail": ("attachment", lambda value: _changed("attachments")([("a.eml", value, "message/rfc822")])),
    "an alternative's type": ("alternative", lambda value: queue_message(with_alternative("x", value))),
}
PARTS = {
    "Content-ID": lambda value: old_part(Content_ID=value),
    "Content-ID of a new part": lambda value: new_part(Content_ID=value),
    "Content-Location": lambda value: old_part(Content_Location=value),
    "Content-Description of a new part": lambda value: new_part(Content_Description=value),
    "file name": old_part_named,
    "file name of a new part": new_part_named,
}
"""A MIME part with a value in one place; Python's own classes don't take all of them."""
LISTS = {
    "recipient_list": ("", _changed("recipient_list")),
    "a list of cc": ("cc", _changed("cc")),
    "a list of reply_to": ("reply_to", _changed("reply_to")),
    "a list of attachments": ("attachment", _changed("attachments")),
    "an attachment": ("attachment", lambda value: _changed("attachments")([value])),
    "an email's to": ("to", _email("to")),
    "an email's cc": ("cc", _email("cc")),
    "an email's reply_to": ("reply_to", _email("reply_to")),
    "an email's headers": ("headers", _email("extra_headers")),
    "an email's attachments": ("attachment", _email("attachments")),
    "an email's alternatives": ("alternative", _email("alternatives")),
}
EXTRAS = {
    "encoding": ("encoding", _email("encoding")),
    "content_subtype": ("content_subtype", _email("content_subtype")),
    "metadata": ("metadata", _changed("metadata")),
    "a name in metadata": ("metadata", lambda value: _changed("metadata")({_hashable(value): 1})),
    "a value in metadata": ("metadata", lambda value: _changed("metadata")({"a": value})),
    "an email's metadata": ("metadata", _email("metadata")),
    "both metadata": ("metadata", lambda value: queue_message(email(metadata=value), metadata={"a": 1})),
    "tags": ("tags", _changed("tags")),
    "a tag": ("tags", lambda value: _changed("tags")([value])),
    "an email's tags": ("tags", _email("tags")),
    "both tags": ("tags", lambda value: queue_message(email(tags=value), tags=["a"])),
    "esp_extra": ("esp_extra", _email("esp_extra")),
    "merge_data": ("merge_data", _email("merge_data")),
    "merge_headers": ("header", lambda value: _email("merge_headers")({"ann@example.org": {"X-A": value}})),
    "envelope_sender": ("envelope_sender", _email("envelope_sender")),
    "track_opens": ("track_opens", _email("track_opens")),
    "template_id": ("template_id", _email("template_id")),
    "an email's send_at": ("send_at", _email("send_at")),
}
TERMS = {
    "stream": ("stream", _changed("stream")),
    "priority": ("priority", _changed("priority")),
    "send_at": ("send_at", _changed("send_at")),
    "expires_at": ("expires_at", _changed("expires_at")),
    "idempotency_key": ("idempotency_key", _changed("idempotency_key")),
    "template": ("template", _changed("template")),
    "context": ("", lambda value: queue_mail(**MAIL, template="no/such", context=value)),
}
FIELDS = {**WORDS, **HEADERS, **ADDRESSES, **FILES, **LISTS, **EXTRAS, **TERMS}


def _hashable(value):
    return str(value) if isinstance(value, list | dict) else value
