"""celery with Redis: a task for each mail, which carries all of its words."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from .base import SENDER, Engine, addresses, email, pieces, words

URGENT, BULK = 0, 9


class CeleryMail(Engine):
    product = "celery"
    runs_as = "worker"

    def __init__(self, key: str, title: str, *, pool: str, concurrency: int) -> None:
        super().__init__(key, title)
        self.pool, self.concurrency = pool, concurrency

    def command(self) -> list[str]:
        # A lone worker has nobody to gossip with.
        quiet = ["--loglevel", "ERROR", "--without-gossip", "--without-mingle"]
        pool = ["--pool", self.pool, "--concurrency", str(self.concurrency)]
        return [sys.executable, "-m", "celery", "--app", "engines.celery_tasks", "worker", *pool, *quiet]

    def left(self, ask: Callable[[str], int]) -> int:
        import redis

        with redis.Redis.from_url(os.environ["BENCH_REDIS"]) as client:
            queues = [key for key in client.scan_iter("celery*") if client.type(key) == b"list"]
            return sum(client.llen(key) for key in queues) + client.hlen("unacked")

    def tidy(self) -> None:
        super().tidy()
        import redis

        with redis.Redis.from_url(os.environ["BENCH_REDIS"]) as client:
            client.flushall()

    def queue_many(self, count: int) -> None:
        self.queue_each(count)

    def queue_each(self, count: int) -> None:
        from .celery_tasks import send

        subject, text, html = words()
        for address in addresses(count):
            send.apply_async([address, subject, text, html, SENDER], priority=BULK)

    def queue_urgent(self, address: str) -> None:
        from .celery_tasks import send

        subject, text, html = words()
        send.apply_async([address, subject, text, html, SENDER], priority=URGENT)


class CeleryEmail(CeleryMail):
    """The same by django-celery-email, with many mails in one task, and one connection for all of those."""

    def queue_many(self, count: int) -> None:
        from django.core.mail import get_connection

        from . import celery_tasks

        assert celery_tasks.app  # noqa: S101  the import is what makes its tasks known
        backend = get_connection("djcelery_email.backends.CeleryEmailBackend")
        for piece in pieces(count):
            backend.send_messages([email(address) for address in piece])
