"""From a job to its messages: one for each address, in committed pieces that resume where they stopped."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from threading import Event
from typing import Any

from django.db import Error as DatabaseFault
from django.db import connections, router, transaction

from ..addresses import Address, parse_address
from ..clock import read_now
from ..errors import InvalidAddress, InvalidMail, UnknownAudience
from ..models import Message, MessageJob
from ..models.jobs import PROBLEMS_KEPT
from .audience import find_audience
from .checked import checked_json
from .enqueue import PIECE, check_merge_fields
from .outage import may_try_again, one_line_of, passes, persist, sleep, waits

logger = logging.getLogger("mailengine.expand")

FOLLOW_BATCH = 1_000
TRIES = 6
"""For one piece of a job: 3 seconds, after which an audience whose own database is away holds up the others no more."""


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
        return not (self.jobs or self.followed or self.jobs_done)

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "seconds": round(self.seconds, 3)}


@dataclass(frozen=True)
class Entry:
    """One recipient as the job was given it."""

    line: int
    address: str
    merge_data: Mapping[str, object] | None = None


@dataclass
class Sorted:
    """A piece, looked through: who gets a message, and who doesn't."""

    good: dict[str, tuple[Address, Mapping[str, object] | None]] = field(default_factory=dict)
    duplicates: int = 0
    problems: list[dict[str, Any]] = field(default_factory=list)


def expand_jobs(
    *,
    max_time: float | None = 50,
    limit: int | None = None,
    stop: Event | None = None,
    on_progress: Callable[[ExpansionReport], None] | None = None,
) -> ExpansionReport:
    """Make the messages of all due jobs, the most urgent first, for at most `max_time` seconds and `limit` messages.

    A job is taken up where it was left; two runs on one job hinder each other, and double nothing.
    """
    started_at = time.monotonic()
    ends_at = None if max_time is None else started_at + max_time
    report, stop = ExpansionReport(), stop or Event()

    def must_stop() -> bool:
        if stop.is_set():
            report.stopped = "signal"
        elif ends_at is not None and time.monotonic() >= ends_at:
            report.stopped = "max_time"
        elif limit is not None and report.messages >= limit:
            report.stopped = "limit"
        else:
            return False
        return True

    using = router.db_for_write(Message)
    persist(lambda: _follow_jobs(report, must_stop=must_stop), using=using, must_stop=must_stop)
    due = MessageJob.objects.due().select_related("content")
    for job in persist(lambda: list(due), using=using, must_stop=must_stop):
        if must_stop():
            break
        _expand(job, report, limit=limit, must_stop=must_stop, on_progress=on_progress)
    report.jobs_done = persist(MessageJob.objects.finish, using=using, must_stop=must_stop)
    report.seconds = time.monotonic() - started_at
    return report


def _follow_jobs(report: ExpansionReport, *, must_stop: Callable[[], bool]) -> None:
    """Let messages follow a job that was cancelled or resumed; Begin has held them back since that moment."""
    for job in MessageJob.objects.filter(unsettled=True):
        while followed := Message.objects.follow(job, limit=FOLLOW_BATCH):
            report.followed += followed
            if must_stop():
                return
        MessageJob.objects.filter(pk=job.pk, status=job.status).update(unsettled=False)


def _expand(
    job: MessageJob,
    report: ExpansionReport,
    *,
    limit: int | None,
    must_stop: Callable[[], bool],
    on_progress: Callable[[ExpansionReport], None] | None,
) -> None:
    using = router.db_for_write(Message)
    if not persist(job.start, using=using, must_stop=must_stop):
        return
    report.jobs += 1
    job.status = MessageJob.Status.EXPANDING
    try:
        _expand_persistently(job, report, using=using, limit=limit, must_stop=must_stop, on_progress=on_progress)
    except (UnknownAudience, InvalidMail) as error:
        _pause(job, str(error), report, must_stop=must_stop)
    except Exception as error:
        if isinstance(error, DatabaseFault) and passes(error):
            # A database that is away, ours or an audience's, is no fault of the job.
            logger.warning("job %s is left to the next run: %s", job.pk, one_line_of(error), extra={"job": job.pk})
            report.postponed += 1
        else:
            # An audience is the project's own code: its bug holds this job, with the traceback in the log, no other.
            logger.exception("job %s could not be expanded", job.pk, extra={"job": job.pk})
            _pause(job, f"it could not be expanded: {type(error).__name__}: {error}", report, must_stop=must_stop)


def _expand_persistently(
    job: MessageJob,
    report: ExpansionReport,
    *,
    using: str,
    limit: int | None,
    must_stop: Callable[[], bool],
    on_progress: Callable[[ExpansionReport], None] | None,
) -> None:
    """Make the job's messages; after a database error that passes, go on where its cursor stands."""
    pauses, failures = waits(), 0
    while True:
        start = job.cursor
        try:
            _expand_from_cursor(job, report, limit=limit, must_stop=must_stop, on_progress=on_progress)
            return
        except DatabaseFault as error:
            failures = failures + 1 if job.cursor == start else 1
            if failures >= TRIES or not may_try_again(error, using=using):
                raise
            logger.warning("job %s goes on after a database error: %s", job.pk, one_line_of(error))
        sleep(next(pauses), must_stop=must_stop)
        persist(lambda: _catch_up(job, report), using=using, must_stop=must_stop)


def _catch_up(job: MessageJob, report: ExpansionReport) -> None:
    """Read where the job stands: a commit whose answer was lost has moved its cursor, and is counted now."""
    made, duplicates, malformed = job.message_count, job.duplicate_count, job.malformed_count
    job.refresh_from_db(fields=["cursor", "message_count", "duplicate_count", "malformed_count", "problems"])
    report.messages += job.message_count - made
    report.duplicates += job.duplicate_count - duplicates
    report.malformed += job.malformed_count - malformed


def _expand_from_cursor(
    job: MessageJob,
    report: ExpansionReport,
    *,
    limit: int | None,
    must_stop: Callable[[], bool],
    on_progress: Callable[[ExpansionReport], None] | None,
) -> None:
    entries = _entries(job)
    is_last = False
    while not is_last:
        if must_stop():
            return
        size = PIECE if limit is None else min(PIECE, limit - report.messages)
        batch = list(islice(entries, size))
        is_last = len(batch) < size
        if any(entry.merge_data is not None for entry in batch):
            check_merge_fields(job.subject, job.text, job.html)
        if not _write(job, batch, report, is_last=is_last):
            return  # another run has this piece, or the job was stopped
        if on_progress is not None:
            on_progress(report)


def _pause(job: MessageJob, reason: str, report: ExpansionReport, *, must_stop: Callable[[], bool]) -> None:
    jobs, using = MessageJob.objects.filter(pk=job.pk), router.db_for_write(Message)
    report.paused += persist(lambda: jobs.pause(f"paused: {reason}"), using=using, must_stop=must_stop)


def _write(job: MessageJob, batch: list[Entry], report: ExpansionReport, *, is_last: bool) -> bool:
    """Make the messages of one piece and move the job's cursor past it, in one transaction; False if it wasn't ours."""
    using = router.db_for_write(Message)
    looked_through = _sort(job, batch)
    with transaction.atomic(using=using):
        if not job.hold():
            return False
        made = Message.objects.insert_many(job, _rows(looked_through.good), now=read_now(using))
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
    report.messages += made
    report.duplicates += duplicates
    report.malformed += len(looked_through.problems)
    return True


def _rows(good: Mapping[str, tuple[Address, Mapping[str, object] | None]]) -> Iterator[tuple[str, Any, Any]]:
    """(normalised address, what else there is to say of the recipient, merge data) for each message."""
    for key, (address, merge_data) in good.items():
        exact = None
        if str(address) != key:
            exact = [{"address": address.spec, "name": address.name, "kind": "to", "outcome": ""}]
        yield key, exact, merge_data


def _sort(job: MessageJob, entries: Iterable[Entry]) -> Sorted:
    found = Sorted()
    for entry in entries:
        try:
            address = parse_address(entry.address)
        except InvalidAddress as error:
            found.problems.append({"line": entry.line, "address": entry.address[:254], "why": str(error)[:300]})
            continue
        if address.key in found.good:
            found.duplicates += 1
            continue
        found.good[address.key] = (address, _merge_data(job, address, entry.merge_data))
    return found


def _merge_data(job: MessageJob, address: Address, own: Mapping[str, object] | None) -> Mapping[str, object] | None:
    """The merge data of one recipient; None where the job has none at all, so that its words are literal."""
    if job.merge_data is None:
        return own
    shared = job.merge_data.get(address.key, {})
    return {**shared, **(own or {})}


def _entries(job: MessageJob) -> Iterator[Entry]:
    """What is left of the job's recipients, from its cursor on."""
    if not job.audience:
        return _entries_of_list(job)
    entries: Iterable[Any] = find_audience(job.audience).entries()
    if connections[router.db_for_write(Message)].vendor == "sqlite":
        # An open read cursor keeps its snapshot, and a write behind it fails at once when somebody else has written.
        entries = list(entries)
    return (_entry(line, entry) for line, entry in islice(enumerate(entries, start=1), job.cursor, None))


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
