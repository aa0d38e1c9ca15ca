"""`Idempotency-Key`: the same request under the same key is done once, however often it comes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from django.db import router, transaction
from django.http import HttpRequest

from ..models import ApiKey, IdempotencyKey
from ..pipeline.enqueue import patiently
from .door import document_of

HEADER = "Idempotency-Key"


def once(request: HttpRequest, key: ApiKey, answer: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `answer()` gives, in a transaction; or what it gave when this request came under its key before.

    Keys belong to the client and the path. A twin that comes meanwhile waits for the first one's commit. Raises
    `IdempotencyConflict` for another request under the same key. What is refused is not kept.
    """
    using = router.db_for_write(IdempotencyKey)
    name = request.headers.get(HEADER)
    if name is None:
        with transaction.atomic(using=using):
            return answer()
    client = hashlib.sha256(key.client.encode()).hexdigest()[:16]
    scope = f"http:{client}:{request.path}"[:64]
    keys = IdempotencyKey.objects.using(using)
    document = {"path": request.path, "document": document_of(request)}
    return patiently(lambda: keys.answer_once(name, scope=scope, request=document, answer=answer), using=using)
