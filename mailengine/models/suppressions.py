"""Addresses we leave alone, and why."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

EVERY_STREAM = ""


class Suppression(models.Model):
    """One address that gets no mail of one stream, or of none at all.

    A newsletter opt-out names its stream, so that it never blocks a password reset; a bounce or a refusal holds for
    every stream.
    """

    class Reason(models.TextChoices):
        REFUSED = "refused", _("the address does not exist")
        BOUNCED = "bounced", _("mail to it bounced")
        COMPLAINED = "complained", _("complained about our mail")
        UNSUBSCRIBED = "unsubscribed", _("unsubscribed")
        MANUAL = "manual", _("entered by a person")

    address = models.CharField(_("address"), max_length=254)
    stream = models.CharField(_("stream"), max_length=64, blank=True, default=EVERY_STREAM, help_text=_("Empty: all."))
    reason = models.CharField(_("reason"), max_length=12, choices=Reason.choices, default=Reason.MANUAL)
    detail = models.TextField(_("detail"), blank=True, default="")
    created_at = models.DateTimeField(_("since"), auto_now_add=True)

    class Meta:
        verbose_name = _("suppressed address")
        verbose_name_plural = _("suppressed addresses")
        constraints = [models.UniqueConstraint(fields=["address", "stream"], name="mailengine_one_suppression")]

    def __str__(self) -> str:
        return self.address
