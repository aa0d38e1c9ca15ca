"""What it costs to run the three cron commands when there is nothing to do, in queries and milliseconds.

Beside it, in the same run: one `SELECT 1`. With 100,000 sent messages in the database the figures should not move.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

from support import Figures, Medians, Statements, addresses, main, scratch_database, words

COMMANDS = ("process_mail_jobs", "send_mail", "retry_deferred")
ROUNDS = 20


def empty_runs(*, sent: int = 0) -> Figures:
    """The three commands, `ROUNDS` times each, on a queue that holds nothing but `sent` messages that are done with."""
    with scratch_database() as connection:
        from django.core.management import call_command
        from django.db.models import F

        import mailengine
        from mailengine.models import Message, MessageJob
        from mailengine.pipeline.expand import expand_jobs

        if sent:
            subject, text, html = words()
            mailengine.queue_job(subject, text, "news@example.org", list(addresses(sent)), html_message=html)
            expand_jobs(max_time=None)
            Message.objects.update(status=Message.Status.SENT, sent_at=F("created_at"), available_at=None)
            MessageJob.objects.update(status=MessageJob.Status.DONE)

        def select() -> None:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
                cursor.fetchall()

        figures = {"select_ms": _median_ms(select)}
        for name in COMMANDS:
            call_command(name)  # the first run of an installation writes its providers' rows
            with Statements(connection) as statements:
                figures[f"{name}_ms"] = _median_ms(partial(call_command, name))
            figures[f"{name}_queries"] = statements.count / ROUNDS
            figures[f"{name}_commits"] = statements.commits / ROUNDS
        return figures


def line(figures: Medians) -> str:
    parts = [
        f"{name} {figures[f'{name}_queries']:.3g} queries and {figures[f'{name}_commits']:.3g} commits, "
        f"{figures[f'{name}_ms']:.1f} ms ({figures.range(f'{name}_ms')})"
        for name in COMMANDS
    ]
    return f"{'; '.join(parts)}; SELECT 1 {figures['select_ms']:.2f} ms"


def _median_ms(work: Callable[[], object]) -> float:
    def once() -> float:
        started_at = time.perf_counter()
        work()
        return (time.perf_counter() - started_at) * 1_000

    return statistics.median(once() for _ in range(ROUNDS))


CASES: dict[str, Callable[[], Figures]] = {"empty": empty_runs, "100000-sent": partial(empty_runs, sent=100_000)}

if __name__ == "__main__":
    main(CASES, line, title="empty_runs: cron commands with nothing to do", repeats=3)
