"""The project's settings on a throw-away database, for `manage.py demo` and for a look at what it left.

Everything is kept under DEMO_DIRECTORY; default: `var/demo` beside manage.py. Without a provider: the demo adds its
own once they listen, and nothing set up for the project itself can be reached from here.
"""

from __future__ import annotations

from pathlib import Path

from project import environment
from project.settings import *  # noqa: F403
from project.settings import BASE_DIR, STORAGES, env

DEMO_DIRECTORY = Path(env("DEMO_DIRECTORY", default="") or BASE_DIR / "var" / "demo").absolute()
DATABASES = {"default": environment.database(env.db_url_config(f"sqlite:///{DEMO_DIRECTORY}/db.sqlite3"), BASE_DIR)}
MEDIA_ROOT = DEMO_DIRECTORY / "media"
STORAGES = {
    **STORAGES,
    "mailengine": {
        "BACKEND": "django.core.files.storage.FileSystemStorage",
        "OPTIONS": {"location": DEMO_DIRECTORY / "attachments"},
    },
}

DEBUG = False
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
ADMINS = []
DEFAULT_FROM_EMAIL = SERVER_EMAIL = "The Daily Example <news@daily.example>"
MAILERS = {"default": {"BACKEND": "mailengine.backends.EmailBackend"}}
MAILENGINE = {"PROVIDERS": {}}
