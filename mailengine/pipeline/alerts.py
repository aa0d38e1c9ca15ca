"""Tell the admin, once for an incident, by a road that does not use the broken provider."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from django.conf import settings as django_settings
from django.core.mail import EmailMessage

from ..conf import get_settings
from ..providers.connection import Connection

logger = logging.getLogger("mailengine.alerts")


@dataclass(frozen=True)
class Alert:
    """A provider that can't be used until somebody mends its settings."""

    alias: str
    problem: str
    others: Sequence[str] = ()
    """Providers in use, which can carry the mail to the admin."""

    @property
    def text(self) -> str:
        return (
            f"The provider {self.alias!r} refuses our mail because of how it is set up: {self.problem}\n\n"
            f"Nothing is lost and no message's attempts are spent. Mend MAILERS[{self.alias!r}]; the provider is tried "
            f"again each {get_settings().probe_interval_seconds:g} seconds, and what waits for it leaves by itself.\n"
        )


def send_alert(alert: Alert) -> threading.Thread:
    """Log at ERROR and write to the ADMINS in a thread of its own, which is returned; the admin shows a banner too."""
    logger.error("provider %s is misconfigured: %s", alert.alias, alert.problem, extra={"provider": alert.alias})
    thread = threading.Thread(target=_mail, args=[alert], name="mailengine-alert", daemon=True)
    thread.start()
    return thread


def _mail(alert: Alert) -> None:
    # Straight to a backend, without the queue: what is queued might wait for the very provider that is broken.
    settings = get_settings()
    roads = [settings.alert_mailer] if settings.alert_mailer else list(alert.others)
    admins = [admin if isinstance(admin, str) else admin[1] for admin in django_settings.ADMINS]
    if not admins:
        return
    for alias in roads:
        email = EmailMessage(
            subject=f"{django_settings.EMAIL_SUBJECT_PREFIX}mail provider {alert.alias} needs you",
            body=alert.text,
            from_email=django_settings.SERVER_EMAIL,
            to=admins,
            headers={"Auto-Submitted": "auto-generated"},
        )
        connection = Connection(alias)
        outcome = connection.hand_over(email)
        connection.close()
        if outcome.is_good_round:
            return
        logger.error("the alert could not go through %s: %s", alias, outcome)
    logger.error("nobody could be told by mail that the provider %s is misconfigured", alert.alias)
