"""`Idempotency-Key`: the same request under the same key is done once, however often it comes."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Any

from django.db import router, transaction
from django.http import HttpRequest

from ..models import ApiKey, IdempotencyKey
from ..pipeline.enqueue import patiently
from .door import document_of, uploads_of

HEADER = "Idempotency-Key"
PATIENCE_SECONDS = 1
"""For which a twin waits: nearly all requests are done long before."""


def once(request: HttpRequest, key: ApiKey, answer: Callable[[], Any]) -> Any:
    """What `answer()` gives, JSON, in a transaction; or what it gave when this request came under its key before.

    Keys belong to the client and the path. A twin that comes meanwhile waits a moment for the first one's commit, and
    then raises `RequestUnderWay`; another request under the same key raises `IdempotencyConflict`. What is refused is
    not kept.
    """
    using = router.db_for_write(IdempotencyKey)
    name = request.headers.get(HEADER)
    if name is None:
        with transaction.atomic(using=using):
            return answer()
    scope = "http:" + sha256(f"{key.client}\n{request.path}".encode()).hexdigest()[:48]
    keys = IdempotencyKey.objects.using(using)
    files = [[*map(str, (u.field, u.filename, u.mimetype)), sha256(u.data).hexdigest()] for u in uploads_of(request)]
    asked = {"path": request.path, "document": document_of(request), "files": files}
    return patiently(
        lambda: keys.answer_once(name, scope=scope, request=asked, answer=answer, patience_seconds=PATIENCE_SECONDS),
        using=using,
    )
