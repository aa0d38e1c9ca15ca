"""What a case plays in: sinks behind providers, a database, worker processes, and somebody who counts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any

import django
from django.conf import settings
from django.core.management import call_command
from django.db import connection, transaction
from django.db.models import Min
from django.test import override_settings

import mailengine
from mailengine.clock import read_now
from mailengine.models import Attempt, Message, MessageJob

from .. import processes
from .case import Case, Missed, Run
from .log import Log
from .oracle import Reckoning, read_ledger, reckon
from .points import KILL, at
from .proxy import Proxy
from .servers import Server
from .sinks import ESPSink, SMTPSink, wait_until
from .workers import Nursery, Worker, at_port, start_fresh

SHORT: dict[str, Any] = {
    "LEASE_SECONDS": 3,
    "SEND_DEADLINE_SECONDS": 1.5,
    "UNCERTAIN_WINDOW_SECONDS": 0.5,
    "PROBE_INTERVAL_SECONDS": 0.5,
    "BACKOFF_FIRST_SECONDS": 0.5,
    "BACKOFF_LONGEST_SECONDS": 2,
    "CONNECTIONS": 4,
}
"""Settings with which what takes hours in production takes seconds. Of the system checks only a warning minds them
(mailengine.W007: a claimed batch may go back unbegun)."""
UNHURRIED: dict[str, Any] = {"LEASE_SECONDS": 60, "SEND_DEADLINE_SECONDS": 20}
"""For cases in which nobody dies: on a busy machine a short lease may be over before its mail has begun."""
GOOD_ENDS = (0, 3)
"""Exit codes of a sending command: done; mail is waiting and no provider can be used."""
HORIZON_SECONDS = 60
"""Mail due later than that is left waiting by a drain."""
MANY = 500
"""From so many messages on they come from a job."""


class World:
    """One run of one case; up within the `with` block. All times are real: nothing here moves a clock."""

    def __init__(
        self, nursery: Nursery, folder: Path, *, cluster: Server | None = None, is_quick: bool = False
    ) -> None:
        self.folder = folder
        self.is_quick = is_quick
        """Whether this is a test of the suite, which has no time: see `times()`."""
        self.cluster = cluster
        """The database server, to be stopped and started at will; None on SQLite and in the suite."""
        self.log = Log(folder / "accepted.jsonl")
        self.workers: list[Worker] = []
        self.acked: list[str] = []
        """Messages whose commit their caller has seen."""
        self.fault_count = 0
        """What a case itself has done beside kills and the sinks' scripts."""
        self.notes: list[str] = []
        self.nursery = nursery
        self.sinks: list[SMTPSink | ESPSink] = []
        self._stack = ExitStack()
        self._override: override_settings | None = None
        self._mailers: dict[str, Any] = {"default": {"BACKEND": "mailengine.backends.EmailBackend"}}
        self._providers: dict[str, dict[str, Any]] = {}
        self._policy: dict[str, Any] = dict(SHORT)
        files = {
            "BACKEND": "django.core.files.storage.FileSystemStorage",
            "OPTIONS": {"location": str(folder / "files")},
        }
        self._django: dict[str, Any] = {
            "STORAGES": {**settings.STORAGES, "default": files, "mailengine": files},
            "MEDIA_ROOT": str(folder / "files"),
        }
        self._address_count = 0

    def __enter__(self) -> World:
        self._apply()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers:
            if worker.is_alive:
                worker.kill()
        for worker in self.workers:
            wait_until(lambda worker=worker: not worker.is_alive, what=f"{worker} to be gone")
        self._stack.close()
        self.log.close()
        if self._override is not None:
            self._override.disable()

    def note(self, text: str) -> None:
        """Have this said below the table: a figure that another machine would not have."""
        self.notes.append(text)

    def times(self, count: int, *, quick: int = 2) -> range:
        """How often to do it: so many times, or a few in a quick run."""
        return range(quick if self.is_quick else count)

    # Providers and settings

    def smtp(
        self,
        alias: str = "relay",
        *,
        policy: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        **sink: Any,
    ) -> SMTPSink:
        """A new SMTP server and the provider `alias` that sends there, after those that there are already.

        `policy` is its entry of MAILENGINE["PROVIDERS"], `options` are its OPTIONS; the rest is the sink's.
        """
        server = SMTPSink(alias, self.log, find_worker=lambda port: at_port(self.workers, port), **sink)
        self.sinks.append(self._stack.enter_context(server))
        self._mailers[alias] = server.mailer(**(options or {}))
        self._providers[alias] = dict(policy or {})
        self._apply()
        return server

    def esp(
        self,
        esp: str,
        alias: str = "",
        *,
        policy: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> ESPSink:
        """The same with an ESP's HTTP API, through Anymail's backend for it."""
        server = ESPSink(alias or esp, esp, self.log)
        self.sinks.append(self._stack.enter_context(server))
        self._mailers[server.alias] = server.mailer(esp, **(options or {}))
        self._providers[server.alias] = dict(policy or {})
        self._apply()
        return server

    def admin(self) -> SMTPSink:
        """Where alerts arrive: behind `ALERT_MAILER`, which is no provider, and with a log of its own."""
        log = Log(self.folder / "alerts.jsonl")
        self._stack.callback(log.close)
        server = self._stack.enter_context(SMTPSink("alerts", log, keeps_content=True))
        self._mailers["alerts"] = server.mailer()
        self._policy["ALERT_MAILER"] = "alerts"
        self.django(ADMINS=["admin@example.org"])
        return server

    def proxy(self, port: int) -> Proxy:
        """A proxy in front of this port of 127.0.0.1, closed at the end."""
        return self._stack.enter_context(Proxy(port))

    def route(self, alias: str, port: int) -> None:
        """Let the provider `alias` send to another port: a proxy's."""
        self._mailers[alias]["OPTIONS"]["port"] = port
        self._apply()

    def configure(self, **policy: Any) -> None:
        """Change MAILENGINE, for this process and for workers started from now on."""
        self._policy.update(policy)
        self._apply()

    def django(self, **values: Any) -> None:
        """Change other settings of Django, likewise: `ADMINS`, `TIME_ZONE`."""
        self._django.update(values)
        self._apply()

    def _apply(self) -> None:
        if self._override is not None:
            self._override.disable()
        values = {"MAILERS": self._mailers, "MAILENGINE": {"PROVIDERS": self._providers, **self._policy}}
        if django.VERSION < (6, 1):
            values["EMAIL_BACKEND"] = self._mailers["default"]["BACKEND"]
        self._override = override_settings(**values, **self._django)
        self._override.enable()

    # Mail

    def queue(
        self, count: int = 1, *, text: str = "Good morning.", job: bool = False, domains: int = 1, **options: Any
    ) -> list[str]:
        """Queue so many messages, each to an address of its own, and commit; their ids. Options as of `queue_mail`.

        Many at once, or with `job`, come from a job, which is expanded here. The addresses are of so many `domains`.
        """
        numbers = range(self._address_count + 1, self._address_count + count + 1)
        addresses = [f"u{number:05d}@{f'd{number % domains}.' if domains > 1 else ''}example.org" for number in numbers]
        self._address_count += count
        words = "Hello", text, "desk@example.org"
        if job or count >= MANY:
            made = mailengine.queue_job(*words, addresses, **{"stream": "transactional", **options})
            call_command("process_mail_jobs", verbosity=0)
            ids = [str(pk) for pk in Message.objects.filter(job=made).values_list("pk", flat=True)]
            assert len(ids) == count, f"{len(ids)} of {count} messages came from the job"
        else:
            with transaction.atomic():
                ids = [str(mailengine.queue_mail(*words, [to], **options).pk) for to in addresses]
        self.acked += ids
        return ids

    def statuses(self) -> dict[str, int]:
        """How many messages are in each status."""
        return dict(Counter(Message.objects.values_list("status", flat=True)))

    def outcomes(self) -> dict[str, int]:
        """How many attempts came to what; "" is open."""
        return dict(Counter(Attempt.objects.values_list("outcome", flat=True)))

    # Workers

    def worker(
        self,
        *arguments: str,
        before: str = "",
        via: Proxy | None = None,
        environment: Mapping[str, str] | None = None,
        fresh: bool = False,
    ) -> Worker:
        """Start `manage.py` with these arguments (`send_mail`), in a process of its own.

        `before` is Python that it runs first, see `points.py`. `via`: a proxy that it reaches the database by.
        `environment`: more of it; `fresh`: a new interpreter, for an environment that Python reads when it starts.
        """
        arguments = arguments or ("send_mail",)
        inherited = {**processes.environment(), "TEST_SETTINGS": processes.as_json(self._django), **(environment or {})}
        if via is not None:
            inherited["DATABASE_URL"] = processes.database_url(port=via.port)
        if fresh:
            worker = start_fresh(arguments, inherited, before=before, stem=self.folder / f"fresh{len(self.workers)}")
        else:
            values = {"MAILERS": settings.MAILERS, "MAILENGINE": settings.MAILENGINE, **self._django}
            database = {} if via is None else {"PORT": via.port}
            worker = self.nursery.start(
                *arguments, folder=self.folder, before=before, environment=inherited, settings=values, database=database
            )
        self.workers.append(worker)
        return worker

    def run(self, *arguments: str, seconds: float = 60, **options: Any) -> Worker:
        """The same, waited for."""
        worker = self.worker(*arguments, **options)
        worker.wait(seconds=seconds)
        return worker

    def wait_until(self, condition: Callable[[], object], *, seconds: float = 30, what: str = "it") -> None:
        wait_until(condition, seconds=seconds, what=what)

    def until_killed(self, worker: Worker, *, seconds: float = 30) -> None:
        """Wait for its death; `Missed` if it came to a good end instead."""
        if worker.wait(seconds=seconds) in GOOD_ENDS:
            raise Missed(f"{worker} was through before it could be killed")

    def kill_at(self, point: tuple[str, str], *arguments: str, nth: int, **options: Any) -> Worker:
        """A worker that has killed itself when it came to this point of `points.py` for the `nth` time."""
        worker = self.worker(*arguments, before=at(point, KILL, nth=nth), **options)
        self.until_killed(worker)
        return worker

    def keep_working(self, count: int, *arguments: str, until: Callable[[], object], seconds: float = 300) -> None:
        """Keep so many workers at work, a new one for each that ends or dies, until the condition holds."""
        ends_at = time.monotonic() + seconds
        crew: list[Worker] = []
        while not until():
            assert time.monotonic() < ends_at, f"not done within {seconds:g} s: {self.statuses()}"
            crew = [worker for worker in crew if worker.is_alive]
            crew += [self.worker(*arguments) for _ in range(count - len(crew))]
            time.sleep(0.02)
        for worker in crew:
            worker.wait()

    @property
    def kills(self) -> int:
        return sum(worker.returncode == -9 for worker in self.workers)

    @property
    def faults(self) -> int:
        """Kills or, where there are none, what else was done: by the sinks' scripts, or counted in `fault_count`."""
        scripted = sum(sink.fault_count for sink in self.sinks if isinstance(sink, SMTPSink))
        return self.kills or scripted + self.fault_count

    # The end

    def drain(self, *, seconds: float = 60) -> None:
        """The faults are over: run the commands as cron does, until nothing is left that will be due soon."""
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:  # the reckoning says what is left
            waits = self._seconds_until_due()
            soonest = min(waits.values(), default=HORIZON_SECONDS)
            if soonest >= HORIZON_SECONDS:
                return
            if soonest > 0:
                time.sleep(min(soonest + 0.01, 1))
                continue
            crew = [self.worker(command) for command, wait_seconds in waits.items() if wait_seconds <= 0]
            for worker in crew:
                worker.wait()

    def _seconds_until_due(self) -> dict[str, float]:
        """In how many seconds there is something to do, for each command that has something to do at all."""
        connection.close_if_unusable_or_obsolete()
        now = read_now(connection.alias)
        statuses = {"send_mail": ("queued", "uncertain"), "retry_deferred": ("deferred",)}
        due = {
            command: Message.objects.filter(status__in=those).aggregate(at=Min("available_at"))["at"]
            for command, those in statuses.items()
        }
        rescue = Message.objects.filter(status=Message.Status.SENDING).aggregate(at=Min("leased_until"))["at"]
        due["send_mail"] = min(filter(None, [due["send_mail"], rescue]), default=None)
        if MessageJob.objects.due().exists():
            due["process_mail_jobs"] = now
        return {command: (instant - now).total_seconds() for command, instant in due.items() if instant is not None}

    def reckon(self) -> Reckoning:
        """What the sinks wrote down against what the ledger says, now."""
        return reckon(self.log.copies(), read_ledger(), acked=self.acked)

    def complaints(self) -> list[str]:
        """The workers that did not end well, though nobody killed them, with what they said."""
        found = []
        for worker in self.workers:
            ended_well = worker.returncode in GOOD_ENDS and "Traceback" not in worker.err
            if not (worker.is_alive or ended_well or worker.returncode == -9 or worker.may_fail):
                found.append(f"{worker} ended with {worker.returncode}: {worker.err[-2_000:]}")
        return found


def play(case: Case, world: World, *, seed: int) -> Run:
    """One run of a case; AssertionError says in what it failed, `Missed` that it doesn't count."""
    started_at = time.monotonic()
    case.play(world, Random(f"{case.code} {seed}"))
    for sink in world.sinks:
        sink.heal()
    for worker in world.workers:
        if worker.is_frozen:
            worker.thaw()
    world.drain()
    for worker in world.workers:
        worker.wait()
    run = Run(seed, world.kills, world.faults, world.reckon(), time.monotonic() - started_at, tuple(world.notes))
    objections = case.objections(run) + world.complaints()
    assert not objections, "\n  ".join([str(run.reckoning), *objections])
    return run


def forget_everything() -> None:
    """Empty the database, for the next run."""
    connection.close()
    call_command("flush", interactive=False, verbosity=0, inhibit_post_migrate=True)
