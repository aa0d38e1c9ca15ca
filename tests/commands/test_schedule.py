"""`mail_status --schedule`, and the schedule of the project itself: lines that cron and systemd take as they are."""

import re
import shlex
import shutil
import subprocess
import sys

import pytest
from django.core.management import call_command

from mailengine import queue_mail
from mailengine.reporting.schedule import crontab_lines, systemd_units, worker_unit
from tests.commands.programs import ROOT, database_url, environment, relay, run

COMMANDS = ["process_mail_jobs", "send_mail", "retry_deferred", "purge_mail"]


@pytest.fixture
def at(monkeypatch, tmp_path):
    """Make as if the project stood in this folder, and ran by a Python in there."""

    def move(folder):
        home = tmp_path / folder
        (home / "bin").mkdir(parents=True)
        (home / "manage.py").touch()
        (home / "bin" / "python").symlink_to(sys.executable)
        monkeypatch.setattr(sys, "argv", [str(home / "manage.py")])
        monkeypatch.setattr(sys, "executable", str(home / "bin" / "python"))
        return home

    return move


def cron_jobs(crontab):
    """The commands of a crontab as the shell gets them: everything up to a bare percent sign."""
    lines = [line for line in crontab.splitlines() if re.match(r"[\d*]", line)]
    return [re.split(r"(?<!\\)%", line.split(maxsplit=5)[5])[0].replace(r"\%", "%") for line in lines]


def test_the_schedule_names_this_project_and_changes_nothing():
    """C20"""
    ended = run("mail_status", "--schedule")

    assert (ended.returncode, ended.stderr) == (0, "")
    lines = [line for line in ended.stdout.splitlines() if line.startswith(("*", "17"))]
    assert lines == [
        *(f"* * * * * {sys.executable} {ROOT}/manage.py {command}" for command in COMMANDS[:3]),
        f"17 3 * * * {sys.executable} {ROOT}/manage.py purge_mail --days 90",
    ]


@pytest.mark.parametrize("folder", ["plain", "with a space", "100%", "it's $HOME"])
def test_the_shell_reads_crontab_lines_right_whatever_the_paths(folder, at):
    """C20"""
    home = at(folder)

    jobs = cron_jobs(crontab_lines())

    assert [shlex.split(job)[:3] for job in jobs] == [
        [str(home / "bin" / "python"), str(home / "manage.py"), command] for command in COMMANDS
    ]


def test_the_schedule_has_a_worker_to_replace_the_timers():
    """C20"""
    printed = run("mail_status", "--schedule").stdout

    unit = printed[printed.index("# /etc/systemd/system/mailengine-mail-worker.service") :]
    assert f"ExecStart={sys.executable} {ROOT}/manage.py mail_worker\n" in unit
    assert "Restart=always" in unit
    assert "OnCalendar" not in unit


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
@pytest.mark.parametrize("folder", ["plain", "with a space", "100%", "for $5"])
def test_systemd_takes_the_units(folder, at, tmp_path):
    """C20"""
    at(folder)
    paths = []
    printed = f"{systemd_units()}\n{worker_unit()}"
    for path, unit in re.findall(r"# /etc/systemd/system/(\S+)\n(.*?)(?=\n# )", printed, re.DOTALL):
        (tmp_path / path).write_text(unit)
        paths.append(tmp_path / path)

    ended = subprocess.run(["systemd-analyze", "verify", *paths], capture_output=True, text=True, check=False)

    assert len(paths) == 9
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.fixture
def crontab(settings, tmp_path):
    """The table that django-crontab installs, in a file of the test's own instead of this user's crontab."""
    table = tmp_path / "table"
    program = tmp_path / "crontab"
    program.write_text(f'#!/bin/sh\n[ "$1" = -l ] && exec cat "{table}"\nexec cp "$1" "{table}"\n')
    program.chmod(0o755)
    table.touch()
    settings.CRONTAB_EXECUTABLE = str(program)
    return table


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # django-crontab leaves its pipe open
@pytest.mark.django_db(transaction=True)
def test_the_projects_cron_jobs_run_through_django_crontab(crontab, smtp):
    """C06, C18, C20"""
    queue_mail("Hi", "Hello", "a@example.org", ["b@example.org"])

    call_command("crontab", "add", verbosity=0)
    jobs = [shlex.split(job, comments=True) for job in cron_jobs(crontab.read_text())]
    printed = [run_cron_job(job, **relay(smtp)) for job in jobs]

    assert len(jobs) == len(COMMANDS)
    assert [bool(out) for out in printed] == [False, True, False, False]
    assert printed[1].startswith("send_mail: 1 sent in ")
    assert len(smtp.accepted) == 1


def run_cron_job(job, **variables):
    """What a job prints, in cron's environment and working directory."""
    ended = subprocess.run(
        job,
        cwd="/",
        env=environment(DATABASE_URL=database_url(), **variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "Traceback" not in ended.stderr
    return ended.stdout
