"""Workers that die: real processes killed at each step, a real SMTP server that counts what arrived."""

from __future__ import annotations

import signal
import time

import pytest

from mailengine.models import Attempt, Message
from mailengine.models.messages import POISON_CLAIMS, Status
from mailengine.testing.smtp_server import SILENCE

from .. import processes
from .helpers import ledger, queue, queue_many, send, statuses

pytestmark = pytest.mark.django_db(transaction=True)

LEASE_SECONDS = 240


def die_at(target: str, *, when: str = "before") -> str:
    """Python that lets the process kill itself before or after the function `target` runs."""
    module, _, name = target.rpartition(":")
    *path, attribute = name.split(".")
    owner = ".".join(["module", *path])
    first, second = ("die()", "") if when == "before" else ("", "die()")
    return f"""
import importlib, os, signal
module = importlib.import_module({module!r})
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
original = {owner}.{attribute}
def wrapped(*args, **kwargs):
    {first or "pass"}
    result = original(*args, **kwargs)
    {second or "pass"}
    return result
setattr({owner}, {attribute!r}, wrapped)
"""


STEPS = {
    "after the claim": ("mailengine.pipeline.dispatch:Dispatcher._stock_up", "before", "queued", 0),
    "after composing": ("mailengine.pipeline.dispatch:Dispatcher._compose_next", "after", "queued", 0),
    "before the commit of Begin": ("mailengine.models.attempts:AttemptQuerySet.begin", "after", "queued", 0),
    "after Begin, before the first byte": ("mailengine.pipeline.senders:Team.send", "before", "uncertain", 0),
    "before the final dot": ("mailengine.backends.dialogue:Dialogue._send_body", "before", "uncertain", 0),
    "after the 250, before End": ("mailengine.models.attempts:AttemptQuerySet.end_many", "before", "uncertain", 1),
    "in the transaction of End": ("mailengine.models.messages:MessageQuerySet.settle_sent", "after", "uncertain", 1),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_any_step_loses_nothing_and_doubles_only_what_had_gone(server, clock, step):
    """P27, G28 and G29: twice only where the kill falls between the final dot and End."""
    target, when, status_then, gone = STEPS[step]
    message = queue()

    killed = processes.run("send_mail", before=die_at(target, when=when))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(server.accepted) == gone

    send()
    assert len(server.accepted) == gone  # leased: nobody else touches it yet
    clock.advance(seconds=LEASE_SECONDS + 1)
    wait_for(lambda: rescued(message))
    assert message.status == ("sent" if status_then == "queued" else "uncertain")
    clock.advance(seconds=601)
    send()

    message.refresh_from_db()
    assert message.status == "sent"
    assert len(server.accepted) == gone + 1
    assert {mail.mailengine_id for mail in server.accepted} == {str(message.pk)}


def test_the_history_names_the_worker_that_was_lost(server, clock):
    """P20."""
    message = queue()
    processes.run("send_mail", before=die_at("mailengine.pipeline.senders:Team.send"))
    clock.advance(seconds=LEASE_SECONDS + 1)

    send()

    attempt = message.attempts.get()
    assert (attempt.outcome, attempt.code) == ("uncertain", "worker lost")
    assert attempt.worker.name in attempt.detail
    message.refresh_from_db()
    assert attempt.worker.name in message.reason


def test_a_message_that_kills_its_worker_is_set_aside_at_the_third_time(server):
    """P21: and those behind it are sent."""
    poison = queue("poison@example.org", priority=0)
    others = queue_many(5)
    kill_on_poison = """
import os, signal
from mailengine.pipeline.mould import Mould
original = Mould.cast
def cast(self, message):
    if message.recipient == "poison@example.org":
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, message)
Mould.cast = cast
"""
    deaths = 0
    for _ in range(6):
        deaths += processes.run("send_mail", before=kill_on_poison).returncode == -signal.SIGKILL
        # The processes have no frozen clock: let the lease be over for them.
        Message.objects.filter(status=Status.SENDING).update(leased_until="2020-01-01T00:00Z")

    poison.refresh_from_db()
    assert deaths == POISON_CLAIMS
    assert poison.status == "dead"
    assert poison.reason.startswith("poison: worker died 3 times")
    assert statuses() == {"dead": 1, "sent": len(others)}
    assert len(server.accepted) == len(others)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_what_is_in_flight_and_gives_back_the_rest(server, number):
    """P24: exit 0, nothing lost, nothing doubled, nothing left leased."""
    server.delay_seconds = 0.3
    queue_many(30)
    process = processes.start("send_mail")
    wait_for(lambda: len(server.accepted) >= 2)

    process.send_signal(number)
    out, err = process.communicate(timeout=30)

    assert process.returncode == 0, err
    assert "sent" in out
    done = statuses()
    assert set(done) == {"sent", "queued"}
    assert done["sent"] == len(server.accepted) == len({mail.mailengine_id for mail in server.accepted})


def test_overlapping_runs_send_each_message_once(server, settings):
    """P19 and G26 in small: four processes at once on the same queue."""
    settings.MAILENGINE = {**settings.MAILENGINE, "CONNECTIONS": 4}
    messages = queue_many(200)
    runs = [processes.start("send_mail") for _ in range(4)]
    errors = [run.communicate(timeout=60)[1] for run in runs]

    assert [run.returncode for run in runs] == [0] * 4, errors
    assert statuses() == {"sent": 200}
    assert sorted(mail.mailengine_id for mail in server.accepted) == sorted(str(m.pk) for m in messages)


WRITE = """
import time
from mailengine import queue_mail
ends_at = time.monotonic() + 2
for _ in range(100):
    if time.monotonic() > ends_at:
        break
    queue_mail("Hello", "Good morning.", "desk@example.org", ["ann@example.org"])
print("done")
"""


def test_writers_and_workers_at_once_hinder_nobody(server):
    """F-L10: no "database is locked" and no deadlock reaches anybody; four processes write, two send."""
    writers = [processes.start("check", before=WRITE) for _ in range(4)]
    workers = []
    while any(writer.poll() is None for writer in writers):
        workers += [processes.start("send_mail", "--max-time", "1") for _ in range(2)]
        ends = [worker.communicate(timeout=60) for worker in workers[-2:]]
        assert not [err for _out, err in ends if "locked" in err or "Traceback" in err]
    ends = [writer.communicate(timeout=60) for writer in writers]

    assert all(out.startswith("done") for out, _err in ends), ends
    assert [worker.returncode for worker in workers] == [0] * len(workers)
    send()
    count = Message.objects.count()
    assert statuses() == {"sent": count}
    assert len(server.accepted) == count > 20


def test_a_signal_while_a_provider_is_silent_ends_the_run_within_the_deadline_of_a_send(server, settings):
    """F-P10: what hangs after the final dot is uncertain then; the rest is given back."""
    settings.MAILENGINE = {**settings.MAILENGINE, "SEND_DEADLINE_SECONDS": 1, "LEASE_SECONDS": 60}
    server.answer = lambda step: SILENCE if step.verb == "DOT" else None
    queue_many(5)
    process = processes.start("send_mail")
    wait_for(lambda: server.accepted)

    process.terminate()
    _out, err = process.communicate(timeout=30)

    assert process.returncode == 0, err
    assert statuses() == {"uncertain": 1, "queued": 4}
    assert not Attempt.objects.open().exists()


def test_one_connection_carries_a_hundred_messages_and_a_dropped_one_is_reopened_once(server):
    """C07."""
    queue_many(100)
    send(limit=50)
    assert server.connection_count == 1

    send()
    assert server.connection_count == 2  # a run of its own
    assert statuses() == {"sent": 100}


def test_sends_overlap(server, settings):
    """G17 in small: the provider's delay is waited for side by side, not one after the other."""
    settings.MAILENGINE = {**settings.MAILENGINE, "CONNECTIONS": 4}
    server.delay_seconds = 0.1
    queue_many(20)

    send()

    assert server.connection_count == 4
    assert {len(ledger(message)) for message in Message.objects.all()} == {1}


def rescued(message: Message) -> bool:
    """Run `send_mail`, and say whether the message is in flight no more.

    PostgreSQL may take a moment to see that a killed client is gone; until then its row locks are passed over.
    """
    send()
    message.refresh_from_db()
    return message.status != "sending"


def wait_for(condition, *, seconds: float = 20) -> None:
    ends_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends_at, "waited in vain"
        time.sleep(0.01)
