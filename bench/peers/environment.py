"""What a run stands on, all of it private to the run: a virtualenv, Postfix's C programs, PostgreSQL, Redis.

Only the standard library is needed here, since this makes the environment that everything else is imported from.
"""

from __future__ import annotations

import glob
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
HOME = ROOT / "var" / "bench"
LOCKS = HOME / "locks"
"""Where the peers that lock themselves do so; emptied before each run."""
REQUIREMENTS = HERE / "requirements.txt"
START_SECONDS = 30


class Missing(SystemExit):
    """Something that only the machine's owner can install; the message says what."""


def make_virtualenv() -> Path:
    """The Python of an environment that holds the peers at their pinned releases, made when it isn't there yet."""
    folder = HOME / "venv"
    python = folder / "bin" / "python"
    made_for = folder / "requirements.txt"
    if not made_for.exists() or made_for.read_text() != REQUIREMENTS.read_text():
        venv.create(folder, with_pip=True, clear=True)
        command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", REQUIREMENTS]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise Missing(f"The peers could not be installed into {folder}:\n{done.stderr}")
        shutil.copy(REQUIREMENTS, made_for)
    return python


# Postfix's programs for measuring, without Postfix


class PostfixTools:
    """`smtp-sink` and `smtp-source`: those on PATH, or out of Debian's package, which need not be installed."""

    def __init__(self) -> None:
        self.env: dict[str, str] = {}
        search = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
        found = [shutil.which(name, path=search) for name in ("smtp-sink", "smtp-source")]
        if not all(found):
            folder = _unpacked_postfix()
            found = [str(folder / "usr" / "sbin" / name) for name in ("smtp-sink", "smtp-source")]
            self.env = {"LD_LIBRARY_PATH": str(folder / "usr" / "lib" / "postfix")}
        self.sink, self.source = (str(path) for path in found)
        asked = subprocess.run([self.sink, "-h"], env={**os.environ, **self.env}, stderr=subprocess.PIPE, check=False)
        if b"usage" not in asked.stderr:
            raise Missing(f"{self.sink} does not run: {asked.stderr.decode(errors='replace')}\n{_POSTFIX_HINT}")


_POSTFIX_HINT = (
    "Install the package `postfix` (nothing of it needs to be started), so that smtp-sink and smtp-source are on PATH."
)


def _unpacked_postfix() -> Path:
    folder = HOME / "postfix"
    if (folder / "usr" / "sbin" / "smtp-sink").exists():
        return folder
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise Missing(f"smtp-sink was not found, and there is no apt-get to fetch it with. {_POSTFIX_HINT}")
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["apt-get", "download", "postfix"], cwd=folder, capture_output=True, text=True, check=False)
    packages = sorted(folder.glob("postfix_*.deb"))
    if not packages:
        raise Missing(f"smtp-sink was not found, and apt-get could not fetch it. {_POSTFIX_HINT}\n{done.stderr}")
    subprocess.run(["dpkg", "-x", packages[-1], folder], check=True)
    return folder


# Servers


@contextmanager
def postgres() -> Iterator[tuple[str, int | None, str]]:
    """(connection string, process id, remark) of a PostgreSQL server: the one that BENCH_PG names, or a new one.

    The new one has the default configuration, hence fsync on, and counts statements where it can.
    """
    if named := os.environ.get("BENCH_PG"):
        yield named, None, "the server of BENCH_PG"
        return
    programs = _postgres_programs()
    folder = Path(tempfile.mkdtemp(prefix="postgres-", dir=HOME))  # under var/: /tmp is memory on many machines
    user = _ordinary_user()
    try:
        if user:
            shutil.chown(folder, user)
        data, port = folder / "data", free_port()
        as_user = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if user else {}
        initdb = [programs / "initdb", "-D", data, "-A", "trust", "-U", "bench", "-E", "UTF8", "--locale=C", "-N"]
        subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, cwd=folder, **as_user)  # type: ignore[call-overload]
        with (data / "postgresql.conf").open("a") as settings:
            settings.write(f"listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = ''\n")
        counting = ["-c", "shared_preload_libraries=pg_stat_statements", "-c", "pg_stat_statements.max=20000"]
        for extra in (counting, []):
            with (folder / "log").open("ab") as log:
                command = [programs / "postgres", "-D", data, *extra]
                process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, **as_user)  # type: ignore[call-overload]
            if _is_listening(port, process):
                break
        else:
            raise Missing(f"PostgreSQL did not start:\n{(folder / 'log').read_text()[-2000:]}")
        try:
            remark = " and pg_stat_statements" if extra else ""
            yield f"host=127.0.0.1 port={port} user=bench dbname=postgres", process.pid, f"default settings{remark}"
        finally:
            process.send_signal(2)  # SIGINT: end all sessions, then stop
            process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _postgres_programs() -> Path:
    """The folder of `initdb`."""
    patterns = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin")
    folders = [Path(os.path.realpath(path)).parent for path in [shutil.which("initdb")] if path]
    folders += [Path(name) for pattern in patterns for name in sorted(glob.glob(pattern), reverse=True)]
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise Missing(
        "No PostgreSQL was found. Install its server (nothing needs to be started), or name a server where databases "
        'may be made: BENCH_PG="host=127.0.0.1 user=postgres dbname=postgres".'
    )


def _ordinary_user() -> str | None:
    """Who PostgreSQL runs as, when root starts it: it refuses to be root."""
    if os.geteuid():
        return None
    names = [os.environ.get("BENCH_USER", "postgres"), "nobody"]
    for name in names:
        with suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise Missing("PostgreSQL does not run as root. Name an ordinary user: BENCH_USER=somebody.")


@contextmanager
def redis() -> Iterator[str]:
    """The URL of a Redis server without persistence, up within the block."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        raise Missing("celery needs redis-server, which was not found. Install it, or leave celery out of --engines.")
    port = free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(HOME)]
    with running(command, port):
        yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def running(
    command: list[str], port: int, *, env: Mapping[str, str] | None = None, stdout: object = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    """A program that listens on this port of 127.0.0.1; ended with the block."""
    process = subprocess.Popen(command, env={**os.environ, **(env or {})}, stdout=stdout, stderr=subprocess.DEVNULL)  # type: ignore[call-overload]
    try:
        if not _is_listening(port, process):
            raise Missing(f"{' '.join(command)} did not listen on port {port}")
        yield process
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_for(condition: Callable[[], object], seconds: float, *, every: float = 0.05) -> bool:
    """Whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True


def _is_listening(port: int, process: subprocess.Popen[bytes]) -> bool:
    def answers() -> bool:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return True
        return process.poll() is not None

    return wait_for(answers, START_SECONDS) and process.poll() is None


if __name__ == "__main__":
    sys.stdout.write(f"{make_virtualenv()}\n")
