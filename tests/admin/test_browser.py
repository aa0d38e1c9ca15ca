from __future__ import annotations

import shutil
import subprocess

import pytest
from django.contrib.auth.models import User

from mailengine.clock import read_now
from mailengine.models import Attempt, ProviderState

from . import urls

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs a real browser: apt install chromium")
OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--dump-dom"]


@needs_browser
def test_in_a_real_browser_a_hostile_mail_does_nothing(live_server, settings, tmp_path):
    """SP1, SP2, SP3"""
    settings.ROOT_URLCONF = "tests.admin.urls"
    urls.loaded.clear()

    profile = [f"--user-data-dir={tmp_path}", "--virtual-time-budget=3000"]
    browser = subprocess.run(
        [str(CHROMIUM), *OPTIONS, *profile, f"{live_server.url}/preview/"], capture_output=True, text=True, timeout=60
    )

    assert "The mail itself" in browser.stdout
    assert "OWNED" not in browser.stdout
    assert urls.loaded == []


@needs_browser
@pytest.mark.parametrize("page", ["overview/", "overview/relay/"])
def test_in_a_real_browser_the_overview_of_providers_keeps_to_a_strict_policy(
    page, live_server, settings, tmp_path, configure, make_message
):
    """Colours and drawings come from files alone: a page that said `style=` somewhere would lose it, and be told."""
    configure({"relay": {}, "spare": {}}, PROVIDERS={"relay": {"RATE": "9/day"}})
    settings.ROOT_URLCONF = "tests.admin.urls"
    User.objects.create(username="root", is_staff=True, is_superuser=True)
    now = read_now("default")
    Attempt.objects.create(
        message=make_message(), number=1, provider="relay", outcome="unavailable", begun_at=now, ended_at=now
    )
    ProviderState.objects.create(alias="relay", is_open=True, opened_at=now, last_error="unavailable: HTTP 503")

    profile = [f"--user-data-dir={tmp_path}", "--virtual-time-budget=3000", "--enable-logging=stderr"]
    browser = subprocess.run(
        [str(CHROMIUM), *OPTIONS, *profile, f"{live_server.url}/{page}"], capture_output=True, text=True, timeout=60
    )

    assert 'class="mailengine-failed"' in browser.stdout
    assert "It says that it has trouble of its own." in browser.stdout
    assert "Content Security Policy" not in browser.stderr


@needs_browser
def test_in_a_real_browser_the_page_to_write_a_mail_keeps_to_a_strict_policy(live_server, settings, tmp_path):
    settings.ROOT_URLCONF = "tests.admin.urls"
    User.objects.create(username="root", is_staff=True, is_superuser=True)

    profile = [f"--user-data-dir={tmp_path}", "--virtual-time-budget=3000", "--enable-logging=stderr"]
    browser = subprocess.run(
        [str(CHROMIUM), *OPTIONS, *profile, f"{live_server.url}/compose/"], capture_output=True, text=True, timeout=60
    )

    assert 'id="compose_form"' in browser.stdout
    assert "Content Security Policy" not in browser.stderr
