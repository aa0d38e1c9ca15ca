"""Where attachments go in a test: `from tests.attachments import files` in a conftest makes it a fixture."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def files(settings, tmp_path):
    """The attachments kept, as a list of paths; each test starts with none."""
    folder = tmp_path / "attachments"
    backend = "django.core.files.storage.FileSystemStorage"
    settings.STORAGES = {**settings.STORAGES, "mailengine": {"BACKEND": backend, "OPTIONS": {"location": folder}}}

    def kept() -> list[Path]:
        return [path for path in folder.rglob("*") if path.is_file()]

    return kept
