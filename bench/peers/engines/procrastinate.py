"""procrastinate: a task for each mail, kept in PostgreSQL; the words are read from one row."""

from __future__ import annotations

import sys

from .base import Engine, addresses, pieces, words

WORDS_TABLE = """
    CREATE TABLE bench_words (id serial PRIMARY KEY, subject text NOT NULL, text text NOT NULL, html text NOT NULL)
"""
PIECE = 5_000
URGENT = 10


class ProcrastinateMail(Engine):
    product = "procrastinate"
    runs_as = "worker"
    has_own_words = False
    left_sql = "SELECT count(*) FROM procrastinate_jobs WHERE status IN ('todo', 'doing')"

    def __init__(self, key: str, title: str, *, concurrency: int) -> None:
        super().__init__(key, title)
        self.concurrency = concurrency

    def command(self) -> list[str]:
        worker = ["worker", "--concurrency", str(self.concurrency)]
        return [sys.executable, "-m", "procrastinate", "--app=engines.procrastinate_tasks.app", *worker]

    def queue_many(self, count: int) -> None:
        from .procrastinate_tasks import app, send

        number = _keep_words()
        with app.open():
            for piece in pieces(count, PIECE):
                send.batch_defer(*({"words": number, "to": address} for address in piece))

    def queue_each(self, count: int) -> None:
        from .procrastinate_tasks import app, send_all

        subject, text, html = words()
        with app.open():
            for address in addresses(count):
                send_all.defer(to=address, subject=subject, text=text, html=html)

    def queue_urgent(self, address: str) -> None:
        from .procrastinate_tasks import app, send_all

        subject, text, html = words()
        if not self._is_open:
            app.open()
            self._is_open = True
        send_all.configure(priority=URGENT).defer(to=address, subject=subject, text=text, html=html)

    _is_open = False


def _keep_words() -> int:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO bench_words (subject, text, html) VALUES (%s, %s, %s) RETURNING id", words())
        return int(cursor.fetchone()[0])
