"""What the same machine does without a product: clients alone, rows alone, a bare queue with a ledger."""

from __future__ import annotations

import multiprocessing
import os
import smtplib
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .base import SENDER, Engine, addresses, email

LEDGER = Path(__file__).resolve().parent.parent / "ledger.py"


class Limit(Engine):
    product = "limit"
    runs_as = "once"


class SmtpSource(Limit):
    """As many mails of the same size by Postfix's own client, over connections that are kept."""

    def __init__(self, key: str, title: str, *, sessions: int) -> None:
        super().__init__(key, title)
        self.sessions = sessions

    def command(self) -> list[str]:
        sizes = ["-l", os.environ["BENCH_MAIL_BYTES"], "-m", os.environ["BENCH_COUNT"]]
        addresses = ["-f", SENDER, "-t", "reader@example.org", f"127.0.0.1:{os.environ['BENCH_SMTP_PORT']}"]
        return [os.environ["BENCH_SMTP_SOURCE"], "-4", "-d", "-s", str(self.sessions), *sizes, *addresses]


class RenderedMail(Limit):
    """As many mails by Python's smtplib, of bytes that were rendered once for all."""

    def __init__(self, key: str, title: str, *, processes: int, threads: int) -> None:
        super().__init__(key, title)
        self.processes, self.threads = processes, threads

    def command(self) -> list[str]:
        return [sys.executable, str(Path(__file__).resolve().parent.parent / "act.py"), self.key, "send"]

    def send(self) -> None:
        everyone = list(addresses(int(os.environ["BENCH_COUNT"])))
        data = rendered()
        width = self.processes * self.threads
        parts = [everyone[number::width] for number in range(width)]
        context = multiprocessing.get_context("fork")
        team = [
            context.Process(target=_in_threads, args=(parts[number :: self.processes], data))
            for number in range(self.processes)
        ]
        for process in team:
            process.start()
        for process in team:
            process.join()


def _in_threads(parts: list[list[str]], data: bytes) -> None:
    def send(part: list[str]) -> None:
        with smtplib.SMTP("127.0.0.1", int(os.environ["BENCH_SMTP_PORT"]), local_hostname="bench") as smtp:
            for address in part:
                smtp.sendmail(SENDER, [address], data)

    team = [threading.Thread(target=send, args=(part,)) for part in parts]
    for thread in team:
        thread.start()
    for thread in team:
        thread.join()


class Ledger(Limit):
    """A queue of bare rows with the whole ledger, in ledger.py: what a design like ours could reach, and no product."""

    runs_as = "command"
    left_sql = "SELECT count(*) FROM bench_message WHERE status <> 2"

    def __init__(self, key: str, title: str, *, processes: int, connections: int) -> None:
        super().__init__(key, title)
        self.processes, self.connections = processes, connections

    def command(self) -> list[str]:
        width = ["--processes", str(self.processes), "--connections", str(self.connections)]
        return [sys.executable, str(LEDGER), *width]

    def queue_many(self, count: int) -> None:
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO bench_message (id, job, recipient)"
                " SELECT gen_random_uuid(), 1, recipient FROM unnest(%s::text[]) AS recipient",
                [list(addresses(count))],
            )


def rendered() -> bytes:
    """The mail as SMTP carries it, but for its dots."""
    return bytes(email("reader@example.org").message().as_bytes(linesep="\r\n"))


class Limits:
    """Rows alone: how long the database itself takes. Each returns seconds; run in a process with Django set up."""

    @staticmethod
    def narrow_unnest(count: int) -> float:
        """So many rows of a bare queue, by one INSERT from an array."""
        _execute(NARROW)
        everyone = list(addresses(count))
        return _timed(
            lambda: _execute(
                "INSERT INTO bench_narrow (id, job_id, email)"
                " SELECT gen_random_uuid(), 1, email FROM unnest(%s::text[]) AS email",
                [everyone],
            )
        )

    @staticmethod
    def narrow_copy(count: int) -> float:
        """The same rows by COPY."""
        _execute(NARROW)
        from mailengine.ids import uuid7

        lines = [f"{uuid7()}\t1\t{address}\n" for address in addresses(count)]
        return _timed(lambda: _copy("COPY bench_narrow (id, job_id, email) FROM STDIN", lines))

    @staticmethod
    def same_unnest(count: int) -> float:
        """mailengine's own rows, with its indexes and without its foreign keys, by one INSERT from arrays."""
        names = _like_a_message()
        from mailengine.ids import uuid7

        values = ", ".join(f"row.{name}" if name in ("id", "recipient") else f"alike.{name}" for name in names)
        arrays = [[uuid7() for _ in range(count)], list(addresses(count))]
        return _timed(
            lambda: _execute(
                f"INSERT INTO bench_same ({', '.join(names)}) SELECT {values} FROM mailengine_message alike,"
                " unnest(%s::uuid[], %s::text[]) AS row (id, recipient)",
                arrays,
            )
        )

    @staticmethod
    def same_copy(count: int) -> float:
        """mailengine's own rows by COPY."""
        names = _like_a_message()
        from mailengine.ids import uuid7

        row = _execute(f"SELECT {', '.join(f'{name}::text' for name in names)} FROM mailengine_message")[0]
        alike = dict(zip(names, (r"\N" if value is None else value for value in row), strict=True))
        lines = [
            "\t".join({**alike, "id": str(uuid7()), "recipient": address}.values()) + "\n"
            for address in addresses(count)
        ]
        return _timed(lambda: _copy(f"COPY bench_same ({', '.join(names)}) FROM STDIN", lines))

    @staticmethod
    def orm_rows(count: int) -> float:
        """The rows that `queue_mail()` writes, content and message, by `save()` in one transaction each."""
        from django.db import transaction

        from mailengine.ids import uuid7

        message = _single_message()
        content = message.content

        def write() -> None:
            for _ in range(count):
                with transaction.atomic():
                    content.pk = None
                    content.save(force_insert=True)
                    message.pk, message.content = uuid7(), content
                    message.save(force_insert=True)

        return _timed(write)

    @staticmethod
    def orm_message(count: int) -> float:
        """The message's row alone, which is narrow, by `save()`."""
        from mailengine.ids import uuid7

        message = _single_message()

        def write() -> None:
            for _ in range(count):
                message.pk = uuid7()
                message.save(force_insert=True)

        return _timed(write)


NARROW = """
    CREATE TABLE bench_narrow (
        id uuid PRIMARY KEY, job_id bigint NOT NULL, email varchar(254) NOT NULL,
        status smallint NOT NULL DEFAULT 0, priority smallint NOT NULL DEFAULT 3,
        created_at timestamptz NOT NULL DEFAULT now(), available_at timestamptz NOT NULL DEFAULT now(),
        sent_at timestamptz
    );
    CREATE INDEX bench_narrow_due ON bench_narrow (priority, available_at) WHERE status = 0
"""


def _like_a_message() -> list[str]:
    """An empty table like mailengine's, beside one message that was expanded from a job; the names of its columns."""
    from django.db import connection

    from . import ENGINES

    engine: Any = ENGINES["mailengine"]
    engine.queue_many(1)
    engine.expand()
    _execute("CREATE TABLE bench_same (LIKE mailengine_message INCLUDING ALL)")
    with connection.cursor() as cursor:
        return [column.name for column in connection.introspection.get_table_description(cursor, "bench_same")]


def _single_message() -> Any:
    from mailengine.models import Message

    from . import ENGINES

    ENGINES["mailengine"].queue_each(1)
    return Message.objects.select_related("content").get()


def _execute(sql: str, params: list[Any] | None = None) -> list[tuple[Any, ...]]:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return list(cursor.fetchall()) if cursor.description else []


def _copy(sql: str, lines: list[str]) -> None:
    from django.db import connection

    with connection.cursor() as cursor, cursor.cursor.copy(sql) as copy:
        for line in lines:
            copy.write(line)


def _timed(work: Callable[[], object]) -> float:
    started_at = time.perf_counter()
    work()
    return time.perf_counter() - started_at
