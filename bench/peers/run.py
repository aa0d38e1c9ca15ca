"""How fast mailengine is beside its peers, all measured side by side in one run of this machine.

    python bench/peers/run.py            # all of it, written into docs/reference/speed.md and speed.svg
    python bench/peers/run.py --quick    # the same with little mail, to try it; written into var/bench/quick

It makes what it needs under var/bench: a virtualenv with the peers, a PostgreSQL server (or BENCH_PG names one), a
Redis server, Postfix's smtp-sink. All listen on 127.0.0.1 alone, and end with the run. Exit code 1: an engine lost mail
or sent some twice; nothing is written then but the raw rows, in var/bench/rows-*.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from environment import HERE, HOME, ROOT, PostfixTools, make_virtualenv, postgres, redis

CASES = ("drain", "singles", "slow", "growing", "on_sqlite", "urgent", "memory", "queueing", "expanding")
PRODUCTS = ("mailengine", "django-mailer", "django-post_office", "celery", "procrastinate", "limit")
PAGE = ROOT / "docs" / "reference" / "speed.md"
QUICK = {
    "count": 600, "peers_count": 200, "queue_count": 300, "expand_count": 5_000, "memory_count": 3_000,
    "memory_peers_count": 1_500, "repeats": 1,
}  # fmt: skip


def main() -> None:
    options = _options()
    HOME.mkdir(parents=True, exist_ok=True)
    python = make_virtualenv()
    if Path(sys.prefix) != python.parent.parent:  # from here on in the peers' environment
        os.execv(python, [str(python), str(Path(__file__).resolve()), *sys.argv[1:]])  # noqa: S606
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that every server is ended
    sys.exit(_report(options, json.loads(options.rows.read_text())) if options.rows else _measure(options))


def _measure(options: argparse.Namespace) -> int:
    from cases import Bench, Failed, Sizes
    from databases import Postgres, Sqlite

    env = _environment(options)
    os.environ.update(env)
    tools = PostfixTools()
    sizes = Sizes(
        drain=options.count,
        drain_peers=options.peers_count,
        queue=options.queue_count,
        expand=options.expand_count,
        memory=options.memory_count,
        memory_peers=options.memory_peers_count,
    )

    def run(command: list[str], **more: str) -> subprocess.CompletedProcess[str]:
        everything = {**os.environ, "BENCH_PRODUCT": "all", **more}
        done = subprocess.run(command, env=everything, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
        return done

    with ExitStack() as stack:
        if "celery" in options.products:
            os.environ["BENCH_REDIS"] = env["BENCH_REDIS"] = stack.enter_context(redis())
        server, sqlite = Postgres(*stack.enter_context(postgres())), Sqlite()
        stack.callback(server.close)
        stack.callback(sqlite.close)
        server.prepare(run)
        sqlite.prepare(run)
        mail = json.loads(
            run([sys.executable, str(HERE / "act.py"), "mail", "size"], BENCH_DATABASE=sqlite.spec).stdout
        )
        os.environ.update(BENCH_MAIL_BYTES=str(mail["bytes"]), BENCH_SMTP_SOURCE=tools.source)
        bench = Bench(
            postgres=server, sqlite=sqlite, tools=tools, sizes=sizes, repeats=options.repeats,
            products=options.products, say=_say, env=env, is_quick=options.quick,
        )  # fmt: skip
        raw = HOME / f"rows-{datetime.datetime.now(tz=datetime.timezone.utc):%Y%m%d-%H%M%S}.json"
        facts = _facts(options, server.version, sqlite.version, mail)
        _say("\n".join(facts))
        for case in options.cases:
            _say(f"{case}: {getattr(Bench, case).__doc__}")
            try:
                getattr(bench, case)()
            except Failed as error:
                bench.failures.append(f"{case}: {error}")
            found = {"facts": facts, "arguments": sys.argv[1:], "rows": bench.rows, "failures": bench.failures}
            raw.write_text(json.dumps(found, indent=1))
    return _report(options, found)


def _environment(options: argparse.Namespace) -> dict[str, str]:
    paths = os.pathsep.join([str(HERE), str(ROOT)])
    return {
        "PYTHONPATH": paths,
        "DJANGO_SETTINGS_MODULE": "settings",
        "BENCH_HOME": str(HOME),
        "BENCH_PYTHON": options.python or sys.executable,
        "BENCH_CONNECTIONS": str(options.connections),
        "BENCH_REDIS": "",
        "PYTHONWARNINGS": "ignore",
    }


def _facts(options: argparse.Namespace, postgresql: str, sqlite: str, mail: dict[str, object]) -> list[str]:
    """What it was measured on, and how much."""
    from importlib.metadata import version

    ask = "import django, platform; print(f'Python {platform.python_version()}, Django {django.get_version()}')"
    ours = subprocess.run([options.python or sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    names = ("django-mailer", "django-post_office", "celery", "django-celery-email", "procrastinate", "psycopg")
    peers = f"Python {platform.python_version()}, Django {mail['django']}, " + ", ".join(
        f"{name} {version(name)}" for name in names
    )
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return [
        f"- {datetime.datetime.now(tz=datetime.timezone.utc):%d %B %Y}; {_machine()}",
        f"- {postgresql}; {sqlite}",
        f"- The peers: {peers}",
        f"- mailengine {commit.stdout.strip()}: {ours.stdout.strip()}, {options.connections} connections in each"
        " process where nothing else is said",
        f"- One mail is {mail['bytes']:,} bytes; medians of {options.repeats} runs (lowest to highest)",
        *(["- With `--quick`, which takes too little mail for figures that mean something"] if options.quick else []),
    ]


def _machine() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = f" ({names[0]})" if names else ""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{cores} cores{model}, {memory:.0f} GiB, {platform.system()} {platform.release().split('-')[0]}"


def _report(options: argparse.Namespace, found: dict[str, Any]) -> int:
    """Write what was found into the page, unless something failed; the exit code."""
    from engines import ENGINES
    from report import drawing, goals, goals_table, put_between_markers, tables

    rows, failures = found["rows"], found["failures"]
    titles = {key: f"{engine.product}, {engine.title}" for key, engine in ENGINES.items()} | ROWS
    titles |= {key: engine.title for key, engine in ENGINES.items() if engine.product == "limit"}
    products = {key: engine.product for key, engine in ENGINES.items()}
    own_words = [key for key, engine in ENGINES.items() if engine.has_own_words]
    reached = goals_table(goals(rows, products, own_words))
    _say(f"\n{reached}\n")
    if failures:
        _say("FAILED, hence nothing is written:\n" + "\n".join(f"  {failure}" for failure in failures))
        return 1
    command = " ".join(["python bench/peers/run.py", *found["arguments"]])
    text = "\n\n".join(
        [
            f"`{command}` measured:",
            "\n".join(found["facts"]),
            "![Bars of the figures below](speed.svg)",
            f"## Figures to reach\n\n{reached}",
            tables(rows, titles),
        ]
    )
    page = (HOME / "quick" / "speed.md") if options.quick else options.page
    page.parent.mkdir(exist_ok=True)
    page.write_text(put_between_markers(PAGE.read_text(), text))
    page.with_suffix(".svg").write_text(drawing(rows, titles, products))
    _say(f"Written: {page} and {page.with_suffix('.svg').name}")
    return 0


ROWS = {
    "orm_rows": "the same rows by `save()`",
    "orm_message": "the message's row alone by `save()`",
    "narrow_unnest": "narrow rows by INSERT … SELECT unnest",
    "narrow_copy": "narrow rows by COPY",
    "same_unnest": "mailengine's rows by INSERT … SELECT unnest",
    "same_copy": "mailengine's rows by COPY",
}
"""What of the database alone was measured, in words."""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="little mail, one run of each, nothing written into docs/")
    add("--repeats", type=int, metavar="N", help="runs of each; default: 3")
    add("--cases", type=_one_of(CASES), default=CASES, help=f"of {','.join(CASES)}; default: all")
    add("--products", type=_one_of(PRODUCTS), default=PRODUCTS, help=f"of {','.join(PRODUCTS)}; default: all")
    add("--count", type=int, metavar="N", help="mails to drain; default: 20,000")
    add("--peers-count", type=int, metavar="N", help="the same for the peers; default: 5,000")
    add("--queue-count", type=int, metavar="N", help="mails to queue, a fifth of them one by one; default: 5,000")
    add("--expand-count", type=int, metavar="N", help="recipients of the job to expand; default: 100,000")
    add("--memory-count", type=int, metavar="N", help="queued mails to measure memory with; default: 100,000")
    add("--memory-peers-count", type=int, metavar="N", help="the same for the peers; default: 10,000")
    add("--connections", type=int, default=8, metavar="N", help="mailengine's CONNECTIONS; default: %(default)s")
    add("--python", metavar="PATH", help="run mailengine with this Python, and the Django it has, instead")
    add("--rows", type=Path, metavar="FILE", help="measure nothing, and write the page from the rows of an earlier run")
    add("--page", type=Path, default=PAGE, help="write here; default: docs/reference/speed.md")
    options = parser.parse_args()
    full = {
        "count": 20_000, "peers_count": 5_000, "queue_count": 5_000, "expand_count": 100_000, "memory_count": 100_000,
        "memory_peers_count": 10_000, "repeats": 3,
    }  # fmt: skip
    for name, value in (QUICK if options.quick else full).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def _one_of(known: tuple[str, ...]) -> Callable[[str], list[str]]:
    def chosen(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(known)}")
        return names

    return chosen


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
