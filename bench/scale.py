"""What claims, housekeeping, `mail_status`, the admin and a purge cost beside millions of rows.

`--rows 10000000` makes as many finished messages with their ledger, a tenth of that deferred and not due, and a
hundredth of it queued and due; the default is a tenth of this. On PostgreSQL alone.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from scale_rows import DAYS, fill
from support import ROOT, Statements, say, scratch_database, set_up, versions

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

RELAY = {"BACKEND": "mailengine.testing.FakeProvider"}


class Bench:
    """The measurements, in the order in which they are taken; each is a method that prints a line."""

    def __init__(self, connection: BaseDatabaseWrapper, *, rows: int, explain: bool) -> None:
        from mailengine.models import Lease, Worker

        self.connection, self.rows, self.explain = connection, rows, explain
        worker = Worker.objects.register("bench")
        self.lease = Lease(worker, trusted_until=float("inf"))

    def sizes(self) -> None:
        """Bytes a message, of the table and of each index."""
        query = """
            SELECT c.relname, pg_table_size(c.oid) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
            WHERE nspname = current_schema() AND relkind IN ('r', 'i') AND relname ~ %s ORDER BY 2 DESC"""
        with self.connection.cursor() as cursor:
            for table in ("mailengine_(message_|message$|due|deferred|leased|expiring|one_rec|job_prog|dead|open)",
                          "mailengine_(attempt_|attempt$|one_attempt|begun)"):  # fmt: skip
                cursor.execute(query, [table])
                parts = [f"{name.removeprefix('mailengine_')} {size / 1e6:,.1f}" for name, size in cursor.fetchall()]
                say(f"  MB: {', '.join(parts)}")

    def claims(self) -> None:
        """A transaction that claims, until its commit."""
        self._say("a commit of one row, beside it", self._times(self._commit, 100))
        for limit, rounds in ((16, 200), (100, 50)):
            self._say(f"claim of {limit}", self._times(lambda limit=limit: self._claim(limit), rounds))
        self._explain("claim of 16", lambda: self._claim(16))
        self._give_back()

    def housekeeping(self) -> None:
        """What each run asks before it does anything."""
        from mailengine.models import Message, MessageJob
        from mailengine.models.messages import Status
        from mailengine.reporting.status import has_work

        questions: dict[str, Callable[[], object]] = {
            "due (send_mail)": lambda: Message.objects.waiting().due().exists(),
            "due (retry_deferred)": lambda: has_work(deferred=True),
            "claim of deferred, none due": lambda: self._claim(16, Status.DEFERRED),
            "lost leases": lambda: Message.objects.overdue_leases().exists(),
            "expired": lambda: Message.objects.expired().exists(),
            "close jobs": MessageJob.objects.finish,
        }
        for name, question in questions.items():
            self._say(name, self._times(question, 20))
            self._explain(name, question)

    def screens(self) -> None:
        """What people look at."""
        from django.contrib.auth import get_user_model
        from django.core.management import call_command
        from django.test import Client

        from mailengine.models import Message, MessageJob
        from mailengine.reporting.progress import progress_of

        person = get_user_model().objects.create_superuser(f"bench{time.time_ns()}", "b@example.org", "bench")
        client = Client()
        client.force_login(person)
        dead = Message.objects.filter(status="dead").latest("pk")
        pages = {
            "admin: messages": "/admin/mailengine/message/",
            "admin: dead letters": "/admin/mailengine/message/?status__exact=dead",
            "admin: queued": "/admin/mailengine/message/?status__exact=queued",
            "admin: kept": "/admin/mailengine/message/?kept=1",
            "admin: an address": f"/admin/mailengine/message/?q={dead.recipient}",
            "admin: messages of a job": "/admin/mailengine/message/?job=1",
            "admin: a message": f"/admin/mailengine/message/{dead.pk}/change/",
            "admin: attempts": "/admin/mailengine/attempt/",
            "admin: jobs": "/admin/mailengine/messagejob/",
            "admin: a job": "/admin/mailengine/messagejob/1/change/",
        }
        commands: dict[str, Callable[[], object]] = {
            "mail_status": lambda: call_command("mail_status", stdout=io.StringIO()),
            "mail_status --json": lambda: call_command("mail_status", json=True, stdout=io.StringIO()),
            "mail_status --check": lambda: _ending(
                lambda: call_command("mail_status", check=True, stdout=io.StringIO())
            ),
        }
        for name, command in commands.items():
            self._say(name, self._times(command, 5))
        self._explain("mail_status", commands["mail_status"])
        job = MessageJob.objects.get(pk=1)
        self._say("progress of a job", self._times(lambda: progress_of(job), 5))
        for name, address in pages.items():
            self._say(name, self._times(lambda address=address: _ok(client.get(address)), 3))
            self._explain(name, lambda address=address: client.get(address))

    def handovers(self) -> None:
        """A job whose messages a provider takes at once, before all others: what the database writes for each."""
        from django.core.management import call_command

        import mailengine
        from mailengine.models import Message
        from mailengine.pipeline.expand import expand_jobs

        count = 10_000
        people = [f"{hashlib.md5(f'r{n}'.encode()).hexdigest()[:12]}@example.org" for n in range(count)]  # noqa: S324
        with self.connection.cursor() as cursor:
            cursor.execute("CHECKPOINT")
        mailengine.queue_job("News", "Some words.", "news@example.org", people, priority=mailengine.Priority.HIGH)
        self._costs("expand", count, lambda: expand_jobs(max_time=None))
        call = partial(call_command, "send_mail", limit=count, max_time=600, verbosity=0)
        self._costs("send_mail", count, call)
        left = Message.objects.filter(job__status="sending", priority=mailengine.Priority.HIGH).exclude(status="sent")
        if left.count() > count / 100:
            raise SystemExit(f"{left.count()} were not sent")

    def _costs(self, name: str, count: int, work: Callable[[], object]) -> None:
        with self.connection.cursor() as cursor:
            before, started_at = _wal(cursor), time.perf_counter()
            with Statements(self.connection) as statements:
                work()
            seconds, after = time.perf_counter() - started_at, _wal(cursor)
        bytes_each = (after[0] - before[0]) / count
        images = (after[1] - before[1]) / count
        say(
            f"  {name}, {count:,} messages: {bytes_each:,.0f} bytes of WAL ({images:.2f} whole pages), "
            f"{seconds / count * 1e3:.2f} ms, {statements.count / count:.2f} statements, "
            f"{statements.commits / count:.3f} commits a message"
        )
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT pg_stat_force_next_flush()") if self.connection.pg_version >= 150000 else None
            cursor.execute(
                "SELECT relname, n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables"
                " WHERE relname IN ('mailengine_message', 'mailengine_attempt')"
            )
            for table, updates, hot in cursor.fetchall():
                say(f"    {table}: {updates:,} updates so far, {hot:,} of them heap-only")

    def retries(self) -> None:
        """All of the queue is deferred, then one urgent message comes: before and after a vacuum."""
        import mailengine

        with self.connection.cursor() as cursor:
            for change in ("'sending'", "'deferred', available_at = now() + interval '1 hour'"):
                cursor.execute(
                    f"UPDATE mailengine_message SET status = {change} WHERE status IN ('queued', 'sending')"  # noqa: S608
                )
            count = cursor.rowcount
        for name in ("first", "second", "vacuumed"):
            mailengine.queue_mail("a", "b", "c@example.org", ["d@example.org"], priority=mailengine.Priority.URGENT)
            if name == "vacuumed":
                with self.connection.cursor() as cursor:
                    cursor.execute("VACUUM mailengine_message")
            self._say(f"claim after {count:,} retries, {name}", self._times(lambda: self._claim(16), 1))

    def purge(self) -> None:
        """A purge of the oldest third, while claims go on."""
        self._give_back()
        alone = self._times(lambda: self._claim(16), 100)
        command = [sys.executable, "manage.py", "purge_mail", "--json", "--days", str(DAYS * 2 // 3)]
        with subprocess.Popen(command, cwd=ROOT, env=self._environment(), stdout=subprocess.PIPE, text=True) as child:  # noqa: S603
            time.sleep(2)
            started_at, meanwhile = time.perf_counter(), []
            while child.poll() is None and time.perf_counter() < started_at + 60:
                meanwhile += self._times(lambda: self._claim(16), 1)
                time.sleep(0.02)
            child.terminate()
            said = json.loads(child.communicate()[0].strip().splitlines()[-1])
        seconds = time.perf_counter() - started_at + 2
        self._say("claim of 16, alone", alone)
        self._say("claim of 16, while a purge runs", meanwhile)
        say(f"  purge_mail: {said['messages']:,} messages in {seconds:.0f} s, {said['messages'] / seconds:,.0f}/s")

    def empty_run(self) -> None:
        """A run that finds nothing to do, since all of the queue is for later."""
        from django.core.management import call_command

        with self.connection.cursor() as cursor:
            cursor.execute(
                "UPDATE mailengine_message SET status = 'queued', lease = NULL, leased_until = NULL,"
                " available_at = now() + interval '1 day' WHERE status IN ('queued', 'sending', 'uncertain')"
            )
            cursor.execute("VACUUM mailengine_message")
        for name in ("send_mail", "retry_deferred"):
            with Statements(self.connection) as statements:
                times = self._times(lambda name=name: call_command(name, verbosity=0), 10)
            self._say(f"{name} with nothing to do, {statements.count / 10:.0f} queries", times)

    def _claim(self, limit: int, *statuses: str) -> list[Any]:
        from django.db import transaction

        from mailengine.models import Message
        from mailengine.models.messages import Status

        states = [Status(status) for status in statuses] or [Status.QUEUED, Status.UNCERTAIN]
        with transaction.atomic():
            return Message.objects.claim(self.lease, statuses=states, seconds=240, limit=limit)

    def _commit(self) -> None:
        self.lease.worker.heartbeat(handled_count=0)

    def _give_back(self) -> None:
        from mailengine.models import Message

        Message.objects.release_all(self.lease.worker)

    def _times(self, work: Callable[[], object], rounds: int) -> list[float]:
        times = []
        for _ in range(rounds):
            started_at = time.perf_counter()
            work()
            times.append((time.perf_counter() - started_at) * 1e3)
        return times

    def _say(self, name: str, times: list[float]) -> None:
        times = sorted(times)
        if len(times) < 20:
            say(f"  {name}: {statistics.median(times):,.1f} ms ({times[0]:,.1f} to {times[-1]:,.1f})")
            return
        cuts = [times[min(int(len(times) * part), len(times) - 1)] for part in (0.5, 0.95, 0.99)]
        say("  {}: p50 {:,.1f}, p95 {:,.1f}, p99 {:,.1f} ms".format(name, *cuts))

    def _explain(self, name: str, work: Callable[[], object]) -> None:
        if not self.explain:
            return
        for sql in _queries_of(self.connection, work):
            say(f"\n  {name}: {sql}")
            with self.connection.cursor() as cursor:
                cursor.execute("BEGIN")
                cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS) {sql}")
                lines = [row[0] for row in cursor.fetchall()]
                cursor.execute("ROLLBACK")
            say("\n".join(f"    {line}" for line in lines))

    def _environment(self) -> dict[str, str]:
        base, _slash, _name = os.environ["DATABASE_URL"].rpartition("/")
        return {**os.environ, "DATABASE_URL": f"{base}/{self.connection.settings_dict['NAME']}"}


MEASUREMENTS = ("sizes", "claims", "housekeeping", "screens", "handovers", "purge", "empty_run", "retries")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, metavar="N", help="finished; default: %(default)s")
    parser.add_argument("--only", action="append", choices=MEASUREMENTS, help="may be given more than once")
    parser.add_argument("--explain", action="store_true", help="print the plans, run and with buffers")
    parser.add_argument("--database", metavar="NAME", help="made if it is missing, and kept")
    options = parser.parse_args()
    with _filled(options.rows, options.database) as connection, _one_provider():
        say(versions())
        bench = Bench(connection, rows=options.rows, explain=options.explain)
        for name in options.only or MEASUREMENTS:
            getattr(bench, name)()


@contextmanager
def _filled(rows: int, name: str | None) -> Iterator[BaseDatabaseWrapper]:
    if name is None:
        with scratch_database() as connection:
            _fill(connection, rows)
            yield connection
        return
    set_up()
    from django.core.management import call_command
    from django.db import connection

    if connection.vendor != "postgresql":
        raise SystemExit("scale.py is for PostgreSQL: DATABASE_URL=postgres://...")
    with connection._nodb_cursor() as cursor:  # type: ignore[attr-defined]
        cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name])
        is_new = cursor.fetchone() is None
        if is_new:
            cursor.execute(f"CREATE DATABASE {connection.ops.quote_name(name)}")
    connection.settings_dict["NAME"] = name
    connection.close()
    if is_new:
        call_command("migrate", verbosity=0)
        _fill(connection, rows)
    yield connection


def _fill(connection: BaseDatabaseWrapper, rows: int) -> None:
    if connection.vendor != "postgresql":
        raise SystemExit("scale.py is for PostgreSQL: DATABASE_URL=postgres://...")
    started_at = time.perf_counter()
    fill(connection, finished=rows, deferred=rows // 10, queued=rows // 100)
    seconds = time.perf_counter() - started_at
    say(f"{rows:,} finished, {rows // 10:,} deferred, {rows // 100:,} queued: made in {seconds:.0f} s")


@contextmanager
def _one_provider() -> Iterator[None]:
    from django.test import override_settings

    mailers = {"default": {"BACKEND": "mailengine.backends.EmailBackend"}, "relay": RELAY}
    settings = {"MAILERS": mailers, "MAILENGINE": {"PROVIDERS": {"relay": {}}}, "ALLOWED_HOSTS": ["testserver"]}
    with override_settings(**settings):
        yield


def _queries_of(connection: BaseDatabaseWrapper, work: Callable[[], object]) -> list[str]:
    from django.test.utils import CaptureQueriesContext

    with CaptureQueriesContext(connection) as queries:
        work()
    sqls = [query["sql"] for query in queries.captured_queries]
    return [sql for sql in sqls if sql.startswith(("SELECT", "UPDATE", "DELETE", "(")) and "mailengine_" in sql]


def _ending(work: Callable[[], object]) -> None:
    with suppress(SystemExit):
        work()


def _ok(response: Any) -> None:
    if response.status_code != 200:
        raise SystemExit(f"{response.request['PATH_INFO']} answered {response.status_code}")


def _wal(cursor: Any) -> tuple[int, int]:
    """Bytes and whole pages written to the log so far, by all databases of the server."""
    cursor.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn, wal_fpi FROM pg_stat_wal")
    written, images = cursor.fetchone()
    return int(written), int(images)


if __name__ == "__main__":
    main()
