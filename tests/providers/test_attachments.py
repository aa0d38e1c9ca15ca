"""Files arrive at every ESP byte for byte, through the queue and Anymail's real backends."""

from __future__ import annotations

import random

import pytest
from anymail.message import AnymailMessage

from mailengine import dispatch_slice, queue_mail, queue_message
from mailengine.testing import ESPServer, SMTPServer
from mailengine.testing.esp_server import ESPS
from tests.attachments import files

__all__ = ["files"]

pytestmark = pytest.mark.django_db

MAIL = ("Hello", "Text", "shop@example.org")
RANDOM = random.Random(7).randbytes(70_001)
PNG = b"\x89PNG\r\n\x1a\n" + random.Random(8).randbytes(1001)
TEXTS = {
    "CRLF": b"one\r\ntwo\r\n",
    "LF": b"one\ntwo\n",
    "both": b"one\r\ntwo\nthree",
    "CR": b"one\rtwo",
    "empty lines at the end": b"one\r\n\r\n\n",
    "UTF-8": "Grüße\r\n".encode(),
    "Latin-1": "Grüße\r\n".encode("latin-1"),
    "UTF-16": "Grüße\r\n".encode("utf-16"),
    "a BOM": b"\xef\xbb\xbfone\r\n",
    "NUL": b"one\0two\n",
    "a long line": b"a" * 2000 + b"\n",
    "nothing": b"",
}
NO_TEXT = ("Latin-1", "NUL", "UTF-16")


@pytest.fixture(params=sorted(ESPS))
def esp(request):
    if request.param == "amazon_ses":
        pytest.importorskip("boto3")
    return request.param


@pytest.fixture
def server(esp, settings, configure, files):
    configure()
    with ESPServer() as server:
        settings.MAILERS = {**settings.MAILERS, "relay": server.mailer(esp)}
        yield server


@pytest.fixture
def arrived(server):
    """Send what is queued; the files of the one mail that arrived, by name."""

    def arrived():
        dispatch_slice()
        (mail,) = server.accepted
        return {file.name: file for file in mail.attachments}

    return arrived


def test_any_bytes(arrived, esp):
    queue_mail(
        *MAIL, ["ann@example.org"], attachments=[("Jahresübersicht 2026 (1).bin", RANDOM, "application/octet-stream")]
    )

    ((name, file),) = arrived().items()

    assert (name, file.content) == ("Jahresübersicht 2026 (1).bin", RANDOM)
    assert file.mimetype == ("" if esp == "brevo" else "application/octet-stream")


def queue_with(attachments, by):
    if by is queue_mail:
        return queue_mail(*MAIL, ["ann@example.org"], attachments=attachments)
    email = AnymailMessage(*MAIL, ["ann@example.org"])
    for attachment in attachments:
        email.attach(*attachment)
    return queue_message(email)


def texts(*left_out):
    return {f"{name} ü.txt": content for name, content in TEXTS.items() if name not in left_out}


@pytest.mark.parametrize("by", [queue_mail, queue_message], ids=lambda by: by.__name__)
def test_texts(arrived, esp, by):
    expected = texts(*NO_TEXT) if esp == "resend" else texts()
    queue_with([(name, content, "text/plain") for name, content in expected.items()], by)

    assert {name: file.content for name, file in arrived().items()} == expected


@pytest.mark.parametrize("esp", ["resend"], indirect=True)
@pytest.mark.parametrize("name", NO_TEXT)
def test_a_text_that_is_none_to_us_is_nothing_for_resend(server, name):
    """In another encoding it is bytes of no type, and Resend drops mail whose file has a name of another type."""
    message = queue_with([("list.txt", TEXTS[name], "text/plain")], queue_mail)

    dispatch_slice()

    message.refresh_from_db()
    assert (message.status, server.calls) == ("dead", 0)


@pytest.mark.parametrize("by", [queue_mail, queue_message], ids=lambda by: by.__name__)
def test_texts_by_smtp(configure, settings, files, by):
    configure()
    with SMTPServer() as server:
        settings.MAILERS = {**settings.MAILERS, "relay": server.mailer()}
        queue_with([(name, content, "text/plain") for name, content in texts().items()], by)
        dispatch_slice()

    (mail,) = server.accepted
    assert {part.get_filename(): part.get_payload(decode=True) for part in mail.message.iter_attachments()} == texts()


def with_inline_image():
    email = AnymailMessage(*MAIL, ["ann@example.org"])
    cid = email.attach_inline_image(PNG, filename="logo.png", idstring="logo", domain="example.org")
    email.attach_alternative(f'<img src="cid:{cid}">', "text/html")
    email.attach("data.bin", RANDOM, "application/octet-stream")
    return email, cid


def test_an_inline_image(server, arrived, esp):
    email, cid = with_inline_image()
    message = queue_message(email)
    if esp == "brevo":  # which has none
        dispatch_slice()
        message.refresh_from_db()
        assert (message.status, server.calls) == ("dead", 0)
        return

    found = {file.cid: file.content for file in arrived().values()}

    assert found == {cid: PNG, "": RANDOM}


@pytest.mark.parametrize("esp", ["brevo"], indirect=True)
def test_an_inline_image_that_brevo_has_no_place_for_goes_elsewhere(server, settings):
    settings.MAILERS = {**settings.MAILERS, "other": server.mailer("mailgun")}
    settings.MAILENGINE = {"PROVIDERS": ["relay", "other"]}
    email, cid = with_inline_image()
    message = queue_message(email)

    dispatch_slice()

    message.refresh_from_db()
    assert (message.status, message.provider) == ("sent", "other")
    assert cid in {file.cid for file in server.accepted[0].attachments}
