"""The hot queries keep to their indexes, however many finished rows there are."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from mailengine.models import Message, MessageJob
from mailengine.models.messages import Status

from .helpers import claim, make_content, make_job, make_messages, new_lease, now, rescue

pytestmark = pytest.mark.django_db(transaction=True)  # gathering statistics ends a transaction on MariaDB
FINISHED = 8_000


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
        cursor.execute(f"ANALYZE {'TABLE ' if connection.vendor == 'mysql' else ''}{table}")
        if cursor.description:
            cursor.fetchall()


def plan_of(work) -> str:
    """How the database runs the first query for messages that `work` makes."""
    with CaptureQueriesContext(
        connection,
    ) as queries:
        work()
    sql = next(q["sql"] for q in queries.captured_queries if Message._meta.db_table in q["sql"])
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
def test_new_mail_leaves_waiting_retries_alone():
    """F-X19: only what is new is claimed, and no row of those deferred is touched."""
    before = list(Message.objects.filter(status=Status.DEFERRED).order_by("id").values())
    assert len(claim(new_lease())) == 5
    assert list(Message.objects.filter(status=Status.DEFERRED).order_by("id").values()) == before
