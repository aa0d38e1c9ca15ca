"""Several processes share the work: one that dies takes nothing of the others with it."""

from __future__ import annotations

import os
import signal
from multiprocessing.connection import Connection
from threading import Event
from typing import Any

from mailengine.pipeline import processes
from mailengine.pipeline.report import Report


def die_in_the_middle_of_the_report(pipe: Connection, command: str, options: dict[str, Any]) -> None:
    """What the processes of this test do: the one whose share is larger is killed, the others report a mail each."""
    if options["limit"] > 1:
        os.write(pipe.fileno(), b"\0\0\1\0" + b"half")  # 256 bytes were to come
        os.kill(os.getpid(), signal.SIGKILL)
    report = Report(command)
    report.outcomes["sent"] = 1
    pipe.send(report)


def test_one_that_is_killed_as_it_reports_costs_the_figures_of_no_other(monkeypatch):
    monkeypatch.setattr(processes, "_work", die_in_the_middle_of_the_report)

    total = processes.dispatch_in_processes("send_mail", count=3, limit=4, stop=Event())

    assert total.outcomes["sent"] == 2
    assert total.failed == ["send_mail-1 was killed by signal 9 (Killed)"]
