"""C6, expansion, content, addresses: jobs interrupted and stopped, what people put into a mail, and long queues."""

from __future__ import annotations

import re
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from email import message_from_bytes
from pathlib import Path
from random import Random
from typing import Any

from django.contrib.auth.models import User
from django.db import DatabaseError, connection, transaction
from django.db.backends.utils import CursorWrapper
from django.db.models import Max
from django.test import Client

import mailengine
from mailengine.clock import read_now
from mailengine.consent.suppress import suppress as suppress_address
from mailengine.errors import InvalidAddress, InvalidMail
from mailengine.models import Attempt, Content, ContentFile, Message, MessageJob, Suppression
from tests.hostile import ADDRESSES, FILES, HEADERS, PLAIN, UNSAFE

from .case import POSTGRESQL, Missed, case, not_built
from .points import KILL, at
from .sinks import CLOSE, Pause, Step, every, once_each, to
from .workers import Worker
from .world import UNHURRIED, World

WORDS = "Hello", "Good morning.", "desk@example.org"
INSERTED = ("mailengine.models.messages:MessageQuerySet.insert_many", "after")
"""The messages of a piece are written; its job's cursor is not yet moved."""
MOVED = ("mailengine.models.jobs:MessageJob.advance", "after")
"""The cursor is moved, too, and nothing is committed."""
COMMITTED = ("mailengine.pipeline.expand:_write", "after")
"""The piece is committed."""


def addresses(count: int) -> list[str]:
    return [f"u{number:07}@example.org" for number in range(count)]


def crowd(count: int) -> str:
    """Python that registers an audience of so many: the same addresses as above, one after the other."""
    return f"""
import mailengine
@mailengine.audience("crowd", count=lambda: {count})
def crowd():
    return (f"u{{number:07}}@example.org" for number in range({count}))
"""


# Expansion


@case("F-X01", "kill -9 in the middle of expanding a list of 100,000, 20 times", quick=True)
def killed_while_expanding(world: World, random: Random) -> None:
    count = 12_000 if world.is_quick else 100_000
    job = mailengine.queue_job(*WORDS, addresses(count))
    _kill_while_expanding(world, random, job, count=count)


@case("F-X01b", "the same with an audience that is read anew each time")
def killed_while_expanding_an_audience(world: World, random: Random) -> None:
    count = 100_000
    exec(crowd(count), {})  # noqa: S102 (our own words)
    _kill_while_expanding(world, random, mailengine.queue_job(*WORDS, "crowd"), count=count, before=crowd(count))


def _kill_while_expanding(world: World, random: Random, job: MessageJob, *, count: int, before: str = "") -> None:
    """However often it is killed, and wherever: each recipient has one message."""
    world.smtp()
    for number in world.times(20):
        if number % 2:
            _kill_between_pieces(world, random, job, before=before)
        else:
            point = random.choice([INSERTED, MOVED, COMMITTED])
            worker = world.worker("process_mail_jobs", before=before + at(point, KILL, nth=random.randint(1, 2)))
            world.until_killed(worker)
        job.refresh_from_db()
        assert job.status == "expanding", f"the kill came too late: {job.status}"
    worker = world.run("process_mail_jobs", before=before, seconds=120)
    assert worker.returncode == 0, worker.err
    assert_expanded(job, addresses(count))
    world.run("send_mail", "--limit=100")
    withdraw(world, job)  # that the others would arrive, too, is for other cases to show


def _kill_between_pieces(world: World, random: Random, job: MessageJob, *, before: str) -> None:
    """At any instant: a little after it has done a piece."""
    job.refresh_from_db()
    start = job.cursor
    worker = world.worker("process_mail_jobs", before=before)
    world.wait_until(lambda: _cursor(job) > start or not worker.is_alive, what="a piece to be done")
    time.sleep(random.uniform(0, 0.1))
    worker.kill()
    world.until_killed(worker)


def _cursor(job: MessageJob) -> int:
    return int(MessageJob.objects.values_list("cursor", flat=True).get(pk=job.pk))


def assert_expanded(job: MessageJob, expected: Sequence[str]) -> None:
    """One message for each of these, and the job says so."""
    job.refresh_from_db()
    recipients = list(job.messages.order_by("recipient").values_list("recipient", flat=True))
    assert len(recipients) == len(expected), f"{len(recipients)} messages for {len(expected)} recipients"
    assert recipients == sorted(expected)
    counted = (job.status, job.message_count, job.recipient_count, job.duplicate_count)
    assert counted == ("sending", len(expected), len(expected), 0), counted


def withdraw(world: World, job: MessageJob) -> None:
    """Cancel the job, and let its messages follow."""
    MessageJob.objects.filter(pk=job.pk).cancel()
    while MessageJob.objects.filter(pk=job.pk, unsettled=True).exists():
        world.run("process_mail_jobs")


@case("F-X03", "a job is paused or cancelled in mid-expansion", quick=True)
def stopped_while_expanding(world: World, random: Random) -> None:
    """No message of it is made after the commit; resumed, it goes on where it was."""
    world.configure(**UNHURRIED)
    world.smtp()
    for _ in world.times(8, quick=1):
        count = 8_000 if world.is_quick else 20_000
        job = mailengine.queue_job(*WORDS, addresses(count))
        worker = world.worker("process_mail_jobs")
        enough = random.randint(1, count // 2)
        world.wait_until(lambda: _cursor(job) >= enough or not worker.is_alive, what="pieces to be done")  # noqa: B023
        time.sleep(random.uniform(0, 0.1))
        is_pause = random.random() < 0.5
        mine = MessageJob.objects.filter(pk=job.pk, status="expanding")
        if not (mine.pause() if is_pause else mine.cancel()):
            raise Missed("the expansion was through")
        world.fault_count += 1
        made_count = job.messages.count()
        assert worker.wait() == 0, worker.err
        world.run("process_mail_jobs")
        assert job.messages.count() == made_count, f"{job.messages.count() - made_count} were made after the commit"
        world.run("send_mail")
        assert not Attempt.objects.filter(message__job=job).exists()
        if is_pause:
            MessageJob.objects.filter(pk=job.pk).resume()
            assert world.run("process_mail_jobs").returncode == 0
            assert_expanded(job, addresses(count))
        withdraw(world, job)


@case(
    "F-X03b",
    "a job is paused or cancelled in mid-send; some of its mail is deferred, some in doubt",
    duplicates="1 for each mail taken in silence",
    bound=lambda run: run.faults,
    quick=True,
)
def stopped_while_sending(world: World, random: Random) -> None:
    """No handover of it begins after the commit, by the clock of the database; resumed, all of it goes."""
    world.configure(**UNHURRIED, UNHEALTHY_THRESHOLD=50)
    sink = world.smtp()
    hits = 0
    for _ in world.times(20, quick=1):
        sink.heal()
        sink.on(Step.DOT, Pause(0.05))
        is_first = once_each()
        sink.on(Step.DOT, CLOSE, when=lambda moment: is_first(moment) and moment.count % 19 == 0, accepts=True)  # noqa: B023
        sink.on(Step.RCPT, "450 4.2.1 Not now", when=every(7))
        before = sink.accepted_count
        world.queue(80 if world.is_quick else 150, job=True)
        job = MessageJob.objects.latest("id")
        crew = [world.worker(command) for command in ("send_mail", "send_mail", "retry_deferred")]
        enough = before + random.randint(5, 25)
        world.wait_until(lambda: sink.accepted_count >= enough, what="mail to be under way")  # noqa: B023
        time.sleep(random.uniform(0, 0.05))
        is_pause = random.random() < 0.5
        jobs = MessageJob.objects.filter(pk=job.pk)
        assert jobs.pause() if is_pause else jobs.cancel()
        stopped_at = read_now(connection.alias)
        for worker in crew:
            worker.wait()
        hits += job.messages.filter(attempts=None).exists()
        for command in ("send_mail", "process_mail_jobs", "send_mail", "retry_deferred"):
            world.run(command)
        assert_none_begun(job, after=stopped_at)
        if is_pause:
            jobs.resume()
            world.run("process_mail_jobs")
            world.drain()
            assert set(job.messages.values_list("status", flat=True)) == {"sent"}, world.statuses()
    if hits < len(world.times(20, quick=1)) / 2:
        raise Missed("nearly all had begun before their job was stopped")
    world.drain()
    assert world.reckon().duplicates <= world.outcomes().get("uncertain", 0)


def assert_none_begun(job: MessageJob, *, after: datetime) -> None:
    late = Attempt.objects.filter(message__job=job, begun_at__gt=after).values_list("begun_at", "message__status")
    assert not late, f"{len(late)} handovers began after {after}: {list(late)}"


# Addresses

ONE_MAILBOX = [
    "A@x.example",
    "a@X.example",
    " a@x.example ",
    "a@x.example",
    "Ann <a@X.EXAMPLE>",
    '"Lee, Ann" <A@x.example>',
]
ONE_DOMAIN = ["u@b\u00fccher.example", "u@bu\u0308cher.example", "U@B\u00dcCHER.example", "u@xn--bcher-kva.example"]
"""NFC, NFD, capitals, punycode."""


@case("F-X05", "an address in every spelling, in two lists, in pieces far apart", quick=True)
def spelt_in_many_ways(world: World, random: Random) -> None:
    """One mail for each mailbox."""
    world.configure(**UNHURRIED)
    sink = world.smtp()
    others = [f"u{number}@example.org" for number in range(2_500)]
    first, second = [*ONE_MAILBOX, *ONE_DOMAIN], [*ONE_DOMAIN, *ONE_MAILBOX]
    random.shuffle(first)
    random.shuffle(second)
    job = mailengine.queue_job(*WORDS, [*first, *others, *second, *others[:100]])
    typed = mailengine.queue_job(*WORDS, ", ".join(first) + "\n" + "; ".join(second))
    world.run("process_mail_jobs")
    job.refresh_from_db()
    assert (job.message_count, job.duplicate_count, job.malformed_count) == (2_502, 118, 0)
    job.messages.filter(recipient__in=others).cancel()
    world.drain()
    both = {"a@x.example", "u@xn--bcher-kva.example"}
    for each in (job, typed):
        assert {m.recipient for m in each.messages.filter(status="sent")} == both, list(
            each.messages.values("recipient")
        )
    assert sink.accepted_count == 4


MALFORMED = [
    "foo",
    "a@",
    "@b",
    f"{'a' * 65}@example.org",
    f"{'a' * 300}@example.org",
    f"a@{'b' * 300}.example.org",
    "a@b..c",
    '"a b"@c.example',
    "a@[127.0.0.1]",
    "a@[IPv6:::1]",
    "a b@c.example",
    "a@b@c.example",
    "a@-b.example",
    "a@b_c",
    "a\r\nBcc: eve@example.net@c.example",
    "a\0@c.example",
    "a@c.example\u2028",
    "j\u00f6rg@example.org",
    "",
    " ",
]


@case("F-X06", "malformed addresses among good ones", quick=True)
def malformed_addresses(world: World, random: Random) -> None:
    """Each is counted, with its line; the good ones get their mail."""
    world.configure(**UNHURRIED)
    sink = world.smtp()
    good = addresses(30)
    entries = [*MALFORMED, *good]
    random.shuffle(entries)
    listed = mailengine.queue_job(*WORDS, entries)
    lines = [line for line in entries if line.strip() and not re.search(r"[\r\n\u2028 ]", line)]
    typed = mailengine.queue_job(*WORDS, "\n".join(lines))
    assert world.run("process_mail_jobs").returncode == 0
    for job, given in ((listed, entries), (typed, lines)):
        job.refresh_from_db()
        wrong = [number for number, entry in enumerate(given, start=1) if entry not in good]
        assert [problem["line"] for problem in job.problems] == wrong, job.problems
        assert (job.malformed_count, job.duplicate_count) == (len(wrong), 0)
        assert sorted(job.messages.values_list("recipient", flat=True)) == good
    world.drain()
    assert sink.accepted_count == 2 * len(good)


@case("F-X08", "a domain outside ASCII", quick=True)
def international_domains(world: World, random: Random) -> None:
    """Punycode in the envelope and in the headers."""
    world.configure(**UNHURRIED)
    sink = world.smtp(keeps_content=True)
    with_name = "J\u00f6rg <u@b\u00fccher.example>"
    queued = mailengine.queue_mail(
        "Hello", "Gr\u00fc\u00dfe.", "desk@m\u00fcnchen.example", [with_name], reply_to=["r@\u00e4.example"]
    )
    job = mailengine.queue_job(*WORDS, ["v@b\u00fccher.example", "w@\u4f8b\u3048.\u30c6\u30b9\u30c8"])
    world.acked.append(str(queued.pk))
    world.drain()
    assert job.messages.count() == 2
    envelopes = {recipient for copy in world.log.copies() for recipient in copy.recipients}
    assert envelopes == {"u@xn--bcher-kva.example", "v@xn--bcher-kva.example", "w@xn--r8jz45g.xn--zckzah"}, envelopes
    for _message_id, content in sink.contents:
        assert_clean(content)
    content = dict(sink.contents)[str(queued.pk)]
    assert b"<u@xn--bcher-kva.example>" in content
    assert b"desk@xn--mnchen-3ya.example" in content


@case("F-X09", "letters outside ASCII before the @", quick=True)
def international_local_parts(world: World, random: Random) -> None:
    """Refused at the door, counted in a job, dead where they are stored already; never made into another address."""
    world.configure(**UNHURRIED)
    sink = world.smtp(keeps_content=True)
    address = "j\u00f6rg@ex\u00e4mple.com"
    for arguments in ({"recipient_list": [address]}, {"recipient_list": ["a@example.org"], "cc": [address]}):
        with suppress(InvalidAddress):
            mailengine.queue_mail(*WORDS, **arguments)
            raise AssertionError(f"{arguments} was queued")
    job = mailengine.queue_job(*WORDS, [address, "ann@example.org"])
    stored = [mailengine.queue_mail(*WORDS, [to]) for to in ("a@example.org", "Bob <b@example.org>")]
    entry = {"address": address, "name": "", "kind": "to", "outcome": ""}
    Message.objects.filter(pk=stored[0].pk).update(recipient=address)
    Message.objects.filter(pk=stored[1].pk).update(recipient=address, other_recipients=[entry])
    world.drain()
    job.refresh_from_db()
    assert (job.malformed_count, job.message_count) == (1, 1)
    for message in Message.objects.filter(job=None):
        assert (message.status, message.reason[:8]) == ("dead", "invalid:"), f"{message.status}: {message.reason}"
    assert [copy.recipients for copy in world.log.copies()] == [("ann@example.org",)]
    assert b"=?utf-8?" not in sink.contents[0][1]


# Headers

USUAL = {
    *("auto-submitted", "cc", "content-transfer-encoding", "content-type", "date", "from", "list-unsubscribe"),
    *("message-id", "mime-version", "references", "reply-to", "sender", "subject", "to", "x-a", "x-mailengine-id"),
}
"""What a mail of the fields of tests/hostile.py may have, in lower case."""
HOSTILE = [*UNSAFE.values(), PLAIN["a percent line break"]]
EVE = "eve@example.net"


@case("F-X10", "line breaks and control characters in every field of a mail", quick=True)
def injected_headers(world: World, random: Random) -> None:
    """Refused at the door, or harmless: the server sees no header and no recipient that wasn't asked for."""
    world.configure(**UNHURRIED)
    sink = world.smtp(keeps_content=True)
    tried = [(queue, value) for _, queue in (HEADERS | ADDRESSES | FILES).values() for value in HOSTILE]
    if world.is_quick:
        tried = random.sample(tried, 300)
    refused = 0
    for queue, value in tried:
        try:
            world.acked.append(str(queue(value).pk))
        except InvalidMail:
            refused += 1
    assert refused, "nothing was refused"
    world.drain()
    assert world.statuses() == {"sent": len(tried) - refused}
    world.note(f"of {len(tried)} hostile values {refused} were refused at the door, the others arrived as plain text")
    assert_nothing_forged(world)
    assert sink.accepted_count == len(tried) - refused


def assert_nothing_forged(world: World) -> None:
    for _message_id, content in world.sinks[0].contents:
        assert_clean(content)
    for copy in world.log.copies():
        assert EVE not in copy.recipients, copy


def assert_clean(content: bytes) -> None:
    """No header but those that a mail has, each once, and nothing in them that ends a line somewhere."""
    head = content.partition(b"\r\n\r\n")[0]
    assert not re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\xff]", head), head
    lines = head.split(b"\r\n")
    assert not any(b"\r" in line or b"\n" in line for line in lines), head
    names = [line.partition(b":")[0].decode().lower() for line in lines if line[:1] not in b" \t"]
    assert len(names) == len(set(names)), names
    assert set(names) <= USUAL, set(names) - USUAL
    for part in message_from_bytes(content).walk():
        assert "bcc" not in part, part.keys()


@case("F-X10b", "the same in rows that no door has let in", quick=True)
def injected_rows(world: World, random: Random) -> None:
    """Dead with its reason, or harmless; the mail behind it goes."""
    world.configure(**UNHURRIED)
    world.smtp(keeps_content=True)
    tried = [(field, str(value)) for field in STORED for value in HOSTILE]
    if world.is_quick:
        tried = random.sample(tried, 40)
    refused = 0
    for field, value in tried:
        message = mailengine.queue_mail(*WORDS, ["ann@example.org"], attachments=[("a.txt", "a", "text/plain")])
        world.acked.append(str(message.pk))
        try:
            STORED[field](message, value)
        except (ValueError, DatabaseError):  # no database takes all of it: NUL, half a character
            refused += 1
    world.queue(5)
    world.drain()
    statuses = world.statuses()
    assert set(statuses) == {"sent", "dead"}, statuses
    world.note(f"of {len(tried)} hostile rows the database refused {refused}, {statuses['dead']} were dead")
    assert_nothing_forged(world)


def _in_content(field: str, wrap: Callable[[str], object] = str) -> Callable[[Message, str], object]:
    return lambda message, value: Content.objects.filter(pk=message.content_id).update(**{field: wrap(value)})


def _in_message(field: str, wrap: Callable[[str], object] = str) -> Callable[[Message, str], object]:
    return lambda message, value: Message.objects.filter(pk=message.pk).update(**{field: wrap(value)})


def _in_file(field: str) -> Callable[[Message, str], object]:
    return lambda message, value: ContentFile.objects.filter(content=message.content_id).update(**{field: value})


STORED: dict[str, Callable[[Message, str], object]] = {
    "subject": _in_content("subject"),
    "from": _in_content("from_email", lambda value: f"{value} <desk@example.org>"),
    "reply_to": _in_content("reply_to", lambda value: [f"{value} <desk@example.org>"]),
    "header": _in_content("headers", lambda value: {"X-A": value}),
    "header name": _in_content("headers", lambda value: {f"X-A{value}": "1"}),
    "List-Unsubscribe": _in_content("headers", lambda value: {"List-Unsubscribe": f"<https://example.org/{value}>"}),
    "metadata": _in_content("extras", lambda value: {"metadata": {"a": value}}),
    "recipient": _in_message("recipient", lambda value: f"ann{value}@example.org"),
    "name": _in_message(
        "other_recipients", lambda value: [{"address": "ann@example.org", "name": value, "kind": "to", "outcome": ""}]
    ),
    "cc": _in_message(
        "other_recipients",
        lambda value: [
            {"address": "ann@example.org", "name": "", "kind": "to", "outcome": ""},
            {"address": f"bob{value}@example.org", "name": "", "kind": "cc", "outcome": ""},
        ],
    ),
    "file name": _in_file("filename"),
    "file type": _in_file("mimetype"),
}
"""Writes a value into a row of a message, past every check."""


# Words and files


class Watch:
    """Looks at the memory of a process, from its birth to its end."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.samples: list[int] = []
        """Resident bytes, every fiftieth of a second."""
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @property
    def peak_mb(self) -> float:
        return max(self.samples) / 1e6

    def _watch(self) -> None:
        while self.worker.is_alive:
            with suppress(OSError, ValueError, IndexError):  # it has ended just now
                pages = int(Path(f"/proc/{self.worker.pid}/statm").read_text().split()[1])
                self.samples += [pages * 4_096] if pages else []
            time.sleep(0.02)


@case("F-X13", "a file of 10 MB to 100 recipients, and 100 files of 10 MB", databases=(POSTGRESQL,))
def large_files(world: World, random: Random) -> None:
    """A worker needs less than 150 MB, whichever it is."""
    world.configure(LEASE_SECONDS=240, SEND_DEADLINE_SECONDS=60, CONNECTIONS=8)
    world.smtp()
    job = mailengine.queue_job(*WORDS, addresses(100), attachments=[("a.pdf", random.randbytes(10_000_000))])
    world.run("process_mail_jobs")
    one_file = Watch(world.worker("send_mail", "--max-time=600"))
    assert one_file.worker.wait(seconds=600) == 0, one_file.worker.err
    assert job.messages.filter(status="sent").count() == 100, world.statuses()
    for number in range(100):
        files = [(f"{number}.pdf", random.randbytes(10_000_000))]
        world.acked.append(str(mailengine.queue_mail(*WORDS, [f"u{number}@example.org"], attachments=files).pk))
    many_files = Watch(world.worker("send_mail", "--max-time=600"))
    assert many_files.worker.wait(seconds=600) == 0, many_files.worker.err
    peaks = one_file.peak_mb, many_files.peak_mb
    figures = f"{peaks[0]:.0f} MB with one file for all, {peaks[1]:.0f} MB with a file each, 8 connections"
    world.note(f"a worker's memory: {figures}")
    assert max(peaks) < 150, figures


not_built("F-X13b", "26 MB over the limit, at the HTTP API", "The API comes later.")

NAMED = "Hello {{ name }}", "Dear {{ name }}, good morning.", "desk@example.org"


def _named(count: int, *, bad: Collection[int]) -> list[tuple[str, dict[str, str]]]:
    """Recipients with merge data; that of the bad ones can't be put into a subject."""
    return [
        (address, {"name": f"Ann\r\nBcc: {EVE}" if number in bad else "Ann"})
        for number, address in enumerate(addresses(count))
    ]


@case("F-X15", "one of 1,000 can't be composed", quick=True)
def one_bad_context(world: World, random: Random) -> None:
    world.configure(**UNHURRIED)
    world.smtp()
    count = 60 if world.is_quick else 1_000
    bad = random.randrange(count)
    job = mailengine.queue_job(*NAMED, _named(count, bad={bad}))
    world.run("process_mail_jobs")
    assert world.run("send_mail").returncode == 0
    job.refresh_from_db()
    assert (job.status, world.statuses()) == ("done", {"sent": count - 1, "dead": 1})
    dead = job.messages.get(status="dead")
    assert (dead.recipient, dead.reason[:8]) == (addresses(count)[bad], "invalid:"), dead.reason


@case("F-X15b", "none of 1,000 can be composed", quick=True)
def bad_contexts_alone(world: World, random: Random) -> None:
    """Their job is paused after five; mended and resumed, all of it goes. Other mail isn't held up."""
    world.configure(**UNHURRIED)
    admin = world.admin()
    world.smtp()
    count = 60 if world.is_quick else 1_000
    job = mailengine.queue_job(*NAMED, _named(count, bad=range(count)))
    others = world.queue(20, job=True, stream="bulk")
    crew = [world.worker("send_mail") for _ in range(2)]
    for worker in crew:
        worker.wait()
    job.refresh_from_db()
    assert job.status == "paused", world.statuses()
    assert "can't be composed: invalid: " in job.reason
    assert set(job.messages.values_list("status", flat=True)) == {"queued"}
    assert Message.objects.filter(pk__in=others, status="sent").count() == len(others)
    assert admin.accepted_count == 1, f"{admin.accepted_count} alerts"
    job.messages.update(merge_data={"name": "Ann"})
    MessageJob.objects.filter(pk=job.pk).resume()
    world.run("process_mail_jobs")
    world.drain()
    assert world.statuses() == {"sent": count + len(others)}


def _when_composing(message_id: str, do: str) -> str:
    """Python that does this when this message is composed."""
    return f"""
import os, signal
from mailengine.pipeline import composer
compose = composer.compose
def wrapped(message, words, **options):
    if str(message.pk) == {message_id!r}:
        {do}
    return compose(message, words, **options)
composer.compose = wrapped
"""


@case("F-X17", "poison at the head of the queue: it kills whoever composes it")
def deadly_head(world: World, random: Random) -> None:
    """What isn't in its claim goes with the next worker, the rest after their lease; it is dead at the third."""
    world.configure(CLAIM_BATCH=10, LEASE_SECONDS=6, SEND_DEADLINE_SECONDS=3)
    world.smtp()
    world.queue(200)
    [poison] = world.queue(1, priority=mailengine.Priority.URGENT)
    before = _when_composing(poison, KILL)
    world.until_killed(world.worker("send_mail", before=before))
    claimed = set(Message.objects.filter(status="sending").values_list("pk", flat=True))
    ends_at = Message.objects.filter(pk__in=claimed).aggregate(at=Max("leased_until"))["at"]
    world.run("send_mail", before=before)
    if read_now(connection.alias) > ends_at:
        raise Missed("the lease was over before the next worker was through")
    assert world.statuses() == {"sending": len(claimed), "sent": len(world.acked) - len(claimed)}
    _work_until_dead(world, poison, before=before)
    assert world.kills == 3, f"{world.kills} deaths"
    assert Message.objects.get(pk=poison).reason.startswith("poison: worker died 3 times")


@case("F-X17b", "the same, and it raises", quick=True)
def raising_head(world: World, random: Random) -> None:
    """All others go in the very run that meets it."""
    world.configure(**UNHURRIED)
    world.smtp()
    world.queue(40 if world.is_quick else 200)
    [poison] = world.queue(1, priority=mailengine.Priority.URGENT)
    before = _when_composing(poison, "raise ZeroDivisionError('a bug')")
    first = world.run("send_mail", before=before)
    first.may_fail = True  # the log has the traceback
    assert Message.objects.filter(status="sent").count() == len(world.acked) - 1, world.statuses()
    _work_until_dead(world, poison, before=before)
    reason = Message.objects.get(pk=poison).reason
    assert reason.startswith("poison: composing it failed 3 times"), reason


def _work_until_dead(world: World, message_id: str, *, before: str) -> None:
    """Go on until nothing is left to do, with workers that this message does something to."""

    def is_over() -> bool:
        worker = world.run("send_mail", before=before)
        worker.may_fail = True
        return not Message.objects.filter(status__in=Message.OPEN_STATUSES).exists()

    world.wait_until(is_over, seconds=60, what="the end of all messages")
    assert world.statuses() == {"dead": 1, "sent": len(world.acked) - 1}
    assert Message.objects.get(pk=message_id).status == "dead"


@case("F-X18", "recipients are suppressed after the expansion, before and while their mail goes out", quick=True)
def suppressed_in_time(world: World, random: Random) -> None:
    """No handover to them begins after the commit, by the clock of the database; not of deferred mail either."""
    world.configure(**UNHURRIED)
    sink = world.smtp()
    count = 60 if world.is_quick else 600
    ids = world.queue(count, job=True)
    people = list(Message.objects.filter(pk__in=ids).values_list("recipient", flat=True))
    random.shuffle(people)
    few = count // 10
    early, deferred, waiting = people[:few], people[few : 2 * few], people[2 * few :]
    sink.on(Step.DOT, Pause(0.03))
    sink.on(Step.RCPT, "450 4.2.1 Not now", when=to(*deferred))
    for address in early:
        suppress_address(address, reason=Suppression.Reason.UNSUBSCRIBED)
    crew = [world.worker("send_mail") for _ in range(2)]
    world.wait_until(lambda: sink.accepted_count >= few, what="mail to arrive")
    stopped = {}
    for address in waiting[: 3 * few]:
        suppress_address(address, reason=Suppression.Reason.UNSUBSCRIBED)
        stopped[address] = read_now(connection.alias)
    for worker in crew:
        worker.wait()
    for address in deferred:
        suppress_address(address, reason=Suppression.Reason.COMPLAINED)
    sink.heal()
    world.drain()
    by_address = {message.recipient: message for message in Message.objects.all()}
    assert {by_address[address].status for address in [*early, *deferred]} == {"suppressed"}, world.statuses()
    reached = {address for copy in world.log.copies() for address in copy.recipients}
    assert reached.isdisjoint([*early, *deferred]), reached & {*early, *deferred}
    for address, at_ in stopped.items():
        late = Attempt.objects.filter(message=by_address[address], begun_at__gt=at_)
        assert not late, f"a handover to {address} began after {at_}: {late[0].begun_at}"
    if not any(by_address[address].status == "suppressed" for address in stopped):
        raise Missed("all had begun before they were suppressed")


# Callers


def _call(world: World, code: str) -> Worker:
    """A process of the project's own, with this Python."""
    return world.worker("shell", "--no-imports", "--verbosity=0", "-c", code)


@case("F-X22", "mail queued in transactions that roll back, commit late, or are killed", quick=True)
def queued_in_transactions(world: World, random: Random) -> None:
    """It goes if and only if they commit, and not before."""
    world.configure(**UNHURRIED)
    sink = world.smtp()
    for number in world.times(10):
        words = [*WORDS, [f"u{number}@example.org"]]
        with suppress(ZeroDivisionError), transaction.atomic():
            mailengine.queue_mail(*words, attachments=[("a.txt", "a")])
            mailengine.queue_job(*WORDS, [f"v{number}@example.org"])
            raise ZeroDivisionError
        held = world.folder / f"held{number}"
        victim = _call(world, _queue_and_wait(words, held))
        world.wait_until(held.exists, what="mail to be queued in a transaction")
        before = sink.accepted_count
        if connection.vendor != "sqlite":  # where one writer makes all others wait
            assert world.run("send_mail").returncode == 0
        assert sink.accepted_count == before, "mail went before its transaction was committed"
        victim.kill()
        world.until_killed(victim)
        with transaction.atomic():
            world.acked.append(str(mailengine.queue_mail(*words).pk))
        world.run("process_mail_jobs")
        world.run("send_mail")
    assert world.statuses() == {"sent": len(world.acked)}
    assert not MessageJob.objects.exists()


def _queue_and_wait(words: Sequence[object], held: Path, *, key: str | None = None) -> str:
    """Python that queues a mail, says so by a file, and never commits."""
    return f"""
import pathlib, time
from django.db import transaction
import mailengine
with transaction.atomic():
    mailengine.queue_mail(*{words!r}, idempotency_key={key!r})
    pathlib.Path({str(held)!r}).touch()
    time.sleep(600)
"""


def _callers(world: World, requests: Sequence[tuple[str, str]]) -> list[Worker]:
    """A process for each of these (key, subject), all at work at the same instant."""
    go = world.folder / "go"
    go.unlink(missing_ok=True)
    crew, ready = [], []
    for number, (key, subject) in enumerate(requests):
        ready.append(world.folder / f"ready{number}")
        ready[-1].unlink(missing_ok=True)
        crew.append(_call(world, _queue_at_once(ready[-1], go, subject, key)))
    world.wait_until(lambda: all(path.exists() for path in ready), seconds=120, what="the callers to be ready")
    go.touch()
    return crew


def _queue_at_once(ready: Path, go: Path, subject: str, key: str) -> str:
    """Python that waits for the others, queues a mail, and prints its id, or that the key is taken."""
    return f"""
import pathlib, time
import mailengine, mailengine.errors
from django.db import connection
connection.ensure_connection()
pathlib.Path({str(ready)!r}).touch()
while not pathlib.Path({str(go)!r}).exists():
    time.sleep(0.02)
try:
    made = mailengine.queue_mail({subject!r}, "Text", None, ["ann@example.org"], idempotency_key={key!r})
    print(made.pk)
except mailengine.errors.IdempotencyConflict:
    print("conflict")
"""


def _answers(crew: Sequence[Worker]) -> list[str]:
    for worker in crew:
        assert worker.wait(seconds=120) == 0, worker.err[-2_000:]
    return [worker.out.strip() for worker in crew]


@case("F-A01", "the same idempotency key from 50 processes at once, and once more", quick=True)
def one_key(world: World, random: Random) -> None:
    """One row; everybody is given its id."""
    world.configure(**UNHURRIED)
    sink = world.smtp()
    for number in world.times(2, quick=1):
        requests = [(f"order-{number}", "Hello")] * (4 if world.is_quick else 50)
        ids = _answers(_callers(world, requests))
        again = _answers(_callers(world, requests[:2]))
        assert len({*ids, *again}) == 1, Counter(ids)
        world.acked += ids[:1]
    assert Message.objects.count() == len(world.acked)
    assert Content.objects.count() == len(world.acked)
    world.drain()
    assert sink.accepted_count == len(world.acked)


@case("F-A01b", "the same, and who came first dies before its commit")
def one_key_whose_first_user_dies(world: World, random: Random) -> None:
    """One of the others makes the row."""
    world.configure(**UNHURRIED)
    world.smtp()
    for number in world.times(3):
        key, held = f"order-{number}", world.folder / f"held{number}"
        words = ["Hello", "Text", None, ["ann@example.org"]]
        first = _call(world, _queue_and_wait(words, held, key=key))
        world.wait_until(held.exists, what="the first to have the key")
        crew = _callers(world, [(key, "Hello")] * 30)
        time.sleep(random.uniform(0, 1))
        first.kill()
        ids = _answers(crew)
        assert len(set(ids)) == 1, Counter(ids)
        world.acked += ids[:1]
    assert Message.objects.count() == len(world.acked)


@case("F-A02", "the same idempotency key with two contents, from 50 processes at once")
def one_key_for_two(world: World, random: Random) -> None:
    """One row; who wanted the other content hears so, and nothing of it is queued."""
    world.configure(**UNHURRIED)
    world.smtp()
    requests = [("order-7", subject) for subject in ("Hello", "Good bye")] * 25
    random.shuffle(requests)
    answers = _answers(_callers(world, requests))
    [made] = Message.objects.select_related("content")
    for (_key, subject), answer in zip(requests, answers, strict=True):
        assert answer == (str(made.pk) if subject == made.content.subject else "conflict")
    world.acked.append(str(made.pk))
    assert Content.objects.count() == 1


# Long queues


@dataclass(frozen=True)
class Cost:
    """What was done to the table of messages meanwhile, as PostgreSQL counts it."""

    rows: int
    """Read, by a scan or from an index."""
    blocks: int
    updates: int

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.rows - other.rows, self.blocks - other.blocks, self.updates - other.updates)


def _cost_so_far(world: World) -> Cost:
    connection.close()  # a server process hands in its figures when it ends, ours too
    with connection.cursor() as cursor:
        others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        world.wait_until(lambda: _value(cursor, others) == 0, what="the connections of others to be closed")
        cursor.execute(
            "SELECT seq_tup_read + idx_tup_fetch, "
            "heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit, n_tup_upd"
            " FROM pg_stat_user_tables JOIN pg_statio_user_tables USING (relid)"
            " WHERE relid = 'mailengine_message'::regclass"
        )
        return Cost(*cursor.fetchone())


def _value(cursor: CursorWrapper, sql: str) -> Any:
    cursor.execute(sql)
    return cursor.fetchone()[0]


def _defer(world: World, *, minutes: int) -> MessageJob:
    """100,000 messages deferred by now, due in so many minutes."""
    job = mailengine.queue_job(*WORDS, addresses(100_000))
    assert world.run("process_mail_jobs", "--max-time=600", seconds=600).returncode == 0
    now = read_now(connection.alias)
    job.messages.update(
        status="deferred", attempt_count=1, deferred_since=now, available_at=now + timedelta(minutes=minutes)
    )
    return job


@case("F-X19", "one new message behind 100,000 that are deferred and not due", databases=(POSTGRESQL,))
def one_behind_many_deferred(world: World, random: Random) -> None:
    """One is sent, none of the others is touched, and to find it costs what it costs without them."""
    world.configure(**UNHURRIED)
    sink = world.smtp()
    with connection.cursor() as cursor:
        # It would be counted, too; and without it we see what there is until it has come by.
        cursor.execute("ALTER TABLE mailengine_message SET (autovacuum_enabled = false)")
    alone = _cost_of_one(world)
    job = _defer(world, minutes=600)
    at_once = [_cost_of_one(world) for _ in range(2)]  # past what 100,000 updates have left behind in the indexes
    costs = []
    for command in ("VACUUM", "ANALYZE"):  # a planner that knows nothing yet, and one that does
        with connection.cursor() as cursor:
            cursor.execute(f"{command} mailengine_message")
        costs.append(_cost_of_one(world))
    figures = (
        f"{alone} on an empty table; behind 100,000 {at_once[0]}, the next {at_once[1]}, "
        f"after VACUUM {costs[0]}, after ANALYZE {costs[1]}"
    )
    world.note(f"what one message costs: {figures}")
    assert sink.accepted_count == 5
    for cost in (*at_once, *costs):
        assert cost.updates == alone.updates, figures
        assert cost.rows <= 2 * alone.rows + 10, figures
    for cost in costs:
        assert cost.blocks <= 5 * alone.blocks, figures
    withdraw(world, job)


def _cost_of_one(world: World) -> Cost:
    """Of sending one message, with the run of `retry_deferred` beside it; no other row is even locked by it."""
    [message_id] = world.queue(1)
    versions = _versions(message_id)
    before = _cost_so_far(world)
    for command in ("send_mail", "retry_deferred"):
        assert world.run(command).returncode == 0
    cost = _cost_so_far(world) - before
    assert _versions(message_id) == versions, "a row of another message was changed or locked"
    assert Message.objects.get(pk=message_id).status == "sent"
    return cost


def _versions(message_id: str) -> object:
    """What changes with any write to the other rows, and any lock on them."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*), md5(string_agg(ctid::text || xmin::text || xmax::text, ',' ORDER BY ctid))"
            " FROM mailengine_message WHERE id <> %s",
            [message_id],
        )
        return cursor.fetchone()


class Hurry:
    """Somebody who queues an urgent mail each second. As a condition: whether all of them are sent."""

    def __init__(self, world: World, count: int) -> None:
        self.world, self.count = world, count
        self.committed: dict[str, datetime] = {}
        self._next_at = time.monotonic()

    def __call__(self) -> bool:
        if len(self.committed) == self.count:
            return not Message.objects.filter(pk__in=self.committed).exclude(status="sent").exists()
        if time.monotonic() >= self._next_at:
            self._next_at += 1
            [message_id] = self.world.queue(1, priority=mailengine.Priority.URGENT)
            self.committed[message_id] = read_now(connection.alias)
        time.sleep(0.05)  # leaves the processors to the workers
        return False

    def waits(self) -> list[float]:
        """How long each had to wait for its handover to begin, in seconds; the shortest first."""
        return sorted((begun_at - at).total_seconds() for at, begun_at in self._times())

    def overtaken(self) -> int:
        """How many others began while one of these waited, at most."""
        others = Attempt.objects.exclude(message__in=self.committed)
        return max(others.filter(begun_at__gt=at, begun_at__lt=begun).count() for at, begun in self._times())

    def _times(self) -> list[tuple[datetime, datetime]]:
        begun = Attempt.objects.filter(message__in=self.committed, number=1).values_list("message", "begun_at")
        by_id = {str(message_id): begun_at for message_id, begun_at in begun}
        return [(at, by_id[message_id]) for message_id, at in self.committed.items()]

    def __str__(self) -> str:
        waits = self.waits()
        return f"median {statistics.median(waits):.2f} s, at most {waits[-1]:.2f} s, {self.overtaken()} before one"


@case("F-X20", "100,000 that were deferred are due at once, and urgent mail comes each second", databases=(POSTGRESQL,))
def urgent_beside_many_deferred(world: World, random: Random) -> None:
    """It doesn't wait for a hundredth of them: they are sent by `retry_deferred`, in a process of its own."""
    world.configure(**UNHURRIED)
    sink = world.smtp()
    sink.on(Step.DOT, Pause(0.02))
    before = Hurry(world, 15)
    world.keep_working(1, "send_mail", until=before)
    job = _defer(world, minutes=-1)
    retries = world.worker("retry_deferred", "--max-time=600")
    world.wait_until(lambda: sink.accepted_count > 100, what="the retries to begin")
    taken = sink.accepted_count
    beside = Hurry(world, 30)
    world.keep_working(1, "send_mail", until=beside)
    taken = sink.accepted_count - taken - 30
    world.note(f"urgent mail alone waits {before}; beside {taken} of 100,000 retries {beside}")
    assert retries.is_alive, "the retries were through before the urgent mail was"
    assert beside.overtaken() < 1_000, str(beside)
    retries.terminate()
    assert retries.wait() == 0, retries.err
    withdraw(world, job)


@case("F-X04", "a job of a million, and urgent mail meanwhile", databases=(POSTGRESQL,))
def a_million(world: World, random: Random) -> None:
    """The expander keeps its memory and its pace, the admin's pages open, and urgent mail goes before all of it."""
    world.configure(**UNHURRIED)
    sink = world.smtp()
    sink.on(Step.DOT, Pause(0.05))
    exec(crowd(1_000_000), {})  # noqa: S102 (our own words)
    before = Hurry(world, 15)
    world.keep_working(1, "send_mail", until=before)
    queued = _seconds_of(lambda: mailengine.queue_job(*WORDS, "crowd"))
    job = MessageJob.objects.get()
    expander = world.worker("process_mail_jobs", "--max-time=3000", before=crowd(1_000_000))
    memory, progress = Watch(expander), _Progress(job)
    meanwhile = Hurry(world, 30)
    world.wait_until(lambda: _cursor(job) > 0, what="the first piece")
    world.keep_working(1, "send_mail", until=lambda: progress.look() and meanwhile(), seconds=900)
    assert expander.is_alive, "the expansion was through before the urgent mail was"
    while expander.is_alive:
        progress.look()
        time.sleep(0.2)
    assert expander.wait() == 0, expander.err
    job.refresh_from_db()
    assert (job.status, job.message_count, job.messages.count()) == ("sending", 1_000_000, 1_000_000)
    pages = _pages(job)
    world.note(f"{progress}, {memory.peak_mb:.0f} MB; to queue it {queued:.2f} s; {pages}")
    world.note(f"urgent mail alone waits {before}; while a million is expanded {meanwhile}")
    assert memory.peak_mb < 200, f"{memory.peak_mb:.0f} MB"
    quarter = len(memory.samples) // 4
    grown = max(memory.samples[-quarter:]) / max(memory.samples[quarter : 2 * quarter])
    assert grown < 1.1, f"its memory grew by {grown:.2f}"
    assert progress.slowdown < 3, f"the last fifth took {progress.slowdown:.1f} times as long as the second"
    # What one process has begun when the mail comes, and what another claims that starts just then.
    assert meanwhile.overtaken() <= 4 * 4, str(meanwhile)
    # The oracle holds all there is in memory: a hundred of those that weren't sent will do.
    unsent = job.messages.filter(status="queued")
    kept = list(unsent.values_list("pk", flat=True)[:100])
    unsent.exclude(pk__in=kept)._raw_delete(connection.alias)


class _Progress:
    """When each piece of a job was done."""

    def __init__(self, job: MessageJob) -> None:
        self.job = job
        self.times: list[tuple[int, float]] = [(0, time.monotonic())]

    def look(self) -> bool:
        cursor = _cursor(self.job)
        if cursor > self.times[-1][0]:
            self.times.append((cursor, time.monotonic()))
        return True

    @property
    def slowdown(self) -> float:
        """How much longer the last fifth took than the second."""
        return self._seconds(0.8, 1) / self._seconds(0.2, 0.4)

    def _seconds(self, start: float, end: float) -> float:
        total = self.times[-1][0]
        begun_at = next(at for cursor, at in self.times if cursor >= start * total)
        return next(at for cursor, at in self.times if cursor >= end * total) - begun_at

    def __str__(self) -> str:
        return f"{self.times[-1][0] / self._seconds(0, 1):,.0f} rows a second"


def _seconds_of(work: Callable[[], object]) -> float:
    started_at = time.monotonic()
    work()
    return time.monotonic() - started_at


def _pages(job: MessageJob) -> str:
    """How long the admin takes for the pages of this job."""
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    found = []
    for path in ("messagejob/", f"messagejob/{job.pk}/change/", f"message/?job={job.pk}"):
        seconds = _seconds_of(lambda: client.get(f"/admin/mailengine/{path}", headers={"host": "localhost"}))  # noqa: B023
        found.append(f"{path} {seconds:.2f} s")
    return ", ".join(found)
