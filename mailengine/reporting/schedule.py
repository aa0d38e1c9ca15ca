"""The lines that let cron or systemd run the commands of this very project."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

COMMANDS = ("process_mail_jobs", "send_mail", "retry_deferred")
PURGE = "purge_mail --days 90"


def crontab_lines() -> str:
    """Lines for `crontab -e`, with the paths of this installation; a percent sign is special there."""
    run = shlex.join([sys.executable, str(_manage_py())]).replace("%", r"\%")
    lines = [
        "# crontab -e, as the user that the site runs as; whatever a command prints is mailed to MAILTO",
        f"DJANGO_SETTINGS_MODULE={os.environ.get('DJANGO_SETTINGS_MODULE', '')}",
        *(f"* * * * * {run} {command}" for command in COMMANDS),
        f"17 3 * * * {run} {PURGE}",
    ]
    return "\n".join(lines) + "\n"


def systemd_units() -> str:
    """One service and one timer for each command, as files under /etc/systemd/system."""
    return "\n".join(_unit(command, every="minutely") for command in COMMANDS) + "\n" + _unit(PURGE, every="03:17")


def _unit(command: str, *, every: str) -> str:
    name = f"mailengine-{command.split()[0].replace('_', '-')}"
    run = shlex.join([sys.executable, str(_manage_py())]).replace("%", "%%")
    return f"""\
# /etc/systemd/system/{name}.service
[Unit]
Description=mailengine: {command}

[Service]
Type=oneshot
WorkingDirectory={_manage_py().parent}
Environment=DJANGO_SETTINGS_MODULE={os.environ.get("DJANGO_SETTINGS_MODULE", "")}
ExecStart={run} {command}
TimeoutStopSec=90

# /etc/systemd/system/{name}.timer
[Timer]
OnCalendar={every}
AccuracySec=1s

[Install]
WantedBy=timers.target
"""


def _manage_py() -> Path:
    """The script that runs now if it is a manage.py, else the one in the working directory."""
    script = Path(sys.argv[0]).resolve()
    return script if script.name == "manage.py" else Path.cwd() / "manage.py"
