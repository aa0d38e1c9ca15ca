"""C5, ESPs over HTTP: five of them, each through Anymail's own backend, at servers that count the requests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from random import Random
from typing import TypeAlias

from mailengine.models import Attempt, Message, ProviderState, Suppression
from mailengine.testing.esp_server import ESPS, Answer, Fault, Mail

from .providers import (
    AT_ONCE,
    IN_DOUBT,
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
from .sinks import ESPSink
from .world import SHORT, World

ERROR = Answer(500, {"message": "Internal server error"})

Happening: TypeAlias = "Answer | Fault | Callable[[Mail], Answer | Fault | None]"

_counting = threading.Lock()


def fails(world: World, esp: ESPSink, happening: Happening, *, when: Callable[[int], bool] = lambda call: True) -> None:
    """Let this happen at the server, at the calls that `when` picks by their number, counted from 1 from now on."""
    before = esp.calls

    def behave(mail: Mail) -> Answer | Fault | None:
        if not when(esp.calls - before):
            return None
        happens = happening(mail) if callable(happening) else happening
        if happens is not None:
            with _counting:
                world.fault_count += 1
        return happens

    esp.behave = behave


def taken_but(esp: ESPSink, answer: Answer) -> Callable[[Mail], Answer]:
    """The ESP takes the mail, and what stands before it answers for it."""

    def behave(mail: Mail) -> Answer:
        esp.accepted.append(mail)
        esp._take(mail)
        return answer

    return behave


def esps(world: World, *names: str, backup: str = "") -> dict[str, ESPSink]:
    """A provider for each ESP, with a stream of its own; `backup` is one more, at that ESP."""
    a_stream_for_each(world, names, backup=bool(backup))
    found = {name: world.esp(name) for name in names}
    return {**found, "backup": world.esp(backup, "backup")} if backup else found


def recipients(ids: list[str]) -> set[str]:
    return set(Message.objects.filter(pk__in=ids).values_list("recipient", flat=True))


# A fault of the message


@provider_case("F-E01", "400 or 422 for one message, by seven ESPs", quick=True)
def refuses_one(world: World, random: Random) -> None:
    servers = esps(world, *ESPS)
    for name, server in servers.items():
        server.inactive = recipients(random.sample(world.queue(8, stream=name), 1))
        world.fault_count += 1
    world.run()
    for name, server in servers.items():
        expect(outcomes_at(name), {"accepted": 7, "refused": 1}, name)
        expect(server.calls, 8, name)
    expect(world.statuses(), {"sent": 7 * len(servers), "dead": len(servers)})


@provider_case("F-E11", "200, and rejected for the recipient")
def rejects_in_a_yes(world: World, random: Random) -> None:
    server = world.esp("postmark")
    bad = recipients(random.sample(world.queue(10), 2))

    def reject(mail: Mail) -> Answer | None:
        if not bad.intersection(mail.recipients):
            return None
        text = (
            f"Message OK, but will not deliver to these inactive addresses: {', '.join(mail.recipients)}. "
            "Inactive recipients are ones that have generated a hard bounce or a spam complaint."
        )
        return Answer(200, {"ErrorCode": 0, "Message": text, "MessageID": "1", "To": mail.recipients[0]})

    fails(world, server, reject)
    world.run()
    expect(world.statuses(), {"sent": 8, "dead": 2})
    expect(set(Message.objects.filter(status="dead").values_list("recipient", flat=True)), bad)
    expect(set(Suppression.objects.values_list("address", flat=True)), bad)


@provider_case("F-E19", "a receiver of pre_send cancels")
def pre_send_cancels(world: World, random: Random) -> None:
    server = world.esp("mailgun")
    (cancelled,) = recipients(random.sample(world.queue(10), 1))
    receiver = f"""
from anymail.exceptions import AnymailCancelSend
from anymail.signals import pre_send
def cancel(sender, message, esp_name, **_):
    if {cancelled!r} in message.recipients():
        raise AnymailCancelSend("not today")
pre_send.connect(cancel, weak=False)
"""
    world.run("send_mail", before=receiver)
    world.fault_count += 1
    expect(world.statuses(), {"sent": 9, "cancelled": 1})
    expect(set(Message.objects.filter(status="cancelled").values_list("recipient", flat=True)), {cancelled})
    expect(server.calls, 9)


# A fault of ours


@provider_case("F-E02", "401, 402 or 403 for all; repaired later")
def refuses_us(world: World, random: Random) -> None:
    admin = world.admin()
    servers = esps(world, "mailgun", "postmark", "sendgrid", "amazon_ses", "resend")
    for (name, server), status in zip(servers.items(), (401, 402, 403, 403, 401), strict=True):
        fails(world, server, Answer(status, {"message": "Forbidden"}))
        world.queue(40, stream=name)
    run_until(world, lambda: all(server.calls >= 4 for server in servers.values()))
    for name in servers:
        expect(set(outcomes_at(name)), {"misconfigured"}, name)
        assert_circuit_held(name, most=SHORT["CONNECTIONS"])
    expect(world.statuses(), {"queued": 40 * len(servers)})
    expect(attempts_spent(), 0)
    expect(admin.accepted_count, len(servers), "alerts, one for each incident")
    for server in servers.values():
        server.heal()
    world.drain()
    expect(world.statuses(), {"sent": 40 * len(servers)})
    expect(admin.accepted_count, len(servers), "alerts, one for each incident")


# It asks us to wait


@provider_case("F-E04", "429 with Retry-After: it is left alone for as long as it asks, and no attempt is spent")
def asks_to_slow_down(world: World, random: Random) -> None:
    server = world.esp("mailgun")
    asked_at: list[float] = []
    too_soon: list[float] = []

    def limit(mail: Mail) -> Answer | None:
        if asked_at and mail.at < asked_at[-1] + 2:
            too_soon.append(mail.at - asked_at[-1])
        elif server.calls % 40 == 0:
            asked_at.append(mail.at)
        else:
            return None
        return Answer(429, headers={"Retry-After": "2"})

    fails(world, server, limit)
    world.queue(120)
    workers = 2
    run_until(world, lambda: world.statuses() == {"sent": 120}, workers=workers)
    expect(set(outcomes_at("mailgun")), {"accepted", "throttled"})
    # Those under way when it asked, and no more; each renews the wait.
    most = len(asked_at) * (workers * SHORT["CONNECTIONS"] - 1)
    assert len(too_soon) <= most, f"{len(too_soon)} calls while it wanted to be left alone: {too_soon}"
    expect(attempts_spent(), 0)


@provider_case("F-E06", "503 at the first of two: without Retry-After, and with it in both forms")
def is_not_there(world: World, random: Random) -> None:
    servers = esps(world, "mailgun", "postmark", "resend", backup="sendgrid")
    fails(world, servers["mailgun"], Answer(503))
    world.queue(10, stream="mailgun")
    fails(world, servers["postmark"], Answer(503, headers={"Retry-After": "3"}))
    world.queue(10, stream="postmark")
    in_30_seconds = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=30), usegmt=True)
    fails(world, servers["resend"], Answer(503, headers={"Retry-After": in_30_seconds}))
    world.queue(10, stream="resend", priority=0)
    world.run()
    expect(set(outcomes_at("mailgun")), {"unavailable"})
    assert_circuit_held("mailgun", most=AT_ONCE)
    for name in ("postmark", "resend"):
        expect(set(outcomes_at(name)), {"throttled"}, name)
    resting = ProviderState.objects.get(alias="resend")
    assert resting.throttled_until > resting.last_error_at + timedelta(seconds=15), "a date is a time, too"
    # Who was asked to wait does, unless somebody waits for the mail; what has not been there goes elsewhere.
    asked_to_wait = outcomes_at("postmark")["throttled"]
    assert asked_to_wait <= SHORT["CONNECTIONS"]
    expect(world.statuses(), {"sent": 30 - asked_to_wait, "queued": asked_to_wait})
    expect(set(Message.objects.filter(status="queued").values_list("stream", flat=True)), {"postmark"})
    expect(most_tries(), 2)
    servers["postmark"].heal()
    world.drain()
    expect(outcomes_at("postmark"), {"throttled": asked_to_wait, "accepted": asked_to_wait}, "once it was over")
    expect(attempts_spent(), 0)


# In doubt


@provider_case(
    "F-E05",
    "500 for all at the first of two, which takes half of them nevertheless",
    seeds=5,
    **IN_DOUBT,
)
def fails_within(world: World, random: Random) -> None:
    primary, backup = world.esp("mailgun", "primary"), world.esp("postmark", "backup")
    takes = taken_but(primary, ERROR)
    fails(world, primary, lambda mail: takes(mail) if random.random() < 0.5 else ERROR)
    world.queue(100)
    world.run()
    assert_circuit_held("primary", most=AT_ONCE)
    expect(set(outcomes_at("primary")), {"uncertain"})
    expect(backup.calls, 100 - messages_at("primary"), "calls at the other one, for all that were not in doubt")
    primary.heal()
    world.drain()
    assert not at_several_providers(world)


@provider_case(
    "F-E07",
    "502, 504 or 524 after the origin took it",
    **IN_DOUBT,
)
def gateway_fails(world: World, random: Random) -> None:
    servers = esps(world, "mailgun", "postmark", "sendgrid")
    for (name, server), status in zip(servers.items(), (502, 504, 524), strict=True):
        fails(world, server, taken_but(server, Answer(status, "<html>Bad gateway</html>")))
        world.queue(50, stream=name)
    run_until(world, lambda: all(server.calls >= 5 for server in servers.values()))
    for name in servers:
        expect(set(outcomes_at(name)), {"uncertain"}, name)
        assert_circuit_held(name, most=AT_ONCE)


@provider_case(
    "F-E09",
    "takes the mail and hangs up, or says nothing; two providers",
    seeds=5,
    **IN_DOUBT,
    quick=True,
    deadline_seconds=1.5,
)
def takes_it_in_silence(world: World, random: Random) -> None:
    primary, backup = world.esp("sendgrid", "primary"), world.esp("postmark", "backup")
    fails(world, primary, lambda mail: random.choice([Fault.ACCEPT_AND_HANG_UP, Fault.ACCEPT_IN_SILENCE]))
    world.queue(60)
    world.run()
    assert_circuit_held("primary", most=AT_ONCE)
    expect(set(outcomes_at("primary")), {"uncertain"})
    expect(backup.calls, 60 - messages_at("primary"), "calls at the other one, for all that were not in doubt")
    primary.heal()
    world.drain()
    assert not at_several_providers(world)


@provider_case(
    "F-E14",
    "drips its answer, a byte at a time",
    **IN_DOUBT,
    deadline_seconds=3,
)
def drips_its_answer(world: World, random: Random) -> None:
    world.configure(LEASE_SECONDS=12)
    servers = esps(world, "amazon_ses", "mailgun", "postmark", "resend")  # of SendGrid's answer the status is enough
    # Nobody gets at boto3's sockets: its handover is given up on a moment after its time.
    fails(world, servers["amazon_ses"], Fault.DRIP, when=lambda call: call == 1)
    world.queue(1, stream="amazon_ses")
    world.run("send_mail")
    others = [name for name in servers if name != "amazon_ses"]
    for name in others:
        fails(world, servers[name], Fault.DRIP, when=lambda call: call <= 2)
        world.queue(5, stream=name)
    world.drain()
    expect(outcomes_at("amazon_ses"), {"uncertain": 1, "accepted": 1}, "amazon_ses")
    for name in others:
        expect(outcomes_at(name), {"uncertain": 2, "accepted": 5}, name)
    given_up = Attempt.objects.filter(code="overdue").values_list("provider", flat=True)
    expect(list(given_up), ["amazon_ses"], "the others end at their deadline")


@provider_case(
    "F-E15",
    "drops, read timeouts, 500, 503 and a redirect at seven ESPs: one request for each attempt",
    seeds=3,
    duplicates="1 for each mail that was taken and not said to be",
    bound=lambda run: run.faults,
    deadline_seconds=3,
)
def one_request_for_an_attempt(world: World, random: Random) -> None:
    world.configure(PROBE_INTERVAL_SECONDS=0.1)
    servers = esps(world, *ESPS)
    for name, server in servers.items():
        happenings = [
            Fault.ACCEPT_AND_HANG_UP,
            Fault.HANG_UP,
            Fault.ACCEPT_IN_SILENCE,
            Answer(500),
            Answer(503),
            Answer(307, headers={"Location": f"{server.url}/elsewhere"}),
        ]
        random.shuffle(happenings)
        fails(world, server, lambda mail, left=happenings: left.pop() if left else None)
        world.queue(15, stream=name)
    world.drain(seconds=120)
    for name, server in servers.items():
        expect(server.calls, sum(outcomes_at(name).values()), f"requests to {name} and attempts there")
        assert not outcomes_at(name).keys() - {"accepted", "uncertain", "unavailable", "misconfigured"}, name
    expect(attempts_spent(), 0)
    expect(world.statuses(), {"sent": 15 * len(servers)})


@provider_case("F-E16", "takes each of 100 and hangs up; asked again with the same idempotency key")
def honours_a_key(world: World, random: Random) -> None:
    server = world.esp("resend")
    seen: set[str] = set()

    def behave(mail: Mail) -> Fault | None:
        if mail.mailengine_id in seen:
            return None
        seen.add(mail.mailengine_id)
        return Fault.ACCEPT_AND_HANG_UP

    fails(world, server, behave)
    world.queue(100)
    world.configure(UNHEALTHY_THRESHOLD=1_000)  # an open circuit would let one go at a time
    world.drain()
    expect(world.statuses(), {"sent": 100})
    expect(outcomes_at("resend"), {"uncertain": 100, "accepted": 100})
    expect(len(server.accepted), 100)


@provider_case(
    "F-E20",
    "a kept connection is reset as the next request comes",
    duplicates="1 for each that was cut",
    bound=lambda run: run.faults,
)
def kept_connection_is_gone(world: World, random: Random) -> None:
    server = world.esp("mailgun")
    fails(world, server, Fault.HANG_UP, when=lambda call: call in {10, 20, 30})
    world.queue(40)
    world.run()
    expect(outcomes_at("mailgun")["uncertain"], 3)
    world.drain()
    expect(outcomes_at("mailgun"), {"uncertain": 3, "accepted": 40})
    expect(len(server.accepted), 40)


@provider_case("F-E21", "two providers that fail every second call, with 503 and with 500")
def every_second_call_fails(world: World, random: Random) -> None:
    servers = [world.esp("mailgun"), world.esp("postmark")]
    world.configure(PROBE_INTERVAL_SECONDS=0.1)
    for server in servers:
        fails(world, server, Answer(503), when=lambda call: call % 2 == 0)
    world.queue(50)
    world.drain()
    expect(world.statuses(), {"sent": 50})
    expect(sum(len(server.accepted) for server in servers), 50)
    # A 500 leaves each in doubt: it is sent once more, and then kept for a person. None is sent twice.
    for server in servers:
        fails(world, server, ERROR, when=lambda call: call % 2 == 0)
    world.queue(50)
    world.drain()
    accepted = sum(len(server.accepted) for server in servers)
    expect(world.statuses(), {"sent": accepted, "uncertain": 100 - accepted})
