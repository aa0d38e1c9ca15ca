"""N13: pytest finds `mail_queue` by itself, and the plugin is no burden to tests that don't use it."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from mailengine.testing import pytest_plugin
from tests.docs.pages import ROOT

PLUGIN = "mailengine.testing.pytest_plugin"
TESTS = """
def test_of_something_else():
    pass

def test_of_mail(mail_queue):
    pass
"""

WITHOUT_PYTEST_DJANGO = f"""
import importlib.util
import pytest

find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "pytest_django" else find_spec(name, package)
pytest.main(["-p", "no:django", "-p", "no:mailengine", "-p", "{PLUGIN}", "-p", "no:cacheprovider"])
"""
SETTINGS = """
SECRET_KEY = "x"
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "anymail", "mailengine"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}}
MAILERS = {"default": {"BACKEND": "mailengine.backends.EmailBackend"}, "relay": {}}
MAILENGINE = {"PROVIDERS": ["relay"]}
"""


@pytest.fixture
def outside(tmp_path):
    """Run a program elsewhere, where nothing is known of our settings."""

    def run(*arguments):
        keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={**keep, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def test_the_package_names_it_to_pytest():
    section = (ROOT / "pyproject.toml").read_text().partition("[project.entry-points.pytest11]\n")[2]
    assert re.match(r'mailengine = "(.+)"\n', section)[1] == pytest_plugin.__name__ == PLUGIN


def test_it_loads_nothing_of_django(outside):
    shown = outside("-c", f"import sys, {PLUGIN}; print(sorted({{m.partition('.')[0] for m in sys.modules}}))")
    assert shown.returncode == 0, shown.stderr
    assert "'mailengine'" in shown.stdout
    assert "'django'" not in shown.stdout
    assert "'anymail'" not in shown.stdout


def test_without_pytest_django_only_the_fixture_fails_and_says_what_to_install(outside, tmp_path):
    (tmp_path / "test_mail.py").write_text(TESTS)

    ended = outside("-c", WITHOUT_PYTEST_DJANGO)

    assert "1 passed, 1 error" in ended.stdout
    assert "The fixture mail_queue needs pytest-django: pip install pytest-django" in ended.stdout


def test_where_it_is_all_that_needs_a_database_there_is_one(outside, tmp_path):
    """pytest-django looks for who needs one before the first test begins."""
    (tmp_path / "settings.py").write_text(SETTINGS)
    (tmp_path / "test_mail.py").write_text("def test_it(mail_queue):\n    assert mail_queue.drain().is_empty\n")

    ended = outside(
        *("-m", "pytest", "-p", "no:mailengine", "-p", PLUGIN, "-p", "no:cacheprovider"),
        *("-o", "pythonpath=.", "--ds=settings"),
    )

    assert "1 passed" in ended.stdout, ended.stdout


def test_the_fixture_is_listed_with_what_it_is(outside):
    listed = outside("-m", "pytest", "--fixtures", "-p", "no:mailengine", "-p", PLUGIN, "-p", "no:cacheprovider")
    assert re.search(r"^mail_queue -- .*\n +The project's mail queue", listed.stdout, re.MULTILINE)
