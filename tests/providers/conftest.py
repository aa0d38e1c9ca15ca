from __future__ import annotations

import functools
import shutil

import pytest

from mailengine.backends import dialogue

from .scripted import ScriptedServer, make_certificate


@pytest.fixture(params=[True, False], ids=["pipelined", "one by one"])
def pipelining(request, monkeypatch):
    """Whether servers offer PIPELINING: what a test says of a dialogue holds with it and without."""
    monkeypatch.setattr(ScriptedServer, "offers_pipelining", request.param)
    return request.param


@pytest.fixture
def quick_goodbye(monkeypatch):
    """Who says nothing when a dialogue is over is not waited for as long as usual."""
    monkeypatch.setattr(dialogue, "GOODBYE_SECONDS", 0.3)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A function that gives the certificate for `name`: the path of its PEM, and the server's side of TLS."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")

    @functools.cache
    def certificate(name="localhost", *, expired=False):
        return make_certificate(tmp_path_factory.mktemp("certificate"), name=name, expired=expired)

    return certificate
