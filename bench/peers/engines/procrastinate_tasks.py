"""The application that procrastinate's worker runs."""

from __future__ import annotations

import os

import django
import procrastinate

from .base import SENDER

django.setup()

app = procrastinate.App(
    connector=procrastinate.PsycopgConnector(conninfo=os.environ["BENCH_DATABASE"].partition(":")[2], max_size=20)
)


@app.task(name="send", queue="mail")
def send(words: int, to: str) -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT subject, text, html FROM bench_words WHERE id = %s", [words])
        send_all(to, *cursor.fetchone())


@app.task(name="send_all", queue="mail")
def send_all(to: str, subject: str, text: str, html: str) -> None:
    from django.core.mail import send_mail

    send_mail(subject, text, SENDER, [to], html_message=html)
