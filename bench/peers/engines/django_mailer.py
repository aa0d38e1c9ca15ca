"""django-mailer: a pickled mail in each row, sent one after the other by one process under a lock."""

from __future__ import annotations

from .base import SENDER, Engine, addresses, django_command, email, pieces, words


class DjangoMailer(Engine):
    product = "django-mailer"
    left_sql = "SELECT count(*) FROM mailer_message"

    def command(self) -> list[str]:
        return django_command("send_mail")

    def queue_many(self, count: int) -> None:
        """It has no call for many that is quick; this is what its own calls do, with `bulk_create`."""
        from mailer.models import Message

        for piece in pieces(count):
            rows = []
            for address in piece:
                row = Message(priority=3)
                row.email = email(address)
                rows.append(row)
            Message.objects.bulk_create(rows)

    def queue_each(self, count: int) -> None:
        import mailer

        subject, text, html = words()
        for address in addresses(count):
            mailer.send_html_mail(subject, text, html, SENDER, [address])

    def queue_urgent(self, address: str) -> None:
        import mailer

        subject, text, html = words()
        mailer.send_html_mail(subject, text, html, SENDER, [address], priority=1)
