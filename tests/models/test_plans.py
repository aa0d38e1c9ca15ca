"""The hot queries keep to their indexes, however many finished rows there are."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.db.models.expressions import RawSQL
from django.test.utils import CaptureQueriesContext

from mailengine.models import Attempt, Message, MessageJob
from mailengine.models.messages import Status
from mailengine.outcomes import Kind, Outcome
from mailengine.pipeline.purge import purge
from mailengine.reporting.depth import COUNTED_TOGETHER, depths

from .helpers import begin, claim, make_content, make_job, make_messages, new_lease, now, rescue

pytestmark = pytest.mark.django_db(transaction=True)  # gathering statistics ends a transaction on MariaDB
FINISHED = 8_000
GATHER = {"postgresql": "VACUUM ANALYZE", "mysql": "ANALYZE TABLE", "sqlite": "ANALYZE"}
WITHOUT_ROWS = {"postgresql": "Index Only Scan using", "mysql": "Using index", "sqlite": "USING COVERING INDEX"}
PRIMARY_KEY = {"postgresql": "mailengine_message_pkey", "mysql": "PRIMARY", "sqlite": "sqlite_autoindex_mailengine"}


@pytest.fixture
def _a_grown_table():
    content, instant, job = make_content(), now(), make_job()
    shared = {"content": content, "stream": "bulk", "priority": 40, "created_at": instant}
    done = [
        Message(recipient=f"done{n}@example.org", status=Status.SENT, available_at=None, job=job, **shared)
        for n in range(FINISHED)
    ]
    not_due = [
        Message(
            recipient=f"later{n}@example.org",
            status=Status.DEFERRED,
            available_at=instant + timedelta(hours=1),
            expires_at=instant + timedelta(days=1),
            **shared,
        )
        for n in range(FINISHED // 10)
    ]
    Message.objects.bulk_create([*done, *not_due], batch_size=500)
    make_messages(5)
    table = Message._meta.db_table
    with connection.cursor() as cursor:
        cursor.execute(f"{GATHER[connection.vendor]} {table}")
        if cursor.description:
            cursor.fetchall()


def plan_of(work) -> str:
    """How the database runs the first query for messages that `work` makes."""
    return plans_of(work)[0]


def plans_of(work) -> list[str]:
    """The same of all its queries for messages."""
    with CaptureQueriesContext(connection) as queries:
        work()
    return [plan(q["sql"]) for q in queries.captured_queries if Message._meta.db_table in q["sql"]]


def plan(sql: str) -> str:
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN {'QUERY PLAN ' if connection.vendor == 'sqlite' else ''}{sql}")
        return "\n".join(" ".join(map(str, row)) for row in cursor.fetchall())


def claim_all(lease) -> list[Message]:
    """As `send_mail` does."""
    with transaction.atomic():
        return Message.objects.claim(lease, statuses=[Status.QUEUED, Status.UNCERTAIN], seconds=60, limit=16)


# Where indexes are whole and begin with the status, the one on what is due serves what is deferred as well.
QUERIES = {
    "claim": (lambda: claim(new_lease(), limit=16), "mailengine_due"),
    "claim uncertain": (lambda: claim(new_lease(), status=Status.UNCERTAIN, limit=16), "mailengine_due"),
    "claim whatever may be sent": (lambda: claim_all(new_lease()), "mailengine_due"),
    "claim deferred": (
        lambda: claim(new_lease(), status=Status.DEFERRED, limit=16),
        "mailengine_deferred",
        "mailengine_due",
    ),
    "rescue": (rescue, "mailengine_leased"),
    "overdue leases": (lambda: Message.objects.overdue_leases().exists(), "mailengine_leased"),
    "expired": (lambda: Message.objects.expired().exists(), "mailengine_expiring"),
    "progress": (
        lambda: list(Message.objects.filter(job_id=1, status=Status.QUEUED).values_list("pk")[:1]),
        "mailengine_job_progress",
    ),
    "finish": (MessageJob.objects.finish, "mailengine_job_progress"),
}


@pytest.mark.usefixtures("_a_grown_table")
def test_what_is_to_do_is_found_by_its_index():
    """F-X19: neither finished mail nor mail that is not due is walked through."""
    plans = {name: plan_of(query) for name, (query, *_indexes) in QUERIES.items()}
    astray = {name: plan for name, plan in plans.items() if not any(index in plan for index in QUERIES[name][1:])}
    assert astray == {}


@pytest.mark.usefixtures("_a_grown_table")
def test_what_waits_is_counted_from_indexes_alone():
    """G12: whatever is deferred or dead, `mail_status` reads no row of it; nor of any that is finished."""
    plans = dict(zip(COUNTED_TOGETHER, plans_of(lambda: depths(now())), strict=True))
    for statuses in ((Status.QUEUED, Status.UNCERTAIN), (Status.DEFERRED,), (Status.DEAD,)):
        assert WITHOUT_ROWS[connection.vendor] in plans[statuses]
    assert "mailengine_leased" in plans[(Status.SENDING,)] or connection.vendor != "postgresql"


@pytest.mark.usefixtures("_a_grown_table")
@pytest.mark.skipif("connection.vendor == 'mysql'", reason="its ids can't be trusted to sort by time")
def test_a_purge_reads_nothing_that_is_younger():
    plan = plan_of(lambda: purge(days=30))

    assert PRIMARY_KEY[connection.vendor] in plan
    assert "id <" in plan or "id<" in plan


@pytest.mark.skipif("connection.vendor != 'postgresql'", reason="only PostgreSQL has storage parameters")
def test_the_large_tables_are_vacuumed_by_what_is_dead_and_not_by_what_there_ever_was():
    with connection.cursor() as cursor:
        for model in (Message, Attempt):
            cursor.execute("SELECT reloptions FROM pg_class WHERE relname = %s", [model._meta.db_table])
            assert "autovacuum_vacuum_scale_factor=0.01" in cursor.fetchone()[0]


@pytest.mark.skipif("connection.vendor != 'postgresql'", reason="only PostgreSQL writes a new row for a change")
def test_the_end_of_an_attempt_finds_room_on_its_page():
    """So it is in all its indexes already."""
    lease, messages = new_lease(), make_messages(160)
    for some in (messages[n : n + 16] for n in range(0, 160, 16)):
        for message in some:
            begin(message, lease)
        pages = _pages_of(some)
        ended = Outcome(Kind.ACCEPTED, code="250", detail="2.0.0 Ok: queued as 4Z1kT65QwLz3Kq", sha256=bytes(32))

        Attempt.objects.end_many([(message.pk, 1, ended) for message in some], now=now())

        assert _pages_of(some) == pages


def _pages_of(messages: list[Message]) -> list[int]:
    """Where the attempts of these lie."""
    page = RawSQL("(ctid::text::point)[0]::int", ())
    return list(Attempt.objects.filter(message__in=messages).order_by("message").values_list(page, flat=True))


@pytest.mark.usefixtures("_a_grown_table")
def test_new_mail_leaves_waiting_retries_alone():
    """F-X19: only what is new is claimed, and no row of those deferred is touched."""
    before = list(Message.objects.filter(status=Status.DEFERRED).order_by("id").values())
    assert len(claim(new_lease())) == 5
    assert list(Message.objects.filter(status=Status.DEFERRED).order_by("id").values()) == before


@pytest.mark.skipif("connection.vendor != 'postgresql'", reason="the others walk past what is not due")
@pytest.mark.usefixtures("_a_grown_table")
@pytest.mark.parametrize("status", [Status.QUEUED, Status.DEFERRED])
def test_a_claim_does_not_walk_past_more_urgent_mail_that_is_not_due(status):
    """G33: neither past mail that is scheduled, nor past retries that are to come."""
    content, instant = make_content(), now()
    shared = {"content": content, "stream": "transactional", "created_at": instant, "status": status}
    Message.objects.bulk_create(
        Message(recipient=f"{n}@example.org", priority=10, available_at=instant + timedelta(seconds=60 + n), **shared)
        for n in range(5_000)
    )
    Message.objects.create(recipient="due@example.org", priority=30, available_at=instant, **shared)
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE mailengine_message")
    with CaptureQueriesContext(connection) as queries:
        claim(new_lease(), status=status, limit=1)
    (update,) = [q["sql"] for q in queries.captured_queries if "RECURSIVE" in q["sql"]]

    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {update}")
        plan = cursor.fetchone()[0][0]["Plan"]

    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 45  # 5,000 entries of the index take 50
