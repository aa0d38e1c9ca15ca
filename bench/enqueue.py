"""How long `queue_mail()` takes, one mail at a time, each in a transaction of its own.

Beside it, in turns, so that all see the same machine: the same rows written by hand through the ORM; a message alone,
whose words are there already; and a mail that Django composes at once, as it would to send it.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from functools import partial

from support import Figures, Medians, Statements, addresses, main, scratch_database, words

SENDER = "news@example.org"
WARM_UP = 20


def enqueue(count: int) -> Figures:
    """Queue `count` mails of 22 kB, each in turn with the others."""
    with scratch_database() as connection:
        from django.core.mail import EmailMultiAlternatives
        from django.db import transaction

        import mailengine
        from mailengine.clock import read_now
        from mailengine.models import Content, Message

        subject, text, html = words()
        now = read_now(connection.alias)

        def content() -> Content:
            return Content.objects.create(subject=subject, text=text, html=html, from_email=SENDER, created_at=now)

        def message(address: str, content: Content) -> None:
            Message.objects.create(
                content=content,
                recipient=address,
                stream="transactional",
                priority=20,
                available_at=now,
                created_at=now,
            )

        def queue_mail(address: str) -> None:
            mailengine.queue_mail(subject, text, SENDER, [address], html_message=html)

        def by_hand(address: str) -> None:
            with transaction.atomic():
                message(address, content())

        def one_row(address: str) -> None:
            message(address, known)

        def composed(address: str) -> None:
            email = EmailMultiAlternatives(subject, text, SENDER, [address])
            email.attach_alternative(html, "text/html")
            email.message().as_bytes()

        known = content()
        ways = {"queue_mail": queue_mail, "by_hand": by_hand, "one_row": one_row, "composed": composed}
        chance = random.Random(1)  # noqa: S311  not for secrets
        with Statements(connection) as statements:
            queue_mail("first@example.org")
        wall: dict[str, list[float]] = {name: [] for name in ways}
        cpu: dict[str, list[float]] = {name: [] for name in ways}
        for number, address in enumerate(addresses(count + WARM_UP)):
            for name, way in chance.sample(list(ways.items()), len(ways)):  # each follows each
                started_at, cpu_started_at = time.perf_counter(), time.process_time()
                way(address)
                if number >= WARM_UP:
                    wall[name].append(time.perf_counter() - started_at)
                    cpu[name].append(time.process_time() - cpu_started_at)
        if Message.objects.filter(recipient=address).count() != 3:
            raise SystemExit("a mail is missing")
        figures = {f"{name}_ms": statistics.median(values) * 1_000 for name, values in wall.items()}
        figures |= {f"{name}_cpu_ms": statistics.fmean(values) * 1_000 for name, values in cpu.items()}
        return {**figures, "statements": statements.count, "commits": statements.commits}


def line(figures: Medians) -> str:
    def took(name: str) -> str:
        return f"{figures[f'{name}_ms']:.2f} ms ({figures[f'{name}_cpu_ms']:.2f} ms CPU here)"

    def times(name: str) -> str:
        return f"{figures['queue_mail_ms'] / figures[f'{name}_ms']:.2f} x"

    return (
        f"queue_mail() {took('queue_mail')}, {figures['statements']:.0f} statements, {figures['commits']:.0f} commit; "
        f"the same rows by hand {took('by_hand')}: {times('by_hand')}; "
        f"a message alone {took('one_row')}: {times('one_row')}; "
        f"composed by Django {took('composed')}: {times('composed')}"
    )


CASES: dict[str, Callable[[], Figures]] = {"500": partial(enqueue, 500)}

if __name__ == "__main__":
    main(CASES, line, title="enqueue: one mail of 2 kB text and 20 kB HTML at a time", repeats=3)
