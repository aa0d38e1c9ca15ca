"""What is measured of each engine, one function for each case; every one of them checks that all the mail arrived."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from databases import Postgres, Sqlite
from engines import ENGINES, Engine
from engines.mailengine import Mailengine
from environment import HERE, HOME, ROOT, PostfixTools, wait_for
from meter import Program
from sink import CountingSink, PostfixSink

Figures = dict[str, Any]
Sink = PostfixSink | CountingSink
PROVIDER_MS = 50
URGENT_EVERY_SECONDS = 0.25
MOVED_FOR_MEMORY = 20_000
STILL_SECONDS = 60
"""After so long without any mail nothing more is waited for."""
RECORDED_SECONDS = 60
"""How long after the last mail a worker may take to record it."""

DRAIN = [
    "mailengine", "mailengine-worker", "django-mailer", "post_office", "post_office-2x4", "celery-prefork-2",
    "celery-threads-16", "celery-email", "procrastinate-8",
    "smtp-source-8", "smtp-source-32", "smtplib-1", "smtplib-16", "ledger-32", "ledger-2x16",
]  # fmt: skip
SLOW = [
    "mailengine-64", "django-mailer", "post_office", "post_office-4x32", "celery-prefork-16", "celery-threads-64",
    "procrastinate-64", "smtp-source-64",
]  # fmt: skip
GROW = ["mailengine-1x16", "mailengine-2x16", "mailengine-4x16"]
ON_SQLITE = ["mailengine-1", "django-mailer", "post_office", "post_office-1x4"]
URGENT = [
    "mailengine", "mailengine-worker", "django-mailer", "post_office", "post_office-2x4", "celery-prefork-2",
    "celery-threads-16", "procrastinate-8",
]  # fmt: skip
MEMORY = ["mailengine-1", "mailengine-worker-1", "django-mailer", "post_office", "celery-prefork-2", "procrastinate-8"]
QUEUE = ["mailengine", "django-mailer", "post_office", "celery-prefork-2", "procrastinate-8"]
QUICK = {
    "drain": ["mailengine", "django-mailer", "post_office-2x4", "celery-email", "procrastinate-8", "smtp-source-32",
              "ledger-32"],
    "slow": ["mailengine-64", "post_office-4x32", "smtp-source-64"],
    "sqlite": ["mailengine-1", "post_office-1x4"],
    "urgent": ["mailengine", "mailengine-worker", "post_office-2x4"],
    "memory": ["mailengine-1", "mailengine-worker-1"],
    "queue_many": ["mailengine", "post_office"],
    "queue_each": ["mailengine", "post_office"],
}  # fmt: skip
"""What is left of them in a quick run."""


class Failed(Exception):  # noqa: N818  it reads well after `except`
    """An engine did not do all it was given, or did it twice."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured, in mails."""

    drain: int
    drain_peers: int
    queue: int
    expand: int
    memory: int
    memory_peers: int

    def of(self, case: str, engine: Engine) -> int:
        is_peer = engine.product not in ("mailengine", "limit")
        drain = self.drain_peers if is_peer else self.drain
        sizes = {
            "drain": drain,
            "singles": self.drain // 2,
            "sqlite": drain // 4,
            "urgent": drain,
            "grow": drain // 4,
            "slow": drain // 10 if is_peer else drain,  # the slowest of them take a minute for a thousand
            "queue_many": self.queue,
            "queue_each": max(self.queue // 5, 100),
            "memory": self.memory_peers if is_peer else self.memory,
        }
        return sizes[case]


@dataclass
class Bench:
    """Where it is measured, and what was found: a row for each run of a case."""

    postgres: Postgres
    sqlite: Sqlite
    tools: PostfixTools
    sizes: Sizes
    repeats: int
    products: Iterable[str]
    say: Callable[[str], None]
    env: dict[str, str]
    give_up_seconds: float = 900
    is_quick: bool = False
    rows: list[Figures] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _idles: dict[tuple[str, str], Program] = field(default_factory=dict)

    # The cases

    def drain(self) -> None:
        """Queued mail of one job into Postfix's sink, on PostgreSQL."""
        with PostfixSink(self.tools) as sink:
            self._each("drain", DRAIN, functools.partial(self._drain, sink=sink, database=self.postgres))

    def singles(self) -> None:
        """The same of mails that were queued one by one, each with words of its own, as all mail of the peers is."""
        with PostfixSink(self.tools) as sink:
            work = functools.partial(self._drain, sink=sink, database=self.postgres, fill="queue_each")
            self._each("singles", ["mailengine", "mailengine-worker"], work)

    def slow(self) -> None:
        """Into a provider that takes 50 ms to answer each mail."""
        with CountingSink(delay_ms=PROVIDER_MS) as sink:
            self._each("slow", SLOW, functools.partial(self._drain, sink=sink, database=self.postgres))

    def growing(self) -> None:
        """Into the same provider by one, two and four processes against one database."""
        with CountingSink(delay_ms=PROVIDER_MS) as sink:
            self._each("grow", GROW, functools.partial(self._drain, sink=sink, database=self.postgres))

    def on_sqlite(self) -> None:
        """Into Postfix's sink by one process, from SQLite."""
        with PostfixSink(self.tools) as sink:
            self._each("sqlite", ON_SQLITE, functools.partial(self._drain, sink=sink, database=self.sqlite))

    def urgent(self) -> None:
        """An urgent mail four times a second while bulk mail is sent: how long each one takes to arrive."""
        with CountingSink() as sink:
            self._each("urgent", URGENT, functools.partial(self._urgent, sink=sink))

    def memory(self) -> None:
        """The largest process of a worker with a thousand mails queued, and with many."""
        with PostfixSink(self.tools) as sink:
            self._each("memory", MEMORY, functools.partial(self._memory, sink=sink), repeats=1)

    def queueing(self) -> None:
        """One mail to many, and many mails one by one."""
        for case in ("queue_many", "queue_each"):
            self._each(case, QUEUE, functools.partial(self._queue, action=case))
        if "mailengine" in self.products:
            count = self.sizes.of("queue_each", ENGINES["mailengine"])
            self._rows("queue_each", ["orm_rows", "orm_message"], count)

    def expanding(self) -> None:
        """A job into its messages; beside it the database's own ways to take as many rows."""
        if "mailengine" not in self.products:
            return
        count = self.sizes.expand
        self._each("expand", ["mailengine"], functools.partial(self._queue, action="expand"), count=count)
        self._rows("expand", ["narrow_unnest", "narrow_copy", "same_unnest", "same_copy"], count)

    # Runs

    def _each(
        self,
        case: str,
        keys: list[str],
        work: Callable[[Engine, str, int], Figures],
        *,
        count: int | None = None,
        repeats: int | None = None,
    ) -> None:
        """Engine after engine, then all of them again: what disturbs the machine for a while disturbs them alike."""
        engines = [ENGINES[key] for key in keys if ENGINES[key].product in self.products]
        engines = [e for e in engines if not (isinstance(e, Mailengine) and not e.exists)]
        if self.is_quick:
            engines = [engine for engine in engines if engine.key in QUICK.get(case, keys)]
        for repeat in range(repeats or self.repeats):
            for engine in engines:
                number = count or self.sizes.of(case, engine)
                try:
                    engine.tidy()
                    figures = work(engine, case, number)
                except Failed as error:
                    self.failures.append(f"{case}, {engine.key}: {error}")
                    self.say(f"  {case:10} {engine.key:20} FAILED: {error}")
                    continue
                finally:
                    engine.tidy()
                self._add({"case": case, "engine": engine.key, "repeat": repeat, "count": number, **figures})

    def _rows(self, case: str, names: list[str], count: int) -> None:
        """The database alone."""
        for repeat in range(self.repeats):
            for name in names:
                self.postgres.fresh()
                done = self._act("rows", name, count, product="mailengine", database=self.postgres)
                figures = {"rate": count / done["seconds"], **done}
                self._add({"case": case, "engine": name, "repeat": repeat, "count": count, **figures})

    def _add(self, row: Figures) -> None:
        self.rows.append(row)
        told = {name: value for name, value in row.items() if name not in ("case", "engine", "repeat", "count")}
        shown = ", ".join(f"{name} {_short(value)}" for name, value in told.items() if value is not None)
        self.say(f"  {row['case']:10} {row['engine']:20} {row['count']:7,}  {shown}")

    def _drain(
        self,
        engine: Engine,
        case: str,
        count: int,
        *,
        sink: Sink,
        database: Postgres | Sqlite,
        fill: str = "fill",
    ) -> Figures:
        env = self._env(engine, sink, database, count)
        idle = self._idle(engine, sink, database)
        database.fresh()
        if engine.runs_as != "once":
            self._act(engine.key, fill, count, product=engine.product, database=database, env=env)
        database.settle()
        sink.reset()
        meter = database.meter()
        meter.start()
        with Program(engine.command(), env, log=f"{case}-{engine.key}") as program:
            first, last = self._watch(program, engine, sink, database, count)
        costs = meter.stop()
        exit_code = program.returncode if engine.runs_as != "worker" else 0
        self._check(engine, program, exit_code, sink, database, count)
        if isinstance(sink, CountingSink):
            arrivals = sink.arrivals()
            first, last = (arrivals[0][1], 1), arrivals[-1][1]
        steady = (count - first[1]) / max(last - first[0], 1e-6)
        # Of so few mails that most of the time is start-up, the difference says nothing.
        is_long = idle and idle.seconds < program.seconds / 2
        figures: Figures = {
            "rate": count / (program.seconds - idle.seconds) if idle and is_long else steady,
            "steady_rate": steady,
            "cpu": max(0, program.cpu_seconds - (idle.cpu_seconds if idle else 0)) / count * 1_000,
            "rss_total": program.memory.total or None,  # too short-lived to be seen
            "rss": program.memory.largest or None,
        }
        if costs and engine.runs_as != "once" and engine.product != "celery":
            figures |= costs.each(count)
        return figures

    def _idle(self, engine: Engine, sink: Sink, database: Postgres | Sqlite) -> Program | None:
        """The command with nothing to do: its start-up, which is taken off. A worker's time begins with its first mail.

        The quickest so far: a start that something else delayed would flatter what it is taken from.
        """
        if engine.runs_as != "command":
            return None
        database.fresh()
        env = self._env(engine, sink, database, 0)
        with Program(engine.command(), env, log=f"idle-{engine.key}") as program:
            program.wait()
        known = self._idles.get((engine.key, database.vendor), program)
        quickest = self._idles[engine.key, database.vendor] = min(known, program, key=lambda idle: idle.seconds)
        return quickest

    def _watch(
        self, program: Program, engine: Engine, sink: Sink, database: Postgres | Sqlite, count: int
    ) -> tuple[tuple[float, int], float]:
        """((when, how many) were first seen to have arrived, when the last had). A command is waited for to its end."""
        first, last, before, moved_at = (program.started_at, 0), 0.0, 0, time.time()
        while time.time() < moved_at + STILL_SECONDS:
            is_running, arrived, now = program.is_running(), sink.count(), time.time()
            if arrived > before:
                before, moved_at = arrived, now
            if arrived and not first[1]:
                first = (now, arrived)
            if arrived >= count and not last:
                last = now
            if not is_running or (last and engine.runs_as == "worker"):
                break
            time.sleep(0.01 if isinstance(sink, PostfixSink) else 0.1)
        if engine.runs_as == "worker":  # what has arrived is still to be recorded
            wait_for(lambda: not engine.left(database.ask), RECORDED_SECONDS if last else 0, every=0.2)
            last = last and time.time() if not isinstance(sink, CountingSink) else last
        return first, last or time.time()

    def _check(
        self,
        engine: Engine,
        program: Program,
        exit_code: int | None,
        sink: Sink,
        database: Postgres | Sqlite,
        count: int,
    ) -> None:
        """Raise unless exactly what was queued has arrived, none of it twice, and the engine's own books agree."""
        arrived, doubled = sink.count(), sink.duplicates()
        left = 0 if engine.runs_as == "once" else engine.left(database.ask)
        found = []
        if arrived != count:
            found.append(f"{arrived:,} mails arrived of {count:,} queued")
        if doubled and engine.product != "limit":
            found.append(f"{doubled:,} of them twice")
        if left:
            found.append(f"{left:,} are still in its queue")
        if exit_code:
            found.append(f"it exited with {exit_code}")
        if mistakes := engine.mistakes(database.ask, count):
            found.append(f"its books say: {mistakes}")
        if found:
            raise Failed(f"{'; '.join(found)}. Its output: {program.log.relative_to(ROOT)}")

    def _urgent(self, engine: Engine, case: str, count: int, *, sink: CountingSink) -> Figures:
        env = self._env(engine, sink, self.postgres, count)
        self.postgres.fresh()
        self._act(engine.key, "fill", count, product=engine.product, database=self.postgres, env=env)
        self.postgres.settle()
        sink.reset()
        with _Sending(engine, env, log=f"{case}-{engine.key}") as sending, _Queueing(engine, env) as queueing:
            if not wait_for(sink.count, 120):
                raise Failed("nothing arrived in two minutes")
            started_at, committed = time.time(), {}
            while sink.count() < count and time.time() < started_at + self.give_up_seconds:
                address = f"urgent{len(committed):06}@example.org"
                committed[address] = queueing.queue(address)
                time.sleep(URGENT_EVERY_SECONDS)
            total = count + len(committed)
            wait_for(lambda: sink.count() >= total, 60, every=0.2)
            wait_for(lambda: not engine.left(self.postgres.ask), RECORDED_SECONDS, every=0.2)
        self._check(engine, sending.program, sending.exit_code, sink, self.postgres, total)
        arrived = dict(sink.arrivals())
        waits = sorted(max(0.0, arrived[address] - at) for address, at in committed.items())
        parts = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
        figures: Figures = {name: waits[min(len(waits) - 1, int(len(waits) * part))] for name, part in parts.items()}
        return {**figures, "longest": waits[-1], "urgent": len(waits)}

    def _memory(self, engine: Engine, case: str, count: int, *, sink: PostfixSink) -> Figures:
        """What was sent is not all that was queued here: the worker is stopped after so many."""
        figures: Figures = {"queued": count}
        for name, queued in (("rss_of_1000", 1_000), ("rss", count)):
            env = self._env(engine, sink, self.postgres, queued)
            engine.tidy()
            self.postgres.fresh()
            self._act(engine.key, "fill", queued, product=engine.product, database=self.postgres, env=env)
            self.postgres.settle()
            sink.reset()
            wanted = min(queued, MOVED_FOR_MEMORY)
            with Program(engine.command(), env, log=f"{case}-{engine.key}") as program:
                deadline = time.monotonic() + self.give_up_seconds
                while sink.count() < wanted and program.is_running() and time.monotonic() < deadline:
                    time.sleep(0.05)
            if sink.count() < wanted:
                raise Failed(f"{sink.count():,} mails arrived of {wanted:,} waited for. See {program.log}")
            figures[name] = program.memory.largest
        return {**figures, "growth": figures["rss"] - figures["rss_of_1000"]}

    def _queue(self, engine: Engine, case: str, count: int, *, action: str) -> Figures:
        self.postgres.fresh()
        meter, before = self.postgres.meter(), self.postgres.size()
        meter.start()
        done = self._act(engine.key, action, count, product=engine.product, database=self.postgres)
        costs = meter.stop()
        figures: Figures = {"rate": count / done["seconds"], **done, "cpu": done["cpu_seconds"] / count * 1_000}
        if engine.product != "celery":
            figures |= costs.each(count)
            figures["bytes"] = (self.postgres.size() - before) / count
        if action == "queue_each" or engine.product != "mailengine":
            left = engine.left(self.postgres.ask)
            expected = -(-count // 100) if engine.key == "celery-email" else count
            if left != expected:
                raise Failed(f"{left:,} are in its queue instead of {expected:,}")
        if action == "expand":
            stored = self.postgres.ask("SELECT count(*) FROM mailengine_message")
            if stored != count:
                raise Failed(f"{stored:,} messages were made instead of {count:,}")
        return figures

    # Processes

    def _env(self, engine: Engine, sink: Sink | None, database: Postgres | Sqlite, count: int) -> dict[str, str]:
        env = {
            **self.env,
            **engine.env,
            "BENCH_PRODUCT": engine.product,
            "BENCH_DATABASE": database.spec,
            "BENCH_COUNT": str(count),
            "BENCH_SMTP_PORT": str(sink.port if sink else 0),
        }
        os.environ.update({name: env[name] for name in ("BENCH_COUNT", "BENCH_SMTP_PORT")})  # for commands made here
        if engine.key.startswith("smtp-source"):
            env |= self.tools.env
        return env

    def _act(
        self,
        key: str,
        action: str,
        count: int,
        *,
        product: str,
        database: Postgres | Sqlite,
        env: dict[str, str] | None = None,
    ) -> Figures:
        everything = {**self.env, **(env or {}), "BENCH_PRODUCT": product, "BENCH_DATABASE": database.spec}
        python = os.environ["BENCH_PYTHON"] if product == "mailengine" else sys.executable
        command = [python, str(HERE / "act.py"), key, action, str(count)]
        done = subprocess.run(
            command, env={**os.environ, **everything}, cwd=ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise Failed(f"{action} failed: {done.stderr[-1_500:]}")
        figures: Figures = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}
        return figures


class _Sending:
    """An engine at work all the time: its command is started again whenever it ends."""

    def __init__(self, engine: Engine, env: dict[str, str], *, log: str) -> None:
        self.engine, self.env, self.log = engine, env, log
        self._is_over = threading.Event()
        self.exit_code = 0
        self._thread = threading.Thread(target=self._keep_on)
        self.program = Program(engine.command(), env, log=log)

    def __enter__(self) -> _Sending:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_over.set()
        self._thread.join()
        self.program.stop()

    def _keep_on(self) -> None:
        while not self._is_over.wait(0.02):
            if not self.program.is_running():
                if self.program.returncode:
                    self.exit_code = self.program.returncode
                    return
                self.program = Program(self.engine.command(), self.env, log=self.log)


class _Queueing:
    """A process that queues an urgent mail when asked to."""

    def __init__(self, engine: Engine, env: dict[str, str]) -> None:
        python = os.environ["BENCH_PYTHON"] if engine.product == "mailengine" else sys.executable
        command = [python, str(HERE / "act.py"), engine.key, "urgent"]
        self._log = (HOME / "logs" / f"queueing-{engine.key}.log").open("w")
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._log}
        self._process = subprocess.Popen(command, env={**os.environ, **env}, cwd=ROOT, text=True, **pipes)

    def __enter__(self) -> _Queueing:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.__exit__(None, None, None)  # it ends with its standard input
        self._log.close()

    def queue(self, address: str) -> float:
        """When its mail was committed, in unix time."""
        if self._process.stdin is None or self._process.stdout is None:
            raise ValueError("it needs both pipes")
        self._process.stdin.write(f"{address}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise Failed(f"an urgent mail could not be queued. See {self._log.name}")
        return float(json.loads(answer)["committed_at"])


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
