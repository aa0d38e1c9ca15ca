"""The body of a request: limits first, then JSON as RFC 8259 has it, without what parsers disagree on."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from io import BytesIO
from typing import Any, NoReturn

from django.core.exceptions import RequestDataTooBig, TooManyFieldsSent, TooManyFilesSent
from django.http import HttpRequest, UnreadablePostError
from django.http.multipartparser import MultiPartParser, MultiPartParserError

from .refusals import Refusal

DEEPEST = 32
"""Levels of JSON."""
MOST_NAMES = 10_000
"""In one object: each may be a mistake."""
FORM_FIELD = "message"


@dataclass(frozen=True)
class Upload:
    """A file in a multipart body."""

    field: str
    filename: str
    mimetype: str
    data: bytes


def read_body(request: HttpRequest, *, most: int, too_large: int = 413) -> bytes:
    """The body, of at most so many bytes: what is larger is not read. `too_large` is the status for that."""
    if (coding := request.headers.get("Content-Encoding", "identity").strip().lower()) != "identity":
        raise Refusal(415, f"Send the body as it is, without the coding {coding!r:.80}.")
    try:
        announced = int(request.META.get("CONTENT_LENGTH") or 0)
    except ValueError:
        announced = 0
    try:
        body = b"" if announced > most else request.read(most + 1)
    except UnreadablePostError:
        raise Refusal(400, "The body did not arrive as a whole.") from None
    if not body and not announced and "Transfer-Encoding" in request.headers:
        raise Refusal(
            411, "Send the length of the body in Content-Length: in chunks without it, nothing of it arrives."
        )
    if announced > most or len(body) > most:
        raise Refusal(too_large, f"The body is larger than {most:,} bytes.")
    return body


def read_json(request: HttpRequest, *, most: int, too_large: int = 413) -> Any:
    """The JSON of the body. Raises `Refusal` for what is none, or is deeper than 32 levels, or says a thing twice."""
    kind = _kind_of(request)
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise Refusal(415, "Send JSON, with the header Content-Type: application/json.")
    return _json_of(read_body(request, most=most, too_large=too_large))


def is_form(request: HttpRequest) -> bool:
    return _kind_of(request) == "multipart/form-data"


def read_form(request: HttpRequest, *, most: int) -> tuple[Any, list[Upload]]:
    """The JSON in the field `message` of a multipart body, and its files. Raises `Refusal`."""
    body = read_body(request, most=most)
    length = {"CONTENT_LENGTH": str(len(body))}  # in chunks it comes without
    try:
        parser = MultiPartParser({**request.META, **length}, BytesIO(body), request.upload_handlers, "utf-8")
        fields, files = parser.parse()
    except (RequestDataTooBig, TooManyFilesSent, TooManyFieldsSent):
        raise Refusal(413, "The form has too many parts, or too large a one that is no file.") from None
    except (MultiPartParserError, UnicodeError) as error:
        raise Refusal(400, f"The body is not multipart/form-data: {error}") from None
    uploads = [
        Upload(field, str(file.name or ""), file.content_type or "", file.read())
        for field, several in files.lists()
        for file in several
    ]
    for _field, several in files.lists():
        for file in several:
            file.close()
    if list(fields) != [FORM_FIELD] or len(fields.getlist(FORM_FIELD)) != 1:
        raise Refusal(422, f"Give the mail as JSON in one field {FORM_FIELD!r}, and files; nothing else.")
    return _json_of(str(fields[FORM_FIELD]).encode("utf-8", "surrogatepass")), uploads


def _kind_of(request: HttpRequest) -> str:
    return request.headers.get("Content-Type", "").partition(";")[0].strip().lower()


def _json_of(body: bytes) -> Any:
    try:
        document = json.loads(
            body.decode("utf-8"), object_pairs_hook=_once, parse_float=_float, parse_constant=_no_number
        )
    except UnicodeDecodeError:
        raise Refusal(400, "The body is not UTF-8.") from None
    except RecursionError:
        raise Refusal(400, f"The JSON is nested more than {DEEPEST} levels deep.") from None
    except _TooMany:
        raise Refusal(400, f"The JSON has an object of more than {MOST_NAMES:,} names.") from None
    except _Twice as error:
        raise Refusal(400, f"The JSON names {error.args[0]!r:.80} twice in one object.") from None
    except ValueError as error:  # its text names the place, and no words
        raise Refusal(400, f"The body is not JSON: {error}") from None
    _check_depth(document)
    return document


class _TooMany(Exception):  # noqa: N818
    pass


class _Twice(Exception):  # noqa: N818
    pass


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(pairs) > MOST_NAMES:
        raise _TooMany
    if len(found) < len(pairs):
        ((name, _count),) = Counter(name for name, _value in pairs).most_common(1)
        raise _Twice(name)
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        _no_number("one with so many digits")
    return number


def _check_depth(document: Any) -> None:
    level, depth = [document], 0
    while level:
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        depth += 1
        if depth > DEEPEST + 1:
            raise Refusal(400, f"The JSON is nested more than {DEEPEST} levels deep.")
