"""`Idempotency-Key`: the same request under the same key is done once, however often it comes."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from typing import Any, TypeVar

from django.core.serializers.json import DjangoJSONEncoder
from django.db import router, transaction
from django.http import HttpRequest

from ..models import ApiKey, IdempotencyKey
from ..models.idempotency import LONGEST_KEY
from ..pipeline.enqueue import patiently
from .door import document_of, uploads_of
from .refusals import Refusal

HEADER = "Idempotency-Key"
PATIENCE_SECONDS = 1
"""For which a twin waits: nearly all requests are done long before."""

T = TypeVar("T")


def once(request: HttpRequest, key: ApiKey, prepare: Callable[[], T], answer: Callable[[T], Any]) -> Any:
    """What `answer()` gives, as JSON, in a transaction; or what it gave when this request came under its key before.

    It is given what `prepare()` gives before that, which is not asked for what was answered already: what was right
    then need not be right now. Keys belong to the client and the path. A twin that comes meanwhile waits a moment for
    the first one's commit, and then raises `RequestUnderWay`; another request under the same key raises
    `IdempotencyConflict`. What is refused is not kept.
    """
    using = router.db_for_write(IdempotencyKey)
    name = request.headers.get(HEADER)
    if name is None:
        prepared = prepare()
        with transaction.atomic(using=using):
            return _as_json(answer(prepared))
    if not (name.isprintable() and 0 < len(name) <= LONGEST_KEY):
        raise Refusal(422, f"Give 1 to {LONGEST_KEY} printable characters in the header {HEADER}.")
    scope = "http:" + sha256(f"{key.client}\n{request.path}".encode()).hexdigest()[:48]
    keys = IdempotencyKey.objects.using(using)
    files = [[*map(str, (u.field, u.filename, u.mimetype)), sha256(u.data).hexdigest()] for u in uploads_of(request)]
    asked = {"path": request.path, "document": document_of(request), "files": files}
    known = keys.answer_to(name, scope=scope, request=asked)
    if known is not None:
        return known
    prepared = prepare()

    def ask() -> Any:
        return keys.answer_once(
            name,
            scope=scope,
            request=asked,
            answer=lambda: _as_json(answer(prepared)),
            patience_seconds=PATIENCE_SECONDS,
        )

    return patiently(ask, using=using)


def _as_json(document: Any) -> Any:
    """As it is when it comes back from the database."""
    return json.loads(json.dumps(document, cls=DjangoJSONEncoder))
