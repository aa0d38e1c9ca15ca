"""How fast a job leaves by a mail server on this machine, and by an ESP over HTTP that takes its time to answer.

Both are servers in a process of their own on the same cores; the ESP speaks SendGrid's API, a call for each mail, and
answers after 0, 50 or 200 ms. One process sends. The most there can be is CONNECTIONS divided by the delay.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

from support import ROOT, Figures, Medians, Server, addresses, answer, main, scratch_database, words

SENDER = "news@example.org"
DELAYS_MS = (0, 50, 200)


def leave(count: int, *, delay_ms: int | None = None, connections: int = 8) -> Figures:
    """Send a job of `count` messages: by SMTP, or with `delay_ms` by an ESP that answers so late."""
    with Server(__file__) as server, scratch_database():
        from django.core.management import call_command
        from django.test import override_settings

        import mailengine
        from mailengine.models import Message
        from mailengine.pipeline.expand import expand_jobs

        subject, text, html = words()
        mailers = {
            "default": {"BACKEND": "mailengine.backends.EmailBackend"},
            "out": _smtp(server.ask("smtp")) if delay_ms is None else _esp(server.ask(f"esp after {delay_ms} ms")),
        }
        policy = {"PROVIDERS": {"out": {}}, "CONNECTIONS": connections}
        with override_settings(MAILERS=mailers, MAILENGINE=policy):
            mailengine.queue_job(subject, text, SENDER, list(addresses(count)), html_message=html)
            expand_jobs(max_time=None)
            started_at, cpu_started_at = time.perf_counter(), time.process_time()
            call_command("send_mail", max_time=3_600, verbosity=0)
            seconds, cpu_seconds = time.perf_counter() - started_at, time.process_time() - cpu_started_at
        sent, arrived = Message.objects.filter(status=Message.Status.SENT).count(), server.ask("arrived")
        if not sent == arrived == count:
            raise SystemExit(f"{sent} sent, {arrived} arrived, {count} were queued")
        most = connections / (delay_ms / 1_000) if delay_ms else 0
        return {"rate": count / seconds, "cpu_ms": cpu_seconds / count * 1_000, "most": most}


def line(figures: Medians) -> str:
    rate = f"{figures['rate']:.0f} messages/s ({figures.range('rate')}), {figures['cpu_ms']:.1f} ms CPU a message"
    return f"{rate}; at most {figures['most']:.0f}/s" if figures["most"] else rate


def _smtp(port: int) -> dict[str, object]:
    options = {"host": "127.0.0.1", "port": port, "timeout": 30}
    return {"BACKEND": "mailengine.backends.SMTPBackend", "OPTIONS": options}


def _esp(port: int) -> dict[str, object]:
    options = {"api_key": "bench", "api_url": f"http://127.0.0.1:{port}/v3/", "timeout": 30}
    return {"BACKEND": "anymail.backends.sendgrid.EmailBackend", "OPTIONS": options}


def _serve() -> None:
    sys.path.insert(0, str(ROOT))
    from mailengine.testing import ESPServer, SMTPServer

    with SMTPServer() as smtp, ESPServer() as esp:

        def esp_after(delay_ms: int) -> int:
            esp.delay_seconds = delay_ms / 1_000
            return esp.port

        delayed = {f"esp after {delay} ms": partial(esp_after, delay) for delay in DELAYS_MS}
        arrived = {"arrived": lambda: len(smtp.accepted) + len(esp.accepted)}
        answer({"smtp": lambda: smtp.port, **delayed, **arrived})


CASES: dict[str, Callable[[], Figures]] = {
    "smtp": partial(leave, 1_000),
    "http-0ms": partial(leave, 1_000, delay_ms=0),
    "http-50ms": partial(leave, 1_000, delay_ms=50),
    "http-200ms": partial(leave, 500, delay_ms=200),
    "http-50ms-64": partial(leave, 2_000, delay_ms=50, connections=64),
    "http-200ms-64": partial(leave, 2_000, delay_ms=200, connections=64),
}

if __name__ == "__main__":
    if sys.argv[1:] == ["--server"]:
        _serve()
    else:
        main(CASES, line, title="providers: a job of 22 kB by SMTP here, and by an ESP over HTTP", repeats=3)
