"""A table as it is after years: finished mail with its ledger, mail that waits for its next try, and a queue.

Made by the database itself, in SQL of PostgreSQL, without the indexes, which come afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

DAYS = 90
"""Over which the finished mail is spread."""
JOB_SIZE = 100_000
PIECE = 1_000_000

ID = """(lpad(to_hex((extract(epoch FROM {at}) * 1000)::bigint), 12, '0') || '7' || substr(md5({n}::text), 1, 3)
    || '8' || substr(md5({n}::text), 4, 15))::uuid"""

MESSAGES = """
    INSERT INTO mailengine_message (id, job_id, content_id, recipient, stream, priority, status, reason, available_at,
        attempt_count, uncertain_count, claim_count, deferred_since, claimed_from, worker_id, provider,
        provider_message_id, sent_at, delivery, created_at)
    SELECT {id}, job, content, substr(md5(('r' || n % {job_size})::text), 1, 12) || '@example.org',
        CASE WHEN job IS NULL THEN 'transactional' ELSE 'bulk' END, CASE WHEN job IS NULL THEN 20 ELSE 40 END,
        status, reason, available_at, attempts, 0, 0, deferred_since, claimed_from, worker, provider,
        provider_message_id, sent_at, '', at
    FROM ({rows}) AS row
"""

FINISHED = """
    SELECT n, at, CASE WHEN n % 5 > 0 THEN 1 + n / {job_size} END AS job, 1 + n / {job_size} AS content,
        CASE WHEN n % 100 = 7 THEN 'dead' WHEN n % 200 = 9 THEN 'suppressed' ELSE 'sent' END AS status,
        CASE WHEN n % 100 = 7 THEN 'refused: 550 5.1.1 No such user here' ELSE '' END AS reason,
        NULL::timestamptz AS available_at, 0 AS attempts, NULL::timestamptz AS deferred_since,
        'queued' AS claimed_from, 1 AS worker, 'relay' AS provider, '' AS provider_message_id,
        CASE WHEN n % 100 <> 7 AND n % 200 <> 9 THEN at + interval '1 minute' END AS sent_at
    FROM (SELECT n, now() - interval '{days} days' * (1 - n::float / {all}) - interval '1 hour' AS at
          FROM generate_series({first}::bigint, {last}) AS n) AS numbers
"""

OPEN = """
    SELECT n, at, CASE WHEN n % 5 > 0 THEN {job} END AS job, {job} AS content, '{status}' AS status,
        '{reason}' AS reason, {available_at} AS available_at, {attempts} AS attempts,
        {deferred_since} AS deferred_since, '{claimed_from}' AS claimed_from, {worker}::bigint AS worker,
        '{provider}' AS provider, '' AS provider_message_id, NULL::timestamptz AS sent_at
    FROM (SELECT n, {at} AS at FROM generate_series({first}::bigint, {last}) AS n) AS numbers
"""

ATTEMPTS = """
    INSERT INTO mailengine_attempt (message_id, number, provider, worker_id, call_size, begun_at, ended_at, outcome,
        code, detail, sha256)
    SELECT id, 1, 'relay', 1, 1, created_at + interval '59 seconds', created_at + interval '60 seconds',
        CASE status WHEN 'sent' THEN 'accepted' WHEN 'dead' THEN 'refused' ELSE 'deferred' END,
        CASE status WHEN 'sent' THEN '250' WHEN 'dead' THEN '550 5.1.1' ELSE '450 4.2.1' END,
        CASE status WHEN 'sent' THEN '2.0.0 Ok: queued as 4Z1kT65QwLz3Kq' ELSE 'Mailbox busy, try again later' END,
        decode(md5(id::text) || md5(recipient), 'hex')
    FROM mailengine_message WHERE status IN ('sent', 'dead', 'deferred') ORDER BY id
"""


def fill(connection: BaseDatabaseWrapper, *, finished: int, deferred: int, queued: int) -> None:
    """Write the rows, then gather statistics and mark what all can see, as the autovacuum of a living database does."""
    from mailengine.models import Attempt, Message

    last_job = finished // JOB_SIZE + 2
    with connection.cursor() as cursor, _bare(connection, Message, Attempt):
        with suppress(Exception):  # a superuser's: a foreign key is not looked up for each row
            cursor.execute("SET session_replication_role = replica")
        _write_jobs(cursor, last_job)
        for first in range(0, finished, PIECE):
            last = min(first + PIECE, finished) - 1
            _write(cursor, FINISHED, first=first, last=last, days=DAYS, all=finished)
        later = "now() + interval '1 day' * (1 + ((n * 7919) % {0})::float / {0})".format(max(deferred, 1))
        _write(
            cursor, OPEN, first=finished, last=finished + deferred - 1, job=last_job, status="deferred", attempts=1,
            reason="deferred: 450 4.2.1 Mailbox busy", available_at=later, deferred_since="at", claimed_from="queued",
            worker=1, provider="relay",
            at=f"now() - interval '1 day' * (1 - (n - {finished})::float / {max(deferred, 1)})",
        )  # fmt: skip
        _write(
            cursor, OPEN, first=finished + deferred, last=finished + deferred + queued - 1, job=last_job,
            status="queued", attempts=0, reason="", available_at="at", deferred_since="NULL::timestamptz",
            claimed_from="", worker="NULL", provider="", at="now() - interval '1 minute'",
        )  # fmt: skip
        cursor.execute(ATTEMPTS)
        cursor.execute("SET session_replication_role = DEFAULT")
    with connection.cursor() as cursor:
        cursor.execute("VACUUM (ANALYZE)")
        cursor.execute("CHECKPOINT")


def _write_jobs(cursor: Any, count: int) -> None:
    cursor.execute(
        "INSERT INTO mailengine_worker (name, command, started_at, seen_at, stopped_at, handled_count, turn)"
        " VALUES ('mail1:1', 'send_mail', now(), now(), now(), 0, 0)"
    )
    cursor.execute(
        "INSERT INTO mailengine_content (subject, text, html, from_email, reply_to, headers, extras, version,"
        " created_at) SELECT 'News ' || n, repeat('Some words. ', 200), repeat('<p>Some words.</p>', 1000),"
        " 'news@example.org', '[]', '{}', '{}', 1, now() FROM generate_series(1, %s) AS n",
        [count],
    )
    cursor.execute(
        "INSERT INTO mailengine_messagejob (content_id, stream, priority, status, paused_from, reason, audience,"
        " source, cursor, unsettled, message_count, duplicate_count, malformed_count, problems, created_at)"
        " SELECT n, 'bulk', 40, CASE WHEN n = %s THEN 'sending' ELSE 'done' END, '', '', '', '', %s, false, %s, 0, 0,"
        " '[]', now() FROM generate_series(1, %s) AS n",
        [count, JOB_SIZE, JOB_SIZE, count],
    )


def _write(cursor: Any, rows: str, **values: Any) -> None:
    values = {"job_size": JOB_SIZE, **values}
    if rows is OPEN:  # one job for all of them, so that each address is there once
        values["job_size"] = 10**9
    identifier = ID.format(at="at", n="n")
    cursor.execute(MESSAGES.format(id=identifier, rows=rows.format(**values), job_size=values["job_size"]))


@contextmanager
def _bare(connection: BaseDatabaseWrapper, *models: Any) -> Iterator[None]:
    """Without their indexes, which take less time at the end."""
    with connection.schema_editor() as editor:
        for model in models:
            for index in model._meta.indexes:
                editor.remove_index(model, index)
            for constraint in model._meta.constraints:
                editor.remove_constraint(model, constraint)
    yield
    with connection.schema_editor() as editor:
        editor.execute("SET LOCAL maintenance_work_mem = '512MB'")
        for model in models:
            for index in model._meta.indexes:
                editor.add_index(model, index)
            for constraint in model._meta.constraints:
                editor.add_constraint(model, constraint)
