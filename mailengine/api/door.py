"""The way in and out of every endpoint: a key, a body within its limits, and one shape for each refusal."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from django.apps import apps
from django.core.exceptions import SuspiciousOperation
from django.db import Error as DatabaseFault
from django.db import IntegrityError
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseNotAllowed, JsonResponse
from django.urls import URLPattern, URLResolver
from django.views.decorators.csrf import csrf_exempt
from ninja import NinjaAPI
from ninja.errors import HttpError, ValidationError
from ninja.openapi.docs import Swagger
from ninja.openapi.schema import OpenAPISchema
from ninja.parser import Parser
from ninja.security import HttpBearer

from ..conf import get_settings
from ..errors import IdempotencyConflict, InvalidMail, RequestUnderWay, UnknownName, UnknownTemplate
from ..models import ApiKey
from ..pipeline.outage import passes
from .access import key_of
from .document import KEY, complete
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


class BearerKey(HttpBearer):
    """A key in `Authorization`, and then what the body holds: for who has no key nothing is read.

    `shape` is that of the refusals of this endpoint; `limit` names the one of `MAILENGINE["API"]` for its body, and
    `too_large` is the status of what exceeds it. Without a `limit` there is no body to read.
    """

    openapi_description = KEY

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
        self._documents: dict[str, OpenAPISchema] = {}
        for kind in (Refusal, ValidationError, HttpError, Http404, SuspiciousOperation, DatabaseFault, InvalidMail,
                     UnknownName, UnknownTemplate, IdempotencyConflict, RequestUnderWay, Exception):  # fmt: skip
            self.add_exception_handler(kind, _answer)

    @property
    def urls(self) -> tuple[list[URLResolver | URLPattern], str, str]:
        patterns, app, namespace = super().urls
        for pattern in patterns:
            if isinstance(pattern, URLPattern):
                pattern.callback = _as_served(pattern.callback)
        return patterns, app, namespace

    def get_openapi_schema(
        self, *, path_prefix: str | None = None, path_params: dict[str, Any] | None = None
    ) -> OpenAPISchema:
        # Made once for each place: it takes a fifth of a second, and anybody may ask for it.
        prefix = self.get_root_path(path_params or {}) if path_prefix is None else path_prefix
        document = self._documents.get(prefix)
        if document is None:
            document = complete(super().get_openapi_schema(path_prefix=prefix))
            self._documents = {prefix: document}
        return document


class Page(Swagger):
    """The page of the document, from this site: where "ninja" is no app, ninja would have it from another host."""

    def render_page(self, request: HttpRequest, api: NinjaAPI, **kwargs: Any) -> HttpResponse:
        return super().render_page(request, api, **kwargs) if apps.is_installed("ninja") else unknown(request)


@csrf_exempt
def unknown(request: HttpRequest) -> HttpResponse:
    """What is answered where nothing is."""
    return _answer(request, Refusal(404, "Not found."))


def _as_served(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """This view, with a problem for a method that it doesn't know, and nothing of the body left after its answer.

    ninja says the first in words of its own. Django's middleware ties requests into cycles, which live on for a while.
    """

    @wraps(view)
    def answer(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            response = view(request, *args, **kwargs)
        finally:
            for name in (_DOCUMENT, _UPLOADS):
                vars(request).pop(name, None)
        if not isinstance(response, HttpResponseNotAllowed):
            return response
        allowed = ", ".join(sorted(response["Allow"].split(", ")))
        problem = _answer(request, Refusal(405, f"This path knows {allowed}."))
        problem["Allow"] = allowed
        return problem

    return answer


def _answer(request: HttpRequest, error: Exception | type[Exception]) -> HttpResponse:
    refusal, shape = _refusal_of(error), getattr(request, _SHAPE, PROBLEM)
    response = JsonResponse(
        shape.body(refusal), status=refusal.status, headers=refusal.headers, content_type=shape.content_type
    )
    if refusal.status == 503:
        # Django would log each as an error of the site, and many sites have such errors mailed: by the very queue that
        # is full, or the database that is away.
        response._has_been_logged = True  # type: ignore[attr-defined]
    return response


def _refusal_of(error: object) -> Refusal:
    match error:
        case Refusal():
            return error
        case ValidationError():
            fields = {path_of(found["loc"]): sentence(found) for found in error.errors}
            return Refusal(422, "The request has fields that are wrong.", fields=fields)
        case Http404():
            return Refusal(404, "Not found.")
        case SuspiciousOperation():
            return Refusal(400, "The request has too many parameters, or holds what no client of ours sends.")
        case HttpError():
            return Refusal(error.status_code, str(error))
        case DatabaseFault() if passes(error) or isinstance(error, IntegrityError):  # the latter lost a race
            logger.warning("the API is unavailable: %s", type(error).__name__)
            return Refusal(503, UNAVAILABLE, retry_after=BUSY_SECONDS)
        case RequestUnderWay():
            return Refusal(409, str(error), retry_after=UNDER_WAY_SECONDS)
        case InvalidMail() | UnknownName() | UnknownTemplate() | IdempotencyConflict():
            return Refusal(422, str(error))
    logger.error("a request to the API failed", exc_info=error if isinstance(error, Exception) else None)
    return Refusal(500, "Something is wrong on our side. It is in the log.")
