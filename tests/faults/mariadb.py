"""A MariaDB of our own."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from .servers import Server, is_root
from .sinks import wait_until

DURABLE = {
    "innodb_flush_log_at_trx_commit": "1",
    "innodb_buffer_pool_size": "64M",
    "innodb_log_file_size": "16M",
    "max_connections": "60",
    "bind_address": "127.0.0.1",
    "default_time_zone": "+00:00",
}


class MariaDB(Server):
    """MariaDB, in a process of ours."""

    user = "mysql"

    def __init__(self, template: Path | None = None) -> None:
        super().__init__(template)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"mysql://root@127.0.0.1:{self.port}/mailengine"

    @staticmethod
    def why_not() -> str:
        if not all(map(find_program, ("mariadb-install-db", "mariadbd"))):
            return "no MariaDB server is installed (apt install mariadb-server)"
        return "" if importlib.util.find_spec("MySQLdb") else "mysqlclient is not installed (pip install mysqlclient)"

    def make_data(self) -> None:
        options = ("--auth-root-authentication-method=normal", "--skip-test-db")
        self.run(*self._command("mariadb-install-db"), *options)

    def create_database(self) -> None:
        import MySQLdb

        with MySQLdb.connect(host="127.0.0.1", port=self.port, user="root") as connection:
            connection.query("CREATE DATABASE mailengine CHARACTER SET utf8mb4")

    def start(self) -> None:
        here = {"port": self.port, "socket": self.folder / "socket", "pid_file": self.folder / "pid"}
        command = [*self._command("mariadbd"), *(f"--{name}={value}" for name, value in here.items())]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(self._answers, seconds=60, what="MariaDB to answer")

    def stop(self, how: str = "fast") -> None:
        if self._process is None:
            return
        if how == "immediate":
            self._process.kill()
        else:
            self._process.terminate()
        self._process.wait(timeout=60)
        self._process = None

    def _command(self, program: str) -> list[str]:
        as_user = ["--user=mysql"] if is_root() else []
        options = [f"--{name}={value}" for name, value in DURABLE.items()]
        return [str(find_program(program)), "--no-defaults", f"--datadir={self.data}", *as_user, *options]

    def _answers(self) -> bool:
        import MySQLdb

        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "server.log").read_text()[-2_000:]
        with suppress(MySQLdb.OperationalError):
            MySQLdb.connect(host="127.0.0.1", port=self.port, user="root").close()
            return True
        return False


def find_program(name: str) -> Path | None:
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    return Path(path) if path else None
