"""What we rely on of Anymail's backend for SendGrid, whose tests Anymail itself no longer runs against SendGrid.

The fields are those of https://www.twilio.com/docs/sendgrid/api-reference/mail-send/mail-send.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from base64 import b64encode
from uuid import UUID

import pytest
from anymail.message import AnymailMessage

from mailengine.providers.connection import Connection
from mailengine.testing import ESPServer
from mailengine.testing.esp_server import Answer, in_turn

from .judgements import judgement

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))


@pytest.fixture
def server():
    with ESPServer() as server:
        yield server


@pytest.fixture
def hand_over(server, settings):
    settings.MAILERS = {"esp": server.mailer("sendgrid")}
    connection = Connection("esp")
    yield connection.hand_over
    connection.close()


def an_email(**kwargs):
    email = AnymailMessage("Grüße", "Hello.", "News <news@example.org>", ["Ann Lee <ann@example.org>"], **kwargs)
    email.metadata = {"mailengine_id": "0190", "issue": 7}
    return email


def test_a_mail_is_these_fields(server, hand_over):
    email = an_email(
        cc=["bob@example.org"],
        bcc=["Carl <carl@example.org>"],
        reply_to=["Desk <desk@example.org>"],
        headers={"Message-ID": "<0190@example.org>", "X-Mailengine-Id": "0190"},
    )
    email.attach("Über.txt", "a\r\nä\r\n", "text/plain")
    email.attach("data.bin", b"\x00\xff", "application/octet-stream")
    cid = email.attach_inline_image(PNG, filename="logo.png")
    email.attach_alternative(f'<img src="cid:{cid}">', "text/html")
    email.tags = ["issue"]
    email.track_clicks = False

    outcome = hand_over(email)

    (mail,) = server.accepted
    fields = dict(mail.fields)
    (personalization,) = fields.pop("personalizations")
    assert personalization == {
        "to": [{"email": "ann@example.org", "name": "Ann Lee"}],
        "cc": [{"email": "bob@example.org"}],
        "bcc": [{"email": "carl@example.org", "name": "Carl"}],
        "custom_args": {"anymail_id": outcome.provider_message_id},
    }
    assert fields == {
        "from": {"email": "news@example.org", "name": "News"},
        "reply_to_list": [{"email": "desk@example.org", "name": "Desk"}],
        "subject": "Grüße",
        "content": [
            {"type": "text/plain", "value": "Hello."},
            {"type": "text/html", "value": f'<img src="cid:{cid}">'},
        ],
        "attachments": [
            {
                "filename": "Über.txt",
                "type": 'text/plain; charset="utf-8"',
                "content": b64encode("a\r\nä\r\n".encode()).decode(),
            },
            {"filename": "data.bin", "type": "application/octet-stream", "content": b64encode(b"\x00\xff").decode()},
            {
                "filename": "logo.png",
                "type": "image/png",
                "content": b64encode(PNG).decode(),
                "disposition": "inline",
                "content_id": cid,
            },
        ],
        "headers": {"Message-ID": "<0190@example.org>", "X-Mailengine-Id": "0190"},
        "custom_args": {"mailengine_id": "0190", "issue": "7"},
        "categories": ["issue"],
        "tracking_settings": {"click_tracking": {"enable": False}},
    }
    assert mail.headers["authorization"] == "Bearer test"
    assert mail.headers["content-type"] == "application/json"


def test_the_id_we_keep_is_the_one_that_its_events_carry(hand_over):
    """Anymail puts it into the mail's arguments. SendGrid's own, X-Message-Id, is only the beginning of its events'."""
    outcome = hand_over(an_email())

    assert judgement(outcome) == "accepted"
    assert UUID(outcome.provider_message_id).version == 4


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (200, "accepted"),
        (202, "accepted"),
        (400, "refused"),
        (401, "misconfigured"),
        (403, "misconfigured"),
        (406, "misconfigured"),
        (413, "not here"),
        (415, "misconfigured"),
        (429, "throttled"),
        (451, "refused"),
        (500, "uncertain"),
        (503, "unavailable"),
    ],
)
def test_a_status_decides(server, hand_over, status, words):
    errors = {"errors": [{"message": "No", "field": None, "help": None}]}
    server.behave = in_turn(Answer(status, errors if status >= 400 else "", {"X-Message-Id": "14c5d75ce93"}))

    assert judgement(hand_over(an_email())) == words


def test_anymails_warning_is_no_error_where_warnings_are(server, settings):
    """It tells each time that Anymail tests SendGrid no longer, which nobody who runs a queue can change."""
    settings.MAILERS = {"esp": server.mailer("sendgrid")}
    connection = Connection("esp")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome = connection.hand_over(an_email())
    connection.close()

    assert judgement(outcome) == "accepted"


def test_anymails_warning_is_not_written_each_minute():
    """Cron mails whatever a command writes."""
    program = """
import django
from django.conf import settings
OPTIONS = {"api_key": "test", "api_url": "http://127.0.0.1:9/v3/"}
MAILERS = {"esp": {"BACKEND": "anymail.backends.sendgrid.EmailBackend", "OPTIONS": OPTIONS}}
settings.configure(INSTALLED_APPS=["mailengine"], MAILERS=MAILERS, MAILENGINE={"PROVIDERS": ["esp"]}, SECRET_KEY="x")
django.setup()
from django.core.mail import EmailMessage
from django.core.checks import run_checks
from mailengine.providers.connection import Connection
run_checks()
print(Connection("esp").hand_over(EmailMessage("Hello", "Hello.", "n@example.org", ["a@example.org"])).code)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (run.stdout, run.stderr) == ("ConnectionRefusedError\n", "")
