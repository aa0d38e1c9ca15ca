"""One performance of the demo: a fresh database, the receiving side, the story, the verdict; then perhaps the admin."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from django.core.management import CommandError, call_command
from django.core.management.base import OutputWrapper
from django.test import override_settings

from .newsroom import furnish
from .receiver import Receiver
from .reckoning import Reckoning, reckon
from .serve import serve_admin
from .settings import DEMO_DIRECTORY
from .story import Ending, agrees, mail_settings, summary, tell

LOOK_AROUND = "To look around yourself: make demo ARGS=--serve"


def give(*, recipients: int, seed: int, serve: bool, as_json: bool, out: OutputWrapper) -> bool:
    """Perform the demo under `project.demo.settings`; whether the receiving side and the ledger agreed."""
    began_at = time.monotonic()

    def say(who: str, sentence: str) -> None:
        if not as_json:
            line = f"{time.strftime('%H:%M:%S')}  {who:<9} {sentence}"
            # A command that runs meanwhile may be showing its progress in this line of the terminal.
            out.write(f"\r{line:<78}" if out.isatty() else line)
            out.flush()

    with alone_in(DEMO_DIRECTORY):
        make_database(DEMO_DIRECTORY)
        newsroom = furnish(recipients, seed=seed)
        with (
            Receiver(mails=recipients, refused=newsroom.refused) as receiver,
            override_settings(**mail_settings(receiver)),
        ):
            ending = tell(newsroom, receiver, say=say)
            reckoning = reckon(ending.copies, ending.entries)
            if as_json:
                out.write(json.dumps(as_dict(ending, reckoning, seconds=time.monotonic() - began_at)))
            else:
                out.write("\n" + "\n".join(summary(ending, reckoning)))
                if not serve:
                    out.write(f"\n{LOOK_AROUND}")
            if serve:
                serve_admin(newsroom, out=out)
    return agrees(ending, reckoning)


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Keep other performances out of this directory, which is made if need be."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CommandError(f"Another demo runs in {directory}. End it, or set DEMO_DIRECTORY.") from error
        yield


def make_database(directory: Path) -> None:
    """A new SQLite file in place of the last one."""
    for file in directory.glob("db.sqlite3*"):
        file.unlink()
    call_command("migrate", verbosity=0)


def as_dict(ending: Ending, reckoning: Reckoning, *, seconds: float) -> dict[str, Any]:
    """The outcome for programs."""
    findings = {
        name: [str(finding) for finding in getattr(reckoning, name)]
        for name in ("lost", "duplicated", "unexpected", "explained")
    }
    return {
        "command": "demo",
        "agrees": agrees(ending, reckoning),
        **findings,
        "audience": {"size": ending.account.audience, **ending.account.parts},
        "unaccounted": ending.account.unaccounted,
        "providers": ending.providers,
        "overtaking": asdict(ending.overtaking),
        "drain": asdict(ending.drain),
        "trace": ending.trace,
        "copies": len(ending.copies),
        "seconds": round(seconds, 1),
    }
