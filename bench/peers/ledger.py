"""A bare queue that keeps the whole promise of the ledger: the measure for designs like ours, and no product.

Each try's begin is committed before its mail is handed over, and its end before the next mail of that connection.
The ends and begins of all connections that are ready share one commit. One thread of a process talks to the database,
the others to the server. There are no retries, no failover, no suppressions, no merge fields.

    python ledger.py --processes 1 --connections 32
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import queue
import socket
import threading
import uuid
from typing import Any

TABLES = """
    CREATE TABLE bench_message (
        id uuid PRIMARY KEY, job int NOT NULL, recipient text NOT NULL, status smallint NOT NULL DEFAULT 0,
        priority smallint NOT NULL DEFAULT 40, available_at timestamptz NOT NULL DEFAULT now(), lease uuid,
        leased_until timestamptz, provider text, attempt_count smallint NOT NULL DEFAULT 0, sent_at timestamptz
    ) WITH (fillfactor = 80);
    CREATE INDEX bench_message_due ON bench_message (priority, available_at, id) WHERE status = 0;
    CREATE INDEX bench_message_leased ON bench_message (leased_until) WHERE status = 1;
    CREATE TABLE bench_attempt (
        id uuid PRIMARY KEY, message uuid NOT NULL, provider text NOT NULL, lease uuid NOT NULL,
        begun_at timestamptz NOT NULL DEFAULT now(), ended_at timestamptz, outcome smallint, code text
    ) WITH (fillfactor = 70);
    CREATE INDEX bench_attempt_open ON bench_attempt (message) WHERE outcome IS NULL;
"""
CLAIM = """
    UPDATE bench_message SET status = 1, lease = %s, leased_until = now() + interval '240 s'
    WHERE id = ANY(ARRAY(
        SELECT id FROM bench_message WHERE status = 0 AND available_at <= now()
        ORDER BY priority, available_at, id LIMIT %s FOR UPDATE SKIP LOCKED
    )) RETURNING id, recipient
"""
BEGIN = """
    INSERT INTO bench_attempt (id, message, provider, lease)
    SELECT id, message, 'smtp', %s FROM unnest(%s::uuid[], %s::uuid[]) AS row (id, message)
"""
END_ATTEMPTS = "UPDATE bench_attempt SET ended_at = now(), outcome = 1, code = '250' WHERE id = ANY(%s)"
END_MESSAGES = """
    UPDATE bench_message SET status = 2, sent_at = now(), provider = 'smtp', attempt_count = attempt_count + 1,
    lease = NULL, leased_until = NULL WHERE id = ANY(%s) AND lease = %s
"""
CLAIMED = 100


def work(connections: int) -> None:
    """Send what is queued, in one process."""
    import psycopg

    ready: queue.SimpleQueue[Any] = queue.SimpleQueue()  # (mailbox, attempt, message) of a connection that is free
    head, tail = _mail()
    for _ in range(connections):
        threading.Thread(target=_hand_over, args=(ready, head, tail), daemon=True).start()
    lease, stock, idle, in_flight, is_more = uuid.uuid4(), [], [], 0, True
    database = os.environ["BENCH_DATABASE"].partition(":")[2]
    with psycopg.connect(database, autocommit=True) as connection:
        while is_more or stock or in_flight:
            free = [ready.get()]
            while not ready.empty():
                free.append(ready.get())
            ended = [(attempt, message) for _mailbox, attempt, message in free if attempt]
            in_flight -= len(ended)
            idle += [mailbox for mailbox, _attempt, _message in free]
            with connection.transaction():
                if ended:
                    connection.execute(END_ATTEMPTS, [[attempt for attempt, _message in ended]])
                    connection.execute(END_MESSAGES, [[message for _attempt, message in ended], lease])
                if is_more and len(stock) < len(idle):
                    claimed = connection.execute(CLAIM, [lease, CLAIMED]).fetchall()
                    is_more = bool(claimed)
                    stock += claimed
                begun = [(uuid.uuid4(), *row) for row in stock[: len(idle)]]
                del stock[: len(begun)]
                if begun:
                    ids = [[attempt for attempt, *_ in begun], [message for _, message, _ in begun]]
                    connection.execute(BEGIN, [lease, *ids])
            for handover in begun:
                idle.pop().put(handover)
                in_flight += 1


def _hand_over(ready: queue.SimpleQueue[Any], head: bytes, tail: bytes) -> None:
    """One connection: bytes rendered once, with each recipient's address spliced in; the envelope is pipelined."""
    mailbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    server = socket.create_connection(("127.0.0.1", int(os.environ["BENCH_SMTP_PORT"])))
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    replies = server.makefile("rb")

    def expect(*codes: bytes) -> None:
        for code in codes:
            while (line := replies.readline())[3:4] == b"-":
                pass
            if line[:3] != code:
                raise RuntimeError(line)

    expect(b"220")
    server.sendall(b"EHLO bench\r\n")
    expect(b"250")
    done: tuple[Any, Any] = (None, None)
    while True:
        ready.put((mailbox, *done))
        attempt, message, recipient = mailbox.get()
        to = recipient.encode()
        server.sendall(b"MAIL FROM:<news@example.org>\r\nRCPT TO:<" + to + b">\r\nDATA\r\n")
        expect(b"250", b"250", b"354")
        server.sendmsg([head, to, tail])
        expect(b"250")
        done = (attempt, message)


def _mail() -> tuple[bytes, bytes]:
    """What comes before the recipient's address and what after it, up to the final dot."""
    from engines.limits import rendered

    head, tail = rendered().replace(b"\r\n.", b"\r\n..").split(b"reader@example.org", 1)
    return head, tail.rstrip(b"\r\n") + b"\r\n.\r\n"


if __name__ == "__main__":
    import django

    django.setup()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--connections", type=int, default=32)
    options = parser.parse_args()
    context = multiprocessing.get_context("fork")
    team = [context.Process(target=work, args=(options.connections,)) for _ in range(options.processes)]
    for process in team:
        process.start()
    for process in team:
        process.join()
