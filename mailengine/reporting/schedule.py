"""The lines that let cron or systemd run the commands of this very project."""

from __future__ import annotations

import getpass
import os
import re
import shlex
import sys
from pathlib import Path

COMMANDS = ("process_mail_jobs", "send_mail", "retry_deferred")
PURGE = "purge_mail --days 90"
WORKER = "mail_worker"


def crontab_lines() -> str:
    """Lines for `crontab -e`, with the paths of this installation."""
    run = shlex.join(_program()).replace("%", r"\%")  # cron takes a bare percent sign for the end of the command
    lines = [
        f"# crontab -e, as {getpass.getuser()}; cron mails whatever a command prints to MAILTO",
        *([f"DJANGO_SETTINGS_MODULE={module}"] if (module := _settings_module()) else []),
        *(f"* * * * * {run} {command}" for command in COMMANDS),
        f"17 3 * * * {run} {PURGE}",
    ]
    return "\n".join(lines) + "\n"


def systemd_units() -> str:
    """One service and one timer for each command, as files under /etc/systemd/system, and how to start them."""
    timers = " ".join(f"{_unit_name(command)}.timer" for command in (*COMMANDS, PURGE))
    units = [*(_unit(command, every="minutely") for command in COMMANDS), _unit(PURGE, every="03:17")]
    return "\n".join([*units, f"# systemctl daemon-reload && systemctl enable --now {timers}\n"])


def worker_unit() -> str:
    """A service that goes on for ever and replaces the timers but for the nightly one, and how to start it."""
    name = _unit_name(WORKER)
    return f"""\
# Or, instead of all timers but {_unit_name(PURGE)}.timer:
# /etc/systemd/system/{name}.service
[Unit]
Description=mailengine: {WORKER}
After=network-online.target
Wants=network-online.target

[Service]
Type=exec
{_execution(WORKER)}Restart=always
RestartSec=5

[Install]
WantedBy=multi-user.target

# systemctl daemon-reload && systemctl enable --now {name}.service
"""


def _unit(command: str, *, every: str) -> str:
    name = _unit_name(command)
    return f"""\
# /etc/systemd/system/{name}.service
[Unit]
Description=mailengine: {command}

[Service]
Type=oneshot
{_execution(command)}
# /etc/systemd/system/{name}.timer
[Unit]
Description=mailengine: when to run {command}

[Timer]
OnCalendar={every}
AccuracySec=1s

[Install]
WantedBy=timers.target
"""


def _execution(command: str) -> str:
    """Who runs what, and how long it may take to stop: longer than `SEND_DEADLINE_SECONDS`."""
    python, script = map(_quoted, _program())
    environment = f"Environment=DJANGO_SETTINGS_MODULE={module}\n" if (module := _settings_module()) else ""
    return f"""\
User={getpass.getuser()}
{environment}ExecStart={python} {script.replace("$", "$$")} {command}
TimeoutStopSec=90
"""


def _unit_name(command: str) -> str:
    return f"mailengine-{command.split()[0].replace('_', '-')}"


def _quoted(word: str) -> str:
    """A word for systemd, which expands % everywhere, $ in arguments, and quotes unlike a shell."""
    word = word.replace("%", "%%")
    if re.search(r"[\s\"'\\]", word):
        word = '"' + word.replace("\\", r"\\").replace('"', r"\"") + '"'
    return word


def _program() -> list[str]:
    """Python, and the script that runs now if it is a manage.py, else the one in the working directory."""
    script = Path(sys.argv[0]).resolve()
    return [sys.executable, str(script if script.name == "manage.py" else Path.cwd() / "manage.py")]


def _settings_module() -> str:
    return os.environ.get("DJANGO_SETTINGS_MODULE", "")
