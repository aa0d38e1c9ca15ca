"""The caller's name for a request: the same name, the same row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, cast

from django.core.serializers.json import DjangoJSONEncoder
from django.db import IntegrityError, OperationalError, models, transaction
from django.utils.translation import gettext_lazy as _

from ..errors import IdempotencyConflict, InvalidMail, RequestUnderWay
from .fields import JSONField
from .jobs import MessageJob
from .locks import is_tired_of_waiting, waiting_for_locks
from .messages import Message

T = TypeVar("T", Message, MessageJob)

LONGEST_KEY = 255


def digest_of(request: Mapping[str, object]) -> str:
    """SHA-256 over the canonical JSON of what was asked for: the same request, the same digest."""
    canonical = json.dumps(request, cls=DjangoJSONEncoder, sort_keys=True, default=str)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def hash_of(key: str) -> str:
    """What a key is stored as: hashed, since MariaDB would take keys that differ in case alone for one."""
    return hashlib.sha256(key.encode()).hexdigest()


class IdempotencyKeyQuerySet(models.QuerySet["IdempotencyKey"]):
    def find(self, key: str, *, scope: Literal["message", "job"]) -> IdempotencyKey | None:
        """The request that was made under this key, or None."""
        return self.filter(scope=scope, key=hash_of(key)).first()

    def once(
        self, key: str, *, scope: Literal["message", "job"], request: Mapping[str, object], make: Callable[[], T]
    ) -> T:
        """The row that `make()` writes; or, when the same request was made under this key before, the one it got then.

        To be called in a transaction. However many twins come at the same time, one of them writes.
        Raises `IdempotencyConflict` when the key belongs to another request.
        """
        _check(key)
        digest = digest_of(request)
        known = self.find(key, scope=scope)
        if known is None:
            try:
                with transaction.atomic(using=self.db):
                    mine = self.create(scope=scope, key=hash_of(key), digest=digest)
            except IntegrityError:  # a twin was first: the insert has waited for its commit
                known = self.get(scope=scope, key=hash_of(key))
            else:
                made = make()
                self.filter(pk=mine.pk).update(**{scope: made})
                return made
        if known.digest != digest:
            raise IdempotencyConflict(
                f"The idempotency key {key!r} was used for other content before. Use a new key for a new request."
            )
        return cast("T", getattr(known, scope))

    def answer_to(self, key: str, *, scope: str, request: Mapping[str, object]) -> Any:
        """What this request was answered under this key before, or None. Raises as `once()`."""
        _check(key)
        known = self.filter(scope=scope, key=hash_of(key)).first()
        return None if known is None else known.answer_for(request)

    def answer_once(
        self, key: str, *, scope: str, request: Mapping[str, object], answer: Callable[[], Any], patience_seconds: int
    ) -> Any:
        """What `answer()` gives, a JSON document; the same again for the same request under this key.

        Otherwise as `once()`. An answer that is an error is not kept: it is raised, and takes all back. Raises
        `RequestUnderWay` when a twin takes longer than so many seconds.
        """
        _check(key)
        try:
            with waiting_for_locks(self.db, seconds=patience_seconds), transaction.atomic(using=self.db):
                mine = self.create(scope=scope, key=hash_of(key), digest=digest_of(request))
        except IntegrityError:
            return self.get(scope=scope, key=hash_of(key)).answer_for(request)
        except OperationalError as error:
            if is_tired_of_waiting(error):
                raise RequestUnderWay("The same request under this key is under way. Ask again.") from error
            raise
        given = answer()
        self.filter(pk=mine.pk).update(answer=given)
        return given


def _check(key: object) -> None:
    if not isinstance(key, str) or not key.isprintable() or not 0 < len(key) <= LONGEST_KEY:
        raise InvalidMail(
            f"idempotency_key is {str(key)[:80]!r}. Give a text of 1 to {LONGEST_KEY} printable characters."
        )


class IdempotencyKey(models.Model):
    """A request and the row that it led to, kept as long as that row."""

    scope = models.CharField(_("scope"), max_length=64)
    key = models.CharField(_("SHA-256 of the key"), max_length=64)
    digest = models.CharField(_("SHA-256 of the request"), max_length=64)
    message = models.ForeignKey(Message, on_delete=models.CASCADE, null=True, related_name="+")
    job = models.ForeignKey(MessageJob, on_delete=models.CASCADE, null=True, related_name="+")
    answer = JSONField(null=True)
    """What a client was told by HTTP."""
    created_at = models.DateTimeField(auto_now_add=True)

    objects = IdempotencyKeyQuerySet.as_manager()

    class Meta:
        verbose_name = _("idempotency key")
        verbose_name_plural = _("idempotency keys")
        constraints = [models.UniqueConstraint(fields=["scope", "key"], name="mailengine_one_request")]

    def __str__(self) -> str:
        return self.key

    def answer_for(self, request: Mapping[str, object]) -> Any:
        """The answer, if it was this request. Raises `IdempotencyConflict`."""
        if self.digest != digest_of(request):
            raise IdempotencyConflict(
                "This idempotency key was used for other content before. Use a new key for a new request."
            )
        return self.answer
