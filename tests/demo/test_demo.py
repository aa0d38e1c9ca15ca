"""`manage.py demo`, run as a visitor runs it: a process of its own, a database of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from django.conf import settings

OUTAGE = [
    "mailgun   goes down: its API answers 503",
    "mailgun   rests after 3 failures in a row",
    "mailgun   is repaired",
    "mailgun   is back",
    "mailgun was down for",
]
DRAIN = ["operator  drains postmark: no new mail from here", "postmark got "]
"""What a spectator is told, in this order."""
TAMPERED = """
from manage import main
from project.demo.receiver import Copy, Receiver

copies = Receiver.copies


def tampered(self):
    first, second, *others = copies(self)
    return [second, second, Copy("postmark", "no-such-mail", "eve@example.org"), *others]


Receiver.copies = tampered
main()
"""


@pytest.fixture
def run(tmp_path):
    """Run Python with these arguments; the demo finds a folder of its own and no settings of the suite's."""

    def python(*arguments, **environment):
        inherited = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
        return subprocess.run(
            [sys.executable, *arguments],
            env={**inherited, "DEMO_DIRECTORY": str(tmp_path), "PYTHONWARNINGS": "error", **environment},
            cwd=settings.BASE_DIR,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return python


def test_the_demo_ends_with_the_receiving_side_and_the_ledger_in_agreement(run, tmp_path):
    """P09, P12, S07, C21: the newsletter arrives in spite of everything, and a password reset goes before it."""
    done = run("manage.py", "demo", "--recipients", "200")

    assert (done.stderr, done.returncode) == ("", 0)
    *_, lost, duplicated, unexpected, _, hint = done.stdout.splitlines()
    assert [line.split() for line in (lost, duplicated, unexpected)] == [
        ["lost", "0"],
        ["duplicated", "0"],
        ["unexpected", "0"],
    ]
    assert "make demo ARGS=--serve" in hint
    assert "presses “Queue for 200 recipients”" in done.stdout
    assert "The password reset arrived " in done.stdout
    assert (tmp_path / "db.sqlite3").exists()
    for events in (OUTAGE, DRAIN):
        found = [done.stdout.find(words) for words in events]
        assert -1 not in found, done.stdout
        assert found == sorted(found), done.stdout


def test_the_demo_notices_what_the_receiving_side_lost_doubled_or_made_up(run):
    """P09: four mails through two providers that fail every second call; and a verdict that can fail."""
    done = run("-c", TAMPERED, "demo", "--recipients=500", "--json", DJANGO_SETTINGS_MODULE="project.demo.settings")

    outcome = json.loads(done.stdout)
    assert (done.returncode, outcome["agrees"]) == (1, False)
    assert [len(outcome[name]) for name in ("lost", "duplicated", "unexpected")] == [1, 1, 1]
    assert "eve@example.org" in outcome["unexpected"][0]
    assert outcome["unaccounted"] == 0
    assert outcome["overtaking"]["overtaken"] > 0
    assert outcome["providers"]["mailgun"]["unavailable"] > 0
    assert outcome["drain"]["owed"] <= 3
    assert outcome["trace"] == [
        "lambda sent 1",
        "lambda failed 2 -> delta sent 2",
        "delta failed 3 -> lambda sent 3",
        "lambda failed 4 -> delta sent 4",
    ]
    assert len(outcome["explained"]) <= 2


def test_too_small_an_audience_is_a_usage_error(run):
    done = run("manage.py", "demo", "--recipients", "10")

    assert done.returncode == 2
    assert "'10' is no number of 50 or more" in done.stderr
