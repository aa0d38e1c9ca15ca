"""A database server of our own, whichever its kind: made or copied, stopped, started and killed at will, then gone."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import ClassVar

DISK = "/var/tmp"  # noqa: S108 (not /tmp: that is memory on many machines, and fsync means nothing there)


class Server:
    """A server on a port of 127.0.0.1, up within the `with` block, that keeps what it has committed.

    With the data of `template`, if one is given: a copy is there in a moment, where to make them takes seconds. Runs
    as the system's user for it where we are root, which it refuses to be, else as ourselves.
    """

    user: ClassVar[str]
    """Of the system."""

    def __init__(self, template: Path | None = None) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="mailengine-faults-", dir=DISK))
        self.data = self.folder / "data"
        self.template = template

    def __enter__(self) -> Server:
        try:
            if is_root():
                shutil.chown(self.folder, self.user, self.user)
            if self.template is None:
                self.make_data()
            else:
                copy_tree(self.template, self.data)
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    @property
    def url(self) -> str:
        """As DATABASE_URL has it."""
        raise NotImplementedError

    @staticmethod
    def why_not() -> str:
        """Why there can be none on this machine, and the mend; "" if there can."""
        raise NotImplementedError

    def make_data(self) -> None:
        raise NotImplementedError

    def create_database(self) -> None:
        """The database that `url` names."""
        raise NotImplementedError

    def start(self) -> None:
        raise NotImplementedError

    def stop(self, how: str = "fast") -> None:
        """`immediate` is a crash: nothing is written that was not yet, and the next start recovers."""
        raise NotImplementedError

    def remove(self) -> None:
        """Stop it, however it stands, and delete it."""
        with suppress(subprocess.CalledProcessError):  # it has died by itself, or never lived
            self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *command: str) -> None:
        """One of its programs, which says what it has to say to a file.

        Not to a pipe: the server would inherit it, and nobody would see its end.
        """
        with (self.folder / "programs.log").open("ab") as log:
            subprocess.run(
                command, check=True, cwd="/", env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    @property
    def environment(self) -> dict[str, str]:
        """Of its programs."""
        return dict(os.environ)


def is_root() -> bool:
    return os.geteuid() == 0


def copy_tree(source: Path, target: Path) -> None:
    """With owners and modes; where the file system can share blocks until they are written to, it does."""
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
