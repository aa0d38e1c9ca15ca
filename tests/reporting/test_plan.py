"""The ledger's figures are found by its index on time, however long the ledger is."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from mailengine.clock import read_now
from mailengine.models import Attempt
from mailengine.reporting.traffic import traffic_by_provider
from tests.models.helpers import make_messages

pytestmark = pytest.mark.django_db(transaction=True)  # gathering statistics ends a transaction on MariaDB
OLD, NEW = 8_000, 100


@pytest.fixture
def _a_long_ledger():
    (message,) = make_messages(1)
    now = read_now("default")
    first = now - timedelta(days=90)
    Attempt.objects.bulk_create(
        (
            Attempt(
                message=message,
                number=number,
                provider="ses",
                outcome="accepted",
                begun_at=first + number * timedelta(days=80) / OLD if number < OLD else now - timedelta(hours=2),
            )
            for number in range(OLD + NEW)
        ),
        batch_size=1_000,
    )
    table = Attempt._meta.db_table
    with connection.cursor() as cursor:
        cursor.execute(f"ANALYZE {'TABLE ' if connection.vendor == 'mysql' else ''}{table}")
        if cursor.description:
            cursor.fetchall()
        if connection.vendor == "postgresql":
            cursor.execute(f"VACUUM {table}")  # it takes the last pages into the index


@pytest.mark.usefixtures("_a_long_ledger")
def test_the_last_hours_are_found_by_their_index():
    with CaptureQueriesContext(connection) as queries:
        assert traffic_by_provider(read_now("default"))["ses"].accepted == NEW

    *_earlier, sql = [query["sql"] for query in queries if Attempt._meta.db_table in query["sql"]]
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN {'QUERY PLAN ' if connection.vendor == 'sqlite' else ''}{sql}")
        plan = "\n".join(" ".join(map(str, row)) for row in cursor.fetchall())
    assert "mailengine_begun" in plan
