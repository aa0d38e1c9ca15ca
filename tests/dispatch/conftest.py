"""What the tests of the loop share."""

from __future__ import annotations

import pytest

from mailengine.testing import SMTPServer


@pytest.fixture
def server(configure, settings):
    """A real SMTP server behind the one provider, "relay", which has one connection."""
    with SMTPServer() as server:
        configure()
        settings.MAILERS = {**settings.MAILERS, "relay": server.mailer()}
        settings.MAILENGINE = {**settings.MAILENGINE, "CONNECTIONS": 1}
        yield server
