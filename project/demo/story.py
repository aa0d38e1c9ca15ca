"""The story that `manage.py demo` tells, act by act, and the reckoning at its end."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import django
from django.db import connection
from django.db.models import Count
from django.test import override_settings

from mailengine import queue_mail
from mailengine.conf import Mode
from mailengine.models import Attempt, Message, MessageJob, ProviderState
from mailengine.outcomes import Kind
from mailengine.testing import FakeProvider
from project.newsroom.models import Subscriber

from . import cron, people
from .cron import Cron
from .newsroom import Newsroom
from .receiver import Receiver
from .reckoning import Account, Copy, Entry, Reckoning
from .watch import Watch

Say = Callable[[str, str], None]
"""Tells something: what it is about, and the sentence."""

QUEUE = {
    "CONNECTIONS": 16,
    # What takes a minute with the defaults takes half a second here.
    "PROBE_INTERVAL_SECONDS": 0.5,
    "BACKOFF_FIRST_SECONDS": 0.5,
    "BACKOFF_LONGEST_SECONDS": 2,
    "UNCERTAIN_WINDOW_SECONDS": 0.5,
}
WEIGHTS = {"mailgun": 3, "postmark": 2, "relay": 1}
DRAINED = "postmark"
FAKE = {"BACKEND": "mailengine.testing.FakeProvider", "OPTIONS": {"fails_every": 2}}
FAKES = {"lambda": FAKE, "delta": FAKE}
TRACED_MAILS = 4
PATIENCE_SECONDS = 20


@dataclass(frozen=True)
class Overtaking:
    """How urgent mail went past the newsletter."""

    waiting: int
    """Mails that waited when it was queued."""
    overtaken: int
    """Those of them that the receiving side got after it."""
    seconds: float | None
    """From the click to its arrival; None if it never came."""


@dataclass(frozen=True)
class Drain:
    """What a provider was given after an operator had drained it."""

    on_their_way: int = 0
    """Mails that were about to go."""
    last_seconds: float = 0.0
    """After the switch: the last of them."""
    owed: int = 0
    """Mails that may have gone by it before, so that no other may carry them."""


@dataclass(frozen=True)
class Ending:
    """All that the story came to."""

    account: Account
    providers: dict[str, dict[str, int]]
    """The ledger's attempts, by provider and outcome."""
    overtaking: Overtaking
    drain: Drain
    trace: list[str]
    copies: list[Copy]
    entries: list[Entry]


def mail_settings(receiver: Receiver) -> dict[str, Any]:
    """What settings.py says of mail: the queue, and three providers that share it."""
    return {
        "MAILERS": {
            "default": {"BACKEND": "mailengine.backends.EmailBackend"},
            **receiver.mailers(),
            **FAKES,
        },
        "MAILENGINE": {
            "PROVIDERS": {alias: {"WEIGHT": weight} for alias, weight in WEIGHTS.items()},
            "STRATEGY": "weighted",
            **QUEUE,
        },
    }


def tell(newsroom: Newsroom, receiver: Receiver, *, say: Say) -> Ending:
    """Tell the story on a database that holds nothing but this newsroom, with `mail_settings(receiver)` in force."""
    FakeProvider.reset()
    introduce(newsroom, receiver, say=say)
    button_act(newsroom, say=say)
    watch = Watch(receiver, say)
    with Cron(lambda line: say("cron", line)) as running:
        overtaking = overtaking_act(receiver, running, watch, say=say)
        drained_at = drain_act(receiver, running, watch, say=say)
        wait_for(everything_settled, running, watch)
    outage_epilogue(receiver, say=say)
    drain = drain_epilogue(drained_at, receiver, say=say)
    trace = taking_turns_act(say=say)
    copies = [*receiver.copies(), *copies_of_fakes()]
    return Ending(account(), attempts(), overtaking(copies), drain, trace, copies, list(ledger()))


def introduce(newsroom: Newsroom, receiver: Receiver, *, say: Say) -> None:
    name = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}.get(connection.vendor, "MariaDB or MySQL")
    say("stage", f"Django {django.get_version()} on {name}; on the other side, real servers on 127.0.0.1:")
    mailers = receiver.mailers()
    for alias, weight in WEIGHTS.items():
        options = mailers[alias]["OPTIONS"]
        where = f"its API at {options['api_url']}" if "api_url" in options else f"SMTP on port {options['port']}"
        say("", f"{alias}, {where}, takes {weight} of {sum(WEIGHTS.values())} mails")
    articles, subscribers = newsroom.issue.articles.count(), Subscriber.objects.count()
    say("newsroom", f"{articles} articles in an issue; {subscribers:,} subscribers")


def button_act(newsroom: Newsroom, *, say: Say) -> None:
    clicked_at = time.monotonic()
    button, answer = people.press_the_button(newsroom.issue)
    say("editor", f"presses “{button}”; three pages, {time.monotonic() - clicked_at:.2f} s in all")
    say("", answer)


def overtaking_act(
    receiver: Receiver, running: Cron, watch: Watch, *, say: Say
) -> Callable[[Iterable[Copy]], Overtaking]:
    """In the midst of it all somebody forgets her password; what came of it can be asked for when all has arrived."""
    third = Subscriber.objects.count() // 3
    wait_for(lambda: receiver.mail_count() >= third, running, watch)
    clicked_at = time.monotonic()
    people.ask_for_a_new_password("ann@daily.example")
    reset = Message.objects.get(job=None)
    waiting = {str(pk) for pk in Message.objects.waiting().exclude(pk=reset.pk).values_list("pk", flat=True)}
    say("ann", f"forgot her password, and asks for a new one while {len(waiting):,} mails wait")

    def overtaking(copies: Iterable[Copy]) -> Overtaking:
        arrived_at: dict[str, float] = {}
        for copy in copies:
            arrived_at.setdefault(copy.message_id, copy.at)
        arrival = arrived_at.get(str(reset.pk))
        if arrival is None:
            return Overtaking(len(waiting), overtaken=0, seconds=None)
        overtaken = sum(message_id in waiting and at > arrival for message_id, at in arrived_at.items())
        return Overtaking(len(waiting), overtaken, arrival - clicked_at)

    return overtaking


def drain_act(receiver: Receiver, running: Cron, watch: Watch, *, say: Say) -> float:
    """An operator takes a provider out while mail flows; when, on this process's monotonic clock."""
    most = 3 * Subscriber.objects.count() // 5
    wait_for(lambda: receiver.mail_count() >= most, running, watch)
    ProviderState.objects.filter(alias=DRAINED).update(mode=Mode.DRAINING.value)
    say("operator", f"drains {DRAINED}: no new mail from here")
    return time.monotonic()


def outage_epilogue(receiver: Receiver, *, say: Say) -> None:
    outage = receiver.outage()
    instead = [c for c in receiver.copies() if c.provider != "mailgun" and outage.began_at <= c.at <= outage.ended_at]
    seconds = outage.ended_at - outage.began_at
    say("outage", f"mailgun was down for {seconds:.1f} s; {outage.tries} tries found that out")
    say("", f"and {len(instead):,} mails went through the others meanwhile")


def drain_epilogue(drained_at: float, receiver: Receiver, *, say: Say) -> Drain:
    in_doubt = Attempt.objects.filter(provider=DRAINED, outcome=Kind.UNCERTAIN).values_list("message_id", flat=True)
    its_own = set(map(str, in_doubt))
    after = [copy for copy in receiver.copies() if copy.provider == DRAINED and copy.at > drained_at]
    late = [copy.at - drained_at for copy in after if copy.message_id not in its_own]
    drain = Drain(len(late), max(late, default=0.0), owed=len(after) - len(late))
    say(
        "drain", f"{DRAINED} got {drain.on_their_way:,} more within {drain.last_seconds:.1f} s, which were about to go,"
    )
    say("", f"and {drain.owed:,} that may have gone there before, so that no other provider may carry them")
    return drain


def taking_turns_act(*, say: Say) -> list[str]:
    """Four mails through two providers that each fail every second call; the trace, from the ledger."""
    say("turns", f"{TRACED_MAILS} mails, and two providers that each fail every second call:")
    with override_settings(MAILENGINE={"PROVIDERS": list(FAKES), **QUEUE, "STRATEGY": "sticky", "CONNECTIONS": 1}):
        mails = [
            queue_mail(f"Mail {number}", "Hello.", None, [f"reader{number}@example.org"])
            for number in range(1, TRACED_MAILS + 1)
        ]
        cron.run("send_mail", say=lambda line: say("", line))
    trace = []
    for number, mail in enumerate(mails, start=1):
        steps = [
            f"{attempt.provider} {'sent' if attempt.outcome == Kind.ACCEPTED else 'failed'} {number}"
            for attempt in mail.attempts.order_by("number")
        ]
        trace.append(" -> ".join(steps))
        say("", trace[-1])
    return trace


def wait_for(condition: Callable[[], bool], running: Cron, watch: Watch) -> None:
    """Return once it holds; give up when nothing has been tried for a while. The reckoning says what is left then."""
    tries, tried_at = -1, time.monotonic()
    while not condition() and time.monotonic() - tried_at < PATIENCE_SECONDS:
        running.check()
        watch.look()
        if (count := Attempt.objects.count()) != tries:
            tries, tried_at = count, time.monotonic()
        time.sleep(0.1)


def everything_settled() -> bool:
    unfinished = MessageJob.objects.filter(status__in=MessageJob.UNFINISHED)
    return not unfinished.exists() and not Message.objects.filter(status__in=Message.OPEN_STATUSES).exists()


def copies_of_fakes() -> list[Copy]:
    """What the two that take turns accepted."""
    return [
        Copy(alias, str(email.extra_headers["X-Mailengine-Id"]), address)
        for alias in FAKES
        for email in FakeProvider.named(alias).accepted
        for address in email.recipients()
    ]


def account() -> Account:
    """The audience of the job, by what became of each entry; what is not in a final state is not accounted for."""
    job = MessageJob.objects.get()
    by_status = dict(job.messages.values_list("status").annotate(Count("pk")).order_by())
    parts = {status: by_status.get(status, 0) for status in map(str, Message.FINAL_STATUSES)}
    return Account(
        Subscriber.objects.active().count(),
        {**parts, "duplicates": job.duplicate_count, "malformed": job.malformed_count},
    )


def attempts() -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = defaultdict(dict)
    rows = Attempt.objects.values_list("provider", "outcome").annotate(Count("pk")).order_by("provider", "outcome")
    for provider, outcome, count in rows:
        found[provider][outcome or "not ended"] = count
    return dict(found)


def ledger() -> Iterator[Entry]:
    """Every message of the database with its attempts, once for each of its addresses."""
    tries: dict[object, list[tuple[str, str]]] = defaultdict(list)
    for message_id, provider, outcome in Attempt.objects.order_by("number").values_list(
        "message_id", "provider", "outcome"
    ):
        tries[message_id].append((provider, outcome))
    for message in Message.objects.all():
        for recipient in message.recipients:
            is_sent = message.status == Message.Status.SENT
            yield Entry(str(message.pk), recipient["address"], is_sent, tuple(tries[message.pk]))


def summary(ending: Ending, reckoning: Reckoning) -> Iterator[str]:
    """The end of the story, line by line."""
    outcomes = [kind.value for kind in Kind if any(kind.value in row for row in ending.providers.values())]
    yield f"{'provider':<10}" + "".join(f"{outcome:>13}" for outcome in outcomes)
    for provider, row in ending.providers.items():
        yield f"{provider:<10}" + "".join(f"{row.get(outcome, 0):>13,}" for outcome in outcomes)
    yield ""
    reset = ending.overtaking
    arrival = "never arrived" if reset.seconds is None else f"arrived {reset.seconds:.2f} s after the click"
    yield f"The password reset {arrival}; it overtook {reset.overtaken:,} of {reset.waiting:,} waiting messages."
    yield f"The audience: {ending.account}."
    for finding in reckoning.explained:
        yield f"Arrived twice, since the first answer was lost: {finding}."
    yield ""
    mails = len({copy.message_id for copy in ending.copies})
    yield f"The receiving side has {len(ending.copies):,} copies of {mails:,} mails. Against the ledger, by address:"
    for name in ("lost", "duplicated", "unexpected"):
        findings = getattr(reckoning, name)
        yield f"  {name:<12}{len(findings):>6,}"
        yield from (f"    {finding}" for finding in findings[:5])


def agrees(ending: Ending, reckoning: Reckoning) -> bool:
    """Whether the receiving side and the ledger say the same, and nobody in the audience was forgotten."""
    return reckoning.agrees and not ending.account.unaccounted
