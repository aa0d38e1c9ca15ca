"""A mail cast in a mould is byte for byte the one that Django renders (decision 0013)."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from email.message import MIMEPart
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from mailengine.addresses import Address, parse_address
from mailengine.backends.wire import render
from mailengine.errors import InvalidMail
from mailengine.headers import UNSAFE, UNSAFE_IN_NAMES
from mailengine.models import Attachment, Content, ContentFile, Message
from mailengine.pipeline.compose import Words, checked_content, compose
from mailengine.pipeline.encoding import encoded_file
from mailengine.pipeline.folding import Unfit
from mailengine.pipeline.mould import Mould

CHARACTERS = st.one_of(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
    st.sampled_from(". =?%{}\"'<>&é😀\tא-_,;:@\\"),
    st.sampled_from("abcXYZ 019"),
)
LINE = st.one_of(
    st.text(CHARACTERS, max_size=20),
    st.sampled_from(["", ".", "..", ". ", "From me", "x" * 77, "x" * 78, "x" * 79, "x" * 998, "x" * 999, "é" * 500]),
    st.sampled_from(
        ["a " * 38 + "b", "a" * 75 + " ", "a" * 76 + "\t", "=" * 30, "word " * 300, "😀" * 20, "a\x0bb\x85c"]
    ),
)
TEXT = st.builds(
    lambda lines, end: "".join(f"{line}{ending}" for line, ending in lines) + end,
    st.lists(st.tuples(LINE, st.sampled_from(["\n", "\n", "\n", "\r\n", "\r", "\n\n"])), max_size=12),
    LINE,
)
WORD = st.text(CHARACTERS, max_size=10)
ONE_LINE = st.one_of(
    WORD,
    st.lists(WORD, max_size=6).map(" ".join),
    st.sampled_from(
        ["", " ", "Hello", "a" * 74, "a" * 66, "a" * 67, "a" * 68, "Grüße " * 40, "=?utf-8?q?=C3=A4?=", "=? ?="]
    ),
    st.integers(1, 400).map(lambda count: "ä" * count),
    st.integers(1, 120).map(lambda count: "b" * count),
).map(lambda text: UNSAFE.sub("", text))
DOMAINS = st.sampled_from(
    ["example.org", "bücher.example", "a-rather-long-name.of-a-department.company.example", "x.io"]
)
LOCAL_PARTS = st.sampled_from(["ann", "Ann.Lee+news", "a" * 64, "x_y-z", "o'hara", "a!b", "a%s", "a{b}"])
NAMES = st.one_of(
    st.just(""),
    st.sampled_from(
        ["Ann", "Ann Lee", "Lee, Ann", 'The "Boss"', "Änn Löwe", "Ann  Lee", "株式会社", "A" * 90, "Ä" * 90]
    ),
    WORD.map(lambda text: UNSAFE_IN_NAMES.sub("", text).replace("=?", "").strip()),
)
ADDRESSES, IN_A_LIST = (
    st.builds(
        lambda name, local_part, domain: parse_address(str(Address(name, f"{local_part}@{domain}"))),
        names,
        LOCAL_PARTS,
        DOMAINS,
    )
    for names in (NAMES, NAMES.map(lambda name: name.replace('"', "").replace("\\", "")))
)
OF_ADDRESSES = st.lists(IN_A_LIST.map(str), min_size=1, max_size=2).map(", ".join)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "X-Order": ONE_LINE,
        "X-Rather-Long-Name-Of-A-Header": ONE_LINE,
        "References": st.integers(1, 30).map(
            lambda count: " ".join(f"<{n}.{'x' * 40}@example.org>" for n in range(count))
        ),
        "List-Unsubscribe": st.just(f"<https://example.org/leave/{'x' * 200}>"),
        "Sender": IN_A_LIST.map(str),
        "To": OF_ADDRESSES | st.just("undisclosed-recipients:;"),
        "cc": OF_ADDRESSES,
        "From": IN_A_LIST.map(str),
        "reply-to": OF_ADDRESSES,
        "DATE": st.just("Tue, 01 Jan 2030 00:00:00 +0100"),
        "message-id": st.just("<mine@example.org>"),
        "Auto-Submitted": st.just("no"),
    },
)
FILES = st.lists(
    st.tuples(
        st.sampled_from(["a.pdf", "brief.txt", "Übersicht.csv", "a" * 120 + ".png", "mail.eml", "no type"]),
        st.sampled_from(
            ["", "application/pdf", "text/plain", "text/csv; charset=iso-8859-1", "message/rfc822", "image/png"]
        ),
        st.binary(max_size=20) | st.sampled_from([b"", b"Subject: a\n\n.b\n", "Tür\r\n".encode()]),
        st.booleans(),
    ),
    max_size=2,
)
DATA = st.dictionaries(
    st.sampled_from(["name", "city"]),
    st.none() | st.integers() | LINE | st.lists(st.integers(), max_size=2),
    max_size=2,
)
FIELD = st.sampled_from(["{{ name }}", "{{name}}", '{{ city|default:"<b>Rom & Ä</b>" }}', "{{ name.first }}"])


@st.composite
def contents(draw, *, merged: bool):
    def words(strategy):
        text = draw(strategy)
        if not merged:
            return text
        text = text.replace("{{", "").replace("=?", "")
        places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=3)), reverse=True)
        for place in places:
            text = text[:place].rstrip("{") + draw(FIELD) + text[place:]
        return text

    content = Content(
        pk=1,
        subject=words(ONE_LINE),
        text=words(TEXT),
        html=words(st.just("") | TEXT),
        from_email=str(draw(ADDRESSES)),
        reply_to=[str(address) for address in draw(st.lists(ADDRESSES, max_size=2))],
        headers=draw(HEADERS),
        extras=draw(
            st.just({})
            | st.just({"content_subtype": "markdown", "tags": ["a"], "metadata": {"a": 1}})
            | st.just({"alternatives": [["BEGIN:\n.\n", "text/calendar; method=REQUEST"], ["\x01é", "application/x"]]})
        ),
    )
    return checked_content(content)


@st.composite
def messages(draw, *, data):
    message = Message(
        pk=UUID(int=draw(st.integers(0, 2**128 - 1))),
        recipient=draw(ADDRESSES).spec,
        created_at=datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=draw(st.integers(0, 10**8))),
        merge_data=draw(data),
    )
    if draw(st.booleans()):
        message.other_recipients = [
            {
                "address": address.spec,
                "name": address.name,
                "kind": draw(st.sampled_from(["to", "to", "cc", "bcc"])),
                "outcome": draw(st.sampled_from(["", "", "accepted", "suppressed"])),
            }
            for address in draw(st.lists(ADDRESSES, min_size=1, max_size=3))
        ]
    return message


def words_of(content, files):
    data, rows = {}, []
    for number, (filename, mimetype, stored, is_part) in enumerate(files):
        if is_part:
            part = MIMEPart()
            part.set_content(stored, maintype="image", subtype="png", disposition="inline", cid="<logo>")
            stored = part.as_bytes()
        if mimetype == "message/rfc822" or filename.endswith(".eml"):
            stored = b"Subject: a\n\n.b\n"  # no other would have passed the front door
        data[str(number)] = stored
        attachment = Attachment(sha256=str(number))
        rows.append(ContentFile(attachment=attachment, filename=filename, mimetype=mimetype, is_part=is_part))
    return Words(content, rows), lambda attachment: data[attachment.sha256]


def assert_cast_as_composed(content, messages, files=()):
    """One after another in one mould, each as Django renders it."""
    words, read = words_of(content, files)
    try:
        mould = Mould(words, read=read, encode=lambda attachment: encoded_file(read(attachment)))
        mails = [mould.cast(message) for message in messages]
    except Unfit as error:
        if "several headers" not in str(error):  # into which Python folds a name of one long word
            raise
        return
    for message, mail in zip(messages, mails, strict=True):
        email = compose(message, words, read=read)
        content = b"".join(mail.pieces)
        assert content == render(email)
        assert mail.has_dots == bool(re.search(rb"^\.", content, re.MULTILINE))
        if mail.stuffed is not None:
            assert b"".join(mail.stuffed) == re.sub(rb"^\.", b"..", content, flags=re.MULTILINE)
        assert mail.from_email == parse_address(email.from_email).spec
        assert mail.to == [parse_address(address).spec for address in email.recipients()]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_words_for_all(data):
    content = data.draw(contents(merged=False))
    assert_cast_as_composed(
        content, data.draw(st.lists(messages(data=st.none()), min_size=1, max_size=3)), data.draw(FILES)
    )


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_words_with_merge_data(data):
    content = data.draw(contents(merged=True))
    mails = data.draw(st.lists(messages(data=st.none() | DATA), min_size=1, max_size=4))
    words, read = words_of(content, ())
    fit = []
    for message in mails:
        try:
            compose(message, words, read=read)
        except InvalidMail:
            continue
        fit.append(message)
    assert_cast_as_composed(content, fit)
