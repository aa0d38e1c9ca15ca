"""Exit codes and signals, of real processes: 0 done, 1 something failed, 3 no provider can be used."""

import os
import pty
import signal
import time

import pytest
from django.db import close_old_connections, connection

from mailengine import queue_job, queue_mail
from mailengine.models import Attempt, Message, Worker
from tests.commands.programs import database_url, relay, run, start
from tests.database_faults import DatabaseProxy, servers_only

pytestmark = pytest.mark.django_db(transaction=True)

SLICES = ["process_mail_jobs", "send_mail", "retry_deferred"]


def queue(count):
    for number in range(count):
        queue_mail("Hi", "Hello", "a@example.org", [f"reader{number}@example.org"])


def wait_until(condition, *, seconds=20):
    ends_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends_at, "it did not happen in time"
        time.sleep(0.02)


@pytest.mark.parametrize("command", [*SLICES, "purge_mail"])
def test_a_run_with_nothing_to_do_prints_nothing_at_all(command):
    """C06, C19"""
    ended = run(command)

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_a_run_that_sends_is_done_whatever_became_of_single_messages(smtp):
    """C06, P23"""
    queue(3)
    smtp.replies["reader1@example.org"] = "550 5.1.1 No such user"

    ended = run("send_mail", "--max-time", "50", "--limit", "200", **relay(smtp))

    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("send_mail: 2 sent, 1 dead in ")
    assert len(smtp.accepted) == 2


def test_without_any_usable_provider_a_run_ends_at_once_and_says_so(smtp):
    queue(5)
    smtp.down()

    ended = run("send_mail", **relay(smtp))

    assert ended.returncode == 3
    assert "; 5 waiting, oldest " in ended.stdout
    assert "no provider can be used now: manage.py mail_status says why" in ended.stdout
    assert set(Message.objects.values_list("status", "attempt_count")) == {("queued", 0)}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_what_is_in_flight_end_and_gives_the_rest_back(number, smtp):
    queue(40)
    smtp.delay_seconds = 0.5
    process = start("send_mail", **relay(smtp))
    wait_until(lambda: smtp.accepted)

    process.send_signal(number)
    out, err = process.communicate(timeout=20)

    close_old_connections()
    assert (process.returncode, err) == (0, "")
    sent = Message.objects.filter(status="sent").count()
    assert sent == len(smtp.accepted) < 40
    assert Message.objects.filter(status="queued", lease=None).count() == 40 - sent
    assert out.startswith(f"send_mail: {sent} sent in ")


def test_workers_share_the_mail_and_each_is_sent_once(smtp):
    """C18"""
    queue(60)
    smtp.delay_seconds = 0.05

    ended = run("send_mail", "--workers", "2", **relay(smtp))

    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("send_mail: 60 sent in ")
    assert len({mail.mailengine_id for mail in smtp.accepted}) == len(smtp.accepted) == 60
    assert len(set(Message.objects.values_list("worker", flat=True))) == 2


def test_workers_share_the_limit(smtp):
    """C09"""
    queue(10)

    run("send_mail", "--workers", "2", "--limit", "5", **relay(smtp))

    assert len(smtp.accepted) == Message.objects.filter(status="sent").count() == 5


def test_a_signal_reaches_all_workers(smtp):
    queue(60)
    smtp.delay_seconds = 0.5
    process = start("send_mail", "--workers", "2", **relay(smtp))
    wait_until(lambda: smtp.accepted)

    process.terminate()
    _out, err = process.communicate(timeout=20)

    close_old_connections()
    assert (process.returncode, err) == (0, "")
    assert Message.objects.filter(status="sent").count() == len(smtp.accepted) < 60
    assert not Message.objects.filter(status="sending").exists()


def test_workers_are_not_started_for_nothing():
    """C19"""
    ended = run("send_mail", "--workers", "2", "-v", "2")

    assert (ended.returncode, ended.stdout) == (0, "send_mail: nothing to do\n")


def test_progress_is_shown_on_a_terminal(smtp):
    queue(3)
    queue_job("Hi", "Hello", "a@example.org", ["b@example.org"])

    assert b"[" in on_a_terminal("send_mail", **relay(smtp))
    assert b"1 done" in on_a_terminal("process_mail_jobs")


def on_a_terminal(*arguments, **variables):
    """What a command writes to a terminal that takes its errors."""
    ours, theirs = pty.openpty()
    process = start(*arguments, **variables, stderr=theirs)
    os.close(theirs)
    process.communicate(timeout=20)
    shown = os.read(ours, 10_000)
    os.close(ours)
    return shown


def assert_ended_well(process, smtp, *, of):
    """Exit 0 without a traceback, each mail once, nothing left leased or open."""
    _out, err = process.communicate(timeout=30)
    close_old_connections()
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert Message.objects.filter(status="sent").count() == len(smtp.accepted) < of
    assert not Message.objects.filter(status="sending").exists()
    assert not Attempt.objects.open().exists()


@pytest.mark.parametrize(
    "numbers", [[signal.SIGTERM] * 5, [signal.SIGINT, signal.SIGTERM]], ids=["five times", "SIGINT, then SIGTERM"]
)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_more_signals_than_one_do_no_harm(numbers, workers, smtp):
    """F-P12: also one that comes when the run has just ended well."""
    queue(60)
    smtp.delay_seconds = 0.4
    process = start("send_mail", "--workers", workers, **relay(smtp))
    wait_until(lambda: smtp.accepted)

    for number in numbers:
        process.send_signal(number)
        time.sleep(0.15)

    assert_ended_well(process, smtp, of=60)


def test_a_signal_that_keeps_coming_until_the_end_does_no_harm(smtp):
    queue(30)
    smtp.delay_seconds = 0.2
    process = start("send_mail", **relay(smtp))
    wait_until(lambda: smtp.accepted)

    while process.poll() is None:
        process.terminate()
        time.sleep(0.002)

    assert_ended_well(process, smtp, of=30)


def test_a_worker_that_is_killed_takes_no_report_with_it(smtp):
    queue(40)
    smtp.delay_seconds = 0.3
    process = start("send_mail", "--workers", "2", **relay(smtp))
    wait_until(lambda: Worker.objects.count() == 2 and smtp.accepted)
    victim = Worker.objects.order_by("pk").first()

    os.kill(int(victim.name.rpartition(":")[2]), signal.SIGKILL)
    out, err = process.communicate(timeout=60)

    close_old_connections()
    sent_by_other = Message.objects.filter(status="sent").exclude(worker=victim).count()
    assert process.returncode == 1
    assert out.startswith(f"send_mail: {sent_by_other} sent")
    assert "was killed by signal 9 (Killed). What they held is rescued by a later run." in err
    assert "Traceback" not in err


@servers_only
def test_a_signal_during_an_outage_waits_for_what_is_to_be_recorded(smtp):
    """F-P10, F-D01"""
    queue(80)
    smtp.delay_seconds = 0.3
    with DatabaseProxy() as proxy:
        process = start("send_mail", **relay(smtp), DATABASE_URL=proxied_url(proxy))
        wait_until(lambda: len(smtp.accepted) > 2)
        proxy.down()
        time.sleep(1)
        process.terminate()
        time.sleep(0.3)
        proxy.up()
        assert_ended_well(process, smtp, of=80)


def proxied_url(proxy):
    """DATABASE_URL by way of the proxy."""
    login, _, rest = database_url().rpartition("@")
    options = "?sslmode=disable" if connection.vendor == "postgresql" else ""
    return f"{login}@127.0.0.1:{proxy.port}/{rest.rpartition('/')[2]}{options}"
