"""The way in and out of every endpoint: a key, a body within its limits, and one shape for each refusal."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from django.db import Error as DatabaseFault
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from ninja import NinjaAPI
from ninja.errors import HttpError, ValidationError
from ninja.openapi.schema import OpenAPISchema
from ninja.parser import Parser
from ninja.security import HttpBearer

from ..conf import get_settings
from ..errors import IdempotencyConflict, InvalidMail, RequestUnderWay, UnknownName, UnknownTemplate
from ..models import ApiKey
from .access import key_of
from .reading import Upload, is_form, read_form, read_json
from .refusals import PROBLEM, Refusal, Shape, path_of, sentence

logger = logging.getLogger("mailengine.api")

UNAVAILABLE = "Service unavailable"
BUSY_SECONDS = 5
"""After how long a client is told to try again while the database does not answer."""
UNDER_WAY_SECONDS = 1
_DOCUMENT = "mailengine_document"
_UPLOADS = "mailengine_uploads"
_SHAPE = "mailengine_shape"
_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The same request under the same key is done once, and gets the same answer.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"},
}


class BearerKey(HttpBearer):
    """A key in `Authorization`, and then what the body holds: for who has no key nothing is read.

    `shape` is that of the refusals of this endpoint; `limit` names the one of `MAILENGINE["API"]` for its body, and
    `too_large` is the status of what exceeds it. Without a `limit` there is no body to read.
    """

    def __init__(
        self, *, shape: Shape, limit: str | None = None, too_large: int = 413, takes_files: bool = False
    ) -> None:
        super().__init__()
        self.shape = shape
        self.limit = limit
        self.too_large = too_large
        self.takes_files = takes_files

    def __call__(self, request: HttpRequest) -> ApiKey:
        setattr(request, _SHAPE, self.shape)
        key = key_of(request)
        if self.limit is not None and request.method not in ("GET", "HEAD", "DELETE"):
            most = getattr(get_settings().api, self.limit)
            if self.takes_files and is_form(request):
                document, uploads = read_form(request, most=most)
            else:
                document, uploads = read_json(request, most=most, too_large=self.too_large), []
            setattr(request, _DOCUMENT, document)
            setattr(request, _UPLOADS, uploads)
            request._body = b"-"  # it is read: ninja has the parser give the document
        return key

    def authenticate(self, request: HttpRequest, token: str) -> ApiKey | None:
        raise NotImplementedError  # __call__() does it


def caller_of(request: HttpRequest) -> ApiKey:
    """The key that the request was made with, once it is in."""
    key: ApiKey = request.auth  # type: ignore[attr-defined]  # set by ninja
    return key


def document_of(request: HttpRequest) -> Any:
    """The JSON of its body; None where it has none."""
    return getattr(request, _DOCUMENT, None)


def uploads_of(request: HttpRequest) -> Sequence[Upload]:
    """The files of its body."""
    return getattr(request, _UPLOADS, ())


class _Parser(Parser):
    def parse_body(self, request: HttpRequest) -> Any:
        return document_of(request)


class Api(NinjaAPI):
    """An API of ninja's whose endpoints refuse in the shape of their `BearerKey`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(parser=_Parser(), **options)
        self.add_decorator(_forgetful, mode="view")
        for kind in (Refusal, ValidationError, HttpError, Http404, DatabaseFault, InvalidMail, UnknownName,
                     UnknownTemplate, IdempotencyConflict, RequestUnderWay, Exception):  # fmt: skip
            self.add_exception_handler(kind, _answer)

    def get_openapi_schema(self, *args: Any, **kwargs: Any) -> OpenAPISchema:
        """ninja's document, with what it can't know: the header of each POST, and the media type of problems."""
        schema = super().get_openapi_schema(*args, **kwargs)
        for operations in schema["paths"].values():
            for method, operation in operations.items():
                if method == "post":
                    operation["parameters"].append(_IDEMPOTENCY_KEY)
                for response in operation["responses"].values():
                    content = response.get("content", {})
                    if content.get("application/json", {}).get("schema", {}).get("$ref", "").endswith("/Problem"):
                        content[PROBLEM.content_type] = content.pop("application/json")
        return schema


def _forgetful(run: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Let go of the body with the answer: Django's middleware ties requests into cycles, which live on for a while."""

    @wraps(run)
    def answer(request: HttpRequest, **parameters: Any) -> HttpResponse:
        try:
            return run(request, **parameters)
        finally:
            for name in (_DOCUMENT, _UPLOADS):
                vars(request).pop(name, None)

    return answer


def _answer(request: HttpRequest, error: Exception | type[Exception]) -> HttpResponse:
    refusal, shape = _refusal_of(error), getattr(request, _SHAPE, PROBLEM)
    return JsonResponse(
        shape.body(refusal), status=refusal.status, headers=refusal.headers, content_type=shape.content_type
    )


def _refusal_of(error: object) -> Refusal:
    match error:
        case Refusal():
            return error
        case ValidationError():
            fields = {path_of(found["loc"]): sentence(found) for found in error.errors}
            return Refusal(422, "The request has fields that are wrong.", fields=fields)
        case Http404():
            return Refusal(404, "Not found.")
        case HttpError():
            return Refusal(error.status_code, str(error))
        case DatabaseFault():
            logger.warning("the API is unavailable: %s", type(error).__name__)
            return Refusal(503, UNAVAILABLE, retry_after=BUSY_SECONDS)
        case RequestUnderWay():
            return Refusal(409, str(error), retry_after=UNDER_WAY_SECONDS)
        case InvalidMail() | UnknownName() | UnknownTemplate() | IdempotencyConflict():
            return Refusal(422, str(error))
    logger.error("a request to the API failed", exc_info=error if isinstance(error, Exception) else None)
    return Refusal(500, "Something is wrong on our side. It is in the log.")
