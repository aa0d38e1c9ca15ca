"""Where a message stands, in a sentence for people."""

from __future__ import annotations

from datetime import datetime

from django.utils import timezone
from django.utils.formats import date_format
from django.utils.translation import gettext

from ..models import Message, MessageJob, Priority
from .providers import picture
from .waits import Reason, wait_of

Status = Message.Status


def standing_of(message: Message, *, now: datetime) -> str:
    """What became of a message or will become of it next, and when; `now` is by the database's clock."""
    words = {
        "reason": message.reason or gettext("no reason was given"),
        "due": _instant(message.available_at),
        "provider": message.provider or gettext("a provider"),
        "worker": message.worker_name if message.status == Status.SENDING else "",
        "attempts": message.attempt_count,
        "sent": _instant(message.sent_at),
        "leased": _instant(message.leased_until),
        "expires": _instant(message.expires_at),
    }
    return _wait(message, now=now) or _sentence(message, now=now) % words


def _wait(message: Message, *, now: datetime) -> str:
    """Why it can't go though it is due; empty where it isn't, and where its providers are not what is in its way."""
    if message.status not in (Status.QUEUED, Status.DEFERRED) or not message.available_at or message.available_at > now:
        return ""
    if message.job is not None and message.job.status in (MessageJob.Status.PAUSED, MessageJob.Status.CANCELLED):
        return ""
    seen = picture(now=now, with_traffic=False)
    wait = wait_of(message.stream, seen, is_bulk=message.priority >= Priority.BULK)
    if wait is None:
        return ""
    named = ", ".join(f"{report.alias} ({report.label})" for report in wait.providers)
    words = {"providers": named or gettext("there are none")}
    if wait.reason is Reason.LIMITED and wait.until is not None:
        words = {"provider": wait.providers[0].alias, "until": _instant(wait.until)}
        return gettext("Due: it waits for the limit of %(provider)s until %(until)s.") % words
    if wait.reason is Reason.SWITCHED_OFF:
        return gettext("Due, but none of its providers may be given new mail: %(providers)s.") % words
    return gettext("Due, but none of its providers can be used: %(providers)s.") % words


def _sentence(message: Message, *, now: datetime) -> str:
    waits = message.available_at is not None and message.available_at > now
    match message.status:
        case Status.QUEUED | Status.DEFERRED if message.job and message.job.status == MessageJob.Status.PAUSED:
            return gettext("It waits because its job is paused, and goes on when the job is resumed.")
        case Status.QUEUED | Status.DEFERRED if message.job and message.job.status == MessageJob.Status.CANCELLED:
            return gettext("Its job is cancelled; it will be withdrawn by the next run.")
        case Status.QUEUED if waits:
            return gettext("Queued, to be sent from %(due)s on.")
        case Status.QUEUED:
            return gettext("Queued and due: the next run of send_mail takes it, by priority and age.")
        case Status.SENDING if message.leased_until is not None and message.leased_until < now:
            return gettext("Its worker %(worker)s was lost; the next run takes it back.")
        case Status.SENDING:
            return gettext("The worker %(worker)s is sending it now; its lease ends at %(leased)s.")
        case Status.DEFERRED if waits:
            return gettext("Refused for now: %(reason)s. Next try at %(due)s; attempts so far: %(attempts)s.")
        case Status.DEFERRED:
            return gettext("Refused for now: %(reason)s. Due again; attempts so far: %(attempts)s.")
        case Status.UNCERTAIN if message.available_at is None:
            return gettext(
                "It may have gone, and nothing proves either: %(reason)s. It is kept for a person, who requeues it, "
                "marks it as sent, or gives up on it."
            )
        case Status.UNCERTAIN:
            return gettext(
                "It may have gone: %(reason)s. We wait for proof from %(provider)s until %(due)s; without it, the mail "
                "is sent once more."
            )
        case Status.SENT:
            return _sent(message)
        case Status.DEAD:
            return gettext("Given up on: %(reason)s. A person may requeue it.")
        case Status.SUPPRESSED:
            return gettext("Not sent: %(reason)s.")
        case Status.CANCELLED:
            return gettext("Withdrawn before it was sent: %(reason)s.")
        case _:
            return gettext("Not sent: its time was over at %(expires)s.")


def _sent(message: Message) -> str:
    if not message.provider:
        return gettext("Sent: %(reason)s.")
    if message.reason:
        return gettext("Sent (%(reason)s), last by %(provider)s, at %(sent)s.")
    match message.delivery:
        case "":
            return gettext("Accepted by %(provider)s at %(sent)s; nothing was reported about it since.")
        case Message.Delivery.BOUNCED:
            return gettext("Accepted by %(provider)s at %(sent)s, but it bounced later.")
        case Message.Delivery.COMPLAINED:
            return gettext("Accepted by %(provider)s at %(sent)s; the recipient complained about it.")
        case _:
            return gettext("Accepted by %(provider)s at %(sent)s, and delivered.")


def _instant(value: datetime | None) -> str:
    return "" if value is None else date_format(timezone.localtime(value), "DATETIME_FORMAT")
