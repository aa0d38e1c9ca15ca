"""Who is woken by what: one notification for a transaction that has committed, and none that nobody hears."""

import threading

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from mailengine import queue_job
from mailengine.models import Message, MessageJob, Worker
from mailengine.models.workers import forget_who_is_at_work
from mailengine.pipeline.expand import expand_jobs
from mailengine.pipeline.senders import Team
from mailengine.pipeline.worker import MailWorker
from tests.dispatch.helpers import queue

pytestmark = pytest.mark.django_db(transaction=True)
on_postgresql = pytest.mark.skipif(connection.vendor != "postgresql", reason="only PostgreSQL wakes workers")


@pytest.fixture
def worker(provider):
    """One is at work."""
    row = Worker.objects.register("mail_worker")
    forget_who_is_at_work()
    return row


def wakes(work):
    """How many notifications went out by this."""
    with CaptureQueriesContext(connection) as asked:
        work()
    return sum(query["sql"] == "NOTIFY mailengine" for query in asked)


@on_postgresql
@pytest.mark.parametrize(
    "work",
    [
        queue,
        lambda: queue_job("Hi", "Hello", "desk@example.org", ["ann@example.org"]),
        lambda: Message.objects.all().requeue(),
        lambda: MessageJob.objects.all().resume(),
    ],
    ids=["queue_mail", "queue_job", "requeue", "resume"],
)
def test_what_makes_work_wakes_workers(work, worker):
    assert wakes(work) == 1


@on_postgresql
def test_an_expansion_wakes_those_that_send(worker):
    queue_job("Hi", "Hello", "desk@example.org", ["ann@example.org"])

    assert wakes(expand_jobs) == 1


@on_postgresql
def test_many_in_one_transaction_wake_them_once_and_after_the_commit(worker):
    def queue_three():
        with transaction.atomic():
            for number in range(3):
                queue(f"u{number}@example.org")
            assert wakes(lambda: queue("last@example.org")) == 0

    assert wakes(queue_three) == 1


@on_postgresql
def test_what_is_rolled_back_wakes_nobody_and_keeps_nobody_from_being_woken(worker):
    def queue_and_roll_back():
        with transaction.atomic():
            with transaction.atomic():
                queue()
                transaction.set_rollback(True)
            if not is_last:
                queue("second@example.org")

    is_last = False
    assert wakes(queue_and_roll_back) == 1
    is_last = True
    assert wakes(queue_and_roll_back) == 0


@on_postgresql
def test_where_no_worker_is_at_work_none_is_woken(worker):
    """Cron needs no news, and a notification is a commit of its own."""
    Worker.objects.all().delete()
    forget_who_is_at_work()

    assert wakes(queue) == 0


@on_postgresql
def test_who_is_at_work_is_asked_once_in_a_while(worker):
    with CaptureQueriesContext(connection) as asked:
        for number in range(5):
            queue(f"u{number}@example.org")

    assert sum("mailengine_worker" in query["sql"] for query in asked) == 1


@pytest.mark.skipif(connection.vendor == "postgresql", reason="it is about the others")
def test_other_databases_are_asked_nothing(worker):
    with CaptureQueriesContext(connection) as asked:
        queue()

    assert not any("mailengine_worker" in query["sql"] or "NOTIFY" in query["sql"] for query in asked)


def test_news_end_the_wait_for_a_handover():
    team = Team(1)
    threading.Timer(0.05, team.wake).start()

    assert team.collect(wait_seconds=60) == []


def test_news_end_the_wait_of_a_worker(provider):
    """It would wait for a minute otherwise."""
    waiting = MailWorker(interval=60, max_time=60, limit=1)
    threading.Timer(0.2, lambda: (queue(), waiting._hear(), connection.close())).start()

    waiting._started_at -= 60
    waiting.dispatcher.run_on(waiting)

    assert len(provider.accepted) == 1
