"""C6, content and addresses: what people put into a mail, and what lies in the rows; poison, and who is left alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from contextlib import suppress
from email import message_from_bytes
from random import Random

from django.db import DatabaseError, connection
from django.db.models import Max

import mailengine
from mailengine.clock import read_now
from mailengine.consent.suppress import suppress as suppress_address
from mailengine.errors import InvalidAddress, InvalidMail
from mailengine.models import Attempt, Content, ContentFile, Message, MessageJob, Suppression
from tests.hostile import ADDRESSES, FILES, HEADERS, PLAIN, UNSAFE

from .case import POSTGRESQL, Missed, case
from .jobs import WORDS, addresses
from .points import KILL
from .sinks import Pause, Step, to
from .workers import MemoryWatch
from .world import UNHURRIED, World

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


@case("F-X13", "a file of 10 MB to 100 recipients, and 100 files of 10 MB", databases=(POSTGRESQL,))
def large_files(world: World, random: Random) -> None:
    """A worker needs less than 150 MB, whichever it is."""
    world.configure(LEASE_SECONDS=240, SEND_DEADLINE_SECONDS=60, CONNECTIONS=8)
    world.smtp()
    job = mailengine.queue_job(*WORDS, addresses(100), attachments=[("a.pdf", random.randbytes(10_000_000))])
    world.run("process_mail_jobs")
    one_file = MemoryWatch(world.worker("send_mail", "--max-time=600"))
    assert one_file.worker.wait(seconds=600) == 0, one_file.worker.err
    assert job.messages.filter(status="sent").count() == 100, world.statuses()
    for number in range(100):
        files = [(f"{number}.pdf", random.randbytes(10_000_000))]
        world.acked.append(str(mailengine.queue_mail(*WORDS, [f"u{number}@example.org"], attachments=files).pk))
    many_files = MemoryWatch(world.worker("send_mail", "--max-time=600"))
    assert many_files.worker.wait(seconds=600) == 0, many_files.worker.err
    peaks = one_file.peak_mb, many_files.peak_mb
    figures = f"{peaks[0]:.0f} MB with one file for all, {peaks[1]:.0f} MB with a file each, 8 connections"
    world.note(f"a worker's memory: {figures}")
    assert max(peaks) < 150, figures


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
from mailengine.pipeline.mould import Mould
compose, cast = composer.compose, Mould.cast
def look(message):
    if str(message.pk) == {message_id!r}:
        {do}
def composed(message, words, **options):
    look(message)
    return compose(message, words, **options)
def as_bytes(self, message):
    look(message)
    return cast(self, message)
composer.compose, Mould.cast = composed, as_bytes
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
