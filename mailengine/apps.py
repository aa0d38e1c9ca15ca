"""The app as Django sees it: registers checks, audiences and receivers at start-up."""

from __future__ import annotations

from django.apps import AppConfig
from django.utils.module_loading import autodiscover_modules
from django.utils.translation import gettext_lazy as _


class MailengineConfig(AppConfig):
    name = "mailengine"
    verbose_name = _("Mail")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from anymail.signals import tracking

        from . import checks  # noqa: F401  registers itself
        from .feedback.proof import read_event

        autodiscover_modules("audiences")
        tracking.connect(read_event, dispatch_uid="mailengine.feedback")
