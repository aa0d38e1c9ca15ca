"""C4, SMTP: servers that refuse, hang, hang up, lie and forget, at each step of the dialogue."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from django.core.mail import EmailMessage
from django.db import transaction

import mailengine
from mailengine.errors import InvalidAddress
from mailengine.models import Attempt, Message, Suppression

from ..providers.scripted import make_certificate
from .providers import (
    AT_ONCE,
    IN_DOUBT,
    THRESHOLD,
    a_stream_for_each,
    assert_circuit_held,
    at_several_providers,
    attempts_spent,
    expect,
    messages_at,
    most_tries,
    outcomes_at,
    provider_case,
    run_until,
)
from .sinks import (
    CLOSE,
    HANG,
    RESET,
    Action,
    Drip,
    Moment,
    Pause,
    SMTPSink,
    Step,
    every,
    first,
    nth,
    to,
)
from .world import World

SHORT_DEADLINE = 1.0
"""Seconds, where servers keep us waiting."""
ALIKE = 5
"""Alike refusals that show that it is us who are refused."""
GARBAGE = ("what?", "354 Go on", "150 Wait", "700 Thanks", "25", "250-" + "x" * 9_000)


def relays(world: World, *aliases: str, backup: bool = False, **options: Any) -> dict[str, SMTPSink]:
    """A provider for each alias, with a stream of its own; `backup` is one more."""
    a_stream_for_each(world, aliases, backup=backup)
    return {alias: world.smtp(alias, **options) for alias in (*aliases, *(["backup"] if backup else []))}


# Down, silent, gone before the mail has arrived: nothing is in doubt


@provider_case("F-S01", "one of two providers refuses connections, then both do, for some probe intervals")
def refuses_connections(world: World, random: Random) -> None:
    primary, backup = world.smtp("primary"), world.smtp("backup")
    primary.down()
    world.fault_count += 1
    world.queue(40)
    world.run()
    expect(backup.accepted_count, 40, world.statuses())
    expect(most_tries(), 2, "a dead provider of two costs no message more than one extra attempt")
    assert_circuit_held("primary", most=AT_ONCE)

    backup.down()
    world.fault_count += 1
    world.queue(20)
    tries = outcomes_at("primary")["unavailable"]
    codes = run_until(world, lambda: outcomes_at("primary")["unavailable"] >= tries + 3)
    assert 3 in codes, f"mail waits and no provider can be used, and the runs ended with {codes}"
    expect(world.statuses(), {"sent": 40, "queued": 20})
    expect(attempts_spent(), 0)
    primary.up()
    backup.up()


def _each_fails_over(world: World, aliases: tuple[str, ...], *, count: int = 8) -> None:
    """Each stream's own relay fails cleanly: all its mail goes by the other one, at once."""
    for alias in aliases:
        world.queue(count, stream=alias)
    world.run()
    expect(world.statuses(), {"sent": count * len(aliases)})
    for alias in aliases:
        found = outcomes_at(alias)
        expect(set(found), {"unavailable"}, alias)
        assert_circuit_held(alias, most=AT_ONCE)
    expect(most_tries(), 2)
    expect(attempts_spent(), 0)


@provider_case("F-S02", "takes connections and never greets", deadline_seconds=SHORT_DEADLINE)
def never_greets(world: World, random: Random) -> None:
    relays(world, "mute", backup=True)["mute"].on(Step.GREETING, HANG)
    _each_fails_over(world, ("mute",))


@provider_case("F-S03", "hangs after each of EHLO, AUTH, MAIL, RCPT and DATA", deadline_seconds=SHORT_DEADLINE)
def hangs(world: World, random: Random) -> None:
    steps = (Step.EHLO, Step.AUTH, Step.MAIL, Step.RCPT, Step.DATA)
    _break_at(world, {step.value: (step, (HANG,)) for step in steps})


@provider_case("F-S04", "closes or resets at each of MAIL, RCPT and DATA")
def closes(world: World, random: Random) -> None:
    _break_at(
        world,
        {
            f"{step.value}-{ending.value}": (step, (ending,))
            for step in (Step.MAIL, Step.RCPT, Step.DATA)
            for ending in (CLOSE, RESET)
        },
    )


def _break_at(world: World, breaks: Mapping[str, tuple[Step, tuple[Action, ...]]]) -> None:
    login = {"username": "desk", "password": "secret"}
    sinks = relays(world, *breaks, backup=True, credentials=("desk", "secret"), options=login)
    for alias, (step, actions) in breaks.items():
        sinks[alias].on(step, *actions)
    _each_fails_over(world, tuple(breaks))


@provider_case("F-S05", "resets within the body of 10 MB, or says 552 there and closes", seeds=5, deadline_seconds=10)
def resets_in_the_body(world: World, random: Random) -> None:
    sinks = relays(world, "resets", "too-big", backup=True)
    sinks["resets"].on(Step.BODY, RESET, after_bytes=random.randint(1, 1_000_000), when=first(2))
    sinks["too-big"].on(Step.BODY, "552 5.3.4 Message too big", CLOSE, after_bytes=1_000_000)
    attachment = ("big.bin", random.randbytes(7_500_000), "application/octet-stream")  # 10 MB in base64
    for stream in ("resets", "too-big"):
        world.queue(3, stream=stream, attachments=[attachment])
    world.drain()
    expect(outcomes_at("resets"), {"deferred": 2, "accepted": 3})
    expect(outcomes_at("too-big"), {"refused": 3}, "the reply that came before the end of the body counts")
    expect(world.statuses(), {"sent": 6})


@provider_case("F-S25", "the TLS handshake breaks off on one of three connections")
def handshake_breaks_off(world: World, random: Random) -> None:
    admin = world.admin()
    certificate, context = make_certificate(world.folder)
    tls = {"host": "localhost", "use_tls": True}
    sink = world.smtp(tls_context=context, options=tls, policy={"CONNECTIONS": 1})
    sink.on(Step.BETWEEN, CLOSE)  # so that each message needs a connection of its own
    sink.on(Step.STARTTLS, "220 2.0.0 Go ahead", CLOSE, when=every(3))
    with trusting(certificate):
        world.queue(12)
        world.drain()
    expect(outcomes_at("relay"), {"accepted": 12, "unavailable": sink.connection_count - 12})
    expect((attempts_spent(), admin.accepted_count), (0, 0))


# Taken, and nobody told: in doubt


@provider_case(
    "F-S07",
    "takes each mail and closes before it says so; 1,000 messages, one provider",
    **IN_DOUBT,
)
def takes_and_closes(world: World, random: Random) -> None:
    sink = world.smtp()
    sink.on(Step.DOT, CLOSE, accepts=True)
    world.queue(1_000)
    run_until(world, lambda: sink.fault_count >= THRESHOLD + 5)
    assert_circuit_held("relay", most=AT_ONCE)
    expect(world.statuses(), {"uncertain": sink.accepted_count, "queued": 1_000 - sink.accepted_count})


@provider_case(
    "F-S08",
    "the same at the first of two providers, for bulk mail",
    **IN_DOUBT,
    quick=True,
)
def takes_bulk_and_closes(world: World, random: Random) -> None:
    primary, backup = world.smtp("primary"), world.smtp("backup")
    primary.on(Step.DOT, CLOSE, accepts=True)
    world.queue(100, stream="bulk")
    world.run()
    expect(set(outcomes_at("primary")), {"uncertain"})
    expect(backup.accepted_count, 100 - messages_at("primary"), "all other mail goes by the second")
    assert_circuit_held("primary", most=AT_ONCE)
    primary.heal()
    world.drain()
    assert not at_several_providers(world)


@provider_case(
    "F-S09",
    "hangs after the final dot and says 250 when nobody listens any more",
    **IN_DOUBT,
    deadline_seconds=SHORT_DEADLINE,
)
def says_yes_too_late(world: World, random: Random) -> None:
    sink = world.smtp()
    sink.on(Step.DOT, Pause(2 * SHORT_DEADLINE), when=first(THRESHOLD))
    world.queue(20)
    world.drain()
    expect(outcomes_at("relay"), {"uncertain": THRESHOLD, "accepted": 20})


@provider_case(
    "F-S10",
    "drips the final reply, a byte at a time",
    **IN_DOUBT,
    deadline_seconds=SHORT_DEADLINE,
)
def drips_its_yes(world: World, random: Random) -> None:
    sink = world.smtp()
    # Each byte comes well within any timeout, and the last line long after the deadline.
    sink.on(Step.DOT, Drip("250-2.0.0 Taken\r\n250 2.0.0 It is", SHORT_DEADLINE / 4), when=first(2))
    world.queue(10)
    world.drain()
    expect(outcomes_at("relay"), {"uncertain": 2, "accepted": 10})
    codes = Attempt.objects.filter(outcome="uncertain").values_list("code", flat=True)
    expect(set(codes), {"TimeoutError"}, "it was not the deadline that ended it")


@provider_case("F-S12", "garbage for a final reply, in six kinds", **IN_DOUBT)
def says_garbage(world: World, random: Random) -> None:
    sink = world.smtp()
    for number, garbage in enumerate(GARBAGE, start=1):
        sink.on(Step.DOT, garbage, accepts=True, when=nth(number))
    world.queue(10)
    world.drain()
    expect(outcomes_at("relay"), {"uncertain": len(GARBAGE), "accepted": 10})


# A yes, and trouble afterwards


@provider_case("F-S15", "250, then 421, a line too long, or no answer to RSET or QUIT")
def trouble_after_the_yes(world: World, random: Random) -> None:
    sinks = relays(world, "421", "overlong", "close", "rset", "quit", "quit-overlong", "251")
    overlong = "250 " + "x" * 9_000
    sinks["421"].on(Step.BETWEEN, "421 4.3.2 Enough", CLOSE, when=every(2))
    sinks["overlong"].on(Step.BETWEEN, overlong, when=every(2))
    sinks["close"].on(Step.BETWEEN, CLOSE, when=every(2))
    sinks["rset"].on(Step.RCPT, "550 5.1.1 Who?", when=nth(3))
    sinks["rset"].on(Step.RSET, HANG)
    sinks["quit"].on(Step.QUIT, HANG)
    sinks["quit-overlong"].on(Step.QUIT, overlong)
    sinks["251"].on(Step.DOT, "251 2.1.5 Forwarded")
    for alias in sinks:
        world.queue(6, stream=alias)
    world.drain()
    for alias in sinks:
        refused = {"refused": 1} if alias == "rset" else {}
        expect(outcomes_at(alias), {"accepted": 6 - len(refused), **refused}, alias)


@provider_case("F-S16", "421 at each step, once, and between messages")
def says_421(world: World, random: Random) -> None:
    opening = (Step.GREETING, Step.EHLO, Step.AUTH)
    steps = (*opening, Step.MAIL, Step.RCPT, Step.DATA, Step.DOT, Step.BETWEEN)
    login = {"username": "desk", "password": "secret"}
    sinks = relays(world, *(step.value for step in steps), credentials=("desk", "secret"), options=login)
    for step in steps:
        when = every(2) if step is Step.BETWEEN else nth(1 if step in opening else 2)
        sinks[step.value].on(step, "421 4.3.2 Going down", CLOSE, when=when)
        world.queue(8, stream=step.value)
    world.drain()
    for alias in sinks:
        found = outcomes_at(alias)
        failed = found.pop("unavailable", 0)
        expect(found, {"accepted": 8}, alias)
        # Said on a connection that was in use already, it is known before the message has begun.
        assert failed <= (alias != Step.BETWEEN.value), f"{alias}: {failed} unavailable"
    expect(attempts_spent(), 0)


@provider_case("F-S27", "an idle connection is closed by the server")
def closes_when_idle(world: World, random: Random) -> None:
    sinks = relays(world, "closes", "resets")
    sinks["closes"].on(Step.BETWEEN, CLOSE)
    sinks["resets"].on(Step.BETWEEN, RESET)
    for alias in sinks:
        world.queue(10, stream=alias)
    world.run()
    for alias, sink in sinks.items():
        expect(outcomes_at(alias), {"accepted": 10}, alias)
        expect(sink.connection_count, 10)


# Refusals of one message


@provider_case("F-S17", "greylists each pair that it sees for the first time")
def greylists(world: World, random: Random) -> None:
    world.configure(BACKOFF_FIRST_SECONDS=0.1, BACKOFF_LONGEST_SECONDS=6)
    sink = world.smtp()
    first_seen: dict[str, float] = {}

    def judge(moment: Moment) -> str | None:
        since = first_seen.setdefault(moment.address, time.monotonic())
        return "450 4.7.1 Please come back later" if time.monotonic() < since + 5 else None

    sink.on(Step.RCPT, judge)
    world.queue(30)
    world.drain()
    expect(outcomes_at("relay"), {"deferred": 30, "accepted": 30}, "each comes back once, and late enough")


@provider_case("F-S18", "451, 452 4.3.1 and 452 4.5.3")
def refuses_for_now(world: World, random: Random) -> None:
    sinks = relays(world, "451", "full", "too-many", backup=True)
    sinks["451"].on(Step.RCPT, "451 4.3.0 Local error", when=nth(2))
    sinks["full"].on(Step.MAIL, "452 4.3.1 Insufficient system storage")
    taken: Counter[int] = Counter()

    def count(moment: Moment) -> str | None:
        if moment.step is Step.MAIL:
            taken[moment.connection] = 0
            return None
        taken[moment.connection] += 1
        return "452 4.5.3 Too many recipients" if taken[moment.connection] > 2 else None

    sinks["too-many"].on(Step.MAIL, count)
    sinks["too-many"].on(Step.RCPT, count)
    for alias in ("451", "full"):
        world.queue(6, stream=alias)
    addresses = [f"r{number}@example.org" for number in range(5)]
    with transaction.atomic():
        email = EmailMessage("Hello", "Good morning.", "desk@example.org", addresses)
        world.acked.append(str(mailengine.queue_message(email, stream="too-many").pk))
    world.drain()
    expect(outcomes_at("451"), {"deferred": 1, "accepted": 6})
    expect(set(outcomes_at("full")), {"unavailable"})
    expect(Message.objects.get(attempts__code="451 4.3.0").attempt_count, 1)
    expect(attempts_spent(), 1 + 3, "one by the 451, and one by each address too many")
    copies = [copy for copy in world.log.copies() if copy.provider == "too-many"]
    expect(sorted(address for copy in copies for address in copy.recipients), addresses)


@provider_case("F-S19", "550 5.1.1 for a tenth of the recipients", quick=True)
def unknown_recipients(world: World, random: Random) -> None:
    sink = world.smtp()
    ids = world.queue(50)
    bad = random.sample(ids, 5)
    addresses = set(Message.objects.filter(pk__in=bad).values_list("recipient", flat=True))
    sink.on(Step.RCPT, "550 5.1.1 No such user", when=to(*addresses))
    world.drain()
    expect(world.statuses(), {"sent": 45, "dead": 5})
    expect(set(Suppression.objects.values_list("address", flat=True)), addresses)
    expect(most_tries(), 1)


@provider_case("F-S21", "554 5.7.1 for the content, by one provider or by both")
def dislikes_the_content(world: World, random: Random) -> None:
    primary, backup = world.smtp("primary"), world.smtp("backup")
    disliked = set(random.sample(world.queue(12), 3))
    primary.on(Step.DOT, "554 5.7.1 Content rejected")
    backup.on(Step.DOT, "554 5.7.1 Content rejected", when=lambda moment: moment.message_id in disliked)
    world.run()
    expect(world.statuses(), {"sent": 9, "dead": 3})
    expect({str(pk) for pk in Message.objects.filter(status="dead").values_list("pk", flat=True)}, disliked)
    expect(outcomes_at("primary"), {"refused": 12}, "its circuit is left alone")
    expect(outcomes_at("backup"), {"refused": 3, "accepted": 9})
    expect(most_tries(), 2)


@provider_case("F-S29", "no ESMTP: no 8BITMIME, no SMTPUTF8")
def knows_no_esmtp(world: World, random: Random) -> None:
    sink = world.smtp(extensions=(), keeps_content=True)
    sink.on(Step.EHLO, "502 5.5.1 Never heard of it")
    words = "Grüße aus Köln: 😀 " * 200  # one line
    with transaction.atomic():
        for html in (None, f"<p>{words}</p>"):
            message = mailengine.queue_mail(
                "Grüße",
                words,
                "Käthe <desk@example.org>",
                ["Jörg <joerg@bücher.example>"],
                html_message=html,
                attachments=[("Übersicht.txt", "Äpfel\n" * 10, "text/plain"), ("raw.bin", random.randbytes(999), None)],
            )
            world.acked.append(str(message.pk))
    try:
        mailengine.queue_mail("Hello", "Good morning.", "desk@example.org", ["jörg@example.org"])
    except InvalidAddress:
        pass  # no server without SMTPUTF8 could be told of that one; it is refused at the door
    else:
        raise AssertionError("a local part that is not ASCII was queued")
    world.drain()
    expect(sink.accepted_count, 2)
    for _id, content in sink.contents:
        assert content.isascii()
        assert max(map(len, content.split(b"\r\n"))) <= 998
    assert sink.commands["HELO"]


# A fault of ours


@contextmanager
def trusting(*certificates: Path) -> Iterator[None]:
    """Workers started within trust these."""
    bundle = certificates[0].with_name("trusted.pem")
    bundle.write_text("".join(certificate.read_text() for certificate in certificates))
    before = os.environ.get("SSL_CERT_FILE")
    os.environ["SSL_CERT_FILE"] = str(bundle)
    try:
        yield
    finally:
        if before is None:
            del os.environ["SSL_CERT_FILE"]
        else:
            os.environ["SSL_CERT_FILE"] = before


@provider_case("F-S22", "550 sender not verified for every message, 5,000 queued; repaired later")
def sender_is_not_verified(world: World, random: Random) -> None:
    admin = world.admin()
    world.configure(PROBE_INTERVAL_SECONDS=2)
    sinks = relays(world, "mail", "rcpt", "dot")
    for step in (Step.MAIL, Step.RCPT, Step.DOT):
        sinks[step.value].on(step, "550 5.7.1 Sender not verified")
    world.queue(5_000, stream="rcpt", domains=500)  # where only alike refusals tell our fault from the recipients'
    world.queue(50, stream="mail", domains=50)
    world.queue(50, stream="dot", domains=50)
    world.run()
    for alias in sinks:
        assert_circuit_held(alias, most=ALIKE)
    run_until(world, lambda: all(sum(outcomes_at(alias).values()) >= 8 for alias in sinks))
    for alias in sinks:
        assert_circuit_held(alias, most=ALIKE)
    expect(world.statuses(), {"queued": 5_100})
    expect(attempts_spent(), 0)
    expect(admin.accepted_count, len(sinks), "one alert for each provider")
    for sink in sinks.values():
        sink.heal()
    begun_before = Attempt.objects.count()
    world.drain(seconds=300)
    expect(world.statuses(), {"sent": 5_100})
    expect(Attempt.objects.count(), begun_before + 5_100, "after the repair nothing fails any more")
    assert not Suppression.objects.exists()


@provider_case("F-S23", "535 wrong password for 5,000 messages; repaired later, and broken once more")
def password_is_wrong(world: World, random: Random) -> None:
    admin = world.admin()
    sink = world.smtp(credentials=("desk", "right"), options={"username": "desk", "password": "wrong"})
    queued = world.queue(5_000)
    run_until(world, lambda: sink.commands["AUTH"] >= 6)
    expect(world.statuses(), {"queued": 5_000})
    expect(attempts_spent(), 0)
    assert_circuit_held("relay", most=AT_ONCE)
    expect((admin.accepted_count, _lines_about("misconfigured", world)), (1, 1))
    world.fault_count += 1

    Message.objects.filter(pk__in=queued[500:]).cancel()  # that many more would go, too, shows nothing more
    sink.credentials = ("desk", "wrong")
    world.drain()
    expect(world.statuses(), {"sent": 500, "cancelled": 4_500})

    sink.credentials = ("desk", "changed")
    world.queue(10)
    tries = sink.commands["AUTH"]
    run_until(world, lambda: sink.commands["AUTH"] >= tries + 4)
    expect((admin.accepted_count, _lines_about("misconfigured", world)), (2, 2), "one for each incident")
    world.fault_count += 1
    sink.credentials = ("desk", "wrong")


def _lines_about(word: str, world: World) -> int:
    return sum(word in line for worker in world.workers for line in worker.err.splitlines())


@provider_case("F-S24", "STARTTLS is not offered, the certificate has expired, or is for another host")
def tls_is_broken(world: World, random: Random) -> None:
    admin = world.admin()
    good, good_context = make_certificate(_folder(world, "good"))
    old, old_context = make_certificate(_folder(world, "old"), expired=True)
    other, other_context = make_certificate(_folder(world, "other"), name="elsewhere.example")
    options = {"host": "localhost", "use_tls": True, "username": "desk", "password": "secret"}
    sinks = relays(world, "stripped", "expired", "elsewhere", credentials=("desk", "secret"), options=options)
    sinks["expired"].tls_context, sinks["elsewhere"].tls_context = old_context, other_context
    for alias in sinks:
        world.queue(5, stream=alias)
    with trusting(good, old, other):
        run_until(world, lambda: all(sum(outcomes_at(alias).values()) >= 3 for alias in sinks))
        for alias, sink in sinks.items():
            expect(set(outcomes_at(alias)), {"misconfigured"}, alias)
            assert not sink.auth_lines, f"{alias} was told the password"
            assert not sink.commands["MAIL"]
        expect(world.statuses(), {"queued": 15})
        expect((attempts_spent(), admin.accepted_count), (0, len(sinks)))
        world.fault_count += len(sinks)
        for sink in sinks.values():
            sink.tls_context = good_context
        world.drain()
    expect(world.statuses(), {"sent": 15})
    assert all(sink.auth_lines for sink in sinks.values())


def _folder(world: World, name: str) -> Path:
    (folder := world.folder / name).mkdir()
    return folder
