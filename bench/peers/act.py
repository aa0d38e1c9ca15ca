"""One act of one engine, in a process of its own with Django set up; prints what it cost as JSON.

    python act.py mailengine queue_many 5000

With `urgent`, it queues a mail for each address on standard input and says when it was committed.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Any

import django

django.setup()

from engines import ENGINES, Limits  # noqa: E402
from engines.limits import rendered  # noqa: E402


def main(key: str, action: str, count: int) -> None:
    if key == "rows":
        _say({"seconds": getattr(Limits, action)(count)})
        return
    if key == "mail":
        _say({"bytes": len(rendered()), "django": django.get_version()})
        return
    engine: Any = ENGINES[key]
    if action == "urgent":
        for line in sys.stdin:
            engine.queue_urgent(line.strip())
            _say({"committed_at": time.time()})
    elif action == "send":
        engine.send()
    elif action == "fill":
        engine.queue_many(count)
        if hasattr(engine, "expand"):
            engine.expand()
        _say({})
    else:
        _warm_up()
        if action == "expand":
            engine.queue_many(count)
        arguments = [] if action == "expand" else [count]
        cpu_started_at, started_at = time.process_time(), time.perf_counter()
        getattr(engine, action)(*arguments)
        seconds, cpu_seconds = time.perf_counter() - started_at, time.process_time() - cpu_started_at
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1_024
        _say({"seconds": seconds, "cpu_seconds": cpu_seconds, "rss": peak})


def _warm_up() -> None:
    """The database is connected and the words are made: neither belongs to what is timed."""
    from django.core.mail import EmailMultiAlternatives  # noqa: F401
    from django.db import connection
    from engines.base import words

    connection.ensure_connection()
    words()


def _say(figures: dict[str, Any]) -> None:
    sys.stdout.write(f"{json.dumps(figures)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 0)
