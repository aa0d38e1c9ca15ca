from __future__ import annotations

import pytest

from mailengine import dispatch_slice
from mailengine.testing import SMTPServer
from tests.attachments import files

__all__ = ["files"]


@pytest.fixture
def server(configure, settings, files):
    """A real SMTP server as the only provider."""
    configure()
    with SMTPServer() as server:
        settings.MAILERS = {**settings.MAILERS, "relay": server.mailer()}
        yield server


@pytest.fixture
def sent(server):
    """Send what is queued; the mails that the server took, parsed."""

    def send():
        dispatch_slice()
        return [mail.message for mail in server.accepted]

    return send
