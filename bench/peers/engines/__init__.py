"""What is measured, one module for each product; to add another, write a class like theirs and list it here."""

from __future__ import annotations

from .base import Engine
from .celery import CeleryEmail, CeleryMail
from .django_mailer import DjangoMailer
from .limits import Ledger, Limits, RenderedMail, SmtpSource
from .mailengine import Mailengine
from .post_office import PostOffice
from .procrastinate import ProcrastinateMail

__all__ = ["ENGINES", "PRODUCTS", "Engine", "Limits"]

PRODUCTS = ("mailengine", "django-mailer", "django-post_office", "celery", "procrastinate", "limit")

_ALL: list[Engine] = [
    Mailengine("mailengine", "send_mail in two processes", workers=2),
    Mailengine("mailengine-1", "send_mail in one process", workers=1),
    Mailengine("mailengine-64", "send_mail in one process, 64 connections", workers=1, connections=64),
    Mailengine("mailengine-1x16", "send_mail in one process, 16 connections", workers=1, connections=16),
    Mailengine("mailengine-2x16", "send_mail in two processes, 16 connections each", workers=2, connections=16),
    Mailengine("mailengine-4x16", "send_mail in four processes, 16 connections each", workers=4, connections=16),
    Mailengine("mailengine-worker", "mail_worker in two processes", workers=2, is_daemon=True),
    Mailengine("mailengine-worker-1", "mail_worker in one process", workers=1, is_daemon=True),
    DjangoMailer("django-mailer", "as it comes"),
    PostOffice("post_office", "as it comes"),
    PostOffice("post_office-2x4", "2 processes of 4 threads, batches of 1,000, no log", 2, 4, 1_000),
    PostOffice("post_office-4x32", "4 processes of 32 threads, batches of 2,000, no log", 4, 32, 2_000),
    PostOffice("post_office-1x4", "1 process of 4 threads, batches of 1,000, no log", 1, 4, 1_000),
    CeleryMail("celery-prefork-2", "2 processes", pool="prefork", concurrency=2),
    CeleryMail("celery-prefork-16", "16 processes", pool="prefork", concurrency=16),
    CeleryMail("celery-threads-16", "16 threads", pool="threads", concurrency=16),
    CeleryMail("celery-threads-64", "64 threads", pool="threads", concurrency=64),
    CeleryEmail(
        "celery-email", "by django-celery-email, 100 mails in a task, 2 processes", pool="prefork", concurrency=2
    ),
    ProcrastinateMail("procrastinate-8", "8 tasks at once", concurrency=8),
    ProcrastinateMail("procrastinate-64", "64 tasks at once", concurrency=64),
    SmtpSource("smtp-source-8", "smtp-source with 8 sessions, in C", sessions=8),
    SmtpSource("smtp-source-32", "smtp-source with 32 sessions, in C", sessions=32),
    SmtpSource("smtp-source-64", "smtp-source with 64 sessions, in C", sessions=64),
    RenderedMail("smtplib-1", "smtplib on 1 connection, rendered beforehand", processes=1, threads=1),
    RenderedMail("smtplib-16", "smtplib on 16 connections, rendered beforehand, 2 processes", processes=2, threads=8),
    Ledger("ledger-32", "bare ledger queue in 1 process, 32 connections", processes=1, connections=32),
    Ledger("ledger-2x16", "bare ledger queue in 2 processes, 32 connections", processes=2, connections=16),
]
ENGINES: dict[str, Engine] = {engine.key: engine for engine in _ALL}
