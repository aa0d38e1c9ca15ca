"""`POST /mail`: an array of mails, all of them or none."""

from __future__ import annotations

import pytest
from django.core.management import call_command

from mailengine.models import Message
from mailengine.pipeline import enqueue

HELLO = {"type": "text/plain", "value": "hello there, how are you doing?"}


def a_mail(**changes):
    mail = {
        "to": [{"email": "ann@example.net"}],
        "from": {"email": "postman@example.org"},
        "subject": "hello there",
        "content": [HELLO],
    }
    return {**mail, **changes}


def people(count):
    return [{"email": f"reader{number}@example.net"} for number in range(count)]


def errors_of(response):
    assert (response.status_code, response.json()["queued"]) == (422, False), response.content
    return response.json()["errors"]


def test_two_mails_are_queued_in_one_request(shop):
    """P01, P02, P05"""
    response = shop.post("/mail", [a_mail(), a_mail(subject="hello again")])

    assert response.status_code == 200
    assert (list(response.json()), response.json()["queued"]) == (["queued", "tracking-ids"], True)
    ids = response.json()["tracking-ids"]
    assert ids == sorted(ids) == [str(pk) for pk in Message.objects.order_by("id").values_list("pk", flat=True)]
    assert [shop.get(f"/email/status/{each}").json()["status"] for each in ids] == ["queued", "queued"]


def test_one_that_fails_takes_all_back(shop, monkeypatch):
    """P01"""
    usual, calls = enqueue._fields_of, []

    def second_fails(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise enqueue.InvalidMail("no")
        return usual(*args, **kwargs)

    monkeypatch.setattr(enqueue, "_fields_of", second_fails)

    assert errors_of(shop.post("/mail", [a_mail(), a_mail()])) == {"base": "no"}
    assert not Message.objects.exists()


def test_text_and_html_are_one_mail_for_all(shop, provider):
    """P04, G39"""
    mail = a_mail(
        to=[{"email": "ann@example.net", "name": "Ann"}, {"email": "bob@example.net"}],
        cc=[{"email": "cee@example.net"}],
        bcc=[{"email": "dan@example.net"}],
        content=[HELLO, {"type": "text/html", "value": "<p>hello there</p>"}],
    )
    assert shop.post("/mail", [mail]).status_code == 200

    call_command("send_mail", verbosity=0)

    (email,) = provider.accepted
    assert (email.to, email.cc, email.bcc) == (
        ["Ann <ann@example.net>", "bob@example.net"], ["cee@example.net"], ["dan@example.net"],
    )  # fmt: skip
    message = email.message()
    assert message.get_content_type() == "multipart/alternative"
    assert [part.get_content_type() for part in message.get_payload()] == ["text/plain", "text/html"]


@pytest.mark.parametrize(
    ("mails", "places"),
    [
        ([a_mail()] * 11, ["10"]),
        ([], ["0"]),
        ([a_mail(), a_mail(to=people(101))], ["1.to"]),
        ([a_mail(to=[])], ["0.to"]),
        ([a_mail(cc=people(101), bcc=people(101))], ["0.bcc", "0.cc"]),
        ([a_mail(), a_mail(to=[{"email": "ann@example.net"}, {"email": "bob"}])], ["1.to.1.email"]),
        ([a_mail(content=[])], ["0.content"]),
        ([a_mail(content=[HELLO, HELLO])], ["0.content.1.type"]),
        ([a_mail(content=[{"type": "text/calendar", "value": "x"}])], ["0.content.0.type"]),
        ([a_mail(**{"from": {"email": "eve@example.com"}})], ["0.from.email"]),
        ([a_mail(subject="a\nb")], ["0"]),
        ([a_mail(), {"to": [{"email": "ann@example.net"}]}], ["1.content", "1.from", "1.subject"]),
        ([a_mail(subject=None)], ["0.subject"]),
        ([a_mail(attachments=[])], ["0.attachments"]),
    ],
)
def test_what_is_wrong_is_named_by_its_place(shop, mails, places):
    """P03, P04, P35"""
    assert sorted(errors_of(shop.post("/mail", mails))) == places
    assert not Message.objects.exists()


@pytest.mark.parametrize("count", [1, 10])
def test_as_many_as_the_limits_say(shop, count):
    """P03"""
    response = shop.post("/mail", [a_mail(to=people(100), cc=people(100), bcc=people(100))] * count)

    assert len(response.json()["tracking-ids"]) == count


def test_the_limits_are_settings(shop, settings):
    """P03"""
    settings.MAILENGINE = {**settings.MAILENGINE, "API": {"MAILS": 2, "TO": 1}}

    assert list(errors_of(shop.post("/mail", [a_mail()] * 3))) == ["2"]
    assert list(errors_of(shop.post("/mail", [a_mail(to=people(2))]))) == ["0.to"]


@pytest.mark.parametrize("body", [{"mails": []}, '"hello"', 7, None])
def test_what_is_no_array(shop, body):
    assert shop.post("/mail", body).status_code == 422


def test_a_large_body_is_413(shop, settings):
    settings.MAILENGINE = {**settings.MAILENGINE, "API": {"BODY_BYTES": 100}}

    assert shop.post("/mail", [a_mail()] * 3).status_code == 413
