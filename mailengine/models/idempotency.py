"""The caller's name for a request: the same name, the same row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from django.core.serializers.json import DjangoJSONEncoder
from django.db import IntegrityError, models, transaction
from django.utils.translation import gettext_lazy as _

from ..errors import IdempotencyConflict
from .jobs import MessageJob
from .messages import Message


def digest_of(request: Mapping[str, object]) -> str:
    """SHA-256 over the canonical JSON of what was asked for: the same request, the same digest."""
    canonical = json.dumps(request, cls=DjangoJSONEncoder, sort_keys=True, default=str)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


class IdempotencyKeyQuerySet(models.QuerySet["IdempotencyKey"]):
    def known(self, key: str, *, scope: str, digest: str) -> IdempotencyKey | None:
        """The row of a request made before under this key, or None.

        Raises `IdempotencyConflict` when that was another request.
        """
        row = self.filter(scope=scope, key=key).select_related("message", "job").first()
        if row is not None and row.digest != digest:
            raise IdempotencyConflict(
                f"The idempotency key {key!r} was used for other content before. Use a new key for a new request."
            )
        return row

    def record(
        self, key: str, *, scope: str, digest: str, message: Message | None = None, job: MessageJob | None = None
    ) -> IdempotencyKey | None:
        """Tie a request to its row; None when a twin of it came first, whose row `known()` then finds."""
        try:
            with transaction.atomic(using=self.db):
                return self.create(scope=scope, key=key, digest=digest, message=message, job=job)
        except IntegrityError:
            return None


class IdempotencyKey(models.Model):
    """A request and the row that it led to, kept as long as that row."""

    scope = models.CharField(_("scope"), max_length=64)
    key = models.CharField(_("key"), max_length=255)
    digest = models.CharField(_("SHA-256 of the request"), max_length=64)
    message = models.ForeignKey(Message, on_delete=models.CASCADE, null=True, related_name="+")
    job = models.ForeignKey(MessageJob, on_delete=models.CASCADE, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    objects = IdempotencyKeyQuerySet.as_manager()

    class Meta:
        verbose_name = _("idempotency key")
        verbose_name_plural = _("idempotency keys")
        constraints = [models.UniqueConstraint(fields=["scope", "key"], name="mailengine_one_request")]

    def __str__(self) -> str:
        return self.key
