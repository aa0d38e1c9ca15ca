"""What people type as an address, and what goes on the wire."""

from __future__ import annotations

import re
import time
from email.parser import BytesParser
from email.policy import SMTP
from unittest.mock import patch

import pytest
from django.core.mail import EmailMessage
from hypothesis import example, given
from hypothesis import strategies as st

from mailengine import addresses
from mailengine.addresses import Address, is_among, parse_address, split_addresses
from mailengine.errors import InvalidAddress


@pytest.mark.parametrize(
    ("text", "name", "spec"),
    [
        ("ann@example.org", "", "ann@example.org"),
        ("  ann@example.org\t", "", "ann@example.org"),
        ("<ann@example.org>", "", "ann@example.org"),
        ("Ann Lee <ann@example.org>", "Ann Lee", "ann@example.org"),
        ('"Lovelace, Ada" <ada@example.org>', "Lovelace, Ada", "ada@example.org"),
        (r'"Ann \"Nick\" Lee" <ann@example.org>', 'Ann "Nick" Lee', "ann@example.org"),
        ("Jörg Müller <j@example.org>", "Jörg Müller", "j@example.org"),
        ("=?utf-8?q?J=C3=B6rg?= <j@example.org>", "Jörg", "j@example.org"),
        ("ann@example.org <ann@example.org>", "ann@example.org", "ann@example.org"),
        ("Ann+News@Example.ORG", "", "Ann+News@example.org"),
        ("root@localhost", "", "root@localhost"),
        ("u@bücher.example", "", "u@xn--bcher-kva.example"),
        ("u@bu\u0308cher.example", "", "u@xn--bcher-kva.example"),
    ],
)
def test_an_address_is_understood(text, name, spec):
    """F-X08: an international domain is punycode on the wire."""
    assert parse_address(text) == Address(name, spec)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("foo", "has no @"),
        ("a@", "nothing after its @"),
        ("@b.org", "nothing before its @"),
        ("a@b@example.org", "several @"),
        ("a@example.org, b@example.org", "several addresses"),
        ("a@example.org b@example.org", "several addresses"),
        ("Lee, Ann <ann@example.org>", "quotes"),
        ('"Ann" Lee <ann@example.org>', "quotes"),
        ("a@example.org <b@example.org>", "two addresses"),
        ("ann@example.org>", "without its"),
        ("a" * 65 + "@example.org", "64 are allowed"),
        ("a@" + "b." * 130 + "org", "254 are allowed"),
        ("a@" + "b" * 64 + ".org", "too long"),
        ("a" * 999, "998"),
        ("a@b..c", "empty"),
        ("a@example.org.", "empty part"),
        ('"a b"@c', "quotes before its @"),
        ('"ann"@example.org', "quotes before its @"),
        ("=?utf-8?b?asO2cmc=?=@example.org", "encoding before its @"),
        ("=?\u00e4?q?a?= <a@example.org>", "broken"),
        ("a@[127.0.0.1]", "by number"),
        ("a@127.0.0.1", "not a valid address"),
        ("a(b)@example.org", "not a valid address"),
        ("jörg@exämple.com", "SMTPUTF8"),
        ("u@straße.example", "two readings"),
        ("u@a\uff20example.org", "not a valid address"),
        ("=?utf-8?b?abc?= <a@example.org>", "broken"),
    ],
)
def test_a_malformed_address_is_refused_with_its_reason(text, reason):
    """F-X06, F-X09: each sentence shows the start of what was seen, and says why."""
    with pytest.raises(InvalidAddress, match=reason) as refusal:
        parse_address(text)
    assert repr(text[:80])[:-1] in str(refusal.value)


@pytest.mark.parametrize("bad", ["\r", "\n", "\r\n", "\0", "\x1b", "\x85", "\u2028", "\u2029", "\ud800", "\u202e"])
@pytest.mark.parametrize("place", ["Ann{}Bcc: x <ann@example.org>", "ann{}@example.org", "ann@example.org{}"])
def test_no_address_can_end_its_header(bad, place):
    """F-X10: refused, and the message shows the character escaped."""
    with pytest.raises(InvalidAddress) as refusal:
        parse_address(place.format(bad))
    assert bad not in str(refusal.value)


@pytest.mark.parametrize("name", ["=?utf-8?q?a=0D=0ABcc=3A_x?=", "=?utf-8?q?=3D=3Futf-8=3Fq=3Fa=0D=3F=3D?="])
def test_no_encoded_name_hides_a_line_break(name):
    """F-X10: neither in the encoding, nor in an encoding within it."""
    with pytest.raises(InvalidAddress, match="hides"):
        parse_address(f"{name} <ann@example.org>")


def test_spellings_of_one_mailbox_share_a_key():
    """F-X05: letter case, blanks and the Unicode form of the domain make no other recipient."""
    spellings = ["A@bücher.example", "a@BÜCHER.example", " a@bu\u0308cher.example ", "Ann <a@xn--bcher-kva.example>"]
    assert {parse_address(text).key for text in spellings} == {"a@xn--bcher-kva.example"}


@given(st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), max_size=100).filter(lambda name: "=?" not in name))
def test_any_name_survives_the_header(name):
    """F-X10: the recipient sees one address, whatever commas, quotes and brackets the name before it has."""
    address = Address(name.strip(), "ann@example.org")
    assert parse_address(str(address)) == address
    email = EmailMessage("Hello", "words", "news@example.org", [str(address)])
    received = BytesParser(policy=SMTP).parsebytes(email.message().as_bytes())
    assert [one.addr_spec for one in received["To"].addresses] == ["ann@example.org"]


@given(st.text(max_size=200))
def test_what_is_accepted_is_safe_on_the_wire(text):
    """F-X06, F-X10: any text is refused, or is one line of ASCII that parses to itself."""
    try:
        address = parse_address(text)
    except InvalidAddress:
        return
    assert address.spec.isascii()
    assert address.spec.isprintable()
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("", []),
        (" ,;\n\n, ", []),
        ("a@x.org,b@x.org;c@x.org d@x.org", [(1, "a@x.org"), (1, "b@x.org"), (1, "c@x.org"), (1, "d@x.org")]),
        ("a@x.org\r\nb@x.org\n\nfoo\rc@x.org", [(1, "a@x.org"), (2, "b@x.org"), (4, "foo"), (5, "c@x.org")]),
        ("Ann Lee <ann@x.org>, Bob <bob@y.org>", [(1, "Ann Lee <ann@x.org>"), (1, "Bob <bob@y.org>")]),
        ('"Lee, Ann" <ann@x.org> b@x.org', [(1, '"Lee, Ann" <ann@x.org>'), (1, "b@x.org")]),
        ("a@x.org Bob Lee <b@x.org><c@x.org>", [(1, "a@x.org"), (1, "Bob Lee <b@x.org>"), (1, "<c@x.org>")]),
        ("Ann <ann@x.org, Bob <b@x.org>", [(1, "Ann"), (1, "<ann@x.org"), (1, "Bob <b@x.org>")]),
        ('"broken, a@x.org\nb@x.org', [(1, '"broken'), (1, "a@x.org"), (2, "b@x.org")]),
        ("\ufeffa@x.org", [(1, "a@x.org")]),
    ],
)
def test_a_delimited_list_is_taken_apart(text, items):
    """C12: commas, semicolons, white space and line breaks delimit; names in front of an address survive."""
    assert list(split_addresses(text)) == items


@given(st.text('aZ0_+-.@xn\u00e9 \t\n<>"', max_size=14), st.text("aZ0-.xn\n>\u00df", max_size=14))
@example("a" * 52, "example.org").via("the longest that goes the short way, and one more")
@example("a" * 53, "example.org")
def test_the_short_way_for_plain_addresses_changes_no_verdict(local, domain):
    text = f"{local}@{domain}"
    with patch.object(addresses, "PLAIN", re.compile("(?!)")):
        judged_by_every_rule = _verdict(text)
    assert _verdict(text) == judged_by_every_rule


@given(st.text("aZ0_+-.@x \n", min_size=1, max_size=14), st.text("aZ0-.xn\n", max_size=14))
@example("ann", "example.org")
def test_a_normal_address_is_its_own_key_and_header(local, domain):
    text = f"{local}@{domain}"
    if addresses.is_normal(text):
        assert (str(parse_address(text)), parse_address(text).key) == (text, text)


@pytest.mark.parametrize("text", ["Ann@example.org", "ann@Example.org", "ann@example.org\n", "Ann <ann@example.org>"])
def test_what_is_written_otherwise_is_not_normal(text):
    assert addresses.is_normal("ann@example.org")
    assert not addresses.is_normal(text)


@pytest.mark.parametrize(
    ("sender", "is_found"),
    [
        ("ann@example.org", True),
        ("@example.org", True),
        ("bob@example.org", False),
        ("@ample.org", False),
        ("@sub.example.org", False),
        ("example.org", False),
    ],
)
def test_an_address_is_among_senders_by_itself_or_by_its_domain(sender, is_found):
    """G32, SI7"""
    assert is_among("ann@example.org", ["zoe@example.com", sender]) is is_found


def _verdict(text: str) -> addresses.Address | None:
    try:
        return addresses.parse_address(text)
    except InvalidAddress:
        return None


@pytest.mark.parametrize("hostile", ['"', '"\\', "<", "<a ", '"a ', "a@", "a ", ', "', "\r", '<"'])
def test_the_time_is_linear_in_a_hostile_list(hostile):
    """F-X06: ten times the text takes about ten times as long; a quadratic reader would take a hundred times."""
    short, long = (_seconds_to_split(hostile * (size // len(hostile))) for size in (20_000, 200_000))
    assert long < 40 * short + 0.1


def _seconds_to_split(text: str) -> float:
    began = time.process_time()
    for _ in split_addresses(text):
        pass
    return time.process_time() - began
