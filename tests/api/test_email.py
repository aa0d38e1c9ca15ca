"""`POST /email/send` and `GET /email/status/<id>`, as other programs know them."""

from __future__ import annotations

import uuid

import pytest
from django.core.management import call_command
from django.db import OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper

from mailengine.models import Message
from mailengine.pipeline import enqueue

MAIL = {
    "fromEmail": "news@example.org",
    "fromName": "From Name",
    "toEmail": "ann@example.net",
    "toName": "To Name",
    "subject": "Test subject",
    "body": "Test body",
}


def mail(**changes):
    return {"email": {name: value for name, value in {**MAIL, **changes}.items() if value is not ...}}


def errors_of(response, status):
    assert response.status_code == status, response.content
    assert response["Content-Type"] == "application/json"
    assert list(response.json()) == ["errors"]
    return response.json()["errors"]


def test_one_mail_is_queued_and_none_is_sent(shop, provider):
    """G01, G04, G05, G34"""
    response = shop.post("/email/send", mail())

    assert (response.status_code, list(response.json())) == (200, ["messageId"])
    message = Message.objects.get()
    assert response.json()["messageId"] == str(message.pk)
    assert (message.status, message.stream, message.client, message.recipient) == (
        "queued", "transactional", "shop", "ann@example.net",
    )  # fmt: skip
    assert provider.accepted == []
    told = shop.get(f"/email/status/{message.pk}").json()
    assert (told["messageId"], told["status"], told["delivery"], told["sentAt"]) == (
        str(message.pk), "queued", None, None,
    )  # fmt: skip


def test_names_are_in_the_headers_where_they_are_given(shop, provider):
    """G03"""
    shop.post("/email/send", mail())
    shop.post("/email/send", mail(fromName=..., toName=..., subject=...))

    call_command("send_mail", verbosity=0)

    first, second = provider.accepted
    assert (first.from_email, first.to) == ("From Name <news@example.org>", ["To Name <ann@example.net>"])
    assert (second.from_email, second.to, second.subject) == ("news@example.org", ["ann@example.net"], "")
    sent = shop.get(f"/email/status/{Message.objects.first().pk}").json()
    assert sent["status"] == "sent"
    assert sent["sentAt"] is not None


@pytest.mark.parametrize(
    ("changes", "errors"),
    [
        ({"fromEmail": ...}, {"fromEmail": "From email is required"}),
        ({"toEmail": ...}, {"toEmail": "To email is required"}),
        ({"body": ...}, {"body": "Body is required"}),
        ({"body": "  \n"}, {"body": "Body is required"}),
        ({"fromEmail": "news"}, {"fromEmail": "From email is not a valid email"}),
        ({"toEmail": "Ann <ann@example.net>"}, {"toEmail": "To email is not a valid email"}),
        ({"toEmail": "a@b.c\r\nBcc: eve@example.com"}, {"toEmail": "To email is not a valid email"}),
        ({"fromEmail": "news@example.com"}, {"fromEmail": "From email is none that this key may send as"}),
        (
            {"fromEmail": "x", "toEmail": "", "body": ""},
            {
                "fromEmail": "From email is not a valid email",
                "toEmail": "To email is required",
                "body": "Body is required",
            },
        ),
        ({"body": 7}, {"body": "Body input should be a valid string"}),
        ({"replyTo": "ann@example.net"}, {"replyTo": "is not known here"}),
        ({"fromName": "bank@example.com"}, {"fromName": "From name can't be a name in a mail"}),
    ],
)
def test_each_wrong_field_is_named(shop, changes, errors):
    """G02, G07"""
    assert errors_of(shop.post("/email/send", mail(**changes)), 422) == errors
    assert not Message.objects.exists()


@pytest.mark.parametrize("subject", ["Hello\r\nBcc: eve@example.com", "Hello\x00"])
def test_a_subject_that_no_mail_can_have(shop, subject):
    errors = errors_of(shop.post("/email/send", mail(subject=subject)), 422)

    assert list(errors) == ["subject"]
    assert not Message.objects.exists()


@pytest.mark.parametrize(
    "body",
    [
        b" ", b"{", b'{"email": }', b"\xff\xfe", b'{"email": NaN}', b'{"email": {}, "email": {}}',
        b"[" * 40 + b"]" * 40, b"[" * 100_000, b'{"email": ' + b"9" * 5_000 + b"}",
    ],
)  # fmt: skip
def test_what_is_no_json(shop, body):
    """G06"""
    errors = errors_of(shop.post("/email/send", body), 400)

    assert list(errors) == ["base"]


@pytest.mark.parametrize(("more", "status"), [(0, 200), (1, 400)])
def test_a_body_over_the_limit(shop, settings, more, status):
    """G06"""
    document = '{"email": {"fromEmail": "news@example.org", "toEmail": "ann@example.net", "body": "%s"}}'
    body = document % ("x" * (204_800 - len(document) + 2 + more))

    assert shop.post("/email/send", body).status_code == status
    settings.MAILENGINE = {**settings.MAILENGINE, "API": {"EMAIL_BYTES": 50}}
    assert "larger than 50 bytes" in errors_of(shop.post("/email/send", mail()), 400)["base"]


def test_while_the_database_fails_it_is_unavailable(shop, monkeypatch):
    """G08"""

    def fails(*args, **kwargs):
        raise OperationalError("server closed the connection unexpectedly: password=secret")

    monkeypatch.setattr(enqueue, "store_message", fails)
    response = shop.post("/email/send", mail())

    assert errors_of(response, 503) == {"base": "Service unavailable"}
    assert int(response["Retry-After"]) > 0


def test_without_a_database_nobody_can_be_known(shop, monkeypatch):
    """G08"""

    def fails(*args, **kwargs):
        raise OperationalError("could not connect")

    with monkeypatch.context() as patch:
        patch.setattr(BaseDatabaseWrapper, "cursor", fails)
        answers = [shop.post("/email/send", mail()), shop.get(f"/email/status/{uuid.uuid4()}")]

    assert [errors_of(answer, 503) for answer in answers] == [{"base": "Service unavailable"}] * 2


def test_only_one_s_own_mail_can_be_looked_up(shop, caller):
    """F-A07"""
    mine = shop.post("/email/send", mail()).json()["messageId"]
    twin, other = caller(client="shop"), caller(client="other")

    assert twin.get(f"/email/status/{mine}").status_code == 200
    answers = [other.get(f"/email/status/{name}") for name in (mine, uuid.uuid4(), "12345678910")]
    assert [errors_of(answer, 404) for answer in answers] == [{"base": "Not found."}] * 3


def test_a_key_without_the_scope(caller):
    reader, sender = caller(scopes=["read"]), caller(scopes=["send:transactional"])

    assert errors_of(reader.post("/email/send", mail()), 403) == {"base": "This key has no scope 'send:transactional'."}
    mine = sender.post("/email/send", mail()).json()["messageId"]
    assert errors_of(sender.get(f"/email/status/{mine}"), 403) == {"base": "This key has no scope 'read'."}


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_only_json_is_read(shop, kind):
    assert list(errors_of(shop.post("/email/send", b'{"email": {}}', content_type=kind), 415)) == ["base"]
