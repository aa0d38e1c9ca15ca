"""One MAILERS, and one way to attach a MIME part, on every Django we support."""

from __future__ import annotations

from email.message import MIMEPart
from email.mime.base import MIMEBase
from email.mime.image import MIMEImage
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.parser import BytesParser
from email.policy import SMTP

import pytest
from django.conf import settings
from django.core import mail
from django.core.mail import EmailMessage
from django.core.mail.backends import filebased, locmem, smtp
from django.test import override_settings

from mailengine.compat import (
    InvalidMailer,
    MailerDoesNotExist,
    get_mailer,
    mailer_aliases,
    mailer_backend_path,
    mailer_options,
    mime_part,
)

RELAY = {"OPTIONS": {"host": "127.0.0.1", "port": 2525, "timeout": 3}}


def test_the_test_runner_collects_the_mail_of_every_alias():
    """No test of a project sends real mail, and it can tell which provider would have been used."""
    for alias in mailer_aliases():
        mailer = get_mailer(alias)
        assert isinstance(mailer, locmem.EmailBackend)
        assert mailer.send_messages([EmailMessage("Hello", "words", "a@example.org", ["b@example.org"])]) == 1
    assert [email.sent_using for email in mail.outbox] == mailer_aliases()


@override_settings(MAILERS={"relay": RELAY})
def test_a_test_that_overrides_mailers_gets_the_real_backend():
    mailer = get_mailer("relay")
    assert isinstance(mailer, smtp.EmailBackend)
    assert (mailer.host, mailer.port, mailer.timeout) == ("127.0.0.1", 2525, 3)
    assert mailer.alias == "relay"


@override_settings(MAILERS={"relay": RELAY})
def test_an_override_of_other_settings_hides_nothing():
    with override_settings(DEFAULT_FROM_EMAIL="x@example.org"):
        assert isinstance(get_mailer("relay"), smtp.EmailBackend)


def test_an_override_that_leaves_mailers_alone_stays_safe():
    with override_settings(DEFAULT_FROM_EMAIL="x@example.org"):
        assert isinstance(get_mailer("default"), locmem.EmailBackend)


def test_each_call_gives_a_backend_of_its_own(tmp_path):
    """Backends hold a connection: two threads must never share one."""
    path = "django.core.mail.backends.filebased.EmailBackend"
    with override_settings(MAILERS={"files": {"BACKEND": path, "OPTIONS": {"file_path": str(tmp_path)}}}):
        first, second = get_mailer("files"), get_mailer("files")
    assert isinstance(first, filebased.EmailBackend)
    assert first is not second


def test_an_unknown_alias_is_named():
    for ask in (get_mailer, mailer_backend_path, mailer_options):
        with pytest.raises(MailerDoesNotExist, match="nowhere"):
            ask("nowhere")


@pytest.mark.parametrize("entry", [{"BACKEND": "no.such.Backend"}, {"OPTIONS": {"alias": "other"}}])
def test_an_entry_that_cannot_be_used_names_its_alias(entry):
    with override_settings(MAILERS={"relay": entry}), pytest.raises(InvalidMailer, match=r"MAILERS\['relay'\]: "):
        get_mailer("relay")


@override_settings(MAILERS={"relay": RELAY, "other": {"BACKEND": "some.Backend"}})
def test_what_is_configured_can_be_read():
    assert mailer_aliases() == ["relay", "other"]
    assert mailer_backend_path("relay") == "django.core.mail.backends.smtp.EmailBackend"
    assert mailer_backend_path("other") == "some.Backend"
    assert mailer_options("other") == {}
    mailer_options("relay")["host"] = "elsewhere"
    assert settings.MAILERS["relay"]["OPTIONS"]["host"] == "127.0.0.1"


def image() -> MIMEBase:
    part = MIMEImage(bytes(range(256)) * 9, "png", name="logo.png")
    part["Content-ID"] = "<logo@example.org>"
    part.add_header("Content-Disposition", "inline", filename="logo.png")
    return part


def long_foreign_name() -> MIMEBase:
    part = MIMEText("BEGIN:VCALENDAR\nSUMMARY:Jörg\n", "calendar", "utf-8")
    part.set_param("method", "REQUEST")
    part.add_header("Content-Disposition", "attachment", filename=("utf-8", "", "Einladung für Jörg " * 5 + ".ics"))
    return part


def modern() -> MIMEPart:
    part = MIMEPart()
    part.set_content(b"\x00\r\n\xff" * 50, "application", "x-thing", filename="données été.bin", cid="<x@example.org>")
    return part


def eight_bit() -> MIMEBase:
    part = MIMEBase("text", "plain", charset="utf-8")
    part["Content-Transfer-Encoding"] = "8bit"
    part.set_payload("Grüße\n".encode().decode("ascii", "surrogateescape"))
    return part


def several() -> MIMEBase:
    part = MIMEMultipart("related", boundary="border")
    part.attach(MIMEText("<p>Hello</p>", "html"))
    part.attach(image())
    return part


@pytest.mark.parametrize("make", [image, long_foreign_name, modern, eight_bit, several])
def test_a_stored_part_is_attached_as_it_was(make):
    """Type, parameters, Content-ID, file name and payload arrive at the recipient; Django deprecates nothing of it."""
    original = make()
    email = EmailMessage("Hello", "words", "a@example.org", ["b@example.org"])
    email.attach(mime_part(original.as_bytes()))

    received = BytesParser(policy=SMTP).parsebytes(email.message().as_bytes())
    arrived = list(received.iter_parts())[1]
    assert [described(part) for part in arrived.walk()] == [described(part) for part in original.walk()]


def test_a_part_can_be_stored_again():
    """A mail that is queued twice, say by requeueing, must not wear off."""
    once = mime_part(image().as_bytes()).as_bytes()
    assert mime_part(once).as_bytes() == once


def test_bytes_that_are_no_part_do_no_harm():
    assert mime_part(b"\xff\x00 no header here").get_payload(decode=True)


def described(part) -> tuple[object, ...]:
    payload = None if part.is_multipart() else part.get_payload(decode=True)
    named = part.get_content_type(), part.get_param("method"), part.get_param("charset"), part.get_param("boundary")
    return (*named, part["Content-ID"], part.get_content_disposition(), part.get_filename(), payload)
