"""From environment variables to Django's settings: the database, the mail providers, a key to develop with."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from environ import Env

TIMEOUT_SECONDS = 10


def database(settings: dict[str, Any], base_dir: Path) -> dict[str, Any]:
    """The entry of DATABASES for a parsed DATABASE_URL, with the options each database needs to carry a queue.

    Three slashes of SQLite are relative to `base_dir`, not to wherever cron starts a command; four are absolute.
    """
    options: dict[str, Any] = {}
    if "sqlite" in settings["ENGINE"]:
        if settings["NAME"] != ":memory:":
            settings["NAME"] = str(base_dir / settings["NAME"])
        options = {
            # Readers and a writer side by side; and a commit that survives a power cut, which NORMAL doesn't promise.
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;",
            # Lock when a transaction begins: one that reads first and writes later can't wait, it fails at once.
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
        }
    elif "postgresql" in settings["ENGINE"]:
        settings |= {"CONN_MAX_AGE": settings.get("CONN_MAX_AGE", 60), "CONN_HEALTH_CHECKS": True}
        options = {
            "connect_timeout": TIMEOUT_SECONDS,
            # A server that a broken network hides says nothing, not even that it is gone: find out within a minute.
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            "tcp_user_timeout": 60_000,  # milliseconds
        }
    elif "mysql" in settings["ENGINE"]:
        settings |= {"CONN_MAX_AGE": settings.get("CONN_MAX_AGE", 60), "CONN_HEALTH_CHECKS": True}
        settings["TEST"] = {"CHARSET": "utf8mb4"}
        options = {
            "charset": "utf8mb4",
            "isolation_level": "read committed",
            "init_command": "SET sql_mode='STRICT_TRANS_TABLES'",  # Refuse what doesn't fit instead of cutting it.
            "connect_timeout": TIMEOUT_SECONDS,
        }
    return {**settings, "OPTIONS": {**options, **settings.get("OPTIONS", {})}}


def providers(env: Env) -> dict[str, dict[str, Any]]:
    """The entries of MAILERS for every provider whose credentials are set, in the order they are tried.

    Without any, "console": mail is printed, so that a laptop needs no account anywhere.
    """
    found: dict[str, dict[str, Any]] = {}
    if api_key := env("MAILGUN_API_KEY", default=""):
        found["mailgun"] = _anymail(env, "mailgun", api_key=api_key, sender_domain=env("MAILGUN_SENDER_DOMAIN"))
    if server_token := env("POSTMARK_SERVER_TOKEN", default=""):
        found["postmark"] = _anymail(env, "postmark", server_token=server_token)
    if api_key := env("SENDGRID_API_KEY", default=""):
        found["sendgrid"] = _anymail(env, "sendgrid", api_key=api_key)
    if api_key := env("RESEND_API_KEY", default=""):
        found["resend"] = _anymail(env, "resend", api_key=api_key)
    if host := env("SMTP_HOST", default=""):
        found["relay"] = _smtp(env, host)
    return found or {"console": {"BACKEND": "django.core.mail.backends.console.EmailBackend"}}


def _anymail(env: Env, alias: str, **credentials: str) -> dict[str, Any]:
    options: dict[str, Any] = {**credentials, "timeout": TIMEOUT_SECONDS}
    if api_url := env(f"{alias.upper()}_API_URL", default=""):  # Another region, or a stand-in on this machine.
        options["api_url"] = api_url
    return {"BACKEND": f"anymail.backends.{alias}.EmailBackend", "OPTIONS": options}


def _smtp(env: Env, host: str) -> dict[str, Any]:
    """An SMTP relay. SMTP_TLS: "starttls" (port 587), "implicit" (465), or "none" (25) for a relay on this machine."""
    kinds: dict[str, dict[str, Any]] = {
        "starttls": {"port": 587, "use_tls": True},
        "implicit": {"port": 465, "use_ssl": True},
        "none": {"port": 25},
    }
    tls = env("SMTP_TLS", default="starttls")
    if tls not in kinds:
        raise ImproperlyConfigured(f"SMTP_TLS is {tls!r}; it can be {', '.join(kinds)}.")
    options = {"host": host, **kinds[tls], "timeout": TIMEOUT_SECONDS}
    if port := env.int("SMTP_PORT", default=0):
        options["port"] = port
    if user := env("SMTP_USER", default=""):
        options |= {"username": user, "password": env("SMTP_PASSWORD")}
    return {"BACKEND": "mailengine.backends.SMTPBackend", "OPTIONS": options}


def development_key(path: Path) -> str:
    """A SECRET_KEY for this checkout alone, made once: every process must sign links with the same one."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.touch(mode=0o600)
        draft.write_text(secrets.token_urlsafe(50))
        # Cron starts several processes in the same second: the key appears whole, and the first one wins.
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(draft)
        draft.unlink()
    return path.read_text()
