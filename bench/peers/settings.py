"""Django settings of everything that is measured; what changes from run to run comes from the environment."""

from __future__ import annotations

import logging
import os
from itertools import chain
from typing import Any

import django
import psycopg.conninfo

SECRET_KEY = "bench"  # noqa: S105
DEBUG = False  # otherwise Django keeps every query
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
APPS = {
    "mailengine": ["mailengine"],
    "django-mailer": ["mailer"],
    "django-post_office": ["post_office"],
    "celery": ["djcelery_email"],
}
# Each product alone, as in a project of its own: two of them have a command of the same name. All of them, to migrate.
_product = os.environ["BENCH_PRODUCT"]
_apps = list(chain(*APPS.values())) if _product == "all" else APPS.get(_product, [])
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", *_apps]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
LOGGING_CONFIG = None
if os.environ.get("BENCH_LOG") != "1":
    logging.disable(logging.WARNING)  # a line for each mail is not part of what is measured

_home = os.environ["BENCH_HOME"]
_vendor, _, _name = os.environ["BENCH_DATABASE"].partition(":")
DATABASES: dict[str, dict[str, Any]]
if _vendor == "sqlite":
    # A commit is durable: `synchronous` stays at FULL, SQLite's default.
    _options = {"transaction_mode": "IMMEDIATE", "timeout": 30, "init_command": "PRAGMA journal_mode=WAL"}
    DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": _name, "OPTIONS": _options}}
else:
    _parts = psycopg.conninfo.conninfo_to_dict(_name)
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": _parts["dbname"],
            "HOST": _parts.get("host", ""),
            "PORT": _parts.get("port", ""),
            "USER": _parts.get("user", ""),
            "PASSWORD": _parts.get("password", ""),
        }
    }

_port = int(os.environ.get("BENCH_SMTP_PORT", "0"))
MAILERS = {
    "default": {"BACKEND": "mailengine.backends.EmailBackend"},
    "relay": {
        "BACKEND": "mailengine.backends.SMTPBackend",
        "OPTIONS": {"host": "127.0.0.1", "port": _port, "timeout": 30},
    },
}
MAILENGINE = {
    "PROVIDERS": {"relay": {}},
    "CONNECTIONS": int(os.environ.get("BENCH_CONNECTIONS", "8")),
}
if os.environ.get("BENCH_CLAIM_BATCH"):
    MAILENGINE["CLAIM_BATCH"] = int(os.environ["BENCH_CLAIM_BATCH"])

# The peers send straight to the sink, by Django's own backend.
if django.VERSION < (6, 1):
    EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    EMAIL_HOST = "127.0.0.1"
    EMAIL_PORT = _port
    MAILER_EMAIL_BACKEND = EMAIL_BACKEND
    MAILER_LOCK_PATH = os.path.join(_home, "locks", "django_mailer")
    CELERY_EMAIL_BACKEND = EMAIL_BACKEND
    CELERY_EMAIL_CHUNK_SIZE = 100
    POST_OFFICE = {"LOCK_FILE_NAME": "bench_post_office"}
    for _key in ("BATCH_SIZE", "THREADS_PER_PROCESS", "LOG_LEVEL"):
        if f"BENCH_PO_{_key}" in os.environ:
            POST_OFFICE[_key] = int(os.environ[f"BENCH_PO_{_key}"])
