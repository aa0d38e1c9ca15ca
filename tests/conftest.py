"""The suite runs on the database that DATABASE_URL names: SQLite (the default), PostgreSQL, MariaDB or MySQL."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import django
import pytest
from django.db import connection

from mailengine.testing import FakeProvider
from mailengine.testing.clock import Clock

MEMORY = Path("/dev/shm")  # noqa: S108


@pytest.fixture(scope="session")
def django_db_modify_db_settings(django_db_modify_db_settings_parallel_suffix):
    """A file as SQLite's test database, one for each run: threads and processes can't share one in their memory.

    It lies in that of the system, where there is such a folder: the tests kill processes, not the machine, so no commit
    need wait for a disk.
    """
    with TemporaryDirectory(prefix="mailengine-", dir=MEMORY if MEMORY.is_dir() else None) as folder:
        if connection.vendor == "sqlite":
            connection.settings_dict["TEST"]["NAME"] = f"{folder}/test.sqlite3"
        yield


@pytest.fixture
def configure(settings):
    """Set the providers as scripts of FakeProvider, and further settings of MAILENGINE: `configure(ses={}, MAX=1)`."""

    def set_up(provider_options=None, /, **mailengine):
        options = {"relay": {}} if provider_options is None else provider_options
        settings.MAILERS = {
            "default": {"BACKEND": "mailengine.backends.EmailBackend"},
            **{alias: {"BACKEND": "mailengine.testing.FakeProvider", "OPTIONS": o} for alias, o in options.items()},
        }
        if django.VERSION < (6, 1):
            settings.EMAIL_BACKEND = "mailengine.backends.EmailBackend"
        settings.MAILENGINE = {"PROVIDERS": {alias: {} for alias in options}, **mailengine}

    return set_up


@pytest.fixture
def provider(configure):
    """One provider, "relay", which accepts everything; `.accepted` are the emails it took."""
    configure()
    FakeProvider.reset()
    yield FakeProvider.named("relay")
    FakeProvider.reset()


@pytest.fixture
def clock():
    """The database's clock, moved by hand: `clock.advance(minutes=5)`."""
    with Clock() as clock:
        yield clock
