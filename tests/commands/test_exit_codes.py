"""Exit codes and signals, of real processes: 0 done, 2 usage or configuration, 3 no provider can be used."""

import os
import pty
import signal
import time

import pytest
from django.db import close_old_connections

from mailengine import queue_job, queue_mail
from mailengine.models import Message
from tests.commands.programs import relay, run, start

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


@pytest.mark.parametrize(
    ("arguments", "seen"),
    [
        (["send_mail", "--limit", "0"], "'0' is not a whole number of 1 or more"),
        (["send_mail", "--workers", "-1"], "'-1' is not a whole number of 1 or more"),
        (["process_mail_jobs", "--max-time", "soon"], "'soon' is not a number of seconds"),
        (["purge_mail", "--days", "-1"], "'-1' is not a number of days"),
        (["retry_deferred", "--stream", "bluk"], "Did you mean 'bulk'?"),
        (["send_mail", "--nonsense"], "unrecognized arguments: --nonsense"),
    ],
    ids=" ".join,
)
def test_an_option_that_makes_no_sense_is_a_usage_error(arguments, seen):
    ended = run(*arguments)

    assert ended.returncode == 2
    assert seen in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("command", [*SLICES, "purge_mail"])
def test_a_failed_system_check_is_a_configuration_error(command):
    ended = run(command, MAIL_PROVIDERS="relay,postmrk")

    assert ended.returncode == 2
    assert "'postmrk', which MAILERS does not have" in ended.stderr
    assert "Traceback" not in ended.stderr


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
