from __future__ import annotations

import shutil
import subprocess

import pytest

from . import urls

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="needs a real browser: apt install chromium")
def test_in_a_real_browser_a_hostile_mail_does_nothing(live_server, settings, tmp_path):
    """SP1, SP2, SP3"""
    settings.ROOT_URLCONF = "tests.admin.urls"
    urls.loaded.clear()

    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--dump-dom"]
    profile = [f"--user-data-dir={tmp_path}", "--virtual-time-budget=3000"]
    browser = subprocess.run(
        [str(CHROMIUM), *options, *profile, f"{live_server.url}/preview/"], capture_output=True, text=True, timeout=60
    )

    assert "The mail itself" in browser.stdout
    assert "OWNED" not in browser.stdout
    assert urls.loaded == []
