"""Where a message stands: the words for it, and the questions that go by them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import models, router
from django.utils.translation import gettext_lazy as _

from ..clock import db_now

if TYPE_CHECKING:
    from typing_extensions import Self

    from .messages import Message  # noqa: F401  in QuerySet[...], where the linter doesn't look for it


class Priority(models.IntegerChoices):
    """How soon a message is sent, before others: smaller is sooner."""

    URGENT = 0, _("urgent")
    HIGH = 10, _("high")
    NORMAL = 20, _("normal")
    LOW = 30, _("low")
    BULK = 40, _("bulk")


class Status(models.TextChoices):
    """What we still have to do about a message."""

    QUEUED = "queued", _("queued")
    SENDING = "sending", _("sending")
    DEFERRED = "deferred", _("deferred")
    UNCERTAIN = "uncertain", _("uncertain")
    SENT = "sent", _("sent")
    DEAD = "dead", _("dead")
    SUPPRESSED = "suppressed", _("suppressed")
    CANCELLED = "cancelled", _("cancelled")
    EXPIRED = "expired", _("expired")


class StateQuerySet(models.QuerySet["Message"]):
    """What to look for. The verbs that change it stand on this."""

    @property
    def _home(self) -> str:
        """The database that all of this is written to, and read from where it is about to be written."""
        return router.db_for_write(self.model)

    def due(self, *, since_seconds: float = 0) -> Self:
        """Messages whose time has come, or had come so many seconds ago; below 0: will have come by then."""
        return self.filter(available_at__lte=db_now(-since_seconds))

    def waiting(self) -> Self:
        """What `send_mail` still has to hand over, due or not."""
        return self.filter(status__in=[Status.QUEUED, Status.UNCERTAIN])

    def kept_for_a_person(self) -> Self:
        """It may have gone, and nobody but a person can say what to do."""
        return self.filter(status=Status.UNCERTAIN, available_at=None)

    def overdue_leases(self) -> Self:
        """Messages whose worker was lost."""
        return self.filter(status=Status.SENDING, leased_until__lt=db_now())

    def expired(self) -> Self:
        return self.filter(status__in=[Status.QUEUED, Status.DEFERRED], expires_at__lte=db_now())
