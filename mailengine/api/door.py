"""The way in and out of every endpoint: a key, a body within its limits, and one shape for each refusal."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from django.db import Error as DatabaseFault
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from ninja import NinjaAPI
from ninja.errors import HttpError, ValidationError
from ninja.parser import Parser
from ninja.security import HttpBearer

from ..conf import get_settings
from ..errors import IdempotencyConflict, InvalidMail, UnknownName, UnknownTemplate
from ..models import ApiKey
from .access import key_of
from .reading import read_json
from .refusals import Refusal, path_of, sentence

logger = logging.getLogger("mailengine.api")

UNAVAILABLE = "Service unavailable"
BUSY_SECONDS = 5
"""After how long a client is told to try again while the database does not answer."""
_DOCUMENT = "mailengine_document"
_SHAPE = "mailengine_shape"


Shape = Callable[[Refusal], Mapping[str, Any]]


class BearerKey(HttpBearer):
    """A key in `Authorization`, and then the JSON of the body: for who has no key nothing is read.

    `shape` is that of the refusals of this endpoint; `limit` names the one of `MAILENGINE["API"]` for its body, and
    `too_large` is the status of what exceeds it.
    """

    def __init__(self, *, shape: Shape, limit: str = "body_bytes", too_large: int = 413) -> None:
        super().__init__()
        self.shape = shape
        self.limit = limit
        self.too_large = too_large

    def __call__(self, request: HttpRequest) -> ApiKey:
        setattr(request, _SHAPE, self.shape)
        key = key_of(request)
        if request.method not in ("GET", "HEAD", "DELETE"):
            most = getattr(get_settings().api, self.limit)
            setattr(request, _DOCUMENT, read_json(request, most=most, too_large=self.too_large))
            request._body = b"-"  # it is read: ninja has the parser give the document
        return key

    def authenticate(self, request: HttpRequest, token: str) -> ApiKey | None:
        raise NotImplementedError  # __call__() does it


def caller_of(request: HttpRequest) -> ApiKey:
    """The key that the request was made with, once it is in."""
    key: ApiKey = request.auth  # type: ignore[attr-defined]  # set by ninja
    return key


def document_of(request: HttpRequest) -> Any:
    """The JSON of its body."""
    return getattr(request, _DOCUMENT)


class _Parser(Parser):
    def parse_body(self, request: HttpRequest) -> Any:
        return document_of(request)


def open_door(**options: Any) -> NinjaAPI:
    """An API of ninja's whose endpoints refuse in the shape of their `BearerKey`; `options` are NinjaAPI's."""
    api = NinjaAPI(parser=_Parser(), **options)

    def answer(request: HttpRequest, error: Exception | type[Exception]) -> HttpResponse:
        refusal, shape = _refusal_of(error), getattr(request, _SHAPE, _plain)
        return JsonResponse(shape(refusal), status=refusal.status, headers=refusal.headers)

    for kind in (Refusal, ValidationError, HttpError, Http404, DatabaseFault, InvalidMail, UnknownName,
                 UnknownTemplate, IdempotencyConflict, Exception):  # fmt: skip
        api.add_exception_handler(kind, answer)
    return api


def _plain(refusal: Refusal) -> Mapping[str, Any]:
    return {"errors": {"base": refusal.detail, **refusal.fields}}


def _refusal_of(error: object) -> Refusal:
    match error:
        case Refusal():
            return error
        case ValidationError():
            fields = {path_of(found["loc"][2:]): sentence(found) for found in error.errors}
            return Refusal(422, "The request has fields that are wrong.", fields=fields)
        case Http404():
            return Refusal(404, "Not found.")
        case HttpError():
            return Refusal(error.status_code, str(error))
        case DatabaseFault():
            logger.warning("the API is unavailable: %s", type(error).__name__)
            return Refusal(503, UNAVAILABLE, retry_after=BUSY_SECONDS)
        case InvalidMail() | UnknownName() | UnknownTemplate() | IdempotencyConflict():
            return Refusal(422, str(error))
    logger.error("a request to the API failed", exc_info=error if isinstance(error, Exception) else None)
    return Refusal(500, "Something is wrong on our side. It is in the log.")
