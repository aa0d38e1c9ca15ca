"""How the queue stands: read-only figures for `mail_status` and the sending commands."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from django.db import router
from django.db.models import Count, Min, Q
from django.db.models.functions import Coalesce

from ..clock import db_now, read_now
from ..conf import get_settings
from ..models import Message, MessageJob, ProviderState, Worker
from ..models.messages import MessageQuerySet, Status

LATE_SECONDS = 600
"""Mail and jobs that are due for longer than this are a warning."""
VERY_LATE_SECONDS = 3_600
"""And for longer than this, critical."""

GOOD, WARNING, CRITICAL, UNKNOWN = range(4)
LEVELS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")


@dataclass(frozen=True)
class Waiting:
    """Mail that is still to be sent."""

    count: int = 0
    oldest_seconds: float | None = None
    """How long the oldest that is due has been due."""


@dataclass(frozen=True)
class StreamDepth:
    """One stream, by the state of its unfinished mail."""

    stream: str
    due: int = 0
    scheduled: int = 0
    sending: int = 0
    deferred: int = 0
    uncertain: int = 0
    kept: int = 0
    """Uncertain, and kept for a person."""
    held: int = 0
    """With a paused job."""
    dead: int = 0
    oldest_seconds: float | None = None
    """How long the oldest has been due that `send_mail` is for."""
    oldest_deferred_seconds: float | None = None
    """How long the oldest has been due that `retry_deferred` is for."""


@dataclass(frozen=True)
class ProviderHealth:
    """One provider, in words."""

    alias: str
    state: str
    detail: str = ""
    is_usable: bool = True


@dataclass(frozen=True)
class QueueStatus:
    """The whole picture at `now`."""

    now: datetime
    streams: list[StreamDepth]
    providers: list[ProviderHealth]
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
            "providers": [asdict(provider) for provider in self.providers],
            "jobs": dict(self.jobs),
            "oldest_job_seconds": self.oldest_job_seconds,
            "workers": self.workers,
        }


def waiting_mail(*, deferred: bool = False, streams: Collection[str] | None = None, due_only: bool = False) -> Waiting:
    """What one of the sending commands still has to do."""
    mail = _mail_of_a_run(deferred=deferred, streams=streams).filter(available_at__isnull=False)
    if due_only:
        mail = mail.due()
    figures = mail.aggregate(count=Count("pk"), oldest=Min("available_at"))
    return Waiting(figures["count"], _seconds_since(figures["oldest"], now=read_now(mail.db)))


def has_work(*, deferred: bool = False, streams: Collection[str] | None = None) -> bool:
    """Whether a run of one of the sending commands would find anything to do."""
    if _mail_of_a_run(deferred=deferred, streams=streams).due().exists():
        return True
    return not deferred and (Message.objects.overdue_leases().exists() or Message.objects.expired().exists())


def _mail_of_a_run(*, deferred: bool, streams: Collection[str] | None) -> MessageQuerySet:
    statuses = [Status.DEFERRED] if deferred else [Status.QUEUED, Status.UNCERTAIN]
    mail = Message.objects.filter(status__in=statuses)
    return mail if streams is None else mail.filter(stream__in=streams)


def queue_status() -> QueueStatus:
    """How the queue stands now."""
    now = read_now(router.db_for_read(Message))
    status = QueueStatus(
        now=now,
        streams=_streams(now),
        providers=_providers(now),
        jobs=_jobs(),
        oldest_job_seconds=_oldest_job_seconds(now),
        workers=[f"{worker.name} ({worker.command})" for worker in Worker.objects.at_work().order_by("name")],
    )
    status.findings.extend(_findings(status))
    return status


def _streams(now: datetime) -> list[StreamDepth]:
    is_due = Q(available_at__lte=db_now())
    for_send_mail = Q(status__in=[Status.QUEUED, Status.UNCERTAIN])
    rows = (
        Message.objects.filter(status__in=[*Message.OPEN_STATUSES, Status.DEAD])
        .values("stream")
        .order_by("stream")
        .annotate(
            due=Count("pk", filter=Q(status=Status.QUEUED) & is_due),
            scheduled=Count("pk", filter=Q(status=Status.QUEUED, available_at__gt=db_now())),
            held=Count("pk", filter=Q(status__in=[Status.QUEUED, Status.DEFERRED], available_at=None)),
            sending=Count("pk", filter=Q(status=Status.SENDING)),
            deferred=Count("pk", filter=Q(status=Status.DEFERRED, available_at__isnull=False)),
            uncertain=Count("pk", filter=Q(status=Status.UNCERTAIN, available_at__isnull=False)),
            kept=Count("pk", filter=Q(status=Status.UNCERTAIN, available_at=None)),
            dead=Count("pk", filter=Q(status=Status.DEAD)),
            oldest=Min("available_at", filter=for_send_mail & is_due),
            oldest_deferred=Min("available_at", filter=Q(status=Status.DEFERRED) & is_due),
        )
    )
    depths = []
    for row in rows:
        figures: dict[str, Any] = dict(row)
        oldest = _seconds_since(figures.pop("oldest"), now=now)
        oldest_deferred = _seconds_since(figures.pop("oldest_deferred"), now=now)
        depths.append(StreamDepth(**figures, oldest_seconds=oldest, oldest_deferred_seconds=oldest_deferred))
    return depths


def _providers(now: datetime) -> list[ProviderHealth]:
    states = {state.alias: state for state in ProviderState.objects.all()}
    return [_health(alias, states.get(alias), now) for alias in get_settings().providers]


def _health(alias: str, state: ProviderState | None, now: datetime) -> ProviderHealth:
    if state is None:
        return ProviderHealth(alias, "in use", "not tried yet")
    circuit = state.circuit
    if circuit.is_open:
        since = _clock(circuit.opened_at)
        probe_at = circuit.next_probe_at(get_settings().circuit_policy)
        next_probe = "now" if probe_at is None or probe_at <= now else _clock(probe_at)
        word = "misconfigured" if circuit.misconfigured else "resting"
        return ProviderHealth(alias, word, f"since {since}, next try {next_probe}; {state.last_error}", is_usable=False)
    if circuit.is_throttled(now=now):
        return ProviderHealth(alias, "throttled", f"until {_clock(circuit.throttled_until)}", is_usable=False)
    if circuit.bad_rounds:
        return ProviderHealth(alias, "in use", f"{circuit.bad_rounds} bad in a row; {state.last_error}")
    return ProviderHealth(alias, "in use")


def _jobs() -> dict[str, int]:
    rows = MessageJob.objects.filter(status__in=MessageJob.UNFINISHED).values("status").annotate(count=Count("pk"))
    return {row["status"]: row["count"] for row in rows.order_by("status")}


def _oldest_job_seconds(now: datetime) -> float | None:
    unbegun = MessageJob.objects.due().filter(status=MessageJob.Status.QUEUED).order_by()
    return _seconds_since(unbegun.aggregate(oldest=Min(Coalesce("send_at", "created_at")))["oldest"], now=now)


def _findings(status: QueueStatus) -> list[tuple[int, str]]:
    found = []
    for stream in status.streams:
        mail, again = f"{stream.stream}: the oldest mail", f"{stream.stream}: the oldest deferred mail"
        found += _late(mail, stream.oldest_seconds, command="send_mail")
        found += _late(again, stream.oldest_deferred_seconds, command="retry_deferred")
        if stream.kept:
            text = f"{stream.stream}: {stream.kept:,} may have gone and wait for a person to decide in the admin"
            found.append((WARNING, text))
    found += _late("the oldest job", status.oldest_job_seconds, command="process_mail_jobs")
    unusable = [provider for provider in status.providers if not provider.is_usable]
    waits = any(stream.due for stream in status.streams)
    for provider in unusable:
        level = CRITICAL if waits and len(unusable) == len(status.providers) else WARNING
        found.append((level, f"provider {provider.alias} is {provider.state}, {provider.detail}"))
    if not status.providers:
        found.append((CRITICAL, 'no providers: MAILENGINE["PROVIDERS"] is empty'))
    if status.jobs.get(MessageJob.Status.PAUSED):
        found.append((WARNING, f"paused jobs: {status.jobs[MessageJob.Status.PAUSED]:,}, the admin says why"))
    return found


def _late(what: str, seconds: float | None, *, command: str) -> list[tuple[int, str]]:
    if seconds is None or seconds <= LATE_SECONDS:
        return []
    text = f"{what} has been due for {int(seconds // 60):,} min; does {command} run?"
    return [(CRITICAL if seconds > VERY_LATE_SECONDS else WARNING, text)]


def _seconds_since(instant: datetime | None, *, now: datetime) -> float | None:
    if instant is None or instant > now:
        return None
    return round((now - instant).total_seconds(), 1)


def _clock(instant: datetime | None) -> str:
    return f"{instant:%H:%M:%S} UTC" if instant else "?"
