"""A MariaDB of our own: made, killed and started again at will, and gone at the end; as `postgres.Cluster`."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from .postgres import free_port
from .sinks import wait_until

PROGRAMS = ("mariadb-install-db", "mariadbd")
DURABLE = {
    "innodb_flush_log_at_trx_commit": "1",
    "innodb_buffer_pool_size": "64M",
    "max_connections": "60",
    "bind_address": "127.0.0.1",
    "default_time_zone": "+00:00",
}


class MariaDB:
    """A MariaDB server on a port of 127.0.0.1, up within the `with` block, that keeps what it has committed.

    Runs as the user mysql where we are root, which it refuses to be, else as ourselves.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"mysql://root@127.0.0.1:{self.port}/mailengine"
        self._folder = Path(tempfile.mkdtemp(prefix="mailengine-faults-", dir="/var/tmp"))
        self._data = self._folder / "data"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> MariaDB:
        try:
            if os.geteuid() == 0:
                shutil.chown(self._folder, "mysql", "mysql")
            self._install()
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def start(self) -> None:
        options = {**DURABLE, "port": self.port, "socket": self._folder / "socket", "pid_file": self._folder / "pid"}
        command = [find_program("mariadbd"), "--no-defaults", f"--datadir={self._data}", *_as_user()]
        command += [f"--{name}={value}" for name, value in options.items()]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(self._answers, seconds=60, what="MariaDB to answer")

    def stop(self, how: str = "fast") -> None:
        """`immediate` is kill -9: nothing is written that was not yet, and the next start recovers."""
        if self._process is None:
            return
        if how == "immediate":
            self._process.kill()
        else:
            self._process.terminate()
        self._process.wait(timeout=60)
        self._process = None

    def restart(self, how: str = "fast") -> None:
        self.stop(how)
        self.start()

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def remove(self) -> None:
        self.stop("immediate")
        shutil.rmtree(self._folder, ignore_errors=True)

    def _install(self) -> None:
        command = [
            find_program("mariadb-install-db"),
            "--no-defaults",
            f"--datadir={self._data}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            *_as_user(),
        ]
        with (self._folder / "programs.log").open("ab") as log:
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _answers(self) -> bool:
        import MySQLdb

        assert self.is_running, (self._folder / "server.log").read_text()[-2_000:]
        with suppress(MySQLdb.OperationalError):
            MySQLdb.connect(host="127.0.0.1", port=self.port, user="root").close()
            return True
        return False


def is_installed() -> bool:
    """Whether the server's programs are on this machine."""
    return all(_path_of(program) for program in PROGRAMS)


def find_program(name: str) -> str:
    path = _path_of(name)
    if path is None:
        raise FileNotFoundError(f"No MariaDB server is installed: there is no {name} (apt install mariadb-server).")
    return path


def _path_of(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


def _as_user() -> list[str]:
    return ["--user=mysql"] if os.geteuid() == 0 else []
