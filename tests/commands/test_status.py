"""`mail_status`: how the queue stands, for an operator at three in the morning, and for monitoring."""

import json
from datetime import timedelta

import pytest
from django.core.management import call_command
from django.db import DatabaseError, connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from mailengine import queue_job, queue_mail
from mailengine.models import Attempt, Message, MessageJob, ProviderState, Worker
from mailengine.reporting.depth import COUNTED_TOGETHER
from mailengine.reporting.status import queue_status
from mailengine.reporting.traffic import HOURS
from tests.models.helpers import make_content

pytestmark = pytest.mark.django_db


def queue(*addresses, **options):
    for address in addresses:
        queue_mail("Hi", "Hello", "a@example.org", [address], **options)


@pytest.fixture
def checked(capsys):
    """The exit code of `mail_status --check`, and its line."""

    def check(**options):
        capsys.readouterr()
        try:
            call_command("mail_status", check=True, **options)
            code = 0
        except SystemExit as error:
            code = error.code
        return code, capsys.readouterr().out.strip()

    return check


def test_an_empty_queue_says_so(provider, said):
    assert said("mail_status").splitlines() == [
        "no mail is waiting, and none is dead",
        "",
        "provider relay  in use, not tried yet",
        "jobs     none unfinished",
        "workers  none at work",
    ]


def test_streams_are_rows_and_what_is_there_are_columns(configure, said, clock):
    configure({"relay": {"script": ["refused", "deferred"]}})
    queue("dead@example.org", "deferred@example.org", stream="bulk")
    call_command("send_mail", verbosity=0)
    queue("one@example.org", "two@example.org")
    clock.advance(minutes=3)

    assert said("mail_status").splitlines()[:3] == [
        "stream         due  deferred  dead  oldest due",
        "bulk             0         1     1           -",
        "transactional    2         0     0       3 min",
    ]


def test_as_json_it_is_one_object(provider, said_as_json, clock):
    queue("one@example.org")
    queue_job("Hi", "Hello", "a@example.org", ["b@example.org"])
    clock.advance(seconds=90)

    status = said_as_json("mail_status")

    assert (status["command"], status["level"], status["jobs"]) == ("mail_status", "OK", {"queued": 1})
    (stream,) = status["streams"]
    assert (stream["stream"], stream["due"], stream["dead"]) == ("transactional", 1, 0)
    assert 90 <= stream["oldest_seconds"] < 100
    (relay,) = status["providers"]
    told = {"alias": "relay", "state": "in use", "detail": "not tried yet", "is_usable": True}
    assert relay.items() >= told.items()


def test_all_is_well(provider, checked):
    queue("one@example.org")

    assert checked() == (0, "MAIL OK: nothing is late")


@pytest.mark.parametrize(("minutes", "code", "level"), [(11, 1, "WARNING"), (61, 2, "CRITICAL")])
def test_mail_that_nobody_sends_is_noticed(minutes, code, level, provider, checked, clock):
    queue("one@example.org")
    clock.advance(minutes=minutes)

    due = f"transactional: the oldest mail has been due for {minutes} min; does send_mail run?"
    assert checked() == (code, f"MAIL {level}: {due}")


def test_deferred_mail_that_nobody_retries_is_noticed(configure, checked, clock):
    configure({"relay": {"script": ["deferred"]}})
    queue("one@example.org")
    call_command("send_mail", verbosity=0)
    clock.advance(minutes=30)

    code, line = checked()

    assert code == 1
    assert "the oldest deferred mail has been due for" in line
    assert "does retry_deferred run?" in line


def test_a_job_that_nobody_expands_is_noticed(provider, checked, clock):
    queue_job("Hi", "Hello", "a@example.org", ["b@example.org"])
    clock.advance(minutes=11)

    assert checked() == (1, "MAIL WARNING: the oldest job has been due for 11 min; does process_mail_jobs run?")


def test_a_paused_job_is_a_warning(provider, checked):
    queue_job("Hi", "Hello", "a@example.org", ["b@example.org"])
    MessageJob.objects.all().pause()

    assert checked() == (1, "MAIL WARNING: paused jobs: 1, the admin says why")


def test_mail_kept_for_a_person_is_a_warning(configure, checked):
    configure({"relay": {"script": ["uncertain"]}}, STREAMS={"transactional": {"UNCERTAIN": "hold"}})
    queue("one@example.org")
    call_command("send_mail", verbosity=0)

    code, line = checked()

    assert code == 1
    assert "transactional: 1 may have gone and wait for a person to decide in the admin" in line


def test_mail_without_a_usable_provider_is_critical_and_a_provider_less_is_a_warning(configure, checked, said):
    configure({"one": {"script": ["misconfigured"], "repeat": True}, "two": {}})
    queue("one@example.org")
    call_command("send_mail", verbosity=0)
    code, line = checked()
    assert code == 1
    assert "provider one is misconfigured, since " in line
    assert "535" in line

    configure({"one": {"script": ["misconfigured"], "repeat": True}})
    queue("two@example.org")
    assert checked()[0] == 2
    assert "provider one  misconfigured, since " in said("mail_status")


def test_settings_that_stop_the_commands_are_critical(provider, checked, settings):
    settings.MAILENGINE = {"PROVIDERS": {"relay": {}}, "LEASE_SECOND": 5}

    code, line = checked()

    assert code == 2
    assert "nothing is sent until this is mended: MAILENGINE has no setting 'LEASE_SECOND'. (mailengine.E004)" in line


def test_a_database_that_does_not_answer_is_unknown(provider, checked):
    def refuse(*_):
        raise DatabaseError("server closed the connection unexpectedly")

    with connection.execute_wrapper(refuse):
        code, line = checked()
        _code, as_json = checked(json=True)

    assert code == 3
    assert line.startswith(f"MAIL UNKNOWN: the database does not answer: {connection.vendor} ")
    assert "server closed the connection unexpectedly" in line
    assert json.loads(as_json)["level"] == "UNKNOWN"


def test_depth_is_a_query_for_each_index_however_many_there_are(provider, django_assert_max_num_queries):
    queue_job("Hi", "Hello", "a@example.org", [f"reader{number}@example.org" for number in range(3_000)])
    call_command("process_mail_jobs", verbosity=0)

    with django_assert_max_num_queries(10 + HOURS) as queries:
        status = queue_status()

    assert status.streams[0].due == 3_000
    of_messages = f"FROM {connection.ops.quote_name(Message._meta.db_table)}"
    # A fifth is about uncertain mail alone.
    assert sum(of_messages in query["sql"] for query in queries) == len(COUNTED_TOGETHER) + 1


def test_each_state_has_its_column(provider):
    """G12"""
    content, now = make_content(), timezone.now()
    shared = {"content": content, "stream": "bulk", "recipient": "b@example.org", "priority": 40, "created_at": now}
    late, later = now - timedelta(minutes=5), now + timedelta(minutes=5)
    states = {
        "due": ("queued", late),
        "scheduled": ("queued", later),
        "sending": ("sending", late),
        "deferred": ("deferred", later),
        "uncertain": ("uncertain", later),
        "kept": ("uncertain", None),
        "held": ("queued", None),
        "dead": ("dead", None),
    }
    for number, (status, available_at) in enumerate(states.values(), 1):
        for _ in range(number):
            Message.objects.create(status=status, available_at=available_at, **shared)
    Message.objects.create(status="sent", **shared)

    (bulk,) = queue_status().streams

    assert {name: getattr(bulk, name) for name in states} == {name: n for n, name in enumerate(states, 1)}
    assert 300 <= bulk.oldest_seconds == bulk.oldest_bulk_seconds < 400


def test_below_a_provider_stands_what_else_there_is_to_say(configure, said):
    configure(
        {"one": {"script": ["misconfigured"], "repeat": True}, "two": {}},
        PROVIDERS={"one": {}, "two": {"RATE": "90/day"}},
    )
    ProviderState.objects.create(alias="two", weight=2)
    queue("one@example.org", "two@example.org")
    call_command("send_mail", verbosity=0)

    one, mend, failed, two, switches, limits, sent = said("mail_status").partition("\nprovider ")[2].splitlines()[:7]

    assert one.startswith("one  misconfigured, since ")
    assert mend.strip().startswith("It refuses our user name, password or key. Compare MAILERS['one'] with ")
    assert failed.strip() == "0 sent today, 0 in 24 hours, 1 failed"
    assert two == "provider two  in use"
    assert switches.strip() == "set here: weight 2"
    assert limits.strip() == "2 of 90 in 24 hours"
    assert sent.strip() == "2 sent today, 2 in 24 hours (100 % of all mail)"


def test_all_that_the_page_shows_is_in_the_json(configure, said_as_json):
    configure({"one": {}}, PROVIDERS={"one": {"RATE": "90/day"}})
    queue("one@example.org")
    call_command("send_mail", verbosity=0)

    (one,) = said_as_json("mail_status")["providers"]

    assert (one["state"], one["mode"], one["weight"], one["rate"], one["share"]) == (
        "in use",
        "enabled",
        1,
        "90/day",
        1,
    )
    assert [(limit["name"], limit["used"], limit["most"]) for limit in one["limits"]] == [("day", 1, 90)]
    assert (len(one["hours"]), one["hours"][-1]["outcomes"]) == (24, {"accepted": 1})


def test_monitoring_asks_the_ledger_for_no_figures(provider, checked):
    with CaptureQueriesContext(connection) as queries:
        checked()

    assert not any(Attempt._meta.db_table in query["sql"] for query in queries)


def work(handled_count, *, name="mail1:1", minutes=10):
    """A worker that is at it."""
    now = timezone.now()
    began_at = now - timedelta(minutes=minutes)
    times = {"started_at": began_at, "seen_at": now}
    Worker.objects.create(name=name, command="send_mail", handled_count=handled_count, **times)


def test_a_worker_that_does_far_less_than_the_others_is_noticed_while_mail_is_due(provider, checked):
    """P33"""
    for number, handled_count in enumerate((1_000, 1_100, 100), 1):
        work(handled_count, name=f"mail{number}:1")
    assert checked() == (0, "MAIL OK: nothing is late")

    queue("one@example.org")

    code, line = checked()
    assert code == 1
    assert "worker mail3:1 (send_mail) handles 10 messages a minute, where 100 are usual" in line
    assert "mail1:1" not in line


@pytest.mark.parametrize("minutes", [[10, 10], [10, 10, 0.5]])
def test_two_workers_and_one_that_has_just_begun_say_nothing_of_each_other(minutes, provider, checked):
    queue("one@example.org")
    for number, each in enumerate(minutes):
        work(1_000 if number == 0 else 1, name=f"mail{number}:1", minutes=each)

    assert checked() == (0, "MAIL OK: nothing is late")


def test_what_waits_for_a_limit_is_good(configure, checked):
    configure({"one": {}}, PROVIDERS={"one": {"RATE": "1/day"}})
    queue("one@example.org", "two@example.org")
    call_command("send_mail", verbosity=0)

    code, line = checked()

    assert code == 0
    assert line.startswith("MAIL OK: transactional: mail waits for the limit of one until ")
