"""Real worker processes on the test database, started as cron would start them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from django.conf import settings
from django.db import connection

ROOT = Path(__file__).resolve().parent.parent


def database_url(*, port: int | None = None) -> str:
    """The test database, as another process reaches it; `port` is that of a proxy in front of it."""
    now = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite:///{now['NAME']}"
    scheme = {"postgresql": "postgres", "mysql": "mysql"}[connection.vendor]
    secret = f":{quote(now['PASSWORD'])}" if now["PASSWORD"] else ""
    return f"{scheme}://{now['USER']}{secret}@{now['HOST']}:{port or now['PORT']}/{now['NAME']}"


def environment(mailengine: Mapping[str, Any] | None = None) -> dict[str, str]:
    """The environment of a process that uses the providers that the test has configured."""
    return {
        **os.environ,
        "DATABASE_URL": database_url(),
        "DJANGO_SETTINGS_MODULE": "tests.worker_settings",
        "SECRET_KEY": "test",
        "TEST_MAILERS": as_json(settings.MAILERS),
        "TEST_MAILENGINE": as_json(dict(mailengine or settings.MAILENGINE)),
        "PYTHONWARNINGS": "",
        "PYTHONPATH": str(ROOT),
    }


def as_json(values: Mapping[str, Any]) -> str:
    """Settings for another process; what JSON has no word for, a path say, goes as text."""
    return json.dumps(values, default=str)


def start(*arguments: str, before: str = "", **options: Any) -> subprocess.Popen[str]:
    """`manage.py` with these arguments; `before` is Python to run first, once Django is set up."""
    code = f"import django; django.setup()\n{before}\nfrom django.core.management import call_command\n"
    command = [sys.executable, "manage.py", *arguments]
    if before:
        command = [sys.executable, "-c", f"{code}call_command(*{list(arguments)!r})"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, **{"env": environment(), **pipes, **options})


def run(*arguments: str, before: str = "", timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """The same, waited for."""
    process = start(*arguments, before=before)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
