"""How soon a waiting `mail_worker` hands over what is committed, and what it costs whoever commits. PostgreSQL only.

`latency`: one mail after another, each committed while the worker waits; and in turn with it, the least that a worker
with a ledger could do: hear of it, claim it, begin it, each in a commit, and `smtplib`. `insert-*`: clients that commit
a row each, as fast as they can, without a notification, with one in the same transaction, and with one right after it.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from support import ROOT, Figures, Medians, main, scratch_database, url_of

MAILS = 200
SECONDS = 1.0
ROUNDS = 5
WAYS = ("without", "within", "after")


def latency() -> Figures:
    """From the moment before a commit until the server has the mail."""
    with scratch_database(SMTP_HOST="127.0.0.1") as connection:
        from mailengine import queue_mail
        from mailengine.models import Worker
        from mailengine.testing import SMTPServer

        arrived = threading.Event()
        with SMTPServer(on_accepted=lambda _mail: arrived.set()) as server:
            variables = {"DATABASE_URL": _url(connection), "SMTP_PORT": str(server.port), "DEBUG": "0"}
            with connection.cursor() as cursor:
                cursor.execute("CREATE TABLE bare (id serial PRIMARY KEY, words text, state text)")

            def queue_bare() -> None:
                with connection.cursor() as cursor:
                    cursor.execute("INSERT INTO bare (words) VALUES ('Good morning.')")
                    cursor.execute("NOTIFY bare")

            def queue_ours() -> None:
                queue_mail("Hello", "Good morning.", "desk@example.org", ["ann@example.org"])

            with _our_worker(variables), _bare_worker(variables["DATABASE_URL"], server.port):
                while not Worker.objects.exists():
                    time.sleep(0.1)
                time.sleep(4)  # it looks each second for so long
                for queue in (queue_ours, queue_bare):  # which opens the connections to the server
                    _one_mail(queue, arrived)
                waits = [(_one_mail(queue_ours, arrived), _one_mail(queue_bare, arrived)) for _ in range(MAILS)]
    figures = {}
    for name, values in zip(("ours", "bare"), zip(*waits, strict=True), strict=True):
        ordered = sorted(values)
        figures[f"{name}_p50_ms"] = ordered[len(ordered) // 2]
        figures[f"{name}_p99_ms"] = ordered[int(len(ordered) * 0.99)]
    return figures


def _one_mail(queue: Callable[[], None], arrived: threading.Event) -> float:
    from django.db import transaction

    time.sleep(0.05)  # the worker waits again
    arrived.clear()
    with transaction.atomic():
        queue()
        started_at = time.perf_counter()
    if not arrived.wait(timeout=50):
        raise RuntimeError("a mail did not arrive")
    return (time.perf_counter() - started_at) * 1_000


@contextmanager
def _our_worker(variables: dict[str, str]) -> Iterator[None]:
    command = [sys.executable, "manage.py", "mail_worker", "--interval", "60", "--verbosity", "0"]
    worker = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **variables})  # noqa: S603  our own
    try:
        yield
    finally:
        worker.terminate()
        worker.wait()


@contextmanager
def _bare_worker(url: str, port: int) -> Iterator[None]:
    worker = multiprocessing.get_context("spawn").Process(target=_work_barely, args=(url, port), daemon=True)
    worker.start()
    try:
        yield
    finally:
        worker.terminate()
        worker.join()


def _work_barely(url: str, port: int) -> None:
    import smtplib

    import psycopg

    mail = "From: desk@example.org\r\nTo: ann@example.org\r\nSubject: Hello\r\n\r\nGood morning.\r\n"
    with psycopg.connect(url, autocommit=True) as heard, psycopg.connect(url) as rows:
        heard.execute("LISTEN bare")
        server = smtplib.SMTP("127.0.0.1", port)
        for _notification in heard.notifies():
            found = rows.execute("SELECT id FROM bare WHERE state IS NULL FOR UPDATE SKIP LOCKED LIMIT 1").fetchone()
            for state in ("claimed", "begun"):
                rows.execute("UPDATE bare SET state = %s WHERE id = %s", [state, found and found[0]])
                rows.commit()
            server.sendmail("desk@example.org", ["ann@example.org"], mail)


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
    if connection.vendor != "postgresql":
        raise SystemExit("waking.py is about PostgreSQL: set DATABASE_URL")
    return url_of(connection)


def line(figures: Medians) -> str:
    if "ours_p50_ms" in figures.runs[0]:
        names = [name.removesuffix("_ms") for name in figures.runs[0]]
        return ", ".join(f"{name.replace('_', ' ')} {figures[f'{name}_ms']:.1f} ms" for name in names)
    return ", ".join(f"{way} {figures[way]:,.0f}/s ({figures.range(way)})" for way in WAYS)


CASES: dict[str, Callable[[], Figures]] = {
    "latency": latency,
    **{f"insert-{clients}": partial(inserts, clients) for clients in (1, 8, 32)},
}

if __name__ == "__main__":
    main(CASES, line, title="waking: a worker that waits", repeats=1)
