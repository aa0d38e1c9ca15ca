"""A PostgreSQL of our own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .servers import Server, is_root

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


class Cluster(Server):
    """PostgreSQL, which calls the data of one server a cluster."""

    user = "postgres"

    @property
    def url(self) -> str:
        return f"postgres://postgres@127.0.0.1:{self.port}/mailengine"

    @staticmethod
    def why_not() -> str:
        return "" if find_programs() else "no PostgreSQL server is installed (apt install postgresql)"

    def make_data(self) -> None:
        self.call("initdb", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C")
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.writelines(f"{name} = {value}\n" for name, value in DURABLE.items())

    def create_database(self) -> None:
        self.call("createdb", "--host=127.0.0.1", f"--port={self.port}", "--username=postgres", "mailengine")

    def start(self) -> None:
        log = f"--log={self.folder}/server.log"
        self.call("pg_ctl", "start", "--wait", "--silent", log, f"--options=-p {self.port}")

    def stop(self, how: str = "fast") -> None:
        self.call("pg_ctl", "stop", "--wait", "--silent", f"--mode={how}")

    def call(self, program: str, *arguments: str) -> None:
        """One of PostgreSQL's programs."""
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"] if is_root() else []
        self.run(*as_user, f"{find_programs()}/{program}", *arguments)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PGDATA": str(self.data), "PGCONNECT_TIMEOUT": "10"}


def find_programs() -> Path | None:
    """The folder of PostgreSQL's server programs, of the newest version there is."""
    on_path = shutil.which("pg_ctl")
    found = [path.parent for folder in FOLDERS for path in Path(folder).glob("*/bin/pg_ctl")]
    if on_path is not None:
        found.append(Path(on_path).resolve().parent)
    return max(found, key=_version, default=None)


def _version(programs: Path) -> list[int]:
    return [int(part) for part in programs.parent.name.split(".") if part.isdecimal()]
