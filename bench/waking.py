"""How soon a waiting `mail_worker` hands over what is committed, and what it costs whoever commits. PostgreSQL only.

`latency`: one mail after another, each committed while the worker waits. `insert-*`: clients that commit a row each, as
fast as they can, without a notification, with one in the same transaction, and with one right after the commit.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from support import ROOT, Figures, Medians, main, scratch_database

MAILS = 200
SECONDS = 1.0
ROUNDS = 5
WAYS = ("without", "within", "after")


def latency() -> Figures:
    """From the moment before a commit until the server has the mail, and until it says so."""
    with scratch_database(SMTP_HOST="127.0.0.1") as connection:
        from mailengine import queue_mail
        from mailengine.models import Worker
        from mailengine.testing import SMTPServer

        arrived = threading.Event()
        with SMTPServer(on_accepted=lambda _mail: arrived.set()) as server:
            variables = {"DATABASE_URL": _url(connection), "SMTP_PORT": str(server.port), "DEBUG": "0"}
            worker = subprocess.Popen(
                [sys.executable, "manage.py", "mail_worker", "--interval", "60"],  # noqa: S603  our own
                cwd=ROOT,
                env={**os.environ, **variables},
            )
            try:
                while not Worker.objects.exists():
                    time.sleep(0.1)
                time.sleep(4)
                waits = [_one_mail(queue_mail, arrived) for _ in range(MAILS)]
            finally:
                worker.terminate()
                worker.wait()
    ordered = sorted(waits[1:])  # the first one opens the connection to the server
    return {
        "p50_ms": ordered[len(ordered) // 2],
        "p99_ms": ordered[int(len(ordered) * 0.99)],
        "most_ms": ordered[-1],
        "first_ms": waits[0],
    }


def _one_mail(queue_mail: Callable[..., Any], arrived: threading.Event) -> float:
    from django.db import transaction

    time.sleep(0.05)  # the worker waits again
    arrived.clear()
    with transaction.atomic():
        queue_mail("Hello", "Good morning.", "desk@example.org", ["ann@example.org"])
        started_at = time.perf_counter()
    if not arrived.wait(timeout=50):
        raise RuntimeError("a mail did not arrive")
    return (time.perf_counter() - started_at) * 1_000


def inserts(clients: int) -> Figures:
    """Commits in a second by so many clients together, each of the three ways, with one connection that listens."""
    import psycopg

    with scratch_database() as connection:
        url = _url(connection)
        listening = psycopg.connect(url, autocommit=True)
        listening.execute("LISTEN mailengine")
        listening.execute("CREATE TABLE rows (id serial PRIMARY KEY, words text)")
        figures = dict.fromkeys(WAYS, 0.0)
        with multiprocessing.get_context("spawn").Pool(clients) as pool:
            for _round in range(ROUNDS):  # in turn, since the machine may be busy for a while
                for way in WAYS:
                    counts = pool.map(partial(_insert, url, way), range(clients), chunksize=1)
                    figures[way] += sum(counts) / SECONDS / ROUNDS
        listening.close()
    return figures


def _insert(url: str, way: str, _number: int) -> int:
    """How many rows one client committed."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        count, ends_at = 0, time.monotonic() + SECONDS
        while time.monotonic() < ends_at:
            with connection.transaction():
                connection.execute("INSERT INTO rows (words) VALUES (%s)", ["x" * 500])
                if way == "within":
                    connection.execute("NOTIFY mailengine")
            if way == "after":
                connection.execute("NOTIFY mailengine")
            count += 1
    return count


def _url(connection: Any) -> str:
    now = connection.settings_dict
    if connection.vendor != "postgresql":
        raise SystemExit("waking.py is about PostgreSQL: set DATABASE_URL")
    secret = f":{now['PASSWORD']}" if now["PASSWORD"] else ""
    return f"postgres://{now['USER']}{secret}@{now['HOST']}:{now['PORT']}/{now['NAME']}"


def line(figures: Medians) -> str:
    if "p50_ms" in figures.runs[0]:
        parts = [f"{name[:-3]} {figures[name]:.1f} ms ({figures.range(name)})" for name in figures.runs[0]]
        return f"from before the commit to the server: {', '.join(parts)}"
    return ", ".join(f"{way} {figures[way]:,.0f}/s ({figures.range(way)})" for way in WAYS)


CASES: dict[str, Callable[[], Figures]] = {
    "latency": latency,
    **{f"insert-{clients}": partial(inserts, clients) for clients in (1, 8, 32)},
}

if __name__ == "__main__":
    main(CASES, line, title="waking: a worker that waits", repeats=1)
