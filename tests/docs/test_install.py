"""Who follows the README or the tutorial, from an empty Django project on, gets what they were promised."""

import os
import re
import subprocess
import sys

import pytest
from django.core.management import call_command

from mailengine.testing import SMTPServer
from tests.docs.pages import DOCS, ROOT, Block, blocks

FILE = re.compile(r"`([\w./]+\.(?:py|txt|html))`")

NEWSLETTER = """
import re
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client
from news.models import Issue

call_command("makemigrations", "news", verbosity=0)
call_command("migrate", verbosity=0)
User.objects.create_superuser("editor", "editor@example.org", "secret")
{shell}
editor, visitor = Client(SERVER_NAME="localhost"), Client(SERVER_NAME="localhost")
editor.force_login(User.objects.get())
action = {{"action": "send_email_update", "_selected_action": [Issue.objects.get().pk]}}
page = editor.post("/admin/news/issue/", action).content.decode()
print("Button:", "Queue for 20 recipients" in page)
editor.post("/admin/news/issue/", {{**action, "token": re.search(r'name="token" value="([^"]+)"', page)[1]}})
call_command("process_mail_jobs")
visitor.post("/accounts/password_reset/", {{"email": "editor@example.org"}})
call_command("send_mail", limit=3)
print("The rest")
call_command("send_mail")
print("Nothing more")
call_command("send_mail")
"""


@pytest.fixture
def home(tmp_path):
    """An empty project called paper, with an empty app called news."""
    call_command("startproject", "paper", str(tmp_path))
    (tmp_path / "news").mkdir()
    call_command("startapp", "news", str(tmp_path / "news"))
    return tmp_path


def run(home, script):
    """What a program of this project prints; it knows nothing of ours but the package."""
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import django; django.setup()\n{script}"],
        cwd=home,
        env={**keep, "PYTHONPATH": str(ROOT), "DJANGO_SETTINGS_MODULE": "paper.settings"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def write(home, block: Block):
    """Do with a piece of the tutorial as the sentence before it says."""
    path = home / FILE.search(block.introduction)[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_text() if "to the end of" in block.introduction else ""
    path.write_text(f"{before}\n{block.code}")


def test_an_empty_project_sends_its_first_mail_by_the_readme(home):
    """C26"""
    settings, first_mail = [block.code for block in blocks(ROOT / "README.md") if block.language == "python"]
    with SMTPServer() as server:
        theirs = '"host": "smtp.example.com", "port": 587, "use_tls": True'
        assert theirs in settings
        settings = settings.replace(theirs, f'"host": "{server.host}", "port": {server.port}')
        with (home / "paper" / "settings.py").open("a") as file:
            file.write(settings)
        call = "from django.core.management import call_command"
        out = run(home, f'{call}\ncall_command("migrate", verbosity=0)\n{first_mail}\ncall_command("send_mail")')

    assert [mail.recipients for mail in server.accepted] == [("ann@example.org",)]
    assert out.startswith("send_mail: 1 sent in ")


def test_the_tutorial_ends_with_a_password_reset_that_overtakes_the_newsletter(home):
    """C26, C21"""
    pieces = blocks(DOCS / "tutorial" / "first-newsletter.md")
    for block in pieces:
        if FILE.search(block.introduction) and block.language in {"python", "django"}:
            write(home, block)
    [shell] = [block.code for block in pieces if block.introduction == "In the shell:"]

    out = run(home, NEWSLETTER.format(shell=shell))

    first, rest = out.split("The rest\n")
    assert "Button: True" in first
    assert "process_mail_jobs: 20 messages from 1 job in " in first
    assert re.findall(r"^Subject: (.*)$", first, re.MULTILINE) == [
        "Password reset on localhost",
        "Daily headlines",
        "Daily headlines",
    ]
    assert re.search(r"^send_mail: 3 sent in .* \(console 3\); 18 waiting, oldest ", first, re.MULTILINE)
    assert rest.count("Subject: Daily headlines") == 18
    assert rest.count("Hello Reader ") == 36  # in text and HTML
    assert rest.endswith("Nothing more\n")
