"""Every answer of the API but yes: `Refusal`, which says the status, the sentence and the fields; and its shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from itertools import islice
from typing import Any
from urllib.parse import quote

MOST_FIELDS = 100
QUERY = "?"
"""Before the name of a parameter in `fields`; all others are paths in the body."""


class Refusal(Exception):  # noqa: N818  what a client is told
    """The request is not done, and nothing of it is kept.

    `fields` maps the path of each wrong field, such as `to.0.email`, to a sentence: of the first hundred of them.
    `retry_after` is in seconds.
    """

    def __init__(
        self, status: int, detail: str, *, fields: Mapping[str, str] | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.fields = dict(islice((fields or {}).items(), MOST_FIELDS))
        self.retry_after = None if retry_after is None else max(math.ceil(retry_after), 1)

    @property
    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return headers | ({"WWW-Authenticate": 'Bearer realm="mailengine"'} if self.status == 401 else {})


@dataclass(frozen=True)
class Shape:
    """How the endpoints of an interface say no."""

    body: Callable[[Refusal], Mapping[str, Any]]
    content_type: str = "application/json"


def _problem(refusal: Refusal) -> Mapping[str, Any]:
    title = HTTPStatus(refusal.status).phrase
    problem = {"type": "about:blank", "title": title, "status": refusal.status, "detail": refusal.detail}
    if refusal.fields:
        problem["errors"] = [{"detail": text, **_place(path)} for path, text in refusal.fields.items()]
    return problem


def _place(path: str) -> dict[str, str]:
    if path.startswith(QUERY):
        return {"parameter": path.removeprefix(QUERY)}
    steps = (step.replace("~", "~0").replace("/", "~1") for step in path.split(".") if path)
    return {"pointer": "".join(["#", *(f"/{quote(step, safe='~')}" for step in steps)])}  # RFC 6901, section 6


PROBLEM = Shape(_problem, "application/problem+json")
"""RFC 9457: `detail` for the whole, and `errors` with a JSON pointer into the body, or a parameter, for each field."""


def path_of(place: Sequence[str | int]) -> str:
    """The path that pydantic's `loc` stands for, of a field in the body or of a parameter."""
    if place and place[0] == "query":
        return f"{QUERY}{place[1]}"
    _source, _parameter, *steps = place
    return ".".join(map(str, steps[1:] if steps[:1] and steps[0] in VARIANTS else steps))


VARIANTS = ("one", "many")
"""Which of its forms a body has: pydantic counts that as a step."""


def sentence(found: Mapping[str, Any]) -> str:
    """What pydantic found about one field, with no value of it: that may be anybody's words."""
    if found["type"] == "missing":
        return "is required"
    if found["type"] == "extra_forbidden":
        return "is not known here"
    if found["type"] in ("model_type", "model_attributes_type"):
        return "is no object"
    text = str(found["msg"]).removeprefix("Value error, ")
    return text[:1].lower() + text[1:]
