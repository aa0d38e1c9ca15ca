"""mailengine, run as its user would run it: `manage.py send_mail`, or `manage.py mail_worker`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .base import SENDER, Engine, addresses, django_command, words

COMMANDS = Path(__file__).resolve().parent.parent.parent.parent / "mailengine" / "management" / "commands"
AN_HOUR = 3_600


class Mailengine(Engine):
    product = "mailengine"
    has_own_words = False
    left_sql = (
        "SELECT (SELECT count(*) FROM mailengine_message WHERE status NOT IN ('sent', 'dead', 'uncertain'))"
        " + (SELECT count(*) FROM mailengine_messagejob WHERE status IN ('queued', 'expanding'))"
    )

    def __init__(self, key: str, title: str, *, workers: int, connections: int = 0, is_daemon: bool = False) -> None:
        super().__init__(key, title)
        self.workers, self.is_daemon = workers, is_daemon
        self.runs_as = "worker" if is_daemon else "command"
        if connections:
            self.env = {"BENCH_CONNECTIONS": str(connections)}

    @property
    def exists(self) -> bool:
        return not self.is_daemon or (COMMANDS / "mail_worker.py").exists()

    def command(self) -> list[str]:
        if self.is_daemon:
            return django_command("mail_worker", "--workers", self.workers)
        return django_command("send_mail", "--workers", self.workers, "--max-time", AN_HOUR)

    def mistakes(self, ask: Callable[[str], int], count: int) -> str:
        """Each message has to be sent, and each to have exactly one try in the ledger, accepted."""
        found = {
            "messages sent": ask("SELECT count(*) FROM mailengine_message WHERE status = 'sent'"),
            "tries": ask("SELECT count(*) FROM mailengine_attempt"),
            "tries accepted": ask("SELECT count(*) FROM mailengine_attempt WHERE outcome = 'accepted'"),
        }
        return ", ".join(f"{number} {name} of {count}" for name, number in found.items() if number != count)

    def queue_many(self, count: int) -> None:
        import mailengine

        subject, text, html = words()
        mailengine.queue_job(subject, text, SENDER, list(addresses(count)), html_message=html)

    def expand(self) -> None:
        from django.core.management import call_command

        call_command("process_mail_jobs", max_time=AN_HOUR, verbosity=0)

    def queue_each(self, count: int) -> None:
        import mailengine

        subject, text, html = words()
        for number, address in enumerate(addresses(count)):
            own_text, own_html = f"Number {number}\n\n{text}", html.replace("<body>", f"<body><p>Number {number}</p>")
            mailengine.queue_mail(subject, own_text, SENDER, [address], html_message=own_html, stream="bulk")

    def queue_urgent(self, address: str) -> None:
        import mailengine

        subject, text, html = words()
        priority = mailengine.Priority.URGENT
        mailengine.queue_mail(subject, text, SENDER, [address], html_message=html, priority=priority)
