"""The circuit and the limits are a library of their own inside the app."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ..processes import ROOT


@pytest.mark.parametrize("module", ["circuit", "rate"])
def test_it_needs_no_django(module):
    done = import_without_django(module)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_needs_it_would_be_found_out():
    assert "ModuleNotFoundError" in import_without_django("hooks").stderr


def import_without_django(module: str) -> subprocess.CompletedProcess[str]:
    """What came of it in a process of its own, where there is no Django."""
    script = f"import sys; sys.modules['django'] = None; import mailengine.{module}"
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
