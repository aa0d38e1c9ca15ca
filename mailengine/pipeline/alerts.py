"""Tell the admins by mail what needs a person, by a road that does not use what is broken, and without the queue."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from django.conf import settings as django_settings
from django.core.mail import EmailMessage
from django.db import Error as DatabaseFault

from ..conf import get_settings
from ..providers.connection import Connection

logger = logging.getLogger("mailengine.alerts")


@dataclass
class Alert:
    """What the admins are to be told, and by which aliases of MAILERS the mail may go, best first.

    The first line of `text` is logged, too; see `Incidents.roads()` for `roads`.
    """

    subject: str
    text: str
    roads: Sequence[str] = ()
    is_repeated: bool = False
    """It was tried before, and is in the log already."""
    has_arrived: bool | None = None
    """None until its last road was tried."""
    record: Callable[[], None] | None = None
    """Enters in the database what came of it; called when that is known, by the thread that waits for it."""


def about_provider(alias: str, problem: str, *, roads: Sequence[str], is_repeated: bool) -> Alert:
    """The alert that a provider can't be used until somebody mends its settings."""
    text = (
        f"The provider {alias!r} is misconfigured: {problem}\n\n"
        f"Nothing is lost and no message's attempts are spent. Mend MAILERS[{alias!r}]; the provider is tried "
        f"again each {get_settings().probe_interval_seconds:g} seconds, and what waits for it leaves by itself.\n"
    )
    return Alert(f"mail provider {alias} needs you", text, roads, is_repeated)


class Alarm(threading.Thread):
    """An alert on its way, in a thread that knows no rows. Who waits for it enters in the database what came of it."""

    def __init__(self, alert: Alert) -> None:
        super().__init__(name="mailengine-alert", daemon=True)
        self.alert = alert

    def run(self) -> None:
        self.alert.has_arrived = _mail(self.alert)

    def join(self, timeout: float | None = None) -> None:
        if self.ident is not None:  # it was started
            super().join(timeout)
        if self.alert.has_arrived is not None and self.alert.record is not None:
            try:
                self.alert.record()
            except DatabaseFault as error:
                # At the worst the admins are told once more.
                logger.warning("what became of the alert %r could not be recorded: %s", self.alert.subject, error)


def send_alert(alert: Alert) -> Alarm:
    """Log it, and write to the ADMINS in a thread of its own, which is returned; join it before the process ends."""
    logger.log(_level(alert), "%s", alert.text.splitlines()[0])
    alarm = Alarm(alert)
    try:
        alarm.start()
    except RuntimeError as error:  # this host has no thread left
        logger.log(_level(alert), "the alert %r could not be sent: %s", alert.subject, error)
        alert.has_arrived = False
    return alarm


def _mail(alert: Alert) -> bool:
    """Write to the admins by the first road that works; False when none does. Without ADMINS, the log is enough."""
    admins = [admin if isinstance(admin, str) else admin[1] for admin in django_settings.ADMINS]
    if not admins:
        return True
    for alias in alert.roads:
        email = EmailMessage(
            subject=f"{django_settings.EMAIL_SUBJECT_PREFIX}{alert.subject}",
            body=alert.text,
            from_email=django_settings.SERVER_EMAIL,
            to=admins,
            headers={"Auto-Submitted": "auto-generated"},
        )
        connection = Connection(alias)
        outcome = connection.hand_over(email)
        connection.close()
        if outcome.is_good_round:
            return True
        logger.log(_level(alert), "the alert %r could not go through %s: %s", alert.subject, alias, outcome)
    logger.log(_level(alert), "nobody could be told by mail: %s", alert.subject)
    return False


def _level(alert: Alert) -> int:
    return logging.INFO if alert.is_repeated else logging.ERROR
