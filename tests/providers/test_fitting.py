"""Headers that an ESP writes itself, and refuses from anybody else, are left out for it."""

from __future__ import annotations

import pytest
from django.core.mail import EmailMessage

from mailengine.providers.connection import Connection
from mailengine.testing import ESPServer
from mailengine.testing.esp_server import ESPS

from .judgements import judgement

OURS = {
    "Message-ID": "<0190@example.org>",
    "Date": "Sun, 22 Nov 2026 10:00:00 +0000",
    "List-Id": "<news.example.org>",
    "Auto-Submitted": "auto-generated",
    "X-Mailengine-Id": "0190",
}
WRITTEN_BY = {
    "brevo": {"date"},
    "mailjet": {"date", "list-id", "message-id"},
    "postmark": {"date"},
    "resend": {"date"},
}


def an_email(**headers):
    return EmailMessage("Hello", "Hello.", "news@example.org", ["ann@example.org"], headers={**OURS, **headers})


@pytest.fixture(params=sorted(ESPS))
def esp(request):
    if request.param == "amazon_ses":
        pytest.importorskip("boto3")
    return request.param


@pytest.fixture
def hand_over(esp, settings):
    with ESPServer() as server:
        settings.MAILERS = {"esp": server.mailer(esp)}
        connection = Connection("esp")
        yield lambda email: (connection.hand_over(email), server.accepted)
        connection.close()


def test_mail_with_all_our_headers_is_taken(hand_over, esp):
    email = an_email()
    outcome, accepted = hand_over(email)

    assert judgement(outcome) == "accepted"
    arrived = {name.lower() for name in accepted[0].own_headers}
    assert {name.lower() for name in OURS} - arrived == WRITTEN_BY.get(esp, set())
    assert email.extra_headers == OURS  # for the next provider


@pytest.mark.parametrize(("esp", "header"), [("mailjet", "User-Agent"), ("postmark", "Subject")], indirect=["esp"])
def test_another_header_that_it_refuses_is_for_another_provider(hand_over, header):
    outcome, accepted = hand_over(an_email(**{header: "Newsroom"}))

    assert (judgement(outcome), accepted) == ("not here", [])
