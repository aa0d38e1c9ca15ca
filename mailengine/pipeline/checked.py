"""What the front door asks of a value, whichever field it is for; and what composing asks of it once more.

Each gives the value as it is kept, or raises `InvalidMail`, which names the field and the mend.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder
from django.utils.functional import Promise

from ..addresses import Address, parse_address, split_addresses
from ..errors import InvalidAddress, InvalidMail
from ..headers import UNSTORABLE, as_text, checked_line, header_text

_HEADER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,75}")
_KNOWN_BY_DJANGO = {"Cc", "From", "Reply-To", "To"}
"""Headers that EmailMessage looks up in this spelling alone; in any other it drops them."""
_MADE_FROM_THE_MAIL = {
    "Content-Disposition",
    "Content-Transfer-Encoding",
    "Content-Type",
    "Mime-Version",
    "Subject",
    "X-Mailengine-Id",
}
_ADDRESSES = {
    *_KNOWN_BY_DJANGO,
    *("Resent-Cc", "Resent-From", "Resent-Reply-To", "Resent-Sender", "Resent-To", "Sender"),
}
_NOBODY = re.compile(r"[\w -]{1,60}: *;", re.ASCII)  # undisclosed-recipients:;
_MESSAGE_ID = re.compile(r"<[!-;=?-~]+>")
DEEPEST_JSON = 20
"""MariaDB takes 32 levels, some of which are our own."""


def listed(what: str, value: Any) -> list[Any]:
    """`value` as a list, empty for None. Raises `InvalidMail` for what is none, such as one address alone."""
    if value is None:
        return []
    if type(value) is list:  # as nearly always; the other questions take long
        return value.copy()
    if isinstance(value, str | bytes | Mapping | Promise) or not isinstance(value, Iterable):
        raise InvalidMail(f"{what} is {value!r:.80}. Give a list: [{str(value)[:80]!r}].")
    return list(value)


def checked_text(what: str, value: object) -> str:
    """`value` as text that every database and every mail can hold. Raises `InvalidMail`."""
    text = as_text(what, value)
    found = None if _is_utf8(text) and "\0" not in text else UNSTORABLE.search(text)
    if found:
        raise InvalidMail(f"{what} holds {found[0]!r} at position {found.start()}, which no mail can carry. Remove it.")
    return text


def checked_mapping(what: str, value: object) -> dict[Any, Any]:
    """`value` as a dictionary, empty for None. Raises `InvalidMail` for what is none."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidMail(f"{what} is {value!r:.80}. Give a dictionary.")
    return dict(value)


def checked_json(what: str, value: Any) -> Any:
    """`value` as JSON gives it back. Raises `InvalidMail` for what can't be kept as JSON by every database."""
    try:
        document = json.dumps(value, cls=DjangoJSONEncoder, allow_nan=False)
        result = json.loads(document)
    except RecursionError as error:
        raise InvalidMail(f"{what} is nested without end. Nest it at most {DEEPEST_JSON} levels deep.") from error
    except (TypeError, ValueError) as error:
        raise InvalidMail(
            f"{what} can't be kept as JSON: {error}. Use text, numbers, lists and dictionaries."
        ) from error
    _check_json(what, result, depth=0)
    return result


def checked_headers(headers: object) -> dict[str, str]:
    """Headers as they can be sent, names and values. Raises `InvalidMail`."""
    checked: dict[str, str] = {}
    for name, value in checked_mapping("headers", headers).items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            raise InvalidMail(f"{name!r:.80} is no name of a header. Use letters, digits and hyphens.")
        usual = name.title()
        if usual in {"Bcc", "Resent-Bcc"}:
            raise InvalidMail(f"{name} as a header would show what it is to hide. Give bcc=[...] instead.")
        if usual in _MADE_FROM_THE_MAIL or usual in {other.title() for other in checked}:
            raise InvalidMail(f"The mail would have the header {name} twice. Leave it out of headers.")
        checked[usual if usual in _KNOWN_BY_DJANGO else name] = _header(name, value)
    return checked


def checked_address(what: str, item: object) -> Address:
    try:
        return parse_address(str(item))
    except InvalidAddress as error:
        raise InvalidAddress(f"{what}: {error}") from error


def _is_utf8(text: str) -> bool:
    """Whether it has no lone surrogates. A regular expression takes fifty times as long to find none in a long text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _header(name: str, value: object) -> str:
    what = f"the header {name}"
    if name.title() in _ADDRESSES:
        text = checked_line(what, value).strip()
        return text if _NOBODY.fullmatch(text) else _address_list(what, text)
    text = header_text(what, value)
    if name.title() == "Message-Id" and not _MESSAGE_ID.fullmatch(text):
        raise InvalidMail(f"{what} is {text[:80]!r}. Give one like '<1234@example.org>'.")
    if name.title() == "Date":
        try:
            parsedate_to_datetime(text)
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidMail(
                f"{what} is {text[:80]!r}. Give one as email.utils.format_datetime() makes it."
            ) from error
    return text


def _address_list(what: str, text: str) -> str:
    found = [str(checked_address(what, item)) for _line, item in split_addresses(text)]
    if not found:
        raise InvalidMail(f"{what} has no address. Give one, or leave the header out.")
    return ", ".join(found)


def _check_json(what: str, value: Any, *, depth: int) -> None:
    if depth > DEEPEST_JSON:
        raise InvalidMail(f"{what} is nested more than {DEEPEST_JSON} levels deep. Flatten it.")
    if isinstance(value, str):
        checked_text(what, value)
    elif isinstance(value, dict):
        for name, item in value.items():
            checked_text(what, name)
            _check_json(what, item, depth=depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_json(what, item, depth=depth + 1)
    elif isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise InvalidMail(f"{what} holds a whole number of more than 64 bits. Give it as text.")
