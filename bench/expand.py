"""How long a job takes to become messages, and how much room they take.

Beside it, in the same run: as many bare rows of an id and an address, by one executemany in one transaction; and on
PostgreSQL as many rows of a bare queue, and the very rows of the messages in a table like theirs but for its foreign
keys, each by one `INSERT ... SELECT ... FROM unnest()`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from support import (
    Figures,
    Medians,
    PeakMemory,
    addresses,
    database_bytes,
    folder_bytes,
    main,
    scratch_database,
    words,
)

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

SENDER = "news@example.org"
PDF_BYTES = 2_000_000


BARE_QUEUE = """
    CREATE TABLE bench_queue (
        id uuid PRIMARY KEY, job_id bigint NOT NULL, address varchar(254) NOT NULL,
        status smallint NOT NULL DEFAULT 0, priority smallint NOT NULL DEFAULT 3,
        created_at timestamptz NOT NULL DEFAULT now(),
        available_at timestamptz NOT NULL DEFAULT now(), sent_at timestamptz
    );
    CREATE INDEX bench_queue_due ON bench_queue (priority, available_at) WHERE status = 0;
"""


def expand(count: int, *, merge: bool = False, pdf: bool = False, as_list: bool = False) -> Figures:
    """Queue a job for `count` recipients and expand it. With `merge` each has a name, with `pdf` the mail a file.

    `as_list` gives the job a list, which it keeps in its pieces, instead of the name of an audience.
    """
    with scratch_database() as connection:
        from django.conf import settings
        from django.db import transaction

        import mailengine
        from mailengine.addresses import parse_address
        from mailengine.models import Message
        from mailengine.pipeline.expand import expand_jobs

        @mailengine.audience("bench", count=lambda: count)
        def readers() -> Iterator[str | tuple[str, dict[str, str]]]:
            for number, address in enumerate(addresses(count)):
                yield (address, {"name": f"Reader {number}"}) if merge else address

        def stored() -> int:
            return database_bytes(connection) + folder_bytes(settings.MEDIA_ROOT)

        subject, text, html = words()
        text = f"Dear {{{{ name }}}},\n\n{text}" if merge else text
        parse_address(SENDER)  # a process's first address waits 70 ms for Django to compile its pattern
        queue_job = mailengine.queue_job
        files = [("issue.pdf", b"%PDF-1.7\n" + bytes(PDF_BYTES), "application/pdf")] if pdf else None
        before, memory = stored(), PeakMemory()
        started_at = time.perf_counter()
        to = addresses(count) if as_list else "bench"
        queue_job(subject, text, SENDER, to, html_message=html, attachments=files)
        queued_at, cpu_started_at = time.perf_counter(), time.process_time()
        expand_jobs(max_time=None)
        expanded_at, cpu_ended_at = time.perf_counter(), time.process_time()
        memory_growth, growth = memory.growth, stored() - before
        unnest = _unnest(connection, count)
        if Message.objects.count() != count:
            raise SystemExit(f"{Message.objects.count()} messages instead of {count}")

        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE bench_narrow (id integer PRIMARY KEY, address varchar(254) NOT NULL)")
            before = database_bytes(connection)
            rows = list(enumerate(addresses(count)))
            bare_started_at = time.perf_counter()
            with transaction.atomic():
                cursor.executemany("INSERT INTO bench_narrow (id, address) VALUES (%s, %s)", rows)
            bare_ended_at = time.perf_counter()
            bare_growth = database_bytes(connection) - before
        return {
            "queue_ms": (queued_at - started_at) * 1_000,
            "seconds": expanded_at - queued_at,
            "cpu_seconds": cpu_ended_at - cpu_started_at,
            "mb": growth / 1e6,
            "bytes": growth / count,
            "memory_mb": memory_growth / 1e6,
            "bare_seconds": bare_ended_at - bare_started_at,
            "bare_mb": bare_growth / 1e6,
            **unnest,
        }


def _unnest(connection: BaseDatabaseWrapper, count: int) -> Figures:
    """Seconds for as many rows by one statement each, on PostgreSQL."""
    if connection.vendor != "postgresql":
        return {}
    with connection.cursor() as cursor:
        cursor.execute(BARE_QUEUE)
        cursor.execute("CREATE TABLE bench_message (LIKE mailengine_message INCLUDING ALL)")
        cursor.execute("SELECT array_agg(id::text) FROM mailengine_message")
        (ids,) = cursor.fetchone()
        columns = [column.name for column in connection.introspection.get_table_description(cursor, "bench_message")]
        others = ", ".join(f"first.{name}" for name in columns if name not in ("id", "recipient"))
        rest = ", ".join(name for name in columns if name not in ("id", "recipient"))
        queue = (
            "INSERT INTO bench_queue (id, job_id, address)"
            " SELECT gen_random_uuid(), 1, address FROM unnest(%s::text[]) AS address"
        )
        message = (
            f"INSERT INTO bench_message (id, recipient, {rest}) SELECT row.*, {others}"  # noqa: S608  own names
            " FROM unnest(%s::uuid[], %s::text[]) AS row, (SELECT * FROM mailengine_message LIMIT 1) AS first"
        )
        started_at = time.perf_counter()
        cursor.execute(queue, [list(addresses(count))])
        queue_ended_at = time.perf_counter()
        cursor.execute(message, [ids, list(addresses(count))])
        return {
            "queue_seconds": queue_ended_at - started_at,
            "same_rows_seconds": time.perf_counter() - queue_ended_at,
        }


def line(figures: Medians) -> str:
    return (
        f"queue_job {figures['queue_ms']:.0f} ms, expansion {figures['seconds']:.2f} s ({figures.range('seconds')}), "
        f"of it {figures['cpu_seconds']:.2f} s CPU here, stored {figures['mb']:.2f} MB "
        f"({figures['bytes']:.0f} bytes a message), memory +{figures['memory_mb']:.0f} MB; "
        f"bare rows {figures['bare_seconds']:.2f} s ({figures.range('bare_seconds')}), {figures['bare_mb']:.2f} MB"
        f"{_beside(figures)}"
    )


def _beside(figures: Medians) -> str:
    if "queue_seconds" not in figures.runs[0]:
        return ""
    queue, same = figures["queue_seconds"], figures["same_rows_seconds"]
    return (
        f"; unnest of a bare queue {queue:.2f} s: {queue / figures['seconds']:.2f} x its rate; "
        f"of the same rows {same:.2f} s: {same / figures['seconds']:.2f} x its rate"
    )


CASES: dict[str, Callable[[], Figures]] = {
    "5000": partial(expand, 5_000),
    "5000-named": partial(expand, 5_000, merge=True),
    "5000-pdf": partial(expand, 5_000, pdf=True),
    "100000": partial(expand, 100_000),
    "100000-list": partial(expand, 100_000, as_list=True),
}

if __name__ == "__main__":
    main(CASES, line, title="expand: a job of 2 kB text and 20 kB HTML", repeats=3)
