"""The project's queue in a test: `MailQueue`, which pytest has as the fixture `mail_queue`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any

import django
from django.conf import settings as django_settings
from django.core.mail import EmailMessage
from django.test import utils as test_utils
from django.test.utils import override_settings
from django.utils.module_loading import import_string

from ..backends.queueing import EmailBackend
from ..compat import SMTP_BACKEND, mailer_options
from ..conf import get_settings
from ..models import Message
from ..models.messages import MessageQuerySet
from ..pipeline.dispatch import Dispatcher
from ..pipeline.enqueue import queue_mail
from ..pipeline.expand import expand_jobs
from ..pipeline.report import Report
from .clock import FrozenClock
from .events import report_event
from .providers import BACKEND, FakeProvider, Handover, Record

OUTBOX = "django.core.mail.backends.locmem.EmailBackend"
ALERTS = "alerts of MailQueue"


class MailQueue:
    """The project's queue, with providers that fail on demand and a clock that stands still, within a `with` block.

        with MailQueue() as queue:
            queue.fail("ses", hours=1)
            queue_mail("Welcome", "Hello", None, ["ann@example.org"])
            queue.drain()
            queue.advance(hours=1)
            queue.drain()
            assert [email.to for email in queue.outbox] == [["ann@example.org"]]

    The policy is the project's own: its streams, strategy and order of providers. Behind each provider's alias stands
    a `FakeProvider`; one that MAILERS has already keeps its script. What Django itself sends is queued where
    MAILERS["default"] is the queue; all other mailers lead to `django.core.mail.outbox`, and so do the alerts to the
    admins. Handovers go one by one, so that their order is always the same.

    It needs a database, as `django.test.TestCase` has one.
    """

    def __init__(self, *, settings: Any = None) -> None:
        """`settings`: pytest-django's fixture, which then undoes what this changes; else it is undone at the end."""
        self._settings = settings
        self._clock = FrozenClock()
        self._ends: dict[str, datetime] = {}
        """By provider: when its failure is over."""
        self._exit = ExitStack()

    def __enter__(self) -> MailQueue:
        with ExitStack() as entered:
            entered.enter_context(self._clock)
            changed = _settings_for_tests()
            if self._settings is None:
                entered.enter_context(override_settings(**changed))
            else:
                for name, value in changed.items():
                    setattr(self._settings, name, value)
            FakeProvider.reset()
            entered.callback(FakeProvider.reset)
            self._exit = entered.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()

    # What happens

    def queue(self, *recipients: str, subject: str = "Hello", **terms: Any) -> list[Message]:
        """Queue a mail to each, for tests where its words don't matter; `terms` are keywords of `queue_mail()`."""
        words = {"message": "Good morning.", "from_email": None}
        return [queue_mail(subject, recipient_list=[recipient], **{**words, **terms}) for recipient in recipients]

    def drain(self) -> Report:
        """Do what cron's commands do, over and over, until there is nothing left to do at this instant.

        The report counts messages, as that of `dispatch_slice()`: in `outcomes` by the status that they were left in,
        in `sent_by` by provider. `is_blocked`: mail is due, and no provider can take it now.
        """
        total = Report("drain")
        while True:
            expansion = expand_jobs()
            sent = Dispatcher("send_mail").run()
            retried = Dispatcher("retry_deferred", deferred=True).run()
            bounce_count = FakeProvider.report_bounces()
            for report in (sent, retried):
                total.add(report)
                total.seconds += report.seconds
            total.is_blocked = sent.is_blocked or retried.is_blocked
            ended = [report.outcomes.total() + report.rescued + report.expired for report in (sent, retried)]
            if not (expansion.jobs or bounce_count or any(ended)):
                return total

    def advance(self, *, seconds: float = 0, minutes: float = 0, hours: float = 0, days: float = 0) -> None:
        """Let so much time pass, at once. Nothing is sent meanwhile: that takes `drain()`."""
        self._clock.advance(seconds=seconds, minutes=minutes, hours=hours, days=days)
        for alias in [alias for alias, end in self._ends.items() if end <= self.now]:
            self.recover(alias)

    def fail(
        self,
        alias: str,
        how: str = "unavailable",
        *,
        times: int | None = None,
        seconds: float = 0,
        minutes: float = 0,
        hours: float = 0,
        days: float = 0,
    ) -> None:
        """Let this provider fail, for so long, or at its next `times` calls, or else until `recover()`.

        `how` is a word of `FakeProvider`: unavailable, hang, lost_reply, bounce, … Raises ValueError for a word that is
        none, and `UnknownProvider`, which is one.
        """
        self.provider(alias).fail(how, times=times)
        self._ends.pop(alias, None)
        if duration := timedelta(seconds=seconds, minutes=minutes, hours=hours, days=days):
            self._ends[alias] = self.now + duration

    def recover(self, alias: str) -> None:
        """Let this provider do as its script says again; without one it accepts everything."""
        self.provider(alias).recover()
        self._ends.pop(alias, None)

    def report(self, message: Message, event_type: str) -> None:
        """Let the provider's webhook report this of a message: "delivered", "bounced", "complained", …"""
        report_event(event_type, message_id=str(message.pk), recipient=message.recipient)

    # What is to be seen

    @property
    def outbox(self) -> list[EmailMessage]:
        """What the providers took, in that order, whether or not mailengine heard of it."""
        return [handover.email for handover in FakeProvider.handovers() if handover.took_it]

    @property
    def handovers(self) -> list[Handover]:
        """What the providers were handed, in that order, and what each did."""
        return FakeProvider.handovers()

    @property
    def messages(self) -> MessageQuerySet:
        """All messages, the oldest first."""
        return Message.objects.order_by("pk")

    @property
    def now(self) -> datetime:
        """The instant at which the queue's clock stands."""
        return self._clock.now

    def provider(self, alias: str) -> Record:
        """What this provider saw: `calls`, `accepted`. Raises `UnknownProvider`."""
        get_settings().provider(alias)
        return FakeProvider.named(mailer_options(alias).get("name") or alias)


def _settings_for_tests() -> dict[str, Any]:
    """The settings to change, so that providers are fake, Django's mail is queued and nothing leaves the process."""
    written, providers = _written_mailers(), get_settings().providers
    mailers = {alias: _entry_for_tests(entry, is_provider=alias in providers) for alias, entry in written.items()}
    # Alerts go out by a thread of their own: among what the queue sends they would be now here, now there.
    ours = {"CONNECTIONS": 1, "ALERT_MAILER": ALERTS}
    changed: dict[str, Any] = {
        "MAILERS": {**mailers, ALERTS: {"BACKEND": OUTBOX}},
        "MAILENGINE": {**getattr(django_settings, "MAILENGINE", {}), **ours},
    }
    if django.VERSION < (6, 1):
        changed["EMAIL_BACKEND"] = mailers.get("default", {}).get("BACKEND", OUTBOX)
    return changed


def _written_mailers() -> dict[str, Mapping[str, Any]]:
    """`MAILERS` as the project has it: from 6.1 on Django's test runner puts another in its place."""
    saved = getattr(test_utils._TestState, "saved_data", None)
    before: Mapping[str, Any] = getattr(saved, "mailers", {})
    now: Mapping[str, Any] = getattr(django_settings, "MAILERS", {})
    return {alias: before.get(alias, entry) if entry == {"BACKEND": OUTBOX} else entry for alias, entry in now.items()}


def _entry_for_tests(entry: Mapping[str, Any], *, is_provider: bool) -> Mapping[str, Any]:
    stays = FakeProvider if is_provider else EmailBackend
    try:
        backend = import_string(entry.get("BACKEND", SMTP_BACKEND))
    except ImportError:  # of an ESP whose library these tests do without
        backend = None
    if isinstance(backend, type) and issubclass(backend, stays):
        return entry
    return {"BACKEND": BACKEND if is_provider else OUTBOX}
