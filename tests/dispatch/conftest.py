"""What the tests of the loop share."""

from __future__ import annotations

import pytest

from mailengine.testing import FakeProvider, SMTPServer


@pytest.fixture(autouse=True)
def _fresh():
    """Scripts of fake providers start anew."""
    FakeProvider.reset()
    yield
    FakeProvider.reset()


@pytest.fixture
def server(configure, settings):
    """A real SMTP server behind the one provider, "relay", which has one connection."""
    with SMTPServer() as server:
        configure()
        settings.MAILERS = {**settings.MAILERS, "relay": server.mailer()}
        settings.MAILENGINE = {**settings.MAILENGINE, "CONNECTIONS": 1}
        yield server


@pytest.fixture
def handed_over(monkeypatch):
    """Say by a function of (alias, email) what each handover comes to; they are listed as (alias, recipient, key).

    For outcomes whose making is tested elsewhere, at providers with real errors: here it matters what they lead to.
    """
    handovers = []

    def play(outcome_of):
        def hand_over(connection, email, *, until=None, key=""):
            handovers.append((connection.alias, email.to[0], key))
            return outcome_of(connection.alias, email)

        monkeypatch.setattr("mailengine.pipeline.senders.Connection.hand_over", hand_over)
        return handovers

    return play
