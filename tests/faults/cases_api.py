"""C6 and C7, the HTTP API: served by a process of its own, over real sockets."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

from mailengine.models import ApiKey, Message

from ..database_faults import DatabaseProxy
from .case import case
from .databases import SERVERS
from .proxy import Proxy
from .workers import Worker
from .world import UNHURRIED, World

MAIL = {"to": ["ann@example.org"], "subject": "Hello", "text": "Good morning."}


@dataclass(frozen=True)
class Site:
    """A site that serves the API, and a key to it."""

    worker: Worker
    url: str
    secret: str

    def post(self, body: Any, *, key: str = "") -> tuple[int, Any, str | None]:
        """Queue mail: status, JSON and `Retry-After`."""
        headers = {"Authorization": f"Bearer {self.secret}", "Content-Type": "application/json"}
        headers |= {"Idempotency-Key": key} if key else {}
        request = urllib.request.Request(f"{self.url}/api/v1/messages", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, json.load(response), None
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error), error.headers["Retry-After"]

    def is_up(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", int(self.url.rpartition(":")[2])), timeout=1):
                return True
        except OSError:
            return False


@contextmanager
def serving(world: World, *, via: Proxy | None = None) -> Iterator[Site]:
    """A site; `via` as for any worker."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    _key, secret = ApiKey.objects.issue("shop")
    worker = world.worker("runserver", "--noreload", "--skip-checks", f"127.0.0.1:{port}", via=via)
    site = Site(worker, f"http://127.0.0.1:{port}", secret)
    try:
        world.wait_until(site.is_up, what="the site to answer")
        yield site
    finally:
        worker.may_fail = True
        worker.terminate()
        worker.wait()


@case(
    "F-D04b",
    "the database goes at the COMMIT of a POST, or before it; the same key again",
    databases=SERVERS,
    quick=True,
)
def cut_at_the_commit_of_a_post(world: World, random: Random) -> None:
    """One row for each key. 503 says when to ask again, and gives nothing away."""
    world.configure(**UNHURRIED)
    world.smtp()
    told_to_wait = 0
    with DatabaseProxy() as proxy, serving(world, via=proxy) as site:
        for number in world.times(20, quick=6):
            fate = random.choice(["arrived", "did not arrive", "down"])
            if fate == "down":
                proxy.down()
            else:
                proxy.next_commit = fate
            first = site.post(MAIL, key=f"order-{number}")
            proxy.up()
            if fate == "down":
                status, problem, retry_after = first
                assert (status, problem["detail"], int(retry_after or 0) > 0) == (503, "Service unavailable", True)
                told_to_wait += 1
            status, answer, _ = site.post(MAIL, key=f"order-{number}")
            assert status == 201, answer
            assert first[0] == 503 or first[:2] == (201, answer), (fate, first)
            assert Message.objects.count() == number + 1, "a key is for one row"
            world.acked.append(answer["id"])
        world.fault_count += proxy.cut_count + told_to_wait
    world.run("send_mail")


@case("F-X13b", "26 MB over the limit, at the HTTP API, and as much as it takes", quick=True)
def too_large_a_post(world: World, random: Random) -> None:
    """413 for what is larger, which is not read; what fits is sent."""
    world.configure(**UNHURRIED)
    sink = world.smtp()
    with serving(world) as site:
        before = site.worker.used_bytes

        def with_a_file(size: int) -> dict[str, Any]:
            content = b64encode(random.randbytes(size)).decode()
            return {**MAIL, "attachments": [{"filename": "a.bin", "content": content}]}

        for _ in range(3):
            status, problem, _ = site.post(with_a_file(38_000_000))
            assert (status, "25,000,000" in problem["detail"]) == (413, True), problem
        grown = (site.worker.used_bytes - before) / 1e6
        world.note(f"the site's memory after three of 51 MB: {grown:+.0f} MB")
        assert grown < 50
        assert not Message.objects.exists()
        status, answer, _ = site.post(with_a_file(18_000_000))
        assert status == 201, answer
        world.acked.append(answer["id"])
    assert world.run("send_mail").returncode == 0
    assert sink.accepted_count == 1
