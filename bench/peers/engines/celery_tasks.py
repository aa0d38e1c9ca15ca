"""The application that celery's worker runs: what a project has that moves its mail into tasks."""

from __future__ import annotations

import os

import celery
import django

django.setup()

app = celery.Celery("bench", broker=os.environ["BENCH_REDIS"])
app.conf.task_ignore_result = True
app.conf.broker_connection_retry_on_startup = True
# Without it an urgent task waits for all that were there before.
app.conf.broker_transport_options = {"queue_order_strategy": "priority", "priority_steps": [0, 9]}


@app.task(name="send")
def send(to: str, subject: str, text: str, html: str, sender: str) -> None:
    """As Django documents it: a connection for each mail."""
    from django.core.mail import send_mail

    send_mail(subject, text, sender, [to], html_message=html)


import djcelery_email.tasks  # noqa: E402, F401  its task joins the application above
