"""The process that worker processes are born from: it has imported everything once, and forks.

What a fork runs is `manage.py`, as cron would run it; only the second or two that Python takes to import Django are
saved, hundreds of times. Speaks JSON lines with `workers.Nursery`, and takes its children with it when it ends.
"""

from __future__ import annotations

import json
import os
import runpy
import select
import signal
import sys
from typing import Any

import django
from django.conf import settings
from django.core.management import load_command_class
from django.test import override_settings

Order = dict[str, Any]
COMMANDS = ("process_mail_jobs", "send_mail", "retry_deferred")
"""Imported before anybody needs them."""


def main() -> None:
    """Fork a worker for each order that comes in, until there are no more to come."""
    django.setup()
    for command in COMMANDS:
        load_command_class("mailengine", command)
    children: dict[int, int] = {}
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([0, readable], [], [])
        if readable in ready:
            os.read(readable, 1_000)
            bury(children)
        if 0 in ready:
            line = sys.stdin.buffer.readline()
            if not line:
                break
            order: Order = json.loads(line)
            pid = os.fork()
            if pid == 0:
                become(order, closing=(readable, writable))
                return
            children[pid] = order["number"]
            tell(number=order["number"], pid=pid)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def bury(children: dict[int, int]) -> None:
    """Tell of the children that have ended, and how."""
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            break
        tell(number=children.pop(pid), returncode=os.waitstatus_to_exitcode(status))


def tell(**fields: int) -> None:
    sys.stdout.write(f"{json.dumps(fields)}\n")
    sys.stdout.flush()


def become(order: Order, *, closing: tuple[int, int]) -> None:
    """Be the worker that was ordered."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)
    for fd in closing:
        os.close(fd)
    for fd, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, order["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
        (2, order["err"], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    ):
        opened = os.open(path, flags)
        os.dup2(opened, fd)
        os.close(opened)
    os.environ.update(order["environment"])
    override_settings(**order["settings"]).enable()  # which also makes Django forget what it made of the old ones
    for name, value in order["database"].items():
        settings.DATABASES["default"][name] = value
    exec(order["before"], {"__name__": "before"})  # noqa: S102 (the test's own words)
    sys.argv = ["manage.py", *order["arguments"]]
    runpy.run_path("manage.py", run_name="__main__")


if __name__ == "__main__":
    main()
