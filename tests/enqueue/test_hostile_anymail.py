"""The same values through Anymail: what passes the door is a well-formed call, and says what was meant.

The ESP is mailengine.testing.ESPServer, and Anymail's backends are its own.
"""

from __future__ import annotations

import pytest
from anymail.message import AnymailMessage

from mailengine import dispatch_slice, queue_message
from mailengine.errors import InvalidMail
from mailengine.models import Message
from mailengine.testing import ESPServer
from tests.hostile import MAIL, UNSAFE, VALUES

pytestmark = pytest.mark.django_db


@pytest.fixture(params=["postmark", "mailgun", "sendgrid"])
def esp(request, configure, settings, files):
    """A real HTTP server that speaks the API of an ESP, as the only provider."""
    configure()
    with ESPServer() as server:
        settings.MAILERS = {**settings.MAILERS, "relay": server.mailer(request.param)}
        server.name = request.param
        yield server


def an_email(**attributes):
    email = AnymailMessage("Hello", "Text", "Shop <shop@example.org>", ["ann@example.org"])
    for name, value in attributes.items():
        setattr(email, name, value)
    return email


def with_file(name):
    email = an_email()
    email.attach("a.pdf", b"%PDF", "application/pdf")
    email.attachments = [(name, b"%PDF", "application/pdf")]
    return email


FIELDS = {
    "subject": lambda value: an_email(subject=value),
    "text": lambda value: an_email(body=value),
    "a header": lambda value: an_email(extra_headers={"X-A": value}),
    "a name": lambda value: an_email(to=[f'"{value}" <ann@example.org>']),
    "a value in metadata": lambda value: an_email(metadata={"a": value}),
    "a name in metadata": lambda value: an_email(metadata={str(value): "1"}),
    "a tag": lambda value: an_email(tags=[value]),
    "a file's name": with_file,
}


@pytest.mark.parametrize("field", FIELDS)
def test_what_passes_the_door_is_accepted_or_dead_and_no_run_ends(esp, field):
    """F-X10"""
    queued = 0
    for value in VALUES.values():
        try:
            queue_message(FIELDS[field](value))
        except InvalidMail:
            continue
        queued += 1
    dispatch_slice()
    statuses = list(Message.objects.values_list("status", flat=True))
    assert (len(statuses), set(statuses) - {"sent", "dead"}) == (queued, set())
    assert statuses.count("sent") == len(esp.accepted) > 5
    assert all(mail.recipients == ("ann@example.org",) for mail in esp.accepted)


def test_what_an_esp_makes_headers_of_holds_no_line_break(esp):
    """F-X10: metadata and tags are headers of the mail that an ESP sends."""
    for value in UNSAFE.values():
        if "\n" not in str(value):
            continue
        for attributes in (
            {"tags": [value]},
            {"metadata": {"a": value}},
            {"metadata": {str(value): 1}},
            {"metadata": {"a": {"b": [value]}}},
            {"metadata": {"a": {str(value): 1}}},
            {"merge_metadata": {"ann@example.org": {"a": value}}},
            {"merge_metadata": {"ann@example.org": {str(value): 1}}},
            {"template_id": value},
        ):
            with pytest.raises(InvalidMail, match=next(iter(attributes))):
                queue_message(an_email(**attributes))


def test_words_of_any_script_arrive_as_they_were(esp):
    words = "Grüße 😀 \u202d\u05e9\u05dc\u05d5\u05dd\u202c \ue000 \\ \" ' %0d%0a &amp; {{ name }}"
    email = an_email(subject=words, body=words, metadata={"a": words}, tags=["grün"])
    email.attachments = [("Grüße 😀.pdf", b"%PDF", "application/pdf")]
    message = queue_message(email)
    dispatch_slice()
    message.refresh_from_db()
    assert (message.status, message.reason) == ("sent", "")
    fields = esp.accepted[0].fields
    if esp.name == "postmark":
        assert (fields["Subject"], fields["TextBody"], fields["Metadata"]["a"]) == (words, words, words)
        assert fields["Attachments"][0]["Name"] == "Grüße 😀.pdf"
    elif esp.name == "sendgrid":
        assert (fields["subject"], fields["content"][0]["value"]) == (words, words)
        assert fields["custom_args"]["a"] == words
        assert fields["attachments"][0]["filename"] == "Grüße 😀.pdf"
    else:
        assert (fields["subject"], fields["text"], fields["v:a"]) == ([words], [words], [words])


def test_metadata_of_any_depth_that_an_esp_does_not_take_is_dead(esp):
    """What an ESP makes of it is its own affair; the run goes on."""
    queue_message(an_email(metadata={"a": {"b": [1, {"c": None}]}}))
    behind = queue_message(an_email(subject=MAIL["subject"]))
    dispatch_slice()
    behind.refresh_from_db()
    assert behind.status == "sent"
    assert set(Message.objects.values_list("status", flat=True)) <= {"sent", "dead"}
