"""Every answer of the API but yes: `Refusal`, which says the status, the sentence and the fields."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

TITLES = {
    400: "Bad request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not found",
    409: "Conflict",
    413: "Content too large",
    415: "Unsupported media type",
    422: "Unprocessable content",
    429: "Too many requests",
    503: "Service unavailable",
}


class Refusal(Exception):  # noqa: N818  what a client is told
    """The request is not done, and nothing of it is kept.

    `fields` maps the path of each wrong field, such as `to.0.email`, to a sentence. `retry_after` is in seconds.
    """

    def __init__(
        self, status: int, detail: str, *, fields: Mapping[str, str] | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.fields = dict(fields or {})
        self.retry_after = None if retry_after is None else max(math.ceil(retry_after), 1)

    @property
    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return headers | ({"WWW-Authenticate": 'Bearer realm="mailengine"'} if self.status == 401 else {})


def wrong_fields(error: ValidationError, *, under: Sequence[str | int] = ()) -> dict[str, str]:
    """What pydantic found, as `fields` of a `Refusal`."""
    return {path_of([*under, *found["loc"]]): sentence(found) for found in error.errors(include_url=False)}


def path_of(place: Sequence[str | int]) -> str:
    return ".".join(map(str, place))


def sentence(found: Mapping[str, Any]) -> str:
    """What pydantic found about one field, with no value of it: that may be anybody's words."""
    if found["type"] == "missing":
        return "is required"
    if found["type"] == "extra_forbidden":
        return "is not known here"
    text = str(found["msg"]).removeprefix("Value error, ")
    return text[:1].lower() + text[1:]
