"""What it costs to hand over bytes that are there already: `SMTPBackend`, on one connection and on eight.

    SMTP_SINK=/usr/sbin/smtp-sink python bench/smtp.py [--repeats N] [--case one]

The server is Postfix's `smtp-sink`, which takes next to no time of its own; `smtp-source`, which lies beside it, and
Python's smtplib send mails of the same size for comparison. Nothing but the two programs is needed of Postfix.
"""

from __future__ import annotations

import os
import resource
import shutil
import smtplib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from support import ROOT, Figures, Medians, main, set_up

if TYPE_CHECKING:
    from mailengine.backends.wire import WireMail

COUNT = 5_000
BODY = b"".join(b"%076d\r\n" % number for number in range(290))  # some 23 kB, and no line that begins with a dot
SENDER = "news@example.org"


def by_mailengine(connections: int, *, pipelining: bool = True) -> Figures:
    """By as many senders as connections, each of them with its next mail at hand when it is done with one."""
    from mailengine.pipeline.senders import Team

    with _sink(pipelining=pipelining) as port:
        _provider(port)
        team: Team[int] = Team(connections)
        left, accepted = COUNT, 0
        started_at, cpu_started_at = time.perf_counter(), time.process_time()
        while left or team.busy_count:
            while left and team.idle_count:
                left -= 1
                team.send(left, [_mail(left)], "relay", until=time.monotonic() + 60)
            accepted += sum(outcome.is_good_round for _, (outcome,) in team.collect(wait_seconds=1))
        figures = _figures(started_at, time.process_time() - cpu_started_at)
        team.close()
    if accepted != COUNT:
        raise SystemExit(f"{accepted} of {COUNT} were accepted")
    return figures


def by_connections(connections: int, *, pipelining: bool = True) -> Figures:
    """By `Connection.hand_over()` alone, each in a thread of its own: no team, no outcomes collected."""
    from mailengine.providers.connection import Connection

    each = COUNT // connections
    accepted: list[bool] = []

    def work() -> None:
        connection = Connection("relay")
        for number in range(each):
            accepted.append(connection.hand_over(_mail(number), until=time.monotonic() + 60).is_good_round)
        connection.close()

    with _sink(pipelining=pipelining) as port:
        _provider(port)
        figures = _in_threads(work, connections)
    if sum(accepted) != COUNT:
        raise SystemExit(f"{sum(accepted)} of {COUNT} were accepted")
    return figures


def by_smtplib(connections: int) -> Figures:
    content = b"".join(_mail(0).pieces)
    with _sink() as port:

        def work() -> None:
            with smtplib.SMTP("127.0.0.1", port) as smtp:
                for _ in range(COUNT // connections):
                    smtp.sendmail(SENDER, ["reader@example.org"], content)

        return _in_threads(work, connections)


def by_smtp_source(connections: int) -> Figures:
    program = str(Path(_program()).with_name("smtp-source"))
    size = str(sum(map(len, _mail(0).pieces)))
    with _sink() as port:
        command = [program, "-d", "-s", str(connections), "-m", str(COUNT), "-l", size, f"127.0.0.1:{port}"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started_at = time.perf_counter()
        subprocess.run(command, check=True)  # noqa: S603
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return _figures(started_at, cpu_seconds)


def _mail(number: int) -> WireMail:
    from mailengine.backends.wire import WireMail

    to = f"reader{number:06}@example.org"
    head = f"From: News <{SENDER}>\r\nTo: {to}\r\nSubject: News\r\nMessage-ID: <{number}@example.org>\r\n\r\n"
    return WireMail(SENDER, [to], [head.encode(), BODY], has_dots=False)


def _provider(port: int) -> None:
    set_up(SMTP_PORT=str(port), SMTP_HOST="127.0.0.1")


def _in_threads(work: Callable[[], None], count: int) -> Figures:
    threads = [threading.Thread(target=work) for _ in range(count)]
    started_at, cpu_started_at = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return _figures(started_at, time.process_time() - cpu_started_at)


def _figures(started_at: float, cpu_seconds: float) -> Figures:
    return {"rate": COUNT / (time.perf_counter() - started_at), "cpu_us": cpu_seconds / COUNT * 1e6}


def _program() -> str:
    found = os.environ.get("SMTP_SINK") or shutil.which("smtp-sink", path=f"/usr/sbin{os.pathsep}{os.environ['PATH']}")
    return found or sys.exit("There is no smtp-sink: install Postfix, or say where it is by SMTP_SINK.")


@contextmanager
def _sink(*, pipelining: bool = True) -> Iterator[int]:
    """Its port. What it offers besides goes for real servers, too: 8BITMIME, PIPELINING unless told otherwise."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    options = [*([] if pipelining else ["-p"]), *(["-u", "nobody"] if os.geteuid() == 0 else [])]
    process = subprocess.Popen([_program(), *options, f"127.0.0.1:{port}", "100"])  # noqa: S603
    try:
        for _ in range(1_000):
            with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.01)
        yield port
    finally:
        process.terminate()
        process.wait()


def line(figures: Medians) -> str:
    return (
        f"{figures['rate']:.0f} mails/s ({figures.range('rate')}), "
        f"{figures['cpu_us']:.0f} µs CPU a mail ({figures.range('cpu_us')})"
    )


CASES: dict[str, Callable[[], Figures]] = {
    "one": partial(by_connections, 1),
    "one, not pipelined": partial(by_connections, 1, pipelining=False),
    "eight": partial(by_connections, 8),
    "team of one": partial(by_mailengine, 1),
    "team of eight": partial(by_mailengine, 8),
    "smtplib, one": partial(by_smtplib, 1),
    "smtplib, eight": partial(by_smtplib, 8),
    "smtp-source, one": partial(by_smtp_source, 1),
    "smtp-source, eight": partial(by_smtp_source, 8),
}

if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main(CASES, line, title=f"smtp: {COUNT} mails of 23 kB that are bytes already, to smtp-sink", repeats=3)
