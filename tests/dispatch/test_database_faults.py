"""Databases that fail in the middle of a run: real connections cut at each step, a real SMTP server that counts."""

from __future__ import annotations

import threading
import time
from datetime import datetime, timezone
from uuid import uuid4

import pytest
from django.db import OperationalError, connection

from mailengine.errors import DatabaseLost
from mailengine.models import Attempt, Message, ProviderState, Worker
from mailengine.outcomes import Kind, Outcome
from mailengine.pipeline.dispatch import Dispatcher, dispatch_slice
from mailengine.pipeline.ledger import Ledger
from mailengine.pipeline.outage import passes

from ..database_faults import (
    at,
    database_options,
    execute,
    raw_connection,
    servers_only,
    terminate_own_connection,
    through_a_proxy,
    wait_for,
)
from .helpers import ledger, queue, queue_many, statuses

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _talkative(caplog):
    caplog.set_level("INFO", "mailengine.dispatch")


@pytest.fixture
def proxy():
    with through_a_proxy() as proxy:
        yield proxy


@pytest.fixture
def two_connections(server, settings):
    settings.MAILENGINE = {**settings.MAILENGINE, "CONNECTIONS": 2}
    return server


def assert_each_went_once(server, messages):
    """Each message arrived once, the ledger agrees, and nothing is open, leased or left."""
    assert statuses() == {"sent": len(messages)}
    assert sorted(mail.mailengine_id for mail in server.accepted) == sorted(str(message.pk) for message in messages)
    for message in messages:
        *before, last = ledger(message)
        assert last == ("relay", "accepted")
        assert set(before) <= {("relay", "unavailable")}
    assert not Attempt.objects.open().exists()
    assert not Message.objects.exclude(lease=None, leased_until=None).exists()
    assert not Worker.objects.filter(stopped_at=None).exists()


STEPS = [
    ("mailengine.models.messages:MessageQuerySet.overdue_leases", "before", 1),
    ("mailengine.models.workers:WorkerQuerySet.register", "after", 1),
    ("mailengine.models.messages:MessageQuerySet.claim", "before", 1),
    ("mailengine.models.messages:MessageQuerySet.claim", "after", 1),
    ("mailengine.models.messages:MessageQuerySet.claim", "after", 2),
    ("mailengine.pipeline.dispatch:Dispatcher._stock_up", "before", 1),
    ("mailengine.models.messages:MessageQuerySet.held", "before", 2),
    ("mailengine.models.attempts:AttemptQuerySet.begin", "before", 1),
    ("mailengine.models.attempts:AttemptQuerySet.begin", "after", 2),
    ("mailengine.pipeline.dispatch:Dispatcher._hand_over", "before", 1),
    ("mailengine.pipeline.senders:Team.send", "after", 2),
    ("mailengine.models.attempts:AttemptQuerySet.end_many", "before", 1),
    ("mailengine.models.attempts:AttemptQuerySet.end_many", "after", 2),
    ("mailengine.models.messages:MessageQuerySet.settle_sent", "after", 1),
    ("mailengine.models.workers:Worker.heartbeat", "after", 1),
    ("mailengine.pipeline.dispatch:Dispatcher._look_back", "before", 1),
    ("mailengine.models.messages:MessageQuerySet.release_all", "after", 1),
]


@servers_only
@pytest.mark.parametrize(("target", "when", "call"), STEPS, ids=lambda value: str(value).rpartition(".")[2])
def test_a_connection_that_is_terminated_at_any_step_costs_nothing(two_connections, monkeypatch, target, when, call):
    """F-D02: the connection is made anew, in the same run; no message is lost, none is doubled."""
    messages = queue_many(6)
    hits = at(monkeypatch, target, terminate_own_connection, when=when, times=(call,))

    report = dispatch_slice()

    assert hits == [call]
    assert_each_went_once(two_connections, messages)
    assert (report.outcomes, report.sent_by, report.stopped) == ({"sent": 6}, {"relay": 6}, "done")


COMMITS = {
    "of a claim": ("mailengine.models.messages:MessageQuerySet.claim", 1),
    "of a Begin": ("mailengine.models.attempts:AttemptQuerySet.begin", 1),
    "of an End and a Begin": ("mailengine.models.attempts:AttemptQuerySet.end_many", 1),
    "of the last End": ("mailengine.models.attempts:AttemptQuerySet.end_many", 4),
    "of a worker's last word": ("mailengine.models.messages:MessageQuerySet.release_all", 1),
}


@servers_only
@pytest.mark.parametrize("fate", ["arrived", "did not arrive"])
@pytest.mark.parametrize("commit", COMMITS)
def test_a_commit_whose_fate_is_unknown_is_looked_up(server, proxy, monkeypatch, commit, fate):
    """F-D02: what it began is not open for ever, what it ended is not counted twice and not forgotten."""
    target, call = COMMITS[commit]
    messages = queue_many(4)
    at(monkeypatch, target, lambda: setattr(proxy, "next_commit", fate), when="after", times=(call,))

    report = dispatch_slice()

    assert proxy.cut_count == 1
    assert_each_went_once(server, messages)
    assert (report.outcomes, report.sent_by) == ({"sent": 4}, {"relay": 4})
    begun = list(Attempt.objects.filter(outcome="unavailable").values_list("code", flat=True))
    has_begin = "Begin" in commit
    assert begun == (["commit unknown"] if has_begin and fate == "arrived" else [])


@servers_only
@pytest.mark.parametrize("fate", ["arrived", "did not arrive"])
def test_a_bad_round_is_charged_once_though_its_commit_had_to_be_looked_up(
    configure, handed_over, proxy, monkeypatch, fate
):
    configure({"one": {}, "two": {}}, CONNECTIONS=1)
    handed_over(lambda alias, email: Outcome(Kind.UNAVAILABLE if alias == "one" else Kind.ACCEPTED))
    message = queue()
    end_many = "mailengine.models.attempts:AttemptQuerySet.end_many"
    at(monkeypatch, end_many, lambda: setattr(proxy, "next_commit", fate), when="after")

    dispatch_slice()

    assert proxy.cut_count == 1
    message.refresh_from_db()
    assert message.status == "sent"
    tries = ledger(message).count(("one", "unavailable"))
    assert ProviderState.objects.get(pk="one").bad_rounds == tries <= 2
    assert not Attempt.objects.open().exists()


def fail():
    raise OperationalError("server closed the connection unexpectedly")


def test_a_failed_turn_that_meets_what_others_have_settled_is_not_taken_for_committed(
    configure, handed_over, monkeypatch
):
    """What came of the first is entered, though the second left the worker's hands by another's doing."""
    configure(CONNECTIONS=1)
    handovers = handed_over(lambda alias, email: Outcome(Kind.ACCEPTED))
    first, second, third = messages = queue_many(3)
    proven = Message.objects.filter(pk=second.pk)
    sent_elsewhere = lambda: proven.update(status="sent", lease=None, leased_until=None)  # noqa: E731
    at(monkeypatch, "mailengine.pipeline.senders:Team.send", sent_elsewhere, when="after")
    claim = "mailengine.pipeline.intake:Intake.take"  # what comes next in the turn
    fail_next = lambda: at(monkeypatch, claim, fail)  # noqa: E731
    hits = at(monkeypatch, "mailengine.pipeline.ledger:Ledger.begin", fail_next, when="after", times=(2,))

    report = dispatch_slice()

    assert hits == [2]
    assert [ledger(message) for message in messages] == [[("relay", "accepted")], [], [("relay", "accepted")]]
    assert (statuses(), report.outcomes) == ({"sent": 3}, {"sent": 2})
    assert [to for _alias, to, _key in handovers] == [first.recipient, third.recipient]


def test_a_failed_turn_with_a_late_result_is_not_taken_for_committed(configure, handed_over, monkeypatch):
    """An attempt that was given up on had ended already, and what is learned of it later is entered all the same."""
    configure(CONNECTIONS=2, SEND_DEADLINE_SECONDS=0.3, LEASE_SECONDS=4)

    def outcome_of(alias, email):
        time.sleep(0.9 if email.to[0] == "slow@example.org" else 0.1)
        return Outcome(Kind.ACCEPTED)

    handovers = handed_over(outcome_of)
    slow = queue("slow@example.org", priority=0)
    others = queue_many(20)
    failed = []
    settle = Ledger.settle

    def fail_with_the_late_result(self, ended, rows):
        elsewhere = settle(self, ended, rows)
        if not failed and any(item.message == slow and outcome.kind is Kind.ACCEPTED for item, outcome in ended):
            failed.append(ended)
            fail()
        return elsewhere

    monkeypatch.setattr(Ledger, "settle", fail_with_the_late_result)

    dispatch_slice()

    assert len(failed) == 1
    assert statuses() == {"sent": 1 + len(others)}
    assert ledger(slow) == [("relay", "accepted")]
    assert len(handovers) == 1 + len(others)


def test_a_turn_that_does_nothing_writes_nothing(configure, handed_over):
    configure(CONNECTIONS=1)
    handed_over(lambda alias, email: time.sleep(0.7) or Outcome(Kind.ACCEPTED))
    queue()
    run, turns = Dispatcher("send_mail"), []
    run.on_progress = lambda report: turns.append(run.worker.last_turn())

    run.run()

    assert len(turns) > len(set(turns)) > 1


@servers_only
def test_a_database_that_is_away_for_a_while_is_waited_for(server, proxy, monkeypatch, caplog):
    """F-D01 in small: what is in flight ends meanwhile, and is recorded late."""
    messages = queue_many(5)
    at(monkeypatch, "mailengine.pipeline.senders:Team.send", proxy.down, when="after", times=(2,))
    watch = in_a_thread(lambda: (wait_for(lambda: failures(caplog) >= 3), proxy.up()))

    report = dispatch_slice()

    watch.join()
    assert_each_went_once(server, messages)
    assert report.outcomes == {"sent": 5}


@servers_only
def test_a_run_that_is_over_still_waits_for_a_database_while_it_knows_what_nobody_else_does(
    server, proxy, monkeypatch, caplog
):
    messages = queue_many(2)
    run = Dispatcher("send_mail")

    def end():
        proxy.down()
        run.bounds.ends_at = time.monotonic()

    at(monkeypatch, "mailengine.pipeline.senders:Team.send", end, when="after")
    watch = in_a_thread(lambda: (wait_for(lambda: failures(caplog) >= 4), proxy.up()))

    report = run.run()

    watch.join()
    assert (report.outcomes, report.stopped) == ({"sent": 1}, "max_time")
    assert statuses() == {"sent": 1, "queued": len(messages) - 1}
    assert len(server.accepted) == 1


@servers_only
def test_what_could_not_be_recorded_is_said_aloud(server, proxy, monkeypatch, caplog, settings):
    """After SIGTERM a run waits for the database no longer than for a provider, then names what it knows."""
    settings.MAILENGINE = {**settings.MAILENGINE, "SEND_DEADLINE_SECONDS": 1, "LEASE_SECONDS": 20}
    message = queue()
    stop = threading.Event()
    at(monkeypatch, "mailengine.pipeline.senders:Team.send", lambda: (proxy.down(), stop.set()), when="after")

    with pytest.raises(DatabaseLost, match="1 outcomes may not be recorded"):
        dispatch_slice(stop=stop)

    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert str(message.pk) in said
    assert "relay" in said
    assert "accepted" in said
    proxy.up()
    message.refresh_from_db()
    assert (message.status, len(server.accepted)) == ("sending", 1)


@servers_only
def test_without_anything_to_record_a_run_ends_with_its_time(server, proxy, monkeypatch):
    queue_many(3)
    at(monkeypatch, "mailengine.models.messages:MessageQuerySet.claim", proxy.down)

    with pytest.raises(DatabaseLost, match="the database does not answer"):
        dispatch_slice(max_time=0.1)

    proxy.up()
    assert statuses() == {"queued": 3}
    assert server.accepted == []


def test_a_lock_that_is_held_for_longer_than_a_statement_waits_is_waited_for_nevertheless(server, monkeypatch, caplog):
    """F-L10, F-D08: a lock timeout of any database, which on MariaDB rolls back one statement and no more."""
    messages = queue_many(3)
    options = dict(connection.settings_dict["OPTIONS"])
    if connection.vendor == "postgresql":
        options["options"] = "-c lock_timeout=100ms"
    elif connection.vendor == "mysql":
        options["init_command"] += ", innodb_lock_wait_timeout=1"
    else:
        options["timeout"] = 0.1
    with raw_connection() as other, database_options(OPTIONS=options):

        def lock():
            if connection.vendor == "sqlite":
                execute(other, "BEGIN IMMEDIATE")
            else:
                execute(other, "BEGIN")
                execute(other, "SELECT id FROM mailengine_message FOR UPDATE")

        at(monkeypatch, "mailengine.pipeline.senders:Team.send", lock)
        watch = in_a_thread(lambda: (wait_for(lambda: failures(caplog) >= 2), execute(other, "COMMIT")))

        report = dispatch_slice()
        watch.join()

    assert_each_went_once(server, messages)
    assert report.outcomes == {"sent": 3}


@pytest.mark.skipif(connection.vendor != "postgresql", reason="the other databases have a limit of their own")
@pytest.mark.parametrize("step", ["Begin", "release"])
def test_a_lock_that_nobody_lets_go_is_not_waited_for_without_end(configure, handed_over, monkeypatch, caplog, step):
    """F-D02: PostgreSQL keeps the locks of a client whose host is gone; a run sees to its other duties meanwhile."""
    monkeypatch.setattr("mailengine.models.locks.LONGEST_LOCK_WAIT_SECONDS", 0.2)
    configure(CONNECTIONS=1)
    handed_over(lambda alias, email: Outcome(Kind.ACCEPTED))
    queue_many(3)
    stop = threading.Event()
    with raw_connection() as gone:

        def lock():
            execute(gone, "BEGIN")
            execute(gone, "SELECT id FROM mailengine_message FOR UPDATE")

        def let_go():
            try:
                wait_for(lambda: failures(caplog) >= 2)
            finally:
                execute(gone, "COMMIT")

        at(monkeypatch, "mailengine.pipeline.senders:Team.send", stop.set)
        locked_at = {"Begin": "senders:Team.send", "release": "dispatch:Dispatcher._give_back"}[step]
        at(monkeypatch, f"mailengine.pipeline.{locked_at}", lock)
        watch = in_a_thread(let_go)

        dispatch_slice(stop=stop)
        watch.join()

    assert failures(caplog) >= 2
    assert statuses() == {"sent": 1, "queued": 2}


@pytest.mark.skipif(connection.vendor != "postgresql", reason="the other databases have a limit of their own")
def test_a_session_of_its_own_that_the_server_takes_for_alive_is_not_waited_for_without_end(
    configure, handed_over, monkeypatch, caplog
):
    """F-D02: it holds the row of its worker, too."""
    monkeypatch.setattr("mailengine.models.locks.LONGEST_LOCK_WAIT_SECONDS", 0.2)
    configure(CONNECTIONS=1)
    handed_over(lambda alias, email: Outcome(Kind.ACCEPTED))
    queue_many(3)
    with raw_connection() as before:

        def lose():
            execute(before, "BEGIN")
            execute(before, "SELECT id FROM mailengine_worker FOR UPDATE")
            terminate_own_connection()

        def let_go():
            try:
                wait_for(lambda: failures(caplog) >= 3)
            finally:
                execute(before, "COMMIT")

        at(monkeypatch, "mailengine.pipeline.senders:Team.send", lose, when="after")
        watch = in_a_thread(let_go)

        dispatch_slice()
        watch.join()

    assert failures(caplog) >= 3
    assert statuses() == {"sent": 3}


LOCKING = {
    "a claim": "mailengine.models.messages:MessageQuerySet.claim",
    "a Begin": "mailengine.models.messages:MessageQuerySet.held",
    "a rescue": "mailengine.models.messages:MessageQuerySet._rescue",
}


@pytest.mark.skipif(connection.vendor != "postgresql", reason="PostgreSQL alone can be told so by a transaction")
@pytest.mark.parametrize("step", LOCKING)
def test_a_run_that_loses_its_network_within_a_transaction_keeps_no_locks(two_connections, monkeypatch, step):
    """F-P20: its session looks alive to the server, which ends it nevertheless, and others get at the mail."""
    monkeypatch.setattr("mailengine.models.locks.LONGEST_IDLE_SECONDS", 0.3)
    messages = queue_many(3)
    if step == "a rescue":
        worker = Worker.objects.register("send_mail")
        Worker.objects.update(stopped_at=worker.seen_at)
        Message.objects.update(
            status="sending", claimed_from="queued", worker=worker, lease=uuid4(), leased_until=worker.seen_at
        )
    with raw_connection() as other, through_a_proxy() as wire:

        def can_lock_all():
            found = execute(other, "SELECT id FROM mailengine_message FOR UPDATE SKIP LOCKED").fetchall()
            return len(found) == len(messages)

        def lose():
            wire.stall()
            try:
                assert not can_lock_all()
                wait_for(can_lock_all, seconds=5)
            finally:
                wire.heal()

        hits = at(monkeypatch, LOCKING[step], lose, when="after")

        dispatch_slice()

        assert hits == [1]
        assert_each_went_once(two_connections, messages)


@servers_only
def test_a_deadlock_ends_no_run(configure, handed_over, monkeypatch, caplog):
    """The worker has locked the message and wants the provider's row; somebody else has it the other way round."""
    configure({"one": {}, "two": {}}, CONNECTIONS=1)
    handed_over(lambda alias, email: Outcome(Kind.UNAVAILABLE if alias == "one" else Kind.ACCEPTED))
    message = queue()
    queue_many(50, send_at=datetime(2090, 1, 1, tzinfo=timezone.utc))
    with raw_connection() as other, raw_connection() as onlooker:
        twins = []

        def cross():
            # PostgreSQL ends who finds out, so let the other one never look; MariaDB ends who has changed fewer rows.
            execute(other, "SET deadlock_timeout = '1h'" if connection.vendor == "postgresql" else "SELECT 1")
            execute(other, "BEGIN")
            execute(other, "UPDATE mailengine_content SET text = 'x'")
            execute(other, "SELECT alias FROM mailengine_providerstate FOR UPDATE")
            twins.append(in_a_thread(want_the_message))
            wait_for(lambda: execute(onlooker, waiting).fetchone())

        def want_the_message():
            execute(other, "SELECT id FROM mailengine_message FOR UPDATE")
            execute(other, "COMMIT")

        waiting = {
            "postgresql": "SELECT 1 FROM pg_locks WHERE NOT granted",
            # Not innodb_trx: who asks it ten times a second gets the first answer again and again.
            "mysql": "SELECT 1 FROM information_schema.global_status"
            " WHERE variable_name = 'INNODB_ROW_LOCK_CURRENT_WAITS' AND variable_value > 0",
        }[connection.vendor]
        at(monkeypatch, "mailengine.models.providers:ProviderQuerySet.locked", cross)

        report = dispatch_slice()
        twins[0].join()

    assert "deadlock" in caplog.text.lower()
    message.refresh_from_db()
    *tries, last = ledger(message)
    assert (message.status, last, set(tries)) == ("sent", ("two", "accepted"), {("one", "unavailable")})
    assert ProviderState.objects.get(pk="one").bad_rounds == len(tries)
    assert report.outcomes == {"sent": 1}


def test_a_begin_whose_commit_outlasts_the_trust_in_its_lease_is_not_sent(server, settings, monkeypatch):
    """F-D08"""
    settings.MAILENGINE = {**settings.MAILENGINE, "LEASE_SECONDS": 4, "SEND_DEADLINE_SECONDS": 3}  # 0.6 s of trust
    message = queue()
    at(monkeypatch, "mailengine.models.attempts:AttemptQuerySet.begin", lambda: time.sleep(0.7), when="after")

    dispatch_slice()

    message.refresh_from_db()
    assert (message.status, message.attempt_count) == ("sent", 0)
    assert ledger(message) == [("relay", "unavailable"), ("relay", "accepted")]
    assert message.attempts.get(number=1).code == "too late"
    assert len(server.accepted) == 1
    assert ProviderState.objects.get().bad_rounds == 0


def test_a_message_whose_claim_took_too_long_is_not_begun(server, settings, monkeypatch):
    """F-D08"""
    settings.MAILENGINE = {**settings.MAILENGINE, "LEASE_SECONDS": 4, "SEND_DEADLINE_SECONDS": 3}
    message = queue()
    at(monkeypatch, "mailengine.models.messages:MessageQuerySet.claim", lambda: time.sleep(0.7), when="after")

    dispatch_slice()

    message.refresh_from_db()
    assert message.status == "sent"
    assert ledger(message) == [("relay", "accepted")]


def test_inside_a_callers_transaction_nothing_can_be_tried_again(provider, monkeypatch):
    from django.db import transaction

    queue()
    at(monkeypatch, "mailengine.models.attempts:AttemptQuerySet.begin", fail)
    with pytest.raises(OperationalError), transaction.atomic():
        dispatch_slice()


def test_an_error_that_does_not_pass_ends_the_run_in_good_order(server, monkeypatch):
    """A bug of ours: what has arrived is recorded, the rest is given back, and the error is seen."""

    def fail():
        raise ZeroDivisionError

    queue_many(3)
    at(monkeypatch, "mailengine.pipeline.senders:Team.send", fail, when="after")
    with pytest.raises(ZeroDivisionError):
        dispatch_slice()

    assert len(server.accepted) == 1
    assert statuses() == {"sent": 1, "queued": 2}
    assert not Attempt.objects.open().exists()


def test_an_outcome_that_can_not_be_entered_keeps_nothing_else_from_being_given_back(
    configure, handed_over, monkeypatch, caplog
):
    """Whatever the error is: it is logged, the outcome is named, and what was not begun is anybody's again."""

    def fail_in_settle():
        raise ValueError("A string literal cannot contain NUL (0x00) characters.")

    configure(CONNECTIONS=1)
    handed_over(lambda alias, email: Outcome(Kind.ACCEPTED))
    first, *others = queue_many(3)
    at(monkeypatch, "mailengine.models.attempts:AttemptQuerySet.end_many", fail_in_settle, times=(1, 2))

    with pytest.raises(ValueError, match="NUL"):
        dispatch_slice()

    assert statuses() == {"sending": 1, "queued": len(others)}
    not_saved, named = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "NUL" in str(not_saved.exc_info[1])
    assert str(first.pk) in named.getMessage()
    assert not Worker.objects.filter(stopped_at=None).exists()


def test_a_providers_own_id_is_stored_without_what_no_database_takes(configure, handed_over):
    configure()
    handed_over(lambda alias, email: Outcome(Kind.ACCEPTED, provider_message_id="4711\x00" + 300 * "x"))
    message = queue()

    dispatch_slice()

    message.refresh_from_db()
    assert message.status == "sent"
    assert message.provider_message_id.startswith("4711\\x00x")
    assert len(message.provider_message_id) == 255


@servers_only
def test_mail_sent_directly_outlives_a_lost_connection_too(server, monkeypatch):
    from mailengine import send_direct_email

    hits = at(monkeypatch, "mailengine.models.attempts:AttemptQuerySet.begin", terminate_own_connection, when="after")

    message = send_direct_email("Hi", "Hello", "desk@example.org", ["ann@example.org"])

    assert (hits, message.status, len(server.accepted)) == ([1], "sent", 1)
    assert ledger(message) == [("relay", "accepted")]


@pytest.mark.parametrize(
    "sql",
    {
        "sqlite": ["SELECT * FROM nowhere", "SELECT nothing FROM mailengine_message", "SELEKT"],
        "mysql": ["SELECT * FROM nowhere", "SELECT nothing FROM mailengine_message", "SELEKT"],
        "postgresql": ["SELECT * FROM nowhere", "SELECT nothing FROM mailengine_message", "SELEKT"],
    }[connection.vendor],
)
def test_a_bug_in_a_statement_is_no_outage(sql):
    from django.db import DatabaseError

    with pytest.raises(DatabaseError) as caught, connection.cursor() as cursor:
        cursor.execute(sql)

    assert not passes(caught.value)


def failures(caplog):
    return sum("the database failed" in record.getMessage() for record in caplog.records)


def in_a_thread(work):
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread
