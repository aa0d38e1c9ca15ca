"""From a job to its messages: one for each address, in committed pieces that resume where they stopped."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from threading import Event
from typing import Any, NamedTuple, TypeVar

from django.db import Error as DatabaseFault
from django.db import connections, router, transaction
from django.db.models import QuerySet

from ..addresses import is_normal, parse_address
from ..clock import read_now
from ..errors import InvalidAddress, InvalidMail, UnknownAudience
from ..models import Message, MessageJob
from ..models.jobs import PROBLEMS_KEPT
from ..models.locks import limit_locks
from ..models.waking import wake_workers
from .audience import find_audience
from .checked import checked_json
from .enqueue import PIECE, check_merge_fields
from .outage import one_line_of, passes, persist

logger = logging.getLogger("mailengine.expand")

FOLLOW_BATCH = 1_000
TRIES = 6
"""To read on: 3 seconds, after which an audience whose own database is away holds up the others no more."""

T = TypeVar("T")


@dataclass
class ExpansionReport:
    """What a run of `process_mail_jobs` did."""

    jobs: int = 0
    messages: int = 0
    duplicates: int = 0
    malformed: int = 0
    paused: int = 0
    postponed: int = 0
    """Jobs that a database did not let go on; the next run takes them up."""
    followed: int = 0
    """Messages that were cancelled or let go on with their job."""
    jobs_done: int = 0
    seconds: float = 0.0
    stopped: str = "done"

    @property
    def is_empty(self) -> bool:
        return not (self.jobs or self.paused or self.followed or self.jobs_done)

    def add(self, other: ExpansionReport) -> None:
        """Add the counts of another process."""
        for name in ("jobs", "messages", "duplicates", "malformed", "paused", "postponed", "followed", "jobs_done"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "seconds": round(self.seconds, 3)}


class Entry(NamedTuple):
    """One recipient as the job was given it."""

    line: int
    address: str
    merge_data: Mapping[str, object] | None = None


@dataclass
class Sorted:
    """A piece, looked through: who gets a message, and who doesn't."""

    good: dict[str, tuple[list[dict[str, str]] | None, Mapping[str, object] | None]] = field(default_factory=dict)
    """By normalised address: what else there is to say of the recipient, and the merge data."""
    duplicates: int = 0
    problems: list[dict[str, Any]] = field(default_factory=list)


class AudienceAway(Exception):  # noqa: N818  what it says is no error of ours
    """An audience's own database did not let it go on."""


def expand_jobs(
    *,
    max_time: float | None = 50,
    limit: int | None = None,
    stop: Event | None = None,
    on_progress: Callable[[ExpansionReport], None] | None = None,
) -> ExpansionReport:
    """Make the messages of all due jobs, the most urgent first, for at most `max_time` seconds and `limit` messages.

    A job is taken up where it was left; two runs on one job hinder each other, and double nothing. A database that is
    away is waited for within that time.
    """
    ends_at = float("inf") if max_time is None else time.monotonic() + max_time
    return Expander(ends_at, limit, stop or Event(), on_progress).run()


@dataclass
class Expander:
    """One run over the due jobs."""

    ends_at: float
    limit: int | None
    stop: Event
    on_progress: Callable[[ExpansionReport], None] | None
    is_patient: bool = True
    """Whether it waits for a database that is away; otherwise its job is left for later, and others need not wait."""
    report: ExpansionReport = field(default_factory=ExpansionReport)
    using: str = field(default_factory=lambda: router.db_for_write(Message))
    _failures: Counter[tuple[int, int]] = field(default_factory=Counter)
    """How often an audience's database failed, by job and cursor."""

    def run(self) -> ExpansionReport:
        started_at = time.monotonic()
        self._persist(self._follow_jobs)
        for pk in self._persist(lambda: list(MessageJob.objects.due().values_list("pk", flat=True))):
            if self._must_stop():
                break
            for _piece in self.expand(pk):
                pass
        self.report.jobs_done = self._persist(MessageJob.objects.finish)
        self.report.seconds = time.monotonic() - started_at
        return self.report

    def _must_stop(self) -> bool:
        if self.stop.is_set():
            self.report.stopped = "signal"
        elif time.monotonic() >= self.ends_at:
            self.report.stopped = "max_time"
        elif self.limit is not None and self.report.messages >= self.limit:
            self.report.stopped = "limit"
        else:
            return False
        return True

    def _persist(self, work: Callable[[], T], *, recover: Callable[[], None] | None = None) -> T:
        must_stop = self._must_stop if self.is_patient else lambda: True
        return persist(work, using=self.using, must_stop=must_stop, recover=recover)

    def _follow_jobs(self) -> None:
        for _piece in self.follow_jobs():
            if self._must_stop():
                return

    def follow_jobs(self) -> Iterator[None]:
        """Let messages follow a job that was cancelled or resumed; Begin has held them back since that moment.

        A piece is done each time that the next value is asked for.
        """
        for job in MessageJob.objects.filter(unsettled=True).only("status"):
            while followed := Message.objects.follow(job, limit=FOLLOW_BATCH):
                self.report.followed += followed
                yield
            MessageJob.objects.filter(pk=job.pk, status=job.status).update(unsettled=False)

    def expand(self, pk: int) -> Iterator[None]:
        """Make the messages of this job, a piece each time that the next value is asked for.

        Whatever goes wrong is the job's business alone: it is paused, or left for later.
        """
        try:
            job = self._persist(MessageJob.objects.filter(pk=pk).select_related("content").first)
            if job is None or not self._persist(job.start):
                return
            self.report.jobs += 1
            pieces = Pieces(self, job)
            while self._persist(pieces.make_one, recover=pieces.start_again) and not self._must_stop():
                yield
        except (UnknownAudience, InvalidMail) as error:
            self._pause(pk, str(error))
        except Exception as error:
            if isinstance(error, AudienceAway) or (isinstance(error, DatabaseFault) and passes(error)):
                # A database that is away, ours or an audience's, is no fault of the job.
                logger.warning("job %s is left to the next run: %s", pk, one_line_of(error), extra={"job": pk})
                self.report.postponed += 1
            else:
                # An audience is the project's own code: its bug holds this job, with the traceback in the log, and no
                # other.
                logger.exception("job %s could not be expanded", pk, extra={"job": pk})
                self._pause(pk, f"it could not be expanded: {type(error).__name__}: {error}")

    def _pause(self, pk: int, reason: str) -> None:
        self.report.paused += self._persist(lambda: MessageJob.objects.filter(pk=pk).pause(f"paused: {reason}"))

    def make_piece(self, job: MessageJob, entries: Iterator[Entry]) -> bool:
        """Make the messages of the next piece; whether there may be another."""
        size = PIECE if self.limit is None else min(PIECE, self.limit - self.report.messages)
        batch = self._next(job, entries, size)
        is_last = len(batch) < size
        if any(entry.merge_data is not None for entry in batch):
            check_merge_fields(job.subject, job.text, job.html)
        if not self._write(job, batch, is_last=is_last):
            return False  # another run has this piece, or the job was stopped
        if self.on_progress is not None:
            self.on_progress(self.report)
        return not is_last

    def catch_up(self, job: MessageJob) -> None:
        """Read where the job stands: a commit whose answer was lost has moved its cursor, and is counted now."""
        made, duplicates, malformed = job.message_count, job.duplicate_count, job.malformed_count
        with transaction.atomic(using=self.using):
            limit_locks(self.using)
            # Locked, so that a commit which is still on its way is waited for.
            job.refresh_from_db(
                fields=["cursor", "message_count", "duplicate_count", "malformed_count", "problems"],
                from_queryset=MessageJob.objects.select_for_update(),
            )
        self.report.messages += job.message_count - made
        self.report.duplicates += job.duplicate_count - duplicates
        self.report.malformed += job.malformed_count - malformed

    def _next(self, job: MessageJob, entries: Iterator[Entry], size: int) -> list[Entry]:
        """The next piece. Raises `AudienceAway` when it failed too often, though our own database answers."""
        try:
            return list(islice(entries, size))
        except DatabaseFault as error:
            self._failures[job.pk, job.cursor] += 1
            if job.audience and passes(error) and self._failures[job.pk, job.cursor] >= TRIES:
                raise AudienceAway(one_line_of(error)) from error
            raise

    def _write(self, job: MessageJob, batch: list[Entry], *, is_last: bool) -> bool:
        """Make the messages of one piece and move the job's cursor past it, in one commit; False if it wasn't ours."""
        looked_through = _sort(job, batch)
        with transaction.atomic(using=self.using):
            limit_locks(self.using)
            if not job.hold():
                return False
            rows = ((key, exact, merge_data) for key, (exact, merge_data) in looked_through.good.items())
            made = Message.objects.insert_many(job, rows, now=read_now(self.using))
            wake_workers(self.using)
            duplicates = looked_through.duplicates + len(looked_through.good) - made
            job.advance(
                to=job.cursor + len(batch),
                made=made,
                duplicates=duplicates,
                problems=looked_through.problems,
                finished=is_last,
            )
        job.cursor += len(batch)
        job.problems = [*job.problems, *looked_through.problems][:PROBLEMS_KEPT]
        job.message_count += made
        job.duplicate_count += duplicates
        job.malformed_count += len(looked_through.problems)
        self.report.messages += made
        self.report.duplicates += duplicates
        self.report.malformed += len(looked_through.problems)
        return True


class Pieces:
    """What is left to be made of a job, from where its cursor stands."""

    def __init__(self, expander: Expander, job: MessageJob) -> None:
        self.expander = expander
        self.job = job
        self.entries = _entries(job)

    def make_one(self) -> bool:
        return self.expander.make_piece(self.job, self.entries)

    def start_again(self) -> None:
        """After an error of the database, which may have cost the audience its connection, too."""
        self.expander.catch_up(self.job)
        self.entries = _entries(self.job)


def _sort(job: MessageJob, entries: Iterable[Entry]) -> Sorted:
    found = Sorted()
    for line, text, own in entries:
        if is_normal(text):
            key, exact = text, None
        else:
            try:
                key, exact = _judged(text)
            except InvalidAddress as error:
                found.problems.append({"line": line, "address": text[:254], "why": str(error)[:300]})
                continue
        if key in found.good:
            found.duplicates += 1
        else:
            found.good[key] = (exact, _merge_data(job, key, own))
    return found


def _judged(text: str) -> tuple[str, list[dict[str, str]] | None]:
    """The key of an address, and the recipient in full where that isn't all there is to say."""
    address = parse_address(text)
    if str(address) == address.key:
        return address.key, None
    return address.key, [{"address": address.spec, "name": address.name, "kind": "to", "outcome": ""}]


def _merge_data(job: MessageJob, key: str, own: Mapping[str, object] | None) -> Mapping[str, object] | None:
    """The merge data of one recipient; None where the job has none at all, so that its words are literal."""
    if job.merge_data is None:
        return own
    shared = job.merge_data.get(key, {})
    return {**shared, **(own or {})}


def _entries(job: MessageJob) -> Iterator[Entry]:
    """What is left of the job's recipients, from its cursor on."""
    if not job.audience:
        yield from _entries_of_list(job)
        return
    entries: Iterable[Any] = find_audience(job.audience).entries()
    if isinstance(entries, QuerySet):
        entries = entries.iterator(chunk_size=PIECE)  # it would keep all that it has read
    if connections[router.db_for_write(Message)].vendor == "sqlite":
        # An open read cursor keeps its snapshot, and a write behind it fails at once when somebody else has written.
        entries = list(entries)
    yield from (_entry(line, entry) for line, entry in islice(enumerate(entries, start=1), job.cursor, None))


def _entries_of_list(job: MessageJob) -> Iterator[Entry]:
    position, done = divmod(job.cursor, PIECE)
    while (row := job.recipients.filter(position=position).first()) is not None:
        yield from (Entry(*entry) for entry in row.entries[done:])
        position, done = position + 1, 0


def _entry(line: int, entry: Any) -> Entry:
    if isinstance(entry, str):
        return Entry(line, entry)
    with suppress(TypeError, ValueError):
        address, merge_data = entry
        return Entry(line, str(address), checked_json("merge data", dict(merge_data)))
    raise InvalidMail(f"entry {line} of the audience is {entry!r}. Yield an address, or (address, merge data).")
