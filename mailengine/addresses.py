"""Mail addresses: what people type, judged once and turned into what goes on the wire."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.utils.encoding import punycode

from .errors import InvalidAddress, InvalidMail
from .headers import UNSAFE_IN_NAMES, decoded

# RFC 5321, section 4.5.3.1, in octets: the path's 256 include its angle brackets.
LONGEST_LOCAL_PART = 64
LONGEST_SPEC = 254
# RFC 5322, section 2.1.1: the longest line, and thus the longest name and address that could be sent unfolded.
LONGEST_ITEM = 998

NEEDS_QUOTES = re.compile(r'[][\\()<>@,:;".]')
QUOTED_NAME = re.compile(r'"((?:[^"\\]|\\.)*)"')
# IDNA 2003 (Python's codec, which Django uses) maps these to other letters, newer IDNA doesn't: two different domains.
AMBIGUOUS_IN_DOMAINS = re.compile("[ß\u03c2\u200c\u200d]")

# What nearly all addresses look like; no rule below objects to one, and asking them all takes ten times as long.
PLAIN = re.compile(
    r"[A-Za-z0-9_+-]+(\.[A-Za-z0-9_+-]+)*"
    r"@([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,63}"
)
# The same without a capital: what `parse_address` would make of one is the text itself.
NORMAL = re.compile(PLAIN.pattern.replace("A-Z", ""))

TOKEN = re.compile(
    r"""
      (?P<newline> \r\n | \r | \n )
    | (?P<comma> [,;] )
    | (?P<space> [^\S\r\n]+ )
    | (?P<angle> <[^<>,;\r\n]*> )
    | (?P<quoted> "[^"\r\n]*" )
    | (?P<word> [^\s,;<"]+ | [<"] )
    """,
    re.VERBOSE,
)


@dataclass(frozen=True)
class Address:
    """One mailbox. As a string it is its header form, which Django encodes where it isn't ASCII."""

    name: str
    spec: str  # what goes into the envelope: the domain in lower case and punycode, the local part as it was spelt

    @property
    def key(self) -> str:
        """What tells addresses apart: two spellings with the same key are one recipient."""
        return self.spec.casefold()  # ASCII, see parse_address: there is no Unicode form left to normalise

    def __str__(self) -> str:
        if not self.name:
            return self.spec
        if NEEDS_QUOTES.search(self.name):
            escaped = re.sub(r'(["\\])', r"\\\1", self.name)
            return f'"{escaped}" <{self.spec}>'
        return f"{self.name} <{self.spec}>"


def parse_address(text: str) -> Address:
    """The one address in `text`: `ann@example.org`, `Ann <ann@example.org>` or `"Lee, Ann" <ann@example.org>`.

    Raises InvalidAddress for what mail can't be sent to, and for what could end a header or forge another.
    """
    if _is_plain(text):
        return Address("", _plain_spec(text))
    if len(text) > LONGEST_ITEM:
        raise _refused(text, f"is longer than {LONGEST_ITEM} characters.")
    text = text.strip(" \t")
    if UNSAFE_IN_NAMES.search(text):
        raise _refused(text, "holds a line break, a control character or one that reverses text; remove it.")
    if not text:
        raise _refused(text, "is empty; an address looks like ann@example.org.")
    if not text.endswith(">"):
        return Address("", _parse_spec(text, seen=text))
    name, bracket, spec = (part.strip() for part in text[:-1].rpartition("<"))
    if not bracket:
        raise _refused(text, 'has a ">" without its "<".')
    return Address(_parse_name(name, spec=spec, seen=text), _parse_spec(spec, seen=text))


def is_normal(text: str) -> bool:
    """Whether `parse_address(text)` has this very text for its `key` and for its header form, found out at once.

    False says nothing: addresses that are written otherwise, and some long ones, are for `parse_address` to judge.
    """
    return len(text) <= LONGEST_LOCAL_PART and NORMAL.fullmatch(text) is not None


def is_among(key: str, senders: Collection[str]) -> bool:
    """Whether `senders`, addresses (`ann@example.org`) and domains (`@example.org`), have the address with this key."""
    return key in senders or f"@{key.rpartition('@')[2]}" in senders


def split_addresses(text: str) -> Iterator[tuple[int, str]]:
    """Each item of a delimited list with the number of its line, from 1, for `parse_address` to judge.

    Commas, semicolons, white space and line breaks delimit; not inside quotes, and not between a name and its
    `<address>`. A quote that its line doesn't close is a letter like any other. Takes time linear in the text.
    """
    line = 1
    words: list[tuple[int, int]] = []  # where they start and end; they may turn out to be the name before <address>
    word_is_address = False

    for token in TOKEN.finditer(text, 1 if text.startswith("\ufeff") else 0):
        kind, (start, end) = token.lastgroup, token.span()
        if kind == "angle":
            yield line, text[words[0][0] if words else start : end]
            words.clear()
            word_is_address = False
        elif kind in ("word", "quoted"):
            if words and words[-1][1] == start:
                words[-1] = (words[-1][0], end)
            else:
                words.append((start, end))
            word_is_address = word_is_address or (kind == "word" and "@" in token[0])
        elif words and (kind != "space" or word_is_address or end - words[0][0] > LONGEST_ITEM):
            yield from ((line, text[start:end]) for start, end in words)
            words.clear()
            word_is_address = False
        if kind == "newline":
            line += 1
    yield from ((line, text[start:end]) for start, end in words)


def _is_plain(spec: str) -> bool:
    return len(spec) <= LONGEST_LOCAL_PART and PLAIN.fullmatch(spec) is not None


def _plain_spec(spec: str) -> str:
    local, _at, domain = spec.rpartition("@")
    return f"{local}@{domain.lower()}"


def _parse_name(name: str, *, spec: str, seen: str) -> str:
    quoted = QUOTED_NAME.fullmatch(name)
    if quoted:
        name = re.sub(r"\\(.)", r"\1", quoted[1]).strip()
    elif "<" in name or "," in name or ";" in name:
        raise _refused(seen, "holds several addresses, or a name that needs quotes around it; give one address.")
    elif "@" in name and name.casefold() != spec.casefold():
        raise _refused(seen, 'holds two addresses; put the first in quotes ("...") if it is meant as a name.')
    elif '"' in name:
        raise _refused(seen, "has quotes around a part of its name; put them around all of it.")
    if "=?" in name:
        name = _decode_name(name, seen=seen)
    return name


def _decode_name(name: str, *, seen: str) -> str:
    """The words behind a name that came with its header encoding: they are judged like any other name."""
    try:
        name = decoded("its name", name).strip()
    except InvalidMail as error:
        raise _refused(seen, f"can't be read: {error}") from error
    if UNSAFE_IN_NAMES.search(name) or "=?" in name:
        raise _refused(seen, "hides a control character or another encoding in its name; write the name itself.")
    return name


def _parse_spec(spec: str, *, seen: str) -> str:
    if _is_plain(spec):
        return _plain_spec(spec)
    local, at, domain = spec.rpartition("@")
    if not at:
        raise _refused(seen, "has no @; an address looks like ann@example.org.")
    if not local or not domain:
        raise _refused(seen, f"has nothing {'after' if local else 'before'} its @.")
    if not local.isascii():
        raise _refused(seen, "has letters outside ASCII before its @, which is not supported (SMTPUTF8).")
    if "=?" in local:
        raise _refused(seen, "has an =?...?= encoding before its @, which makes another address of it.")
    if local.startswith('"'):
        raise _refused(seen, "has quotes before its @, which not every server takes as one address.")
    if re.search(r"[@,;\s]", local):
        raise _refused(seen, "holds white space, several @ or several addresses; give one address.")
    if len(local) > LONGEST_LOCAL_PART:
        raise _refused(seen, f"has {len(local)} characters before its @; {LONGEST_LOCAL_PART} are allowed.")
    spec = f"{local}@{_parse_domain(domain, seen=seen)}"
    if len(spec) > LONGEST_SPEC:
        raise _refused(seen, f"is {len(spec)} characters long; {LONGEST_SPEC} are allowed.")
    try:
        validate_email(spec)
    except ValidationError as error:
        raise _refused(seen, "is not a valid address; it should look like ann@example.org.") from error
    return spec


def _parse_domain(domain: str, *, seen: str) -> str:
    if domain.startswith("["):
        raise _refused(seen, "names a host by number; give the name of its domain.")
    if AMBIGUOUS_IN_DOMAINS.search(domain):
        raise _refused(seen, "has a domain with two readings; write it in its ASCII form, xn--...")
    try:
        domain = punycode(domain).lower()
    except UnicodeError as error:
        raise _refused(seen, "has no valid domain: a part of it is empty, too long or not allowed.") from error
    if "" in domain.split("."):
        raise _refused(seen, "has an empty part in its domain; look for a dot too many.")
    if "." not in domain and domain != "localhost":
        raise _refused(seen, "has no dot in its domain; write the domain in full, like example.org.")
    return domain


def _refused(seen: str, why: str) -> InvalidAddress:
    shown = seen if len(seen) <= 80 else f"{seen[:80]}..."
    return InvalidAddress(f"{shown!r} {why}")
