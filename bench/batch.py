"""How many calls of an ESP's API a job costs with BATCH, and how fast it leaves; beside it, one call for each mail.

The ESP is a server in a process of its own that speaks SendGrid's API, on the same cores. The mail has 2 kB of text.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

from support import ROOT, Figures, Medians, PeakMemory, Server, addresses, answer, main, scratch_database, words

SENDER = "news@example.org"


def drain(count: int, batch: int) -> Figures:
    """Send a job of `count` messages with this BATCH; then a fiftieth of it singly."""
    with Server(__file__) as server, scratch_database():
        mailer = _mailer(server.ask("port"))
        in_calls = _send(count, batch, mailer)
        calls = server.ask("calls")
        few = count // 50
        singly = _send(few, 1, mailer)
        accepted = server.ask("accepted")
        if accepted != count + few:
            raise SystemExit(f"{accepted} arrived, {count} and {few} were queued")
        return {**in_calls, "calls": calls, "single_rate": singly["rate"]}


def _send(count: int, batch: int, mailer: dict[str, object]) -> Figures:
    from django.core.management import call_command
    from django.test import override_settings

    import mailengine
    from mailengine.models import Message
    from mailengine.pipeline.expand import expand_jobs

    subject, text, _html = words()
    mailers = {"default": {"BACKEND": "mailengine.backends.EmailBackend"}, "esp": mailer}
    with override_settings(MAILERS=mailers, MAILENGINE={"PROVIDERS": {"esp": {"BATCH": batch}}}):
        before = Message.objects.filter(status=Message.Status.SENT).count()
        mailengine.queue_job(subject, text, SENDER, list(addresses(count)))
        expand_jobs(max_time=None)
        memory = PeakMemory()
        started_at = time.perf_counter()
        call_command("send_mail", max_time=3_600, verbosity=0)
        seconds = time.perf_counter() - started_at
        sent = Message.objects.filter(status=Message.Status.SENT).count() - before
        if sent != count:
            raise SystemExit(f"{sent} of {count} were sent")
    return {"rate": count / seconds, "peak_mb": memory.growth / 1e6}


def line(figures: Medians) -> str:
    return (
        f"{figures['calls']:.0f} calls, {figures['rate']:.0f} messages/s ({figures.range('rate')}), memory "
        f"+{figures['peak_mb']:.0f} MB; one call for each: {figures['single_rate']:.0f} messages/s"
    )


def _mailer(port: int) -> dict[str, object]:
    options = {"api_key": "bench", "api_url": f"http://127.0.0.1:{port}/v3/", "timeout": 30}
    return {"BACKEND": "anymail.backends.sendgrid.EmailBackend", "OPTIONS": options}


def _serve() -> None:
    sys.path.insert(0, str(ROOT))
    from mailengine.testing import ESPServer

    with ESPServer() as server:
        answer({"port": lambda: server.port, "calls": lambda: server.calls, "accepted": lambda: len(server.accepted)})


CASES: dict[str, Callable[[], Figures]] = {
    "10000": partial(drain, 10_000, 1_000),
    "100000": partial(drain, 100_000, 1_000),
}

if __name__ == "__main__":
    if sys.argv[1:] == ["--server"]:
        _serve()
    else:
        main(CASES, line, title="batch: a job of 2 kB text, 1,000 mails in a call", repeats=1)
