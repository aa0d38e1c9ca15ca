"""What passes the door is sent, and the bytes that a server gets hold what was asked for and nothing else.

The values and fields are those of tests/hostile.py; the server, the SMTP backend and the worker are real.
"""

from __future__ import annotations

import re
from email import message_from_bytes
from email.policy import compat32, default

import pytest
from django.core.mail import EmailMessage
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mailengine import dispatch_slice, queue_mail, queue_message
from mailengine.backends.wire import render
from mailengine.errors import InvalidAddress, InvalidMail
from mailengine.models import Message
from mailengine.pipeline.compose import compose, load_words
from tests.hostile import (
    ADDRESSES,
    FIELDS,
    FILES,
    HEADERS,
    MAIL,
    PARTS,
    VALUES,
    WORDS,
    email,
    new_part,
    old_part,
)

pytestmark = pytest.mark.django_db

OURS = {"Message-ID", "Date", "Auto-Submitted", "X-Mailengine-Id"}
USUAL = {"Content-Type", "Content-Transfer-Encoding", "MIME-Version", "Subject", "From", "To", *OURS}


def check_bytes(content):
    """RFC 5321 and 5322: what any server takes."""
    assert content.isascii()
    assert b"\0" not in content
    lines = content.split(b"\r\n")
    assert not any(b"\r" in line or b"\n" in line for line in lines)
    assert max(map(len, lines)) <= 998
    assert not re.search(rb"=\?\S*\?=@", content)  # an address that was taken for words


def check_header(content, *, further=()):
    head = content.partition(b"\r\n\r\n")[0]
    assert not re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", head)
    names = [line.partition(b":")[0].decode() for line in head.split(b"\r\n") if line[:1] not in b" \t"]
    assert len(names) == len({name.lower() for name in names})
    assert {name.lower() for name in names} <= {name.lower() for name in USUAL | set(further)}


def check(mail, message):
    """One mail as the server got it, against the row that it was made from."""
    content, words = mail.content, message.content
    check_bytes(content)
    check_header(content, further={"Cc", "Reply-To", *words.headers})
    assert mail.recipients == tuple(entry["address"] for entry in message.recipients)
    parsed = message_from_bytes(content, policy=default)
    assert str(parsed["Subject"]).strip() == words.subject
    text = parsed.get_body(("plain",))
    if text is not None:
        assert lines(text.get_content()) == lines(words.text)
    for name, value in parsed.items():
        assert not re.search(r"[\r\n]", str(value)), name
    for part in parts_of(parsed):
        assert not {"bcc", "from", "subject", "to"} & {name.lower() for name in part}


def lines(text):
    """Its lines, whatever they end with."""
    return re.split(r"\r\n|\r|\n", text.rstrip("\r\n"))


def parts_of(mail):
    """The parts of a mail, without those of a mail attached to it."""
    for part in mail.iter_parts() if mail.get_content_maintype() == "multipart" else ():
        yield part
        yield from parts_of(part)


def send_all(server):
    """Send what is queued: all of it goes, and is as it should be."""
    dispatch_slice()
    for message in Message.objects.select_related("content"):
        assert (message.status, message.reason) == ("sent", "")
    messages = {str(message.pk): message for message in Message.objects.select_related("content")}
    assert len(server.accepted) == len(messages)
    for mail in server.accepted:
        check(mail, messages[mail.mailengine_id])
    return [mail.message for mail in server.accepted]


@pytest.mark.parametrize("field", [*WORDS, *HEADERS, *ADDRESSES, *FILES, "encoding", "content_subtype"])
def test_what_passes_the_door_is_sent_as_it_was_meant(server, field):
    """F-X09, F-X10"""
    _named, queue = FIELDS[field]
    for value in VALUES.values():
        try:
            queue(value)
        except InvalidMail:
            continue
    send_all(server)


@pytest.mark.parametrize("place", PARTS)
def test_parts_are_sent_as_they_were_meant(server, place):
    for value in VALUES.values():
        try:
            queue_message(email(attachments=[PARTS[place](value)]))
        except (TypeError, ValueError, AttributeError, LookupError):
            continue
    assert len(send_all(server)) > 5


# Addresses


@pytest.mark.parametrize(
    ("written", "envelope"),
    [
        ("u@bücher.example", "u@xn--bcher-kva.example"),
        ("U@BÜCHER.example", "U@xn--bcher-kva.example"),
        ("u@bu\u0308cher.example", "u@xn--bcher-kva.example"),
        ("u@bücher\u3002example", "u@xn--bcher-kva.example"),
        ("u@\uff45xample.org", "u@example.org"),
        ("u@xn--bcher-kva.example", "u@xn--bcher-kva.example"),
        ("a" * 64 + "@example.org", "a" * 64 + "@example.org"),
        ("a@" + "b." * 120 + "example.org", "a@" + "b." * 120 + "example.org"),
        ("!#$%&'*+-/?^_`{|}~@example.org", "!#$%&'*+-/?^_`{|}~@example.org"),
    ],
)
def test_an_address_is_on_the_wire_as_it_is_meant(server, written, envelope):
    """F-X06, F-X08, F-X09"""
    queue_mail(**{**MAIL, "recipient_list": [f'"Änn, Lee" <{written}>'], "reply_to": [written]})
    (mail,) = send_all(server)
    assert server.accepted[0].recipients == (envelope,)
    for name in ("To", "Reply-To"):
        (address,) = mail[name].addresses
        assert address.addr_spec == envelope
    assert mail["To"].addresses[0].display_name == "Änn, Lee"


@pytest.mark.parametrize(
    "written",
    [
        "jörg@example.org",
        "jörg@exämple.com",
        "=?utf-8?b?asO2cmc=?=@example.org",
        '"=?utf-8?q?a?="@example.org',
        '"ann lee"@example.org',
        '"ann@home"@example.org',
        '"ann"@example.org',
        "a" * 65 + "@example.org",
        "a@" + "b." * 140 + "example.org",
        "a@[127.0.0.1]",
        "a@[IPv6:::1]",
        "a@xn--.example",
        "a@xn--a\ufffd.example",
        "a@-b.example",
        "a@b..example",
        "a b@example.org",
        "a@example.org eve@example.net",
        "a@example.org>\r\nRCPT TO:<eve@example.net",
        "a@example.org\0",
        "a\u2028@example.org",
        "a@exam\u202eple.org",
    ],
)
@pytest.mark.parametrize("field", ["recipient_list", "cc", "bcc", "reply_to"])
def test_an_address_that_could_be_mangled_is_refused(server, field, written):
    """F-X06, F-X09, F-X10"""
    with pytest.raises(InvalidAddress):
        queue_mail(**{**MAIL, field: [written]})
    assert not Message.objects.exists()


def test_five_hundred_recipients_are_all_in_the_envelope_and_in_short_lines(server):
    to = [f'"Reader, Nr. {n} {"ä" * (n % 40)}" <reader.{n}@example.org>' for n in range(500)]
    queue_mail(**{**MAIL, "recipient_list": to[:300], "cc": to[300:450], "bcc": to[450:]})
    (mail,) = send_all(server)
    assert len(server.accepted[0].recipients) == 500
    assert (len(mail["To"].addresses), len(mail["Cc"].addresses), mail["Bcc"]) == (300, 150, None)
    assert b"reader.450@" not in server.accepted[0].content


# Long lines


@pytest.mark.parametrize("character", ["x", "ä", "😀", " ", "\t", "=", ".", "\r"])
def test_a_long_line_of_words_is_broken_up_and_comes_back_whole(server, character):
    line = character * 3_000
    queue_mail(**{**MAIL, "message": f"a\n{line}\nb", "html_message": f"<p>{line}</p>"})
    (mail,) = send_all(server)
    assert lines(mail.get_body(("html",)).get_content()) == lines(f"<p>{line}</p>")


LINK = f"<https://news.example.org/leave/{'abcdef0123456789' * 20}>"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("List-Unsubscribe", LINK),
        ("List-Unsubscribe", f"{LINK}, <mailto:leave@example.org?subject=leave>"),
        ("References", " ".join(f"<{n}.{'a' * 70}@mail.example.org>" for n in range(40))),
        ("In-Reply-To", f"<{'a' * 150}@mail.example.org>"),
        ("X-Data", '{"a":"' + "b" * 600 + '"}'),
        ("X-Words", "word " * 300 + "end"),
    ],
)
def test_long_words_of_a_header_stay_whole(server, name, value):
    """A link that came out as =?utf-8?q?...?= is no link to any mailbox; nor is a reference."""
    queue_mail(**MAIL, headers={name: value})
    send_all(server)
    assert b"=?" not in server.accepted[0].content
    head = server.accepted[0].content.partition(b"\r\n\r\n")[0].decode().replace("\r\n ", " ").replace(":  ", ": ")
    assert f"{name}: {value}" in head


def test_a_long_content_id_stays_whole(server):
    """An HTML part that names it would else show no image."""
    identifier = f"<logo.{'1' * 60}@web-01.internal.example.org>"
    queue_message(email(attachments=[new_part(Content_ID=identifier), old_part(Content_ID=identifier)]))
    (mail,) = send_all(server)
    assert [part["Content-ID"].strip() for part in mail.iter_attachments()] == [identifier] * 2
    assert server.accepted[0].content.count(identifier.encode()) == 2


# Attached mails


SENDER = b"From: eve@example.net\r\nMIME-Version: 1.0\r\n"
ATTACHED = {
    "ASCII": SENDER + b"Subject: Hello\r\n\r\nText\r\n",
    "8 bit": SENDER
    + b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\nGr\xc3\xbc\xc3\x9fe\r\n",
    "Latin 1": SENDER
    + b"Content-Type: text/plain; charset=iso-8859-1\r\nContent-Transfer-Encoding: 8bit\r\n\r\nGr\xfc\xdfe\r\n",
    "8 bit that doesn't say so": SENDER + b"Content-Type: text/plain; charset=utf-8\r\n\r\nGr\xc3\xbc\xc3\x9fe\r\n",
    "a long line": SENDER + b"\r\n" + b"x" * 1_500 + b"\r\n",
    "binary": SENDER
    + b"Content-Type: application/zip\r\nContent-Transfer-Encoding: binary\r\n\r\n\xff\xfe\x00\x01\r\n",
    "NUL": SENDER + b"\r\nTe\0xt\r\n",
    "in parts": SENDER + b"Content-Type: multipart/mixed; boundary=x\r\nContent-Transfer-Encoding: 8bit\r\n\r\n--x\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    b"Gr\xc3\xbc\xc3\x9fe\r\n--x--\r\n",
}


@pytest.mark.parametrize("kind", ATTACHED)
@pytest.mark.parametrize("form", ["bytes", "message", "new message"])
def test_an_attached_mail_says_what_it_said(server, kind, form):
    content = ATTACHED[kind]
    if form != "bytes":
        content = message_from_bytes(content, policy=default if form == "new message" else compat32)
    queue_mail(**MAIL, attachments=[("a.eml", content, "message/rfc822")])
    (mail,) = send_all(server)
    (part,) = mail.iter_attachments()
    assert said(part.get_content()) == said(message_from_bytes(ATTACHED[kind], policy=default))


def said(mail):
    parts = [part for part in mail.walk() if not part.is_multipart()]
    return mail["From"], [part.get_payload(decode=True).rstrip() for part in parts]


@pytest.mark.parametrize(
    "head", [b"Subject: Gr\xc3\xbc\xc3\x9fe\r\n", b"X-A: " + b"x" * 1_500 + b"\r\n", b"X-A: \0\r\n"]
)
def test_an_attached_mail_with_headers_that_no_server_need_take_is_refused(server, head):
    with pytest.raises(InvalidMail, match="Attach it as 'application/octet-stream'"):
        queue_mail(**MAIL, attachments=[("a.eml", head + ATTACHED["ASCII"], "message/rfc822")])


def test_a_mail_of_djangos_can_be_attached(server):
    queue_mail(
        **MAIL, attachments=[("a.eml", EmailMessage("Grüße", "Grüße", "a@b.org", ["c@d.org"]), "message/rfc822")]
    )
    (mail,) = send_all(server)
    (part,) = mail.iter_attachments()
    inner = part.get_content()
    assert (str(inner["Subject"]), lines(inner.get_content())) == ("Grüße", ["Grüße"])


# Anything at all


def wire(queue):
    """The bytes of one mail and its parsed form, or None where the door refused it."""
    try:
        message = queue()
    except InvalidMail:
        return None
    message = Message.objects.select_related("content").get(pk=message.pk)
    content = render(compose(message, load_words(message.content_id)))
    check_bytes(content)
    check_header(content, further={"X-A", "Cc", "Reply-To"})
    return message, message_from_bytes(content, policy=default)


PIECES = st.sampled_from(
    [
        "=?",
        "?=",
        "utf-8",
        "?q?",
        "?b?",
        "?Q?",
        "=0d=0a",
        "=0A",
        "DQo",
        "=",
        "?",
        "_",
        " ",
        "\t",
        "a",
        "ä",
        ":",
        "Bcc: e@x.y",
    ]
)
PUZZLES = st.lists(PIECES, max_size=14).map("".join)


@pytest.mark.parametrize("field", ["subject", "header", "file", "type", "name", "address"])
def test_no_puzzle_of_encodings_makes_another_header(db, files, field):
    """F-X10: what looks like an encoded word, or nearly, in every order."""
    queue = {
        "subject": lambda text: queue_mail(**{**MAIL, "subject": text}),
        "header": lambda text: queue_mail(**MAIL, headers={"X-A": text}),
        "file": lambda text: queue_mail(**MAIL, attachments=[(text, b"x", "image/png")]),
        "type": lambda text: queue_mail(**MAIL, attachments=[("a", b"x", f'image/png; name="{text}"')]),
        "name": lambda text: queue_mail(**{**MAIL, "recipient_list": [f"{text} <ann@example.org>"]}),
        "address": lambda text: queue_mail(**{**MAIL, "recipient_list": [f"{text}@example.org"]}),
    }[field]

    @settings(max_examples=60, deadline=None)
    @given(PUZZLES)
    @example("=?utf-8?q?a=0d=0aBcc:_eve@example.net?=")
    @example("=?utf-8?q?=3D=3Futf-8=3Fq=3Fa=0D=3F=3D?=")
    @example("=?utf-8?b?####?=")
    def check_puzzle(text):
        found = wire(lambda: queue(text))
        if found is None:
            return
        message, parsed = found
        assert str(parsed["Subject"]).split() == message.content.subject.split()
        assert [a.addr_spec for a in parsed["To"].addresses] == [entry["address"] for entry in message.recipients]
        for part in parts_of(parsed):
            assert "bcc" not in {name.lower() for name in part}
        for name, value in parsed.items():
            assert not re.search(r"[\r\n]", str(value)), name

    check_puzzle()


def test_any_text_arrives_as_it_was(db):
    @settings(max_examples=60, deadline=None)
    @given(subject=st.text(max_size=300), text=st.text(max_size=300))
    def check_text(subject, text):
        found = wire(lambda: queue_mail(**{**MAIL, "subject": subject, "message": text}))
        if found is not None:
            message, parsed = found
            assert str(parsed["Subject"]).strip() == message.content.subject
            assert lines(parsed.get_content()) == lines(text)

    check_text()
