"""What cases about databases share: workers that say what they meet, and connections beside theirs."""

from __future__ import annotations

from contextlib import suppress
from random import Random
from typing import Any

from django.db import connection

import mailengine
from mailengine.models import Message
from mailengine.models import Worker as WorkerRow

from ..database_faults import execute, raw_connection
from .case import MARIADB, POSTGRESQL
from .providers import expect
from .sinks import SMTPSink
from .workers import Worker
from .world import World

SERVERS = (POSTGRESQL, MARIADB)
CRASHES = 20
LOUD = "from django.conf import settings\nsettings.LOGGING['loggers']['mailengine']['level'] = 'INFO'\n"
"""For workers that are to say so: one error of the database alone is no warning."""


def busy_sink(world: World) -> SMTPSink:
    """A server behind a slow network, so that a run is long enough to be disturbed."""
    sink = world.smtp()
    wire = world.proxy(sink.port)
    wire.to_client.delay_seconds = 0.005
    world.route("relay", wire.port)
    return sink


def crew_at_work(world: World, count: int, before: str = "") -> list[Worker]:
    """So many workers, each of which has had its first answer from the database."""
    crew = [world.worker("send_mail", before=LOUD + before) for _ in range(count)]
    for worker in crew:
        mine = WorkerRow.objects.filter(name__endswith=f":{worker.pid}")
        world.wait_until(lambda: mine.exists() or not worker.is_alive, what=f"{worker} to be at work")  # noqa: B023
    return crew


def noticed(worker: Worker) -> bool:
    """Whether it has met an error of the database, and said so."""
    return "the database failed" in worker.err or "after a database error" in worker.err


def assert_turned_away(worker: Worker) -> None:
    """It said in one line what is wrong, and ended."""
    assert worker.returncode == 1, f"{worker} ended with {worker.returncode}: {worker.err}"
    assert "the database does not answer" in worker.err, worker.err
    assert "Traceback" not in worker.err, worker.err


def expect_no_doubt(world: World) -> None:
    """All is sent, and no handover was ever uncertain: the worker lived, and knows what it has done."""
    expect(world.statuses(), {"sent": len(world.acked)})
    expect(world.outcomes().get("uncertain", 0), 0, "uncertain attempts")


def terminate_one(random: Random) -> int:
    """Let the server drop one connection that isn't ours; 1 if there was one."""
    with raw_connection() as admin:
        found = sessions(admin)
        if found:
            terminate(admin, random.choice(found))
        return bool(found)


def sessions(admin: object) -> list[int]:
    """Of others, in this database."""
    sql = {
        POSTGRESQL: "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()",
        MARIADB: "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()",
    }[connection.vendor]
    return [row[0] for row in execute(admin, sql).fetchall()]


def terminate(admin: object, session: int) -> None:
    sql = {POSTGRESQL: f"SELECT pg_terminate_backend({session})", MARIADB: f"KILL CONNECTION {session}"}
    with suppress(*drivers_errors()):  # it has gone by itself
        execute(admin, sql[connection.vendor])


def own_session(other: object) -> int:
    sql = {POSTGRESQL: "SELECT pg_backend_pid()", MARIADB: "SELECT CONNECTION_ID()"}
    return int(execute(other, sql[connection.vendor]).fetchone()[0])


def drivers_errors() -> tuple[type[Exception], ...]:
    """Of a raw connection."""
    return (connection.Database.Error,)


def enqueue(number: int, **options: Any) -> Message:
    words = "Hello", "Good morning.", "desk@example.org"
    return mailengine.queue_mail(*words, [f"k{number:05d}@example.org"], idempotency_key=f"{number}", **options)
