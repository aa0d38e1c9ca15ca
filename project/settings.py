"""Settings of the demonstration project, read from the environment, which wins over a `.env` beside manage.py.

Nothing needs to be set on a laptop: mail is then kept in SQLite and printed instead of sent.
`.env.example` lists every variable.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import django
import environ
from django.core.exceptions import ImproperlyConfigured

from project import environment

BASE_DIR = Path(__file__).resolve().parent.parent

env = environ.Env()
env.read_env(BASE_DIR / ".env")  # Only adds what the environment leaves out.


# Security

# Where nobody set a key or a host name, it is somebody's laptop. Elsewhere debugging must be asked for by name.
DEBUG = env.bool("DEBUG", default=not (env("SECRET_KEY", default="") or env("ALLOWED_HOSTS", default="")))
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["localhost", "127.0.0.1", "[::1]"])
SECRET_KEY = env("SECRET_KEY", default="")
if not SECRET_KEY:
    if not DEBUG:
        raise ImproperlyConfigured(
            "SECRET_KEY is not set, and DEBUG is off. Put SECRET_KEY=... into the environment, or into .env beside "
            'manage.py; python -c "import secrets; print(secrets.token_urlsafe(50))" makes one.'
        )
    SECRET_KEY = environment.development_key(BASE_DIR / "var" / "secret-key")


# Application

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_crontab",
    "anymail",
    "ninja",  # its page of the API's document, from here and from nowhere else
    "mailengine",
    "project.newsroom",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "project" / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
ROOT_URLCONF = "project.urls"
WSGI_APPLICATION = "project.wsgi.application"
LOGIN_REDIRECT_URL = "admin:index"
LANGUAGE_CODE = "en"
TIME_ZONE = env("TIME_ZONE", default="UTC")
USE_TZ = True
STATIC_URL = "static/"
STATIC_ROOT = BASE_DIR / "var" / "static"
MEDIA_ROOT = BASE_DIR / "var" / "media"
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    # Attachments of mail, which no web server is to serve.
    "mailengine": {
        "BACKEND": "django.core.files.storage.FileSystemStorage",
        "OPTIONS": {"location": BASE_DIR / "var" / "attachments"},
    },
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
]


# Database

_url = env("DATABASE_URL", default="") or "sqlite:///db.sqlite3"
DATABASES = {"default": environment.database(env.db_url_config(_url), BASE_DIR)}


# Mail

DEFAULT_FROM_EMAIL = env("DEFAULT_FROM_EMAIL", default="newsroom@localhost")
SERVER_EMAIL = env("SERVER_EMAIL", default=DEFAULT_FROM_EMAIL)
ADMINS: list[Any] = env.list("ADMINS", default=[])
if django.VERSION < (6, 0):
    ADMINS = [(address, address) for address in ADMINS]  # Pairs until 5.2, plain addresses from 6.0 on.

# All that Django itself sends goes to the queue, under "default"; the queue sends through the providers.
_providers = environment.providers(env)
MAILERS: dict[str, dict[str, Any]] = {"default": {"BACKEND": "mailengine.backends.EmailBackend"}, **_providers}
if django.VERSION < (6, 1):
    EMAIL_BACKEND = MAILERS["default"]["BACKEND"]  # From 6.1 on it must not exist beside MAILERS.

_order = env.list("MAIL_PROVIDERS", default=list(_providers))
MAILENGINE: dict[str, Any] = {"PROVIDERS": {alias: {} for alias in _order}}

# Where ESPs report what became of the mail: /anymail/<esp>/tracking/, which exists once there is a secret.
_secrets = [secret for secret in env.list("WEBHOOK_SECRET", default=[]) if secret]
for _secret in _secrets:
    if not all(_secret.partition(":")):
        raise ImproperlyConfigured("WEBHOOK_SECRET must be user:password, or several of them separated by commas.")
_keys = ["MAILGUN_WEBHOOK_SIGNING_KEY", "SENDGRID_TRACKING_WEBHOOK_VERIFICATION_KEY", "RESEND_SIGNING_SECRET"]
ANYMAIL: dict[str, Any] = {name: env(name) for name in _keys if env(name, default="")}
ANYMAIL["WEBHOOK_SECRET"] = _secrets


# Cron: `manage.py crontab add` writes these lines, and is to be repeated whenever they change.

CRONTAB_DJANGO_MANAGE_PATH = str(BASE_DIR / "manage.py")
CRONTAB_COMMENT = "mailengine"
CRONTAB_COMMAND_SUFFIX = "--skip-checks"  # its own command would print every warning each minute, for cron to mail
CRONJOBS = [
    ("* * * * *", "django.core.management.call_command", ["process_mail_jobs"], {"max_time": 50, "skip_checks": False}),
    ("* * * * *", "django.core.management.call_command", ["send_mail"], {"max_time": 50, "skip_checks": False}),
    ("* * * * *", "django.core.management.call_command", ["retry_deferred"], {"max_time": 50, "skip_checks": False}),
    ("17 3 * * *", "django.core.management.call_command", ["purge_mail"], {"days": 90, "skip_checks": False}),
]


# Logging: to stderr, and nothing below a warning, since cron mails whatever a command prints.

LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "{asctime} {levelname} {name}: {message}", "style": "{"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "loggers": {
        "mailengine": {"handlers": ["stderr"], "level": env("LOG_LEVEL", default="WARNING")},
        "django_crontab": {"handlers": ["stderr"], "level": "WARNING"},
    },
}
