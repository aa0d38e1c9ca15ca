"""How fast a job's messages leave through SMTPBackend, with a ledger entry before and after each handover.

Beside it, in the same run: as many mails, rendered beforehand, by smtplib over one connection to the same server.
The server runs in a process of its own, but on the same cores: it is part of what is measured on both sides.
"""

from __future__ import annotations

import smtplib
import sys
import time
from collections.abc import Callable
from functools import partial

from support import (
    ROOT,
    Figures,
    Medians,
    Server,
    Statements,
    addresses,
    answer,
    database_bytes,
    main,
    scratch_database,
    words,
)

SENDER = "news@example.org"


def drain(count: int) -> Figures:
    """Send a job of `count` messages, then as many mails by smtplib."""
    with Server(__file__) as server, scratch_database(SMTP_PORT=str(server.ask("port"))) as connection:
        from django.core.mail import EmailMultiAlternatives
        from django.core.management import call_command

        import mailengine
        from mailengine.models import Attempt, Message
        from mailengine.pipeline.expand import expand_jobs

        subject, text, html = words()
        empty_bytes = database_bytes(connection)
        mailengine.queue_job(subject, text, SENDER, list(addresses(count)), html_message=html)
        expand_jobs(max_time=None)
        queued_bytes = database_bytes(connection)
        with Statements(connection) as statements:
            started_at, cpu_started_at = time.perf_counter(), time.process_time()
            call_command("send_mail", max_time=3_600, verbosity=0)
            seconds, cpu_seconds = time.perf_counter() - started_at, time.process_time() - cpu_started_at
        sent = Message.objects.filter(status=Message.Status.SENT).count()
        if not sent == server.ask("accepted") == Attempt.objects.count() == count:
            raise SystemExit(f"{sent} sent, {server.ask('accepted')} arrived, {count} were queued")
        sent_bytes = database_bytes(connection)

        email = EmailMultiAlternatives(subject, text, SENDER, ["reader@example.org"])
        email.attach_alternative(html, "text/html")
        rendered = email.message().as_bytes().replace(b"\n", b"\r\n")
        plain_started_at = time.perf_counter()
        with smtplib.SMTP("127.0.0.1", server.ask("port")) as smtp:
            for address in addresses(count):
                smtp.sendmail(SENDER, [address], rendered)
        plain_seconds = time.perf_counter() - plain_started_at
        return {
            "rate": count / seconds,
            "cpu_ms": cpu_seconds / count * 1_000,
            "statements": statements.count / count,
            "commits": statements.commits,
            "commits_each": statements.commits / count,
            "plain_rate": count / plain_seconds,
            "queued_mb": (queued_bytes - empty_bytes) / 1e6,
            "sent_mb": (sent_bytes - empty_bytes) / 1e6,
        }


def line(figures: Medians) -> str:
    return (
        f"{figures['rate']:.0f} messages/s ({figures.range('rate')}), {figures['commits']:.0f} commits "
        f"({figures['commits_each']:.2f} a message), {figures['statements']:.2f} statements and "
        f"{figures['cpu_ms']:.1f} ms CPU a message, stored {figures['queued_mb']:.2f} MB queued, "
        f"{figures['sent_mb']:.2f} MB sent; smtplib {figures['plain_rate']:.0f} mails/s ({figures.range('plain_rate')})"
    )


def _serve() -> None:
    sys.path.insert(0, str(ROOT))
    from mailengine.testing import SMTPServer

    with SMTPServer() as server:
        answer({"port": lambda: server.port, "accepted": lambda: len(server.accepted)})


CASES: dict[str, Callable[[], Figures]] = {"500": partial(drain, 500), "5000": partial(drain, 5_000)}

if __name__ == "__main__":
    if sys.argv[1:] == ["--server"]:
        _serve()
    else:
        main(CASES, line, title="drain: a job of 2 kB text and 20 kB HTML through SMTPBackend", repeats=3)
