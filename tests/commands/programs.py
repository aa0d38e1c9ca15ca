"""Programs as cron starts them: processes of their own, on the test's database, with nothing but an environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

from django.db import connection

ROOT = Path(__file__).resolve().parents[2]
SCHEMES = {"postgresql": "postgres", "mysql": "mysql"}


def database_url() -> str:
    """The test's own database, as DATABASE_URL."""
    settings = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite:///{settings['NAME']}"
    login = quote(settings["USER"], safe="") + (
        f":{quote(settings['PASSWORD'], safe='')}" if settings["PASSWORD"] else ""
    )
    return f"{SCHEMES[connection.vendor]}://{login}@{settings['HOST']}:{settings['PORT'] or ''}/{settings['NAME']}"


def environment(**variables: object) -> dict[str, str]:
    """What cron gives a job, besides `variables`; providers that a developer's .env may name are left out."""
    others = dict.fromkeys(("MAILGUN_API_KEY", "POSTMARK_SERVER_TOKEN", "SENDGRID_API_KEY", "RESEND_API_KEY"), "")
    base = {"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/"), "MAIL_PROVIDERS": "relay", **others}
    return base | {name: str(value) for name, value in variables.items()}


def relay(server: object) -> dict[str, object]:
    """The variables that make a `SMTPServer` the project's only provider."""
    return {"SMTP_HOST": server.host, "SMTP_PORT": server.port, "SMTP_TLS": "none"}


def run(*arguments: str, **variables: object) -> subprocess.CompletedProcess[str]:
    """`python manage.py <arguments>` to its end, deprecation warnings being errors."""
    with start(*arguments, **variables) as process:
        out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def start(*arguments: str, stderr: int = subprocess.PIPE, **variables: object) -> subprocess.Popen[str]:
    """The same, under way."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "manage.py", *arguments],
        cwd=ROOT,
        env=environment(**{"DATABASE_URL": database_url(), "SMTP_HOST": "127.0.0.1", "SMTP_TLS": "none", **variables}),
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


def run_script(script: str) -> subprocess.CompletedProcess[str]:
    """A program of the project's own, with Django set up, on the test's database."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import django; django.setup()\n{script}"],
        cwd=ROOT,
        env=environment(DATABASE_URL=database_url(), DJANGO_SETTINGS_MODULE="project.settings"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
