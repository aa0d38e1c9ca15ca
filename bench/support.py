"""What the scripts share: a database of their own, cases in fresh processes, medians, words to send.

Each case runs in a process of its own, as often as `--repeats` says, each time on a database that it makes and drops.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import secrets
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

ROOT = Path(__file__).resolve().parent.parent
NOT_COUNTED = ("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE")
READS = ("SELECT", "PRAGMA", "SHOW", "EXPLAIN")

Figures = dict[str, float]


class Medians:
    """The figures of all runs of one case: `figures["seconds"]` is the median, `figures.range("seconds")` both ends."""

    def __init__(self, runs: list[Figures]) -> None:
        self.runs = runs

    def __getitem__(self, name: str) -> float:
        return statistics.median(run[name] for run in self.runs)

    def range(self, name: str) -> str:
        values = [run[name] for run in self.runs]
        return f"{min(values):.3g} to {max(values):.3g}"


def main(
    cases: Mapping[str, Callable[[], Figures]],
    line: Callable[[Medians], str],
    *,
    title: str,
    repeats: int,
    quick: Mapping[str, Callable[[], Figures]] | None = None,
) -> None:
    """Run the cases that the command line names, all by default, and print a line for each.

    `quick` has the same cases with so little to do that they only show whether they run.
    """
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument(
        "--repeats", type=int, default=repeats, metavar="N", help="runs of each case; default: %(default)s"
    )
    parser.add_argument(
        "--case", action="append", choices=list(cases), help="only this one; may be given more than once"
    )
    parser.add_argument("--child", choices=list(cases), help=argparse.SUPPRESS)
    if quick is not None:
        parser.add_argument("--quick", action="store_true", help="with too little for figures that mean something")
    options = parser.parse_args()
    flags = ["--quick"] if quick is not None and options.quick else []
    if options.child:
        say(json.dumps((quick if quick is not None and flags else cases)[options.child]()))
        return
    say(f"{title}: median of {options.repeats} runs (lowest to highest)")
    say(f"{_in_child('--versions')}")
    for name in options.case or cases:
        runs = [json.loads(_in_child(sys.argv[0], "--child", name, *flags)) for _ in range(options.repeats)]
        say(f"  {name}: {line(Medians(runs))}")


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@contextmanager
def scratch_database(**environment: str) -> Iterator[BaseDatabaseWrapper]:
    """Django set up with a migrated database that is dropped at the end, beside the one that DATABASE_URL names.

    `environment` is read by project/settings.py. Nothing here sends mail but what a script sends to its own server.
    """
    set_up(**environment)
    from django.conf import settings
    from django.db import connection
    from django.test import override_settings

    with ExitStack() as stack:
        (ROOT / "var").mkdir(exist_ok=True)  # not /tmp, which is memory on many machines
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=ROOT / "var"))
        files = {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": {"location": f"{folder}/files"}}
        storages = {**settings.STORAGES, "default": files, "mailengine": files}
        stack.enter_context(override_settings(MEDIA_ROOT=f"{folder}/files", STORAGES=storages))
        name = f"mailengine_bench_{secrets.token_hex(4)}"
        connection.settings_dict["TEST"]["NAME"] = f"{folder}/{name}.sqlite3" if connection.vendor == "sqlite" else name
        before = settings.DATABASES["default"]["NAME"]
        connection.creation.create_test_db(verbosity=0, autoclobber=True)
        try:
            yield connection
        finally:
            connection.creation.destroy_test_db(before, verbosity=0)


def set_up(**environment: str) -> None:
    """Django with project/settings.py, as in production: DEBUG keeps every query in memory."""
    sys.path.insert(0, str(ROOT))
    os.environ.update(
        DJANGO_SETTINGS_MODULE="project.settings",
        DEBUG="0",
        SECRET_KEY=secrets.token_urlsafe(50),
        SMTP_HOST="127.0.0.1",
        SMTP_TLS="none",
        SMTP_USER="",
        MAIL_PROVIDERS="relay",
    )
    os.environ.update(environment)
    import django

    django.setup()


def versions() -> str:
    """This machine in a line: cores, Python, Django, database."""
    from django import get_version
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT sqlite_version()" if connection.vendor == "sqlite" else "SELECT version()")
        database = str(cursor.fetchone()[0]).split(" (")[0]
    if database[0].isdigit():
        database = f"{connection.display_name} {database}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores, Python {platform.python_version()}, Django {get_version()}, {database}"


def url_of(connection: BaseDatabaseWrapper) -> str:
    """DATABASE_URL for another process that is to use this database of PostgreSQL."""
    now = connection.settings_dict
    secret = f":{now['PASSWORD']}" if now["PASSWORD"] else ""
    return f"postgres://{now['USER']}{secret}@{now['HOST']}:{now['PORT']}/{now['NAME']}"


def database_bytes(connection: BaseDatabaseWrapper) -> int:
    """What the rows of the database and its indexes take on disk."""
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            file = Path(connection.settings_dict["NAME"])
            return sum(path.stat().st_size for path in file.parent.glob(f"{file.name}*"))
        if connection.vendor == "postgresql":
            cursor.execute(
                "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace"
                " WHERE relkind = 'r' AND nspname = current_schema()"
            )
            return int(cursor.fetchone()[0])
        cursor.execute("SET SESSION information_schema_stats_expiry = 0" if not _is_mariadb(connection) else "DO 0")
        tables = connection.introspection.table_names(cursor)
        cursor.execute(f"ANALYZE TABLE {', '.join(map(connection.ops.quote_name, tables))}")
        cursor.fetchall()
        cursor.execute(
            "SELECT sum(data_length + index_length) FROM information_schema.tables WHERE table_schema = DATABASE()"
        )
        return int(cursor.fetchone()[0])


def folder_bytes(path: str | Path) -> int:
    return sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())


class Statements:
    """What a block asks of the database; BEGIN, COMMIT, SAVEPOINT and their kin are not counted.

    `commits` are those that had something to write, and so wait for the disk.
    """

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self.connection = connection
        self.count = 0
        self.commits = 0
        self._has_written = False
        self._stack = ExitStack()

    def __enter__(self) -> Statements:
        commit = self.connection._commit  # type: ignore[attr-defined]

        def counted_commit() -> None:
            commit()
            self.commits += self._has_written
            self._has_written = False

        self.connection._commit = counted_commit  # type: ignore[attr-defined]
        self._stack.callback(setattr, self.connection, "_commit", commit)
        self._stack.enter_context(self.connection.execute_wrapper(self._execute))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def _execute(self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        result = execute(sql, params, many, context)
        verb = sql.lstrip("( ").split(maxsplit=1)[0].upper()
        if verb not in NOT_COUNTED:
            self.count += 1
            if verb not in READS and context["cursor"].rowcount != 0:
                self._has_written = self.connection.in_atomic_block
                self.commits += not self.connection.in_atomic_block
        return result


class Server:
    """A server in another process, which answers questions with a number, one line each; up within the `with` block.

    `script` is to be run with `--server`, and calls `answer()` then.
    """

    def __init__(self, script: str) -> None:
        command = [sys.executable, script, "--server"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.__exit__(None, None, None)  # closes its standard input, on which it ends

    def ask(self, question: str) -> int:
        if self._process.stdin is None or self._process.stdout is None:
            raise ValueError("the server needs both pipes")
        self._process.stdin.write(f"{question}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def answer(answers: Mapping[str, Callable[[], int]]) -> None:
    """Answer the questions on standard input, until that ends."""
    for question in sys.stdin:
        say(str(answers[question.strip()]()))


class PeakMemory:
    """How far the memory of this process rises above where it stood: `.growth` in bytes."""

    def __init__(self) -> None:
        with suppress(OSError):  # Linux alone can forget an earlier peak; elsewhere the growth may be understated
            Path("/proc/self/clear_refs").write_text("5")
        self._before = self._peak()

    @property
    def growth(self) -> int:
        return self._peak() - self._before

    @staticmethod
    def _peak() -> int:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def words(text_bytes: int = 2_000, html_bytes: int = 20_000, *, seed: int = 1) -> tuple[str, str, str]:
    """(subject, text, HTML) of a newsletter: prose of made-up words, one in twelve not ASCII; always the same."""
    chance = random.Random(seed)  # noqa: S311  not for secrets
    vocabulary = [_word(chance, "aeiou") for _ in range(1_100)] + [_word(chance, "éèüöçñžř") for _ in range(100)]

    def sentence() -> str:
        return f"{' '.join(chance.choices(vocabulary, k=chance.randint(6, 18))).capitalize()}."

    def fill(size: int, paragraph: Callable[[str], str]) -> str:
        parts: list[str] = []
        while (missing := size - sum(len(part.encode()) for part in parts)) > 0:
            parts.append(paragraph(" ".join(sentence() for _ in range(5 if missing > 1_000 else 1))))
        return "".join(parts)

    text = fill(text_bytes, lambda prose: f"{prose}\n\n")
    html = fill(html_bytes, lambda prose: f'<p style="margin:0 0 16px; font:16px/1.5 Georgia,serif">{prose}</p>\n')
    return sentence(), text, f'<!doctype html>\n<html lang="en"><body>\n{html}</body></html>\n'


def addresses(count: int) -> Iterator[str]:
    return (f"reader{number:06}@example.org" for number in range(count))


def _word(chance: random.Random, vowels: str) -> str:
    """One to four syllables."""
    return "".join(chance.choice("bcdfghlmnprstv") + chance.choice(vowels) for _ in range(chance.randint(1, 4)))


def _is_mariadb(connection: Any) -> bool:
    return bool(connection.mysql_is_mariadb)


def _in_child(*arguments: str) -> str:
    program = [__file__, *arguments] if arguments == ("--versions",) else list(arguments)
    done = subprocess.run([sys.executable, *program], stdout=subprocess.PIPE, text=True)  # noqa: S603  this script
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout.strip().splitlines()[-1]


if __name__ == "__main__":
    # The answer to `--versions`: on the scratch database, since the one that DATABASE_URL names need not exist.
    with scratch_database():
        say(versions())
