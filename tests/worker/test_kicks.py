"""Kicks: where no worker is at work, mail of a stream with `KICK` is sent at once by the process that queued it."""

import threading
import time

import pytest
from django.db import connection, transaction

from mailengine import queue_job
from mailengine.models import Message, Worker
from mailengine.models.workers import forget_who_is_at_work
from mailengine.pipeline import kicks
from mailengine.pipeline.expand import expand_jobs
from mailengine.testing import FakeProvider
from tests.dispatch.helpers import queue, queue_many

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def provider(configure):
    """One provider, and kicks for transactional mail."""
    configure(STREAMS={"transactional": {"KICK": True}})
    yield FakeProvider.named("relay")
    wait_for_kicks()


@pytest.fixture
def runs(monkeypatch):
    """The runs that kicks have started, each as the number of messages it was for."""
    begun = []

    class Counted(kicks.Dispatcher):
        def run(self):
            begun.append(len(self.claims.only))
            return super().run()

    monkeypatch.setattr(kicks, "Dispatcher", Counted)
    return begun


def wait_for_kicks():
    """Until no kick is under way."""
    ends_at = time.monotonic() + 30
    while any(thread.name == "mailengine-kick" for thread in threading.enumerate()):
        assert time.monotonic() < ends_at, "a kick goes on and on"
        time.sleep(0.01)


def test_mail_is_sent_after_the_commit_by_another_thread(provider):
    """S05, S08"""
    with transaction.atomic():
        message = queue()
        wait_for_kicks()
        assert provider.accepted == []

    wait_for_kicks()

    message.refresh_from_db()
    assert (message.status, message.worker.command) == ("sent", "kick")


def test_it_is_off_by_default(configure, runs):
    """S08"""
    configure()

    queue()

    wait_for_kicks()
    assert (runs, FakeProvider.named("relay").accepted) == ([], [])


def test_mail_that_is_rolled_back_kicks_nobody(provider, runs):
    with transaction.atomic():
        queue()
        transaction.set_rollback(True)

    wait_for_kicks()
    assert (runs, provider.accepted) == ([], [])


def test_nothing_else_is_touched(provider):
    """S05"""
    queue_job("Hi", "Hello", "desk@example.org", [f"u{number}@example.org" for number in range(10_000)])
    expand_jobs()

    message = queue("new@example.org")

    wait_for_kicks()
    assert [email.to for email in provider.accepted] == [["new@example.org"]]
    assert Message.objects.filter(status="queued", claim_count=0).count() == 10_000
    message.refresh_from_db()
    assert message.status == "sent"


def test_a_thousand_kicks_start_one_run_in_a_second(provider, runs):
    """S09"""
    kicker = kicks.Kicker()
    messages = queue_many(3, stream="bulk")
    began_at = time.monotonic()
    for number in range(1_000):
        kicker.kick([messages[number % 3].pk], using="default")
    most = 1 + int(time.monotonic() - began_at) // kicks.APART_SECONDS

    assert len(runs) <= most
    wait_for_kicks()
    assert len(runs) <= most + 1


def test_all_mail_of_a_transaction_is_one_kick(provider, runs):
    with transaction.atomic():
        queue("first@example.org")
        with transaction.atomic():
            queue("taken-back@example.org")
            transaction.set_rollback(True)
        with transaction.atomic():
            queue("second@example.org")
        hooks = [hook for _savepoints, hook, *_rest in connection.run_on_commit if isinstance(hook, kicks._Kicks)]
        queue_many(50)
        assert [
            hook for _savepoints, hook, *_rest in connection.run_on_commit if isinstance(hook, kicks._Kicks)
        ] == hooks

    wait_for_kicks()
    assert len(hooks) == 1
    assert Message.objects.filter(status="sent").count() == len(provider.accepted) == 52


def test_a_savepoint_that_is_taken_back_takes_no_other_kick_with_it(provider):
    with transaction.atomic():
        with transaction.atomic():
            queue("taken-back@example.org")
            transaction.set_rollback(True)
        queue("first@example.org")

    wait_for_kicks()
    assert [email.to for email in provider.accepted] == [["first@example.org"]]


@pytest.mark.parametrize(("age", "kicks_work"), [(0, False), (31, True)])
def test_where_a_worker_is_at_work_kicks_do_nothing(age, kicks_work, provider, runs, clock):
    """S10"""
    Worker.objects.register("mail_worker")
    clock.advance(seconds=age)
    forget_who_is_at_work()

    queue()

    wait_for_kicks()
    assert bool(runs) == kicks_work


def test_the_runs_of_cron_do_not_stop_kicks(provider, runs):
    """S10"""
    Worker.objects.register("send_mail")

    queue()

    wait_for_kicks()
    assert len(runs) == 1


def test_what_is_for_later_kicks_nobody(provider, runs):
    from mailengine.clock import read_now

    queue(send_at=read_now("default").replace(year=2999))

    wait_for_kicks()
    assert runs == []


def test_a_kick_that_fails_is_no_business_of_the_caller(provider, monkeypatch, caplog):
    """S12"""
    monkeypatch.setattr(kicks.Dispatcher, "run", lambda self: 1 / 0)

    message = queue()

    wait_for_kicks()
    message.refresh_from_db()
    assert message.status == "queued"
    assert "mail could not be sent at once; it is left to send_mail" in caplog.text


def test_a_thread_that_can_not_start_is_no_business_of_the_caller(provider, monkeypatch):
    """S12"""
    monkeypatch.setattr(threading.Thread, "start", lambda self: (_ for _ in ()).throw(RuntimeError("no thread left")))

    message = queue()

    message.refresh_from_db()
    assert message.status == "queued"


def test_a_provider_that_is_away_is_left_to_cron(configure, runs):
    """S09: no flood of futile retries."""
    configure({"relay": {"script": ["unavailable"], "repeat": True}}, STREAMS={"transactional": {"KICK": True}})

    message = queue()

    wait_for_kicks()
    message.refresh_from_db()
    assert (message.status, len(runs)) == ("queued", 1)


@pytest.mark.skipif(connection.vendor != "postgresql", reason="counts connections, which SQLite has none of")
def test_it_leaves_no_connection_open(provider):
    queue()
    wait_for_kicks()

    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
        assert cursor.fetchone()[0] == 1


@pytest.mark.django_db
def test_a_test_that_runs_hooks_within_its_transaction_sees_each_kick(
    configure, monkeypatch, django_capture_on_commit_callbacks
):
    """They stay in Django's list then: what comes later must not be added to one that is done."""
    configure(STREAMS={"transactional": {"KICK": True}})
    kicked = []
    monkeypatch.setattr(kicks._kicker, "kick", lambda ids, *, using: kicked.append(list(ids)))
    queued = []
    for number in range(2):
        with django_capture_on_commit_callbacks(execute=True):
            queued.append([queue(f"u{number}@example.org").pk])

    assert kicked == queued
