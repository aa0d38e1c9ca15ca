"""How long a job takes to become messages, and how much room they take.

Beside it, in the same run: as many bare rows of an id and an address, by one executemany in one transaction.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

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

SENDER = "news@example.org"
PDF_BYTES = 2_000_000


def expand(count: int, *, merge: bool = False, pdf: bool = False) -> Figures:
    """Queue a job for `count` recipients and expand it. With `merge` each has a name, with `pdf` the mail a file."""
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
        queue_job(subject, text, SENDER, "bench", html_message=html, attachments=files)
        queued_at, cpu_started_at = time.perf_counter(), time.process_time()
        expand_jobs(max_time=None)
        expanded_at, cpu_ended_at = time.perf_counter(), time.process_time()
        memory_growth, growth = memory.growth, stored() - before
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
        }


def line(figures: Medians) -> str:
    return (
        f"queue_job {figures['queue_ms']:.0f} ms, expansion {figures['seconds']:.2f} s ({figures.range('seconds')}), "
        f"of it {figures['cpu_seconds']:.2f} s CPU here, stored {figures['mb']:.2f} MB "
        f"({figures['bytes']:.0f} bytes a message), memory +{figures['memory_mb']:.0f} MB; "
        f"bare rows {figures['bare_seconds']:.2f} s ({figures.range('bare_seconds')}), {figures['bare_mb']:.2f} MB"
    )


CASES: dict[str, Callable[[], Figures]] = {
    "5000": partial(expand, 5_000),
    "5000-named": partial(expand, 5_000, merge=True),
    "5000-pdf": partial(expand, 5_000, pdf=True),
    "100000": partial(expand, 100_000),
}

if __name__ == "__main__":
    main(CASES, line, title="expand: a job of 2 kB text and 20 kB HTML", repeats=3)
