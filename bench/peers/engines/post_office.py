"""django-post_office: a row for each mail, sent in batches by processes of some threads."""

from __future__ import annotations

from typing import Any

from environment import LOCKS

from .base import SENDER, Engine, addresses, django_command, pieces, words


class PostOffice(Engine):
    product = "django-post_office"
    left_sql = "SELECT count(*) FROM post_office_email WHERE status IN (2, 3)"  # queued, requeued

    def __init__(self, key: str, title: str, processes: int = 1, threads: int = 0, batch: int = 0) -> None:
        super().__init__(key, title)
        self.processes = processes
        if batch:
            settings = {"BATCH_SIZE": batch, "THREADS_PER_PROCESS": threads, "LOG_LEVEL": 0}
            self.env = {f"BENCH_PO_{name}": str(value) for name, value in settings.items()}

    def command(self) -> list[str]:
        return django_command("send_queued_mail", "--processes", self.processes, "--lockfile", LOCKS / "post_office")

    def queue_many(self, count: int) -> None:
        from post_office import mail

        for piece in pieces(count):
            mail.send_many([_mail(address, "low") for address in piece])

    def queue_each(self, count: int) -> None:
        from post_office import mail

        for address in addresses(count):
            mail.send(**_mail(address, "medium"))

    def queue_urgent(self, address: str) -> None:
        from post_office import mail

        mail.send(**_mail(address, "high"))


def _mail(address: str, priority: str) -> dict[str, Any]:
    subject, text, html = words()
    return {
        "recipients": [address],
        "sender": SENDER,
        "subject": subject,
        "message": text,
        "html_message": html,
        "priority": priority,
    }
