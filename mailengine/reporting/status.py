"""How the queue stands: read-only figures for `mail_status` and the sending commands."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from django.db import router
from django.db.models import Count, Min
from django.db.models.functions import Coalesce

from ..clock import read_now
from ..models import Message, MessageJob, Worker
from ..models.messages import MessageQuerySet, Status
from .depth import StreamDepth, depths, seconds_since
from .pace import slow_workers
from .providers import BROKEN, DISABLED, LIMITED, SWITCHED_OFF, Picture, ProviderReport, picture
from .waits import Reason, Wait, begun_lately, carriers_of, switched_off, wait_of

LATE_SECONDS = 600
"""Mail and jobs that are due for longer than this are a warning."""
VERY_LATE_SECONDS = 3_600
"""And for longer than this, critical."""

DAY = 86_400

GOOD, WARNING, CRITICAL, UNKNOWN = range(4)
LEVELS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")


@dataclass(frozen=True)
class Waiting:
    """Mail that is still to be sent."""

    count: int = 0
    oldest_seconds: float | None = None
    """How long the oldest that is due has been due."""


@dataclass(frozen=True)
class QueueStatus:
    """The whole picture at `now`."""

    now: datetime
    streams: list[StreamDepth]
    providers: list[ProviderReport]
    jobs: Mapping[str, int]
    """How many are in each unfinished state."""
    oldest_job_seconds: float | None
    """How long the oldest has been due that nobody has begun to expand."""
    workers: list[str]
    findings: list[tuple[int, str]] = field(default_factory=list)
    """(level, sentence) for whatever is not as it should be."""

    @property
    def level(self) -> int:
        return max((level for level, _text in self.findings), default=GOOD)

    def worst_first(self) -> list[tuple[int, str]]:
        return sorted(self.findings, key=lambda finding: -finding[0])

    def as_dict(self) -> dict[str, Any]:
        return {
            "now": self.now.isoformat(),
            "level": LEVELS[self.level],
            "findings": [{"level": LEVELS[level], "text": text} for level, text in self.worst_first()],
            "streams": [asdict(stream) for stream in self.streams],
            "providers": [provider.as_dict() for provider in self.providers],
            "jobs": dict(self.jobs),
            "oldest_job_seconds": self.oldest_job_seconds,
            "workers": self.workers,
        }


def waiting_mail(*, deferred: bool = False, streams: Collection[str] | None = None, due_only: bool = False) -> Waiting:
    """What one of the sending commands still has to do."""
    mail = _mail_of_a_run(deferred=deferred, streams=streams).filter(available_at__isnull=False)
    if due_only:
        mail = mail.due()
    figures = mail.aggregate(count=Count("*"), oldest=Min("available_at"))
    return Waiting(figures["count"], seconds_since(figures["oldest"], now=read_now(mail.db)))


def has_work(*, deferred: bool = False, streams: Collection[str] | None = None) -> bool:
    """Whether a run of one of the sending commands would find anything to do."""
    if _mail_of_a_run(deferred=deferred, streams=streams).due().exists():
        return True
    return not deferred and (Message.objects.overdue_leases().exists() or Message.objects.expired().exists())


def _mail_of_a_run(*, deferred: bool, streams: Collection[str] | None) -> MessageQuerySet:
    statuses = [Status.DEFERRED] if deferred else [Status.QUEUED, Status.UNCERTAIN]
    mail = Message.objects.filter(status__in=statuses)
    return mail if streams is None else mail.filter(stream__in=streams)


def queue_status(*, with_traffic: bool = True) -> QueueStatus:
    """How the queue stands now; without what the providers were given in the last 24 hours, if nobody asks for it."""
    now = read_now(router.db_for_read(Message))
    seen = picture(now=now, with_traffic=with_traffic)
    workers = list(Worker.objects.at_work().order_by("name"))
    status = QueueStatus(
        now=now,
        streams=depths(now),
        providers=list(seen.reports.values()),
        jobs=_jobs(),
        oldest_job_seconds=_oldest_job_seconds(now),
        workers=[f"{worker.name} ({worker.command})" for worker in workers],
    )
    status.findings.extend(_findings(status, seen))
    if any(stream.due for stream in status.streams):
        status.findings.extend((WARNING, sentence) for sentence in slow_workers(workers, now=now))
    return status


def _jobs() -> dict[str, int]:
    rows = MessageJob.objects.filter(status__in=MessageJob.UNFINISHED).values("status").annotate(count=Count("pk"))
    return {row["status"]: row["count"] for row in rows.order_by("status")}


def _oldest_job_seconds(now: datetime) -> float | None:
    unbegun = MessageJob.objects.due().filter(status=MessageJob.Status.QUEUED).order_by()
    return seconds_since(unbegun.aggregate(oldest=Min(Coalesce("send_at", "created_at")))["oldest"], now=now)


def _findings(status: QueueStatus, seen: Picture) -> list[tuple[int, str]]:
    found = [finding for stream in status.streams for finding in _of_stream(stream, seen)]
    found += _of_job(status)
    found += _of_providers(status, seen)
    found += [finding for report in status.providers for finding in _of_uncertain(report)]
    if status.jobs.get(MessageJob.Status.PAUSED):
        found.append((WARNING, f"paused jobs: {status.jobs[MessageJob.Status.PAUSED]:,}, the admin says why"))
    return found


def _of_stream(stream: StreamDepth, seen: Picture) -> Iterator[tuple[int, str]]:
    """What waits too long, and for what."""
    yield from _of_mail(
        stream, "mail", {True: stream.oldest_bulk_seconds, False: stream.oldest_other_seconds}, "send_mail", seen
    )
    deferred = {True: stream.oldest_deferred_bulk_seconds, False: stream.oldest_deferred_other_seconds}
    yield from _of_mail(stream, "deferred mail", deferred, "retry_deferred", seen)
    if stream.kept:
        yield WARNING, f"{stream.stream}: {stream.kept:,} may have gone and wait for a person to decide in the admin"


def _of_mail(
    stream: StreamDepth, what: str, oldest: Mapping[bool, float | None], command: str, seen: Picture
) -> Iterator[tuple[int, str]]:
    """`oldest` says how long the oldest has been due, of priority BULK (True) and of any other."""
    begun = begun_lately(seen.now) if max(oldest[True] or 0, oldest[False] or 0) > LATE_SECONDS else None
    unexplained: dict[str, float] = {}
    for is_bulk, seconds in oldest.items():
        if seconds is None:
            continue
        wait = wait_of(stream.stream, seen, is_bulk=is_bulk, begun=begun)
        if wait is not None and wait.reason is Reason.LIMITED:
            has_two_kinds = None not in oldest.values()
            whose = f"{what} of priority BULK" if is_bulk and has_two_kinds else what
            yield _waits_for_limit(f"{stream.stream}: {whose}", seconds, wait)
        elif wait is None or wait.reason is Reason.BROKEN:
            mend = "and none of its providers can be used" if wait else f"does {command} run?"
            unexplained[mend] = max(seconds, unexplained.get(mend, 0))
    for mend, seconds in unexplained.items():
        yield from _late(f"{stream.stream}: the oldest {what}", seconds, mend=mend)


def _waits_for_limit(what: str, seconds: float, wait: Wait) -> tuple[int, str]:
    """To wait for a limit is as it should be; that it takes more than a day is for an operator to know."""
    aliases = " and ".join(report.alias for report in wait.providers)
    first = wait.providers[0]
    if wait.until is not None:
        text = f"{what} waits for the limit of {first.alias} until {first.in_utc(wait.until)}"
    else:
        text = f"{what} goes as fast as the limit of {aliases} lets it"
    if seconds > DAY:
        return WARNING, f"{text}; the oldest has been due for {seconds / 3600:,.0f} h"
    return GOOD, text


def _of_job(status: QueueStatus) -> Iterator[tuple[int, str]]:
    if status.oldest_job_seconds is not None:
        yield from _late("the oldest job", status.oldest_job_seconds, mend="does process_mail_jobs run?")


def _of_providers(status: QueueStatus, seen: Picture) -> Iterator[tuple[int, str]]:
    if not status.providers:
        yield CRITICAL, 'no providers: MAILENGINE["PROVIDERS"] is empty'
        return
    in_use = [provider for provider in status.providers if provider.state not in SWITCHED_OFF]
    broken = [provider for provider in in_use if provider.state in BROKEN]
    waits = any(stream.due for stream in status.streams)
    for provider in broken:
        level = CRITICAL if waits and len(broken) == len(in_use) else WARNING
        mend = f". {provider.trouble.what} {provider.trouble.mend}" if provider.trouble else ""
        yield level, f"provider {provider.alias} is {provider.state}, {provider.detail}{mend}"
    due = {stream.stream for stream in status.streams if stream.due}
    for stream in switched_off(seen):
        who = ", ".join(f"{report.alias} is {report.state}" for report in carriers_of(stream, seen))
        text = f"{stream}: none of its providers may be given new mail{f': {who}' if who else ''}"
        yield CRITICAL if stream in due else WARNING, text


def _of_uncertain(report: ProviderReport) -> Iterator[tuple[int, str]]:
    """Mail that may have gone by this provider and is to go by it once more, since its window is over."""
    seconds = seconds_since(report.uncertain_due_at, now=report.now)
    if seconds is None or report.state in BROKEN or report.state == LIMITED:  # it waits, and that is told already
        return
    if report.state == DISABLED and seconds > LATE_SECONDS:
        yield WARNING, f"provider {report.alias} is disabled, {report.detail}"
    elif report.state != DISABLED:
        what = f"the oldest mail that may have gone by {report.alias}"
        yield from _late(what, seconds, mend="does send_mail run?")


def _late(what: str, seconds: float, *, mend: str) -> Iterator[tuple[int, str]]:
    if seconds > LATE_SECONDS:
        text = f"{what} has been due for {int(seconds // 60):,} min{'; ' if mend.endswith('?') else ', '}{mend}"
        yield CRITICAL if seconds > VERY_LATE_SECONDS else WARNING, text
