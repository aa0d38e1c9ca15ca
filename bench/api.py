"""What the HTTP API takes in, and what its servers keep in memory: gunicorn with two sync workers. PostgreSQL only.

The calls are shared by 16 clients, threads of a process of their own; each call has a connection of its own, since sync
workers keep none. `single`: one mail of 20 kB a call, in turns with two views of Django's in the same servers, which
know no keys and check nothing; one writes the words as a row, the other the message, too. `many-*`: 1,000 mails a call,
each of other words, in turns with one a call. `memory-*`: the same large call again and again.
"""

from __future__ import annotations

import base64
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from support import Figures, Medians, main, scratch_database, set_up, url_of, words

WORKERS = 2
CLIENTS = 16
MESSAGES = "/api/v1/messages"
WAYS = {"api": MESSAGES, "one_row": "/one-row", "two_rows": "/two-rows"}
EMPTIED_AFTER = 500
"""Large calls, so that they don't fill the disk."""


def single(rounds: int, calls: int) -> Figures:
    """Calls with one mail of 20 kB, in turns with the two bare views."""
    with _site() as site:
        requests = {name: [site.request(path, _mail(20_000, n)) for n in range(calls)] for name, path in WAYS.items()}
        found = _in_turns(site, requests, rounds)
        figures: Figures = {}
        for name, turns in found.items():
            waits = sorted(wait for turn in turns for wait in turn.waits)
            figures[f"{name}_rate"] = statistics.median(calls / turn.seconds for turn in turns)
            figures[f"{name}_cpu_ms"] = statistics.median(turn.cpu_seconds / calls for turn in turns) * 1_000
            figures[f"{name}_p50_ms"] = waits[len(waits) // 2] * 1_000
            figures[f"{name}_p99_ms"] = waits[int(len(waits) * 0.99)] * 1_000
        for name in ("one_row", "two_rows"):
            pairs = zip(found["api"], found[name], strict=True)
            figures[f"{name}_ratio"] = statistics.median(bare.seconds / api.seconds for api, bare in pairs)
        return figures


def many(size: int, rounds: int, calls: int, in_a_call: int) -> Figures:
    """Calls with many mails of so many bytes, in turns with calls that have one."""
    with _site() as site:
        mails = [_mail(size, number) for number in range(in_a_call)]
        requests = {
            "many": [site.request(MESSAGES, mails)] * calls,
            "one": [site.request(MESSAGES, mail) for mail in mails],
        }
        found = _in_turns(site, requests, rounds)
        counts = {"many": calls * in_a_call, "one": in_a_call}
        figures: Figures = {}
        for name, turns in found.items():
            figures[f"{name}_rate"] = statistics.median(counts[name] / turn.seconds for turn in turns)
            figures[f"{name}_cpu_ms"] = statistics.median(turn.cpu_seconds for turn in turns) / counts[name] * 1_000
        pairs = zip(found["many"], found["one"], strict=True)
        figures["times"] = statistics.median(
            counts["many"] / many.seconds / (counts["one"] / one.seconds) for many, one in pairs
        )
        return figures


def memory(make: Callable[[Site], bytes], calls: int, warm_up: int) -> Figures:
    """What the workers hold after a warm-up, at the end, and at most, while they get the same large call."""
    with _site() as site:
        request = make(site)
        site.ask([request] * warm_up)
        site.empty()
        first = site.resident()
        site.forget_peaks()
        sums, started_at = [sum(first)], time.perf_counter()
        for done in range(0, calls, EMPTIED_AFTER):
            site.ask([request] * min(EMPTIED_AFTER, calls - done))
            sums.append(sum(site.resident()))
            site.empty()
        seconds, last, peaks = time.perf_counter() - started_at, site.resident(), site.peaks()
        half = sums[len(sums) // 2]
        figures = {"first_mb": sums[0], "half_mb": half, "last_mb": sums[-1], "highest_mb": max(sums)}
        for number, values in enumerate(zip(first, last, peaks, strict=True)):
            figures |= dict(zip((f"first_{number}", f"last_{number}", f"peak_{number}"), values, strict=True))
        return {**figures, "rate": calls / seconds, "calls": calls}


@dataclass(frozen=True)
class Turn:
    """What a turn took: until its last answer, of the workers' processors, and each call by itself."""

    seconds: float
    cpu_seconds: float
    waits: list[float]


def _in_turns(site: Site, requests: dict[str, list[bytes]], rounds: int) -> dict[str, list[Turn]]:
    """Their calls, round after round, so that all see the same machine; the first round is not counted."""
    found: dict[str, list[Turn]] = {name: [] for name in requests}
    chance = random.Random(1)  # noqa: S311  not for secrets
    for number in range(rounds + 1):
        for name in chance.sample(list(requests), len(requests)):  # each follows each
            turn = site.ask(requests[name])
            if number:
                found[name].append(turn)
            site.empty()
    return found


class Site:
    """Servers at work, and clients that call them."""

    def __init__(self, address: tuple[str, int], *, secret: str, connection: Any) -> None:
        self.address, self.secret, self.connection = address, secret, connection
        self._clients = ThreadPoolExecutor(CLIENTS)
        self._workers: list[Path] = []

    def find_workers(self, pid: int) -> None:
        """Wait until this gunicorn answers, and remember its workers: none of them may be replaced from now on."""
        list(self._clients.map(self._ask, [self.request(MESSAGES, _mail(1_000))] * CLIENTS))
        self.empty()
        self._workers = [Path(f"/proc/{p}") for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def request(self, path: str, mail: Any) -> bytes:
        """A call with this mail as JSON."""
        return self.request_with(path, json.dumps(mail).encode(), "application/json")

    def request_with(self, path: str, body: bytes, kind: str) -> bytes:
        lines = (
            f"POST {path} HTTP/1.1",
            f"Host: {self.address[0]}",
            f"Authorization: Bearer {self.secret}",
            f"Content-Type: {kind}",
            f"Content-Length: {len(body)}",
        )
        return "\r\n".join([*lines, "", ""]).encode() + body

    def ask(self, requests: Sequence[bytes]) -> Turn:
        """All of these, by as many clients as there are."""
        cpu, started_at = self._cpu_seconds(), time.perf_counter()
        waits = list(self._clients.map(self._ask, requests))
        return Turn(time.perf_counter() - started_at, self._cpu_seconds() - cpu, waits)

    def _ask(self, request: bytes) -> float:
        started_at = time.perf_counter()
        with socket.create_connection(self.address) as server:
            server.sendall(request)
            answer = b"".join(iter(lambda: server.recv(65_536), b""))
        if not answer.startswith(b"HTTP/1.1 201 "):
            raise SystemExit(f"not taken: {answer[:500]!r}")
        return time.perf_counter() - started_at

    def empty(self) -> None:
        """Remove all mail."""
        with self.connection.cursor() as cursor:
            cursor.execute("TRUNCATE mailengine_message, mailengine_content, mailengine_attachment CASCADE")

    def resident(self) -> list[float]:
        """The memory of each worker, in MB."""
        return self._memory("VmRSS")

    def peaks(self) -> list[float]:
        return self._memory("VmHWM")

    def forget_peaks(self) -> None:
        for worker in self._workers:
            (worker / "clear_refs").write_text("5")

    def _memory(self, name: str) -> list[float]:
        lines = [line for worker in self._workers for line in (worker / "status").read_text().splitlines()]
        return [int(line.split()[1]) * 1_024 / 1e6 for line in lines if line.startswith(name)]

    def _cpu_seconds(self) -> float:
        ticks = 0
        for worker in self._workers:
            fields = (worker / "stat").read_text().rpartition(") ")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def _site() -> Iterator[Site]:
    if not find_spec("gunicorn"):
        raise SystemExit("api.py needs gunicorn 25 or later: pip install gunicorn")
    with scratch_database() as connection, socket.create_server(("127.0.0.1", 0), backlog=2_048) as listening:
        from django.conf import settings

        from mailengine.models import ApiKey

        if connection.vendor != "postgresql":
            raise SystemExit("api.py is for PostgreSQL: DATABASE_URL=postgres://...")
        _key, secret = ApiKey.objects.issue("bench", allowed_senders=["@example.org"])
        command = [
            *(sys.executable, "-m", "gunicorn", "--workers", str(WORKERS), "--bind", f"fd://{listening.fileno()}"),
            *("--timeout", "600", "--log-level", "warning", "--no-control-socket", "api:application()"),
        ]
        files = str(settings.STORAGES["default"]["OPTIONS"]["location"])
        variables = {"DATABASE_URL": url_of(connection), "BENCH_FILES": files}
        server = subprocess.Popen(  # noqa: S603  our own
            command, cwd=Path(__file__).parent, env={**os.environ, **variables}, pass_fds=[listening.fileno()]
        )
        try:
            site = Site(listening.getsockname(), secret=secret, connection=connection)
            site.find_workers(server.pid)
            yield site
        finally:
            server.terminate()
            server.wait()


def application() -> Any:
    """The site that gunicorn serves: the project, with the views to compare with, and files in a folder of ours."""
    set_up()
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application

    files = {
        "BACKEND": "django.core.files.storage.FileSystemStorage",
        "OPTIONS": {"location": os.environ["BENCH_FILES"]},
    }
    settings.STORAGES = {**settings.STORAGES, "default": files, "mailengine": files}
    settings.ROOT_URLCONF = "api_site"
    return get_wsgi_application()


def _mail(size: int, number: int = 0) -> dict[str, Any]:
    """A mail of so many bytes, a tenth of them text and the rest HTML; with another number it has other words."""
    subject, text, html = words(size // 10, size - size // 10)
    return {
        "from": "shop@example.org",
        "to": [f"reader{number:06}@example.org"],
        "subject": f"{subject} {number}",
        "text": text,
        "html": html,
    }


def _large(site: Site) -> bytes:
    """A call with words of a megabyte."""
    return site.request(MESSAGES, _mail(1_000_000))


def _with_base64(site: Site) -> bytes:
    """A call with a file of 5 MB within its JSON."""
    content = base64.b64encode(random.Random(1).randbytes(5_000_000)).decode()  # noqa: S311  not for secrets
    return site.request(MESSAGES, {**_mail(20_000), "attachments": [{"filename": "a.bin", "content": content}]})


def _with_part(site: Site) -> bytes:
    """The same file as a part of a form."""
    from django.core.files.uploadedfile import SimpleUploadedFile
    from django.test.client import encode_multipart

    file = SimpleUploadedFile("a.bin", random.Random(1).randbytes(5_000_000))  # noqa: S311  not for secrets
    body = encode_multipart("a-boundary", {"message": json.dumps(_mail(20_000)), "attachment": file})
    return site.request_with(MESSAGES, body, "multipart/form-data; boundary=a-boundary")


def line(figures: Medians) -> str:
    if "api_rate" in figures.runs[0]:
        return "; ".join(
            f"{name.replace('_', ' ')} {figures[f'{name}_rate']:.0f}/s ({figures.range(f'{name}_rate')}),"
            f" p50 {figures[f'{name}_p50_ms']:.0f} ms, p99 {figures[f'{name}_p99_ms']:.0f} ms,"
            f" CPU {figures[f'{name}_cpu_ms']:.2f} ms"
            + (f": the API has {figures[f'{name}_ratio']:.2f} of its rate" if name != "api" else "")
            for name in WAYS
        )
    if "times" in figures.runs[0]:
        many, one = (
            f"{figures[f'{name}_rate']:.0f} messages/s ({figures.range(f'{name}_rate')}),"
            f" CPU {figures[f'{name}_cpu_ms']:.2f} ms a message"
            for name in ("many", "one")
        )
        return f"{many}; one a call {one}: {figures['times']:.1f} x ({figures.range('times')})"
    each = ", ".join(
        f"{figures[f'first_{n}']:.0f} to {figures[f'last_{n}']:.0f}, peak {figures[f'peak_{n}']:.0f}"
        for n in range(WORKERS)
    )
    return (
        f"{figures['calls']:.0f} calls, {figures['rate']:.1f}/s; all workers {figures['first_mb']:.0f} MB after the"
        f" warm-up, {figures['half_mb']:.0f} at half, {figures['last_mb']:.0f} at the end, {figures['highest_mb']:.0f}"
        f" at most; each: {each}"
    )


CASES: dict[str, Callable[[], Figures]] = {
    "single": partial(single, rounds=10, calls=400),
    "many-1kB": partial(many, 1_000, rounds=5, calls=CLIENTS, in_a_call=1_000),
    "many-20kB": partial(many, 20_000, rounds=3, calls=4, in_a_call=1_000),
    "memory-words": partial(memory, _large, calls=10_000, warm_up=200),
    "memory-base64": partial(memory, _with_base64, calls=2_000, warm_up=200),
    "memory-form": partial(memory, _with_part, calls=2_000, warm_up=200),
}
QUICK: dict[str, Callable[[], Figures]] = {
    "single": partial(single, rounds=2, calls=64),
    "many-1kB": partial(many, 1_000, rounds=1, calls=2, in_a_call=200),
    "many-20kB": partial(many, 20_000, rounds=1, calls=2, in_a_call=200),
    "memory-words": partial(memory, _large, calls=64, warm_up=16),
    "memory-base64": partial(memory, _with_base64, calls=32, warm_up=16),
    "memory-form": partial(memory, _with_part, calls=32, warm_up=16),
}

if __name__ == "__main__":
    main(CASES, line, title="api: two sync workers of gunicorn, 16 clients", repeats=1, quick=QUICK)
