"""What cron does on a server, in a thread: the three commands, over and over."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable

from django.core.management import call_command
from django.db import connections

COMMANDS = ("process_mail_jobs", "send_mail", "retry_deferred")
PAUSE_SECONDS = 0.2
RUN_SECONDS = 2
"""How long one run may take: the longest that the end of the demo has to wait for."""


class Cron:
    """Keeps mail moving within the `with` block; each line that a command prints is given to `say`."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="cron", daemon=True)

    def check(self) -> None:
        """Raise what ended the thread, if anything did."""
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Cron:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                for command in COMMANDS:
                    if not self._stop.is_set():
                        run(command, say=self._say)
                self._stop.wait(PAUSE_SECONDS)
        except Exception as error:  # noqa: BLE001  Whatever it is, the main thread raises it.
            self._error = error
        finally:
            connections.close_all()


def run(command: str, *, say: Callable[[str], None]) -> None:
    """One run of a command, as cron would start it."""
    output = io.StringIO()
    try:
        call_command(command, max_time=RUN_SECONDS, stdout=output)
    except SystemExit:
        pass  # 3: mail waits and no provider can take it now. Its line says so, and the next run sees to it.
    finally:
        for line in output.getvalue().splitlines():
            say(line)
