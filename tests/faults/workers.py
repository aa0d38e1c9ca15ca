"""Real worker processes, and what can be done to them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from .. import processes
from .sinks import wait_until


class Nursery:
    """Starts workers in a few hundredths of a second each; see `nursery.py`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.nursery"],
            cwd=processes.ROOT,
            env=processes.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for us; we tell it
        )
        self._workers: dict[int, Worker] = {}
        self._lock = threading.Lock()
        self._listener = threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True)
        self._listener.start()

    def start(self, *arguments: str, folder: Path, before: str = "", **order: Mapping[str, Any]) -> Worker:
        """`manage.py` with these arguments, in a process of its own; `order`: environment, settings, database."""
        with self._lock:
            worker = Worker(arguments, folder / f"{len(self._workers) + 1}")
            self._workers[number := len(self._workers) + 1] = worker
            line = json.dumps(
                {
                    "number": number,
                    "arguments": arguments,
                    "before": before,
                    "out": str(worker.out_path),
                    "err": str(worker.err_path),
                    **order,
                }
            )
            assert self._process.stdin is not None
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        wait_until(lambda: worker.pid or self._process.poll() is not None, what="a worker to be born")
        assert worker.pid, "the nursery died"
        return worker

    def close(self) -> None:
        """End, with all workers that are left."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=10)
        self._listener.join()
        self._process.stdout.close()

    def _listen(self, lines: IO[str]) -> None:
        for line in lines:
            news = json.loads(line)
            worker = self._workers[news["number"]]
            if "pid" in news:
                worker.pid = news["pid"]
            else:
                worker.returncode = news["returncode"]


class Worker:
    """One process: what it said, whether it lives, and how to hurt it."""

    def __init__(self, arguments: tuple[str, ...], stem: Path) -> None:
        self.arguments = arguments
        self.out_path, self.err_path = stem.with_suffix(".out"), stem.with_suffix(".err")
        self.pid = 0
        self.returncode: int | None = None
        """Once it has ended; -9 after a kill."""
        self.was_killed = False
        self.is_frozen = False
        self.may_fail = False
        """Whether it may end in an error: a case that says so looks at that itself."""

    def __str__(self) -> str:
        return f"{' '.join(self.arguments)} ({self.pid})"

    @property
    def is_alive(self) -> bool:
        return self.returncode is None

    @property
    def out(self) -> str:
        return self.out_path.read_text()

    @property
    def err(self) -> str:
        return self.err_path.read_text()

    def kill(self) -> None:
        """kill -9, children included: the host lost power. It may have ended by itself already."""
        if self.is_alive:
            self.was_killed = True
            self._send(signal.SIGKILL)

    def signal(self, number: int) -> None:
        """Send it this signal, alone."""
        if self.is_alive:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.signal(signal.SIGTERM)

    def freeze(self) -> None:
        """SIGSTOP, as if its host stood still."""
        self.is_frozen = True
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        self._send(signal.SIGCONT)
        self.is_frozen = False

    def wait(self, *, seconds: float = 60) -> int:
        """Wait for its end; the exit code, or minus the signal that killed it."""
        wait_until(lambda: not self.is_alive, seconds=seconds, what=f"the end of {self}")
        assert self.returncode is not None
        return self.returncode

    @property
    def used_bytes(self) -> int:
        """Its resident memory; 0 when it has ended."""
        with suppress(OSError, ValueError, IndexError):  # it has ended just now
            return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * 4_096
        return 0

    def holds_port(self, inodes: set[str]) -> bool:
        """Whether one of its sockets is among these."""
        try:
            links = [os.readlink(f"/proc/{self.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{self.pid}/fd")]
        except OSError:
            return False
        return not inodes.isdisjoint(links)

    def _send(self, number: int) -> None:
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return


class MemoryWatch:
    """Looks at the memory of a worker, from its birth to its end."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.samples: list[int] = []
        """Resident bytes, every fiftieth of a second."""
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @property
    def peak_mb(self) -> float:
        return max(self.samples) / 1e6

    def _watch(self) -> None:
        while self.worker.is_alive:
            used = self.worker.used_bytes
            self.samples += [used] if used else []
            time.sleep(0.02)


def at_port(workers: list[Worker], port: int) -> Worker:
    """The worker that talks from this port of 127.0.0.1."""
    alive = [worker for worker in workers if worker.is_alive]
    if len(alive) == 1:
        return alive[0]
    local = f"0100007F:{port:04X}"
    table = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inodes = {f"socket:[{columns[9]}]" for columns in table if columns[1] == local}
    for worker in alive:
        if worker.holds_port(inodes):
            return worker
    raise LookupError(f"no worker talks from port {port}")


def start_fresh(arguments: tuple[str, ...], environment: Mapping[str, str], *, before: str, stem: Path) -> Worker:
    """`manage.py` in an interpreter of its own: slower, and nothing inherited."""
    worker = Worker(arguments, stem)
    with worker.out_path.open("w") as out, worker.err_path.open("w") as err:
        process = processes.start(
            *arguments, before=before, stdout=out, stderr=err, env=dict(environment), start_new_session=True
        )
    worker.pid = process.pid

    def bury() -> None:
        worker.returncode = process.wait()

    threading.Thread(target=bury, daemon=True).start()
    return worker
