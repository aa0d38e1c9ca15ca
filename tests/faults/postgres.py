"""A PostgreSQL of our own: made, stopped, killed and started again at will, and gone at the end."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType

FOLDERS = "/usr/lib/postgresql", "/usr/pgsql", "/opt/homebrew/opt", "/usr/local/opt"
DURABLE = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "listen_addresses": "'127.0.0.1'",
    "unix_socket_directories": "''",
    "max_connections": "60",
    "shared_buffers": "64MB",
    "timezone": "'UTC'",
}


class Cluster:
    """A PostgreSQL server on a port of 127.0.0.1, up within the `with` block, that keeps what it has committed.

    Runs as the user postgres where we are root, which it refuses to be, else as ourselves.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"postgres://postgres@127.0.0.1:{self.port}/mailengine"
        self._programs = find_programs()
        # Not /tmp: that is memory on many machines, and fsync means nothing there.
        self.folder = Path(tempfile.mkdtemp(prefix="mailengine-faults-", dir="/var/tmp"))
        self.data = self.folder / "data"

    def __enter__(self) -> Cluster:
        try:
            if os.geteuid() == 0:
                shutil.chown(self.folder, "postgres", "postgres")
            self.run("initdb", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C")
            with (self.data / "postgresql.conf").open("a") as conf:
                conf.writelines(f"{name} = {value}\n" for name, value in {**DURABLE, "port": self.port}.items())
            self.start()
            self.run("createdb", "--host=127.0.0.1", f"--port={self.port}", "--username=postgres", "mailengine")
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def start(self) -> None:
        self.run("pg_ctl", "start", "--wait", "--silent", f"--log={self.folder}/server.log")

    def stop(self, how: str = "fast") -> None:
        """`immediate` is a crash: nothing is written that was not yet, and the next start recovers."""
        self.run("pg_ctl", "stop", "--wait", "--silent", f"--mode={how}")

    def restart(self, how: str = "fast") -> None:
        self.stop(how)
        self.start()

    def kill(self, backend_pid: int) -> None:
        """kill -9 of one server process: PostgreSQL then restarts all of them."""
        os.kill(backend_pid, signal.SIGKILL)

    @property
    def is_running(self) -> bool:
        return (self.data / "postmaster.pid").exists()

    def remove(self) -> None:
        """Stop it, however it stands, and delete it."""
        if self.is_running:
            with suppress(subprocess.CalledProcessError):  # it died by itself, and left its pid behind
                self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        if os.geteuid() == 0:
            command = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", *command]
        environment = {**os.environ, "PGDATA": str(self.data), "PGCONNECT_TIMEOUT": "10"}
        with (self.folder / "programs.log").open("ab") as log:
            # Not to a pipe: the server would inherit it, and nobody would see its end.
            subprocess.run(
                command, check=True, cwd="/", env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )


def find_programs() -> Path:
    """The folder of PostgreSQL's server programs, of the newest version there is."""
    on_path = shutil.which("pg_ctl")
    found = [path.parent for folder in FOLDERS for path in Path(folder).glob("*/bin/pg_ctl")]
    if on_path is not None:
        found.append(Path(on_path).resolve().parent)
    if not found:
        raise FileNotFoundError(
            f"No PostgreSQL server is installed: there is no pg_ctl on the PATH nor under {', '.join(FOLDERS)}. "
            "Install one (apt install postgresql), or add the folder of its programs to PATH."
        )
    return max(found, key=lambda path: [int(part) for part in path.parent.name.split(".") if part.isdecimal()])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
