"""What the commands print: nothing when there was nothing to do, since cron mails any output; otherwise one line."""

import re

import pytest
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext

from mailengine import queue_job, queue_mail
from mailengine.management.base import counted, duration
from mailengine.models import Attempt, Message, MessageJob, ProviderState, Worker

pytestmark = pytest.mark.django_db

COMMANDS = ["process_mail_jobs", "send_mail", "retry_deferred", "purge_mail"]
SLICES = COMMANDS[:3]


def queue(*addresses, **options):
    return [
        queue_mail("Hi", "Hello", "a@example.org", [address], **options) for address in addresses or ["b@example.org"]
    ]


def without_time(line):
    return re.sub(r"in \d+(\.\d+)? s", "in 1 s", line)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_with_nothing_to_do_is_silent(command, provider, capfd):
    """C19"""
    call_command(command)

    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_asked_for_more_a_command_says_that_there_was_nothing_to_do(command, provider, said):
    assert said(command, verbosity=2) == f"{command}: nothing to do\n"


@pytest.mark.parametrize("command", SLICES)
def test_an_empty_run_makes_three_queries_at_most_and_writes_nothing(command, provider):
    """C19, S03"""
    with CaptureQueriesContext(connection) as captured:
        call_command(command)

    queries = [query["sql"] for query in captured if not query["sql"].startswith(("BEGIN", "SAVEPOINT", "RELEASE"))]
    assert len(queries) <= 3
    assert not [sql for sql in queries if sql.startswith("INSERT")]


def test_process_mail_jobs_says_what_it_made_and_left_out(provider, said):
    queue_job("Hi", "Hello", "a@example.org", ["b@example.org", "B@example.org", "c@example.org", "nobody", "nowhere@"])

    line = said("process_mail_jobs")

    assert without_time(line) == (
        "process_mail_jobs: 2 messages from 1 job (1 duplicate and 2 malformed addresses left out) in 1 s\n"
    )


def test_process_mail_jobs_says_what_became_of_a_cancelled_job(provider, said):
    queue_job("Hi", "Hello", "a@example.org", ["b@example.org"])
    call_command("process_mail_jobs", verbosity=0)
    MessageJob.objects.all().cancel()

    line = said("process_mail_jobs")

    assert without_time(line) == "process_mail_jobs: 1 message cancelled or let go on with their job in 1 s\n"


def test_send_mail_says_what_became_of_the_mail_and_what_waits(configure, said, clock):
    configure({"one": {"script": ["accept", "refused", "deferred"]}, "two": {}})
    queue(*(f"reader{number}@example.org" for number in range(5)))
    clock.advance(minutes=3)

    line = said("send_mail", limit=3)

    assert without_time(line) == "send_mail: 1 sent, 1 deferred, 1 dead in 1 s (one 1); 2 waiting, oldest 3 min\n"


def test_send_mail_says_how_long_mail_of_each_stream_has_waited(provider, said, clock):
    """N4"""
    queue("ann@example.org", stream="bulk")
    clock.advance(minutes=3)
    queue("bob@example.org")

    line = said("send_mail")

    assert re.search(r"; longest wait: transactional 0\.\d+ s, bulk 3 min$", line)


def test_thousands_are_set_off(provider, said):
    queue_job("Hi", "Hello", "a@example.org", [f"reader{number}@example.org" for number in range(1_234)])

    assert said("process_mail_jobs").startswith("process_mail_jobs: 1,234 messages from 1 job in ")


def test_quiet_is_silent(provider, said):
    queue()

    assert said("send_mail", verbosity=0) == ""


def test_as_json_a_run_is_one_object_on_one_line(provider, said_as_json):
    queue_job("Hi", "Hello", "a@example.org", ["b@example.org", "c@example.org", "nobody"])

    made, sent, retried = (said_as_json(command) for command in SLICES)

    assert made.pop("seconds") >= 0
    assert made == {
        "command": "process_mail_jobs",
        "jobs": 1,
        "messages": 2,
        "duplicates": 0,
        "malformed": 1,
        "paused": 0,
        "postponed": 0,
        "followed": 0,
        "jobs_done": 0,
        "stopped": "done",
    }
    assert sent.pop("seconds") >= 0
    assert list(sent.pop("longest_waits")) == ["bulk"]
    assert sent == {
        "command": "send_mail",
        "outcomes": {"sent": 2},
        "providers": {"relay": 2},
        "rescued": 0,
        "expired": 0,
        "jobs_done": 1,
        "stopped": "done",
        "is_blocked": False,
        "is_limited": False,
        "waiting": 0,
        "oldest_seconds": None,
    }
    assert (retried["command"], retried["outcomes"]) == ("retry_deferred", {})


@pytest.mark.parametrize("command", SLICES)
def test_a_dry_run_calls_no_provider_and_changes_no_row(command, configure, provider, said, clock):
    """C29"""
    configure({"relay": {"script": ["deferred", "accept"]}})
    queue("deferred@example.org", "sent@example.org")
    call_command("send_mail", verbosity=0)
    clock.advance(days=1)
    queue("queued@example.org")
    queue_job("Hi", "Hello", "a@example.org", ["b@example.org"])
    MessageJob.objects.filter(pk=queue_job("Hi", "Hello", "a@example.org", ["c@example.org"]).pk).cancel()
    before, calls = everything(), provider.calls

    line = said(command, "--dry-run")

    assert "nothing was done" in line
    assert everything() == before
    assert provider.calls == calls


def everything():
    """All rows that a run could change."""
    return [
        list(model.objects.order_by("pk").values()) for model in (Message, MessageJob, Attempt, ProviderState, Worker)
    ]


def test_a_dry_run_says_how_many_of_those_that_are_due(provider, said, said_as_json):
    queue("b@example.org", "c@example.org")

    assert said("send_mail", "--dry-run", limit=1) == "send_mail: would send 1 of 2 due; nothing was done\n"
    assert said_as_json("send_mail", "--dry-run") == {
        "command": "send_mail",
        "dry_run": True,
        "would_send": 2,
        "due": 2,
    }


def test_a_limit_sends_so_many_and_leaves_the_rest_in_order(provider, said):
    """C09, C14"""
    queue("first@example.org", "second@example.org", "third@example.org")

    call_command("send_mail", limit=2, verbosity=0)
    assert sorted(mail.to[0] for mail in provider.accepted) == ["first@example.org", "second@example.org"]

    call_command("send_mail", verbosity=0)
    assert provider.accepted[-1].to == ["third@example.org"]


def test_a_stream_alone_is_sent(provider):
    queue("news@example.org", stream="bulk")
    queue("reset@example.org", stream="transactional")

    call_command("send_mail", stream=["bulk"], verbosity=0)

    assert [mail.to for mail in provider.accepted] == [["news@example.org"]]


def test_retry_deferred_sends_what_is_deferred_and_due_and_touches_nothing_else(configure, provider, clock):
    """C15"""
    configure({"relay": {"script": ["deferred", "deferred"]}})
    due, not_due = queue("due@example.org", "later@example.org")
    call_command("send_mail", verbosity=0)
    clock.advance(hours=1)
    Message.objects.filter(pk=not_due.pk).update(available_at=not_due.available_at.replace(year=2100))
    queue("queued@example.org")
    others = Message.objects.exclude(pk=due.pk).order_by("pk").values()
    before = list(others)

    call_command("retry_deferred", verbosity=0)

    due.refresh_from_db()
    assert due.status == "sent"
    assert list(others.all()) == before


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.01 s"),
        (0.044, "0.04 s"),
        (0.996, "1.00 s"),
        (2.34, "2.3 s"),
        (9.97, "10 s"),
        (41, "41 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7_199, "120 min"),
        (7_200, "2 h"),
        (172_800, "2 days"),
    ],
)
def test_a_duration_is_as_exact_as_an_operator_needs_it(seconds, words):
    assert duration(seconds) == words


def test_counted_knows_singular_and_plural():
    assert counted(1, "job") == "1 job"
    assert counted(0, "job") == "0 jobs"
    assert counted(1_240, "address", "addresses") == "1,240 addresses"
