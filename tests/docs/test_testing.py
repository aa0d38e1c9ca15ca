"""N13: the tests that a project is shown pass in a project of its own, and the words are those that providers know."""

import os
import re
import subprocess
import sys

import django
import pytest
from django.core.mail import EmailMessage
from django.core.management import call_command

from mailengine import testing
from mailengine.providers.connection import Connection
from mailengine.testing import FakeProvider, flaky_provider
from mailengine.testing.providers import ACTS
from tests.docs.pages import DOCS, ROOT, blocks, section, table

PAGE = DOCS / "how-to" / "test-your-project.md"
REFERENCE = section(DOCS / "reference" / "python.md", "## For tests")
PLUGIN = "mailengine.testing.pytest_plugin"
SETTINGS = """
INSTALLED_APPS += ["anymail", "mailengine"]
DATABASES["default"]["OPTIONS"] = {"transaction_mode": "IMMEDIATE", "timeout": 20}
"""
DJANGOS_OWN = """
from django.core import mail


def test_what_django_sends_is_queued_as_the_settings_say(mail_queue):
    mail.send_mail("Hello", "Good morning.", None, ["ann@example.org"])
    assert (mail.outbox, mail_queue.outbox) == ([], [])
    mail_queue.drain()
    assert [email.to for email in mail_queue.outbox] == [["ann@example.org"]]


def test_without_the_fixture_it_is_not(db):
    mail.send_mail("Hello", "Good morning.", None, ["ann@example.org"])
    assert len(mail.outbox) == 1
"""
ON_OLD_DJANGO = 'EMAIL_BACKEND = MAILERS["default"]["BACKEND"]\n'


@pytest.fixture
def project(tmp_path):
    """A project with the settings on the page, and each of its examples as a file of tests."""
    call_command("startproject", "paper", str(tmp_path))
    code = [block for block in blocks(PAGE) if block.language == "python"]
    [settings] = [block.code for block in code if "`settings.py`" in block.introduction]
    with (tmp_path / "paper" / "settings.py").open("a") as file:
        file.write(f"{SETTINGS}{settings}{ON_OLD_DJANGO if django.VERSION < (6, 1) else ''}")
    for number, block in enumerate(block for block in code if block.code != settings):
        (tmp_path / f"test_{number}.py").write_text(block.code)
    (tmp_path / "test_own.py").write_text(DJANGOS_OWN)
    return tmp_path


def test_the_examples_are_tests_that_pass(project):
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    ended = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:mailengine",
            "-p",
            PLUGIN,
        ],
        cwd=project,
        env={**keep, "PYTHONPATH": f"{ROOT}:{project}", "DJANGO_SETTINGS_MODULE": "paper.settings"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert ended.returncode == 0, ended.stdout
    written = sum(
        len(re.findall(r"^ *def test_", file.read_text(), re.MULTILINE)) for file in project.glob("test_*.py")
    )
    assert int(re.search(r"(\d+) passed", ended.stdout)[1]) >= written > 5


def test_every_public_name_is_on_the_page():
    names = {row[0].strip("`") for row in table(REFERENCE)}
    assert names == {"mail_queue", *testing.__all__}


def test_every_word_is_on_the_page_with_what_comes_of_it(settings):
    """The settings of a page's table are those of the code."""
    rows = {row[0].strip("`"): row[1:] for row in table(REFERENCE.split("What a fake provider does")[1])}
    assert set(rows) == set(ACTS)

    for word, (has_arrived, heard) in rows.items():
        FakeProvider.reset()
        settings.MAILERS = {"relay": flaky_provider(script=[word])}
        settings.MAILENGINE = {"PROVIDERS": ["relay"], "SEND_DEADLINE_SECONDS": 0.1}
        email = EmailMessage("Hello", "Good morning.", "desk@example.org", ["ann@example.org"])
        outcome = Connection("relay").hand_over(email)
        assert bool(FakeProvider.named("relay").accepted) == (has_arrived == "yes"), word
        assert outcome.kind == re.match(r"\w+", heard)[0], word
        assert outcome.address_is_bad == ("suppressed" in heard), word
        assert outcome.elsewhere == ("alone" in heard), word
    FakeProvider.reset()
