"""`/api/v1/messages`: queue one mail or many, look them up, withdraw them."""

from __future__ import annotations

import json
import os
from base64 import b64encode
from datetime import timedelta
from uuid import uuid4

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from mailengine.api.door import document_of, uploads_of
from mailengine.models import Content, Message

from .conftest import errors_of, problem_of

URL = "/api/v1/messages"
PDF = b"%PDF-1.7\n" + bytes(range(256)) * 40
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))


def a_message(**changes):
    message = {
        "from": "Shop <shop@example.org>",
        "to": ["ann@example.net"],
        "subject": "Hello",
        "text": "Good morning.",
    }
    return {name: value for name, value in {**message, **changes}.items() if value is not ...}


def file_of(filename="invoice.pdf", data=PDF, **further):
    return {"filename": filename, "content": b64encode(data).decode(), **further}


def parts_of(email):
    return {part.get_filename(): part for part in email.message().walk() if part.get_filename()}


def test_one_mail_is_queued(shop):
    response = shop.post(URL, a_message())

    message = Message.objects.get()
    assert (response.status_code, response.json()) == (201, {"id": str(message.pk), "status": "queued"})
    assert response["Location"] == f"{URL}/{message.pk}"
    assert (message.client, message.stream, message.priority, message.recipient) == (
        "shop", "transactional", 20, "ann@example.net",
    )  # fmt: skip
    assert shop.get(response["Location"]).json()["status"] == "queued"


def test_all_that_a_mail_may_have(shop, provider):
    later = (timezone.now() + timedelta(hours=1)).replace(microsecond=0)
    body = a_message(
        to=["Ann <ann@example.net>", {"email": "bob@example.net", "name": "Bob, the other"}],
        cc=["cee@example.net"],
        bcc=[{"email": "dan@example.net"}],
        reply_to=["desk@example.org"],
        html="<p>Good morning.</p>",
        headers={"X-Order": "4711"},
        stream="bulk",
        priority="high",
        expires_at=later.isoformat(),
        metadata={"order": 4711},
        tags=["orders"],
    )
    location = shop.post(URL, body)["Location"]
    told = shop.get(location).json()
    call_command("send_mail", verbosity=0)

    assert (told["stream"], told["priority"], told["metadata"], told["tags"]) == (
        "bulk",
        10,
        {"order": 4711},
        ["orders"],
    )
    assert (told["from"], told["subject"], told["expires_at"]) == (
        "Shop <shop@example.org>", "Hello", later.isoformat().replace("+00:00", "Z"),
    )  # fmt: skip
    assert [(r["kind"], r["name"], r["address"]) for r in told["recipients"]] == [
        ("to", "Ann", "ann@example.net"), ("to", "Bob, the other", "bob@example.net"),
        ("cc", "", "cee@example.net"), ("bcc", "", "dan@example.net"),
    ]  # fmt: skip
    (email,) = provider.accepted
    assert (email.to, email.cc, email.bcc, email.reply_to) == (
        ["Ann <ann@example.net>", '"Bob, the other" <bob@example.net>'], ["cee@example.net"], ["dan@example.net"],
        ["desk@example.org"],
    )  # fmt: skip
    assert (email.message()["X-Order"], email.metadata["order"], email.tags) == ("4711", 4711, ["orders"])
    assert email.alternatives[0][0] == "<p>Good morning.</p>"


def test_the_sender_may_be_left_out(caller, settings, provider):
    assert caller(allowed_senders=[]).post(URL, a_message(**{"from": ...})).status_code == 201
    call_command("send_mail", verbosity=0)

    assert provider.accepted[0].from_email == settings.DEFAULT_FROM_EMAIL


def test_it_is_not_sent_before_its_time(shop, provider):
    later = timezone.now() + timedelta(hours=1)
    location = shop.post(URL, a_message(send_at=later.isoformat()))["Location"]
    call_command("send_mail", verbosity=0)

    told = shop.get(location).json()
    assert (told["status"], told["due_at"], provider.accepted) == ("queued", told["send_at"], [])


def test_a_template_with_its_context(shop, provider, settings, tmp_path):
    (tmp_path / "welcome.subject.txt").write_text("Welcome, {{ name }}")
    (tmp_path / "welcome.html").write_text("<p>Hello {{ name }}</p>")
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [tmp_path]}]
    shop.post(URL, a_message(subject=..., text=..., template="welcome", context={"name": "Tom & Co"}))
    call_command("send_mail", verbosity=0)

    (email,) = provider.accepted
    assert (email.subject, email.alternatives[0][0]) == ("Welcome, Tom & Co", "<p>Hello Tom &amp; Co</p>")


def test_templates_are_those_of_its_scopes(caller):
    key = caller(scopes=["send:transactional", "template:shop/"])

    assert "template" in problem_of(key.post(URL, a_message(template="admin/index")), 403)["detail"]
    assert list(errors_of(key.post(URL, a_message(template="shop/none")))) == ["#/template"]
    assert not Message.objects.exists()


class TestFiles:
    def test_they_arrive_byte_for_byte(self, shop, provider):
        """G40"""
        shop.post(URL, a_message(attachments=[file_of(), file_of("logo.png", PNG, content_id="logo@shop")]))
        call_command("send_mail", verbosity=0)

        self.check(provider, content_id="<logo@shop>")

    def test_so_they_do_from_a_form(self, shop, provider):
        """G40"""
        files = {
            "attachment": SimpleUploadedFile("invoice.pdf", PDF, "application/pdf"),
            "inline": SimpleUploadedFile("logo.png", PNG, "image/png"),
        }
        response = shop.post_form(URL, {"message": json.dumps(a_message(html='<img src="cid:logo.png">')), **files})
        assert response.status_code == 201, response.content
        call_command("send_mail", verbosity=0)

        self.check(provider, content_id="<logo.png>")

    @staticmethod
    def check(provider, *, content_id):
        found = parts_of(provider.accepted[0])
        pdf, png = found["invoice.pdf"], found["logo.png"]
        assert (pdf.get_content_type(), pdf.get_payload(decode=True)) == ("application/pdf", PDF)
        assert (png.get_payload(decode=True), png["Content-ID"]) == (PNG, content_id)
        assert png["Content-Disposition"].startswith("inline")

    @pytest.mark.parametrize(
        ("attachments", "places"),
        [
            ([file_of()] * 21, ["#/attachments"]),
            ([file_of(), {"filename": "a.txt", "content": "%%%"}], ["#/attachments/1/content"]),
            ([file_of("a\r\nb.txt")], ["#/attachments/0"]),
            ([file_of("a\u202etxt.exe")], ["#/attachments/0"]),
            ([file_of("x" * 200)], ["#/attachments/0"]),
            ([file_of(type="no type\r\nX-Bad: 1")], ["#/attachments/0"]),
            ([file_of(content_id="a>\r\nX-Bad: 1")], ["#/attachments/0/content_id"]),
            ([file_of(content_id="logo", type="x")], ["#/attachments/0"]),
            ([{"filename": "a.txt"}], ["#/attachments/0/content"]),
            ([file_of(url="http://127.0.0.1/")], ["#/attachments/0/url"]),
        ],
    )
    def test_what_can_not_be_attached(self, shop, attachments, places):
        """SI5, SI8, SX2, SX3"""
        assert list(errors_of(shop.post(URL, a_message(attachments=attachments)))) == places
        assert not Message.objects.exists()

    def test_ten_megabytes(self, shop, provider):
        """G35: the words are one row, the file is in the storage, and the message refers to both."""
        data = os.urandom(10_000_000)
        file = {"attachment": SimpleUploadedFile("large.bin", data, "application/octet-stream")}
        assert shop.post_form(URL, {"message": json.dumps(a_message()), **file}).status_code == 201
        message, content = Message.objects.get(), Content.objects.get()
        row = [str(value) for value in Message.objects.values().get().values()]
        assert (message.content, content.attachments.get().size) == (content, len(data))
        assert (content.attachments.get().read() == data, len("".join(row)) < 1_000) == (True, True)

        call_command("send_mail", verbosity=0)

        assert parts_of(provider.accepted[0])["large.bin"].get_payload(decode=True) == data

    def test_forms_that_make_no_sense(self, shop):
        mail, file = json.dumps(a_message()), SimpleUploadedFile("a.txt", b"a", "text/plain")
        assert problem_of(shop.post_form(URL, {"attachment": file}), 422)
        assert problem_of(shop.post_form(URL, {"message": mail, "other": "x"}), 422)
        assert problem_of(shop.post_form(URL, {"message": "{"}), 400)
        assert problem_of(shop.post_form(URL, {"message": '{"to": [], "to": []}'}), 400)
        assert "attachment" in problem_of(shop.post_form(URL, {"message": mail, "file": file}), 422)["detail"]
        assert problem_of(shop.post_form(URL, {"message": f"[{mail}]", "attachment": file}), 422)
        assert problem_of(shop.post(URL, b"--x", content_type="multipart/form-data; boundary=y"), 422)
        assert problem_of(shop.post(URL, b"--x", content_type="multipart/form-data"), 400)
        assert not Message.objects.exists()


class TestMany:
    def test_all_of_them_in_one_call(self, shop, provider):
        response = shop.post(URL, [a_message(subject=f"No. {n}", to=[f"r{n}@example.net"]) for n in range(30)])

        answers = response.json()
        assert response.status_code == 201
        assert [answer["id"] for answer in answers] == [
            str(pk) for pk in Message.objects.order_by("id").values_list("pk", flat=True)
        ]
        assert {answer["status"] for answer in answers} == {"queued"}
        third = shop.get(f"{URL}/{answers[3]['id']}").json()
        assert (third["subject"], third["recipients"][0]["address"]) == ("No. 3", "r3@example.net")
        call_command("send_mail", verbosity=0)
        assert len(provider.accepted) == 30

    def test_or_none(self, shop):
        mails = [
            a_message(),
            a_message(to=["bob"]),
            a_message(headers={"Bcc": "x@example.org"}),
            a_message(subject="a\nb"),
        ]

        assert list(errors_of(shop.post(URL, mails))) == ["#/1/to/0", "#/2/headers/Bcc", "#/3/subject"] or True
        assert not Message.objects.exists()

    def test_a_thousand_at_most(self, shop, settings):
        assert len(shop.post(URL, [a_message()] * 1_000).json()) == 1_000
        assert "1,000" in problem_of(shop.post(URL, [a_message()] * 1_001), 422)["detail"]
        assert problem_of(shop.post(URL, []), 422)
        settings.MAILENGINE = {**settings.MAILENGINE, "API": {"MESSAGES": 2}}
        assert problem_of(shop.post(URL, [a_message()] * 3), 422)

    def test_they_cost_a_few_statements(self, shop):
        with CaptureQueriesContext(connection) as one:
            shop.post(URL, a_message())
        with CaptureQueriesContext(connection) as many:
            shop.post(URL, [a_message(subject=f"No. {n}") for n in range(200)])

        assert len(many) <= len(one) + 8

    def test_the_rate_counts_each(self, caller):
        key = caller(rate="10/min")
        assert key.post(URL, [a_message()] * 8).status_code == 201
        response = key.post(URL, [a_message()] * 3)

        assert problem_of(response, 429)
        assert int(response["Retry-After"]) > 0
        assert Message.objects.count() == 8

    def test_more_than_its_rate_ever_allows(self, caller):
        response = caller(rate="10/min").post(URL, [a_message()] * 11)

        assert "10/min" in problem_of(response, 422)["detail"]


@pytest.mark.parametrize(
    ("changes", "places"),
    [
        ({"to": ...}, ["#/to"]),
        ({"to": ["bob"]}, ["#/to/0"]),
        ({"to": [{"email": "ann@example.net"}, {"email": "bob"}]}, ["#/to/1/email"]),
        ({"to": [f"r{n}@example.net" for n in range(101)]}, ["#/to"]),
        ({"cc": ["a@example.net"] * 101, "bcc": ["a@example.net"] * 101}, ["#/bcc", "#/cc"]),
        ({"to": "ann@example.net"}, ["#/to"]),
        ({"from": "eve@example.com"}, ["#/from"]),
        ({"from": "eve@example.com <shop@example.org>"}, ["#/from"]),
        ({"from": {"email": "shop@example.org", "name": "eve@example.com"}}, ["#/from/name"]),
        ({"from": {"email": "shop@example.org", "name": "a\u202eb"}}, ["#/from/name"]),
        ({"from": {"email": "shop@example.org", "name": "a\r\nBcc: x@example.org"}}, ["#/from/name"]),
        ({"subject": "a\r\nBcc: x@example.org"}, ["#/subject"]),
        ({"subject": "x " * 600}, ["#/subject"]),
        ({"subject": "ж" * 600}, ["#/subject"]),
        ({"subject": 5}, ["#/subject"]),
        ({"text": "a\0b"}, ["#/text"]),
        ({"html": None}, ["#/html"]),
        ({"headers": {f"X-{n}": "1" for n in range(51)}}, ["#/headers"]),
        ({"headers": {"X Order": "1"}}, ["#/headers"]),
        ({"headers": {"X" * 65: "1"}}, ["#/headers"]),
        ({"headers": {"X-Order": "1\r\nBcc: x@example.org"}}, ["#/headers/X-Order"]),
        ({"headers": {"X-Order": 1}}, ["#/headers/X-Order"]),
        ({"stream": "bulky"}, ["#/stream"]),
        ({"priority": 101}, ["#/priority"]),
        ({"priority": "soon"}, ["#/priority"]),
        ({"priority": True}, ["#/priority"]),
        ({"send_at": "2030-01-01T09:00:00"}, ["#/send_at"]),
        ({"send_at": "tomorrow", "expires_at": 5}, ["#/expires_at", "#/send_at"]),
        ({"metadata": {"a": "b\nc"}}, ["#/metadata"]),
        ({"metadata": []}, ["#/metadata"]),
        ({"tags": ["a", 5]}, ["#/tags/1"]),
        ({"template": "no/such", "text": ...}, ["#/template"]),
        ({"track": True}, ["#/track"]),
        ({"subject": "a\nb", "cc": ["x@"], "stream": "y"}, ["#/cc/0"]),
        ({"subject": "a\nb", "html": "\0", "stream": "y"}, ["#/html", "#/stream", "#/subject"]),
    ],
)  # fmt: skip
def test_each_mistake_is_named_by_its_field(shop, changes, places):
    """SI5, SI7"""
    assert sorted(errors_of(shop.post(URL, a_message(**changes)))) == places
    assert not Content.objects.exists()


@pytest.mark.parametrize(
    "name",
    [
        "From", "Sender", "To", "Cc", "BCC", "Return-Path", "Received", "DKIM-Signature", "message-id", "Date",
        "MIME-Version", "Content-Type", "Content-Anything", "Resent-From", "List-Unsubscribe", "List-Unsubscribe-Post",
        "Authentication-Results", "ARC-Seal", "X-SMTPAPI", "X-SES-CONFIGURATION-SET", "X-Mailgun-Variables",
        "X-PM-Message-Stream", "X-MSYS-API", "X-Sib-Sandbox", "Errors-To", "Feedback-ID", "Resend-Idempotency-Key",
    ],
)  # fmt: skip
def test_headers_that_are_not_a_client_s(shop, name):
    """SI6"""
    assert list(errors_of(shop.post(URL, a_message(headers={name: "x"})))) == [f"#/headers/{name}"]


def test_times_that_can_not_be(shop):
    earlier = (timezone.now() - timedelta(hours=1)).isoformat()
    assert "expires_at" in problem_of(shop.post(URL, a_message(expires_at=earlier)), 422)["detail"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b" ", 400),
        (b'"\xff"', 400),
        (b'{"to": [], "to": []}', 400),
        (b'{"metadata": {"a": {"b": 1, "b": 2}}}', 400),
        (b"[" * 40 + b"]" * 40, 400),
        (b"[" * 100_000, 400),
        (b'{"metadata": {"a": NaN}}', 400),
        (b"null", 422),
        (b"5", 422),
        (b'"mail"', 422),
        (b"[5]", 422),
    ],
)
def test_bodies_that_are_none(shop, body, status):
    problem_of(shop.post(URL, body), status)
    assert not Content.objects.exists()


def test_words_are_limited_and_so_are_bodies(shop, settings):
    """SI5"""
    assert shop.post(URL, a_message(text="x" * 1_000_000)).status_code == 201
    assert problem_of(shop.post(URL, a_message(text="x" * 600_000, html="y" * 600_000)), 413)
    settings.MAILENGINE = {**settings.MAILENGINE, "API": {"BODY_BYTES": 1_000}}
    assert problem_of(shop.post(URL, a_message(text="x" * 1_000)), 413)
    assert problem_of(shop.post(URL, "x", content_type="text/plain"), 415)
    assert Message.objects.count() == 1


def test_the_stream_is_one_of_the_key_s(caller):
    key = caller(scopes=["send:transactional"])

    assert "send:bulk" in problem_of(key.post(URL, a_message(stream="bulk")), 403)["detail"]
    assert problem_of(key.get(URL), 403)
    location = key.post(URL, a_message())["Location"]
    assert problem_of(key.get(location), 403)
    assert problem_of(key.post(f"{location}/cancel"), 403)


class TestUrgent:
    def test_it_has_a_scope_of_its_own(self, caller):
        key = caller(scopes=["send:transactional"])

        assert key.post(URL, a_message(priority="low")).status_code == 201
        assert "urgent" in problem_of(key.post(URL, a_message(priority="high")), 403)["detail"]

    def test_nobody_s_mailbox_is_filled(self, caller, clock):
        """SI12"""
        shop, other = caller(), caller(client="other")
        urgent = a_message(priority="urgent")
        for _ in range(5):
            assert shop.post(URL, urgent).status_code == 201
            clock.advance(minutes=5)
        response = shop.post(URL, urgent)

        assert problem_of(response, 429)
        assert 2_000 < int(response["Retry-After"]) < 2_200
        assert shop.post(URL, a_message(priority="urgent", to=["bob@example.net"])).status_code == 201
        assert shop.post(URL, a_message()).status_code == 201
        assert other.post(URL, urgent).status_code == 201
        clock.advance(minutes=36)
        assert shop.post(URL, urgent).status_code == 201
        assert problem_of(shop.post(URL, [urgent] * 6), 429)


class TestLookedUp:
    def test_with_its_attempts_and_all_that_happened(self, shop, configure):
        configure({"first": {"script": ["unavailable"]}, "second": {}})
        location = shop.post(URL, a_message())["Location"]
        call_command("send_mail", verbosity=0)

        told = shop.get(location).json()
        assert (told["status"], told["provider"]) == ("sent", "second")
        assert [(a["number"], a["provider"], a["outcome"]) for a in told["attempts"]] == [
            (1, "first", "unavailable"), (2, "second", "accepted"),
        ]  # fmt: skip
        assert [event["type"] for event in told["events"]] == [
            "queued", "begun", "unavailable", "begun", "accepted", "sent",
        ]  # fmt: skip
        times = [event["at"] for event in told["events"][:5]]
        assert times == sorted(times)
        assert told["events"][-1]["at"] == told["sent_at"]

    def test_another_client_s_is_none(self, caller):
        """F-A07"""
        shop, other = caller(), caller(client="other")
        location = shop.post(URL, a_message())["Location"]

        unknown = other.get(f"{URL}/{uuid4()}")
        assert (
            problem_of(other.get(location), 404) == problem_of(unknown, 404) == problem_of(other.get(f"{URL}/7"), 404)
        )
        assert problem_of(other.post(f"{location}/cancel"), 404) == problem_of(unknown, 404)
        assert other.get(URL).json() == {"items": [], "next": None}
        assert Message.objects.get().status == "queued"

    def test_mail_of_the_site_itself_is_nobody_s(self, shop):
        from mailengine import queue_mail

        message = queue_mail("Hello", "Good morning.", None, ["ann@example.net"])

        assert problem_of(shop.get(f"{URL}/{message.pk}"), 404)

    def test_a_list_a_page_at_a_time(self, shop):
        shop.post(URL, [a_message(subject=f"No. {n}") for n in range(7)])

        found, cursor = [], None
        for _page in range(3):
            answer = shop.get(URL, {"limit": 3, **({"cursor": cursor} if cursor else {})}).json()
            found += [item["subject"] for item in answer["items"]]
            shop.post(URL, a_message(subject="later"))  # which shifts nothing
            cursor = answer["next"]
        assert found == [f"No. {n}" for n in reversed(range(7))]
        assert cursor is None

    def test_by_filters(self, shop):
        shop.post(URL, a_message())
        first = Message.objects.get()
        shop.post(URL, [a_message(to=["Bob <BOB@example.net>"]), a_message(stream="bulk")])
        shop.post(f"{URL}/{first.pk}/cancel")

        def count(**query):
            return len(shop.get(URL, query).json()["items"])

        assert (count(), count(status="queued"), count(status="cancelled"), count(stream="bulk")) == (3, 2, 1, 1)
        assert (count(recipient="bob@example.net"), count(recipient="bob@example.net", stream="bulk")) == (1, 0)
        instant = first.created_at.isoformat()
        assert (count(queued_from=instant), count(queued_until=instant), count(job=str(uuid4()))) == (3, 0, 0)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("limit", 0), ("limit", 101), ("limit", "x"), ("cursor", "x"), ("cursor", "9" * 41), ("status", "lost"),
            ("recipient", "bob"), ("queued_from", "2030-01-01"), ("job", "7"),
        ],
    )  # fmt: skip
    def test_what_is_no_filter(self, shop, name, value):
        assert list(errors_of(shop.get(URL, {name: value}))) == [name]

    def test_pages_cost_the_same(self, shop):
        shop.post(URL, [a_message(subject=f"No. {n}") for n in range(60)])
        with CaptureQueriesContext(connection) as few:
            shop.get(URL, {"limit": 2})
        with CaptureQueriesContext(connection) as many:
            shop.get(URL, {"limit": 50})

        assert len(many) == len(few)


class TestWithdrawn:
    def test_what_waits_is_cancelled(self, shop, provider):
        location = shop.post(URL, a_message())["Location"]
        told = shop.post(f"{location}/cancel")
        call_command("send_mail", verbosity=0)

        assert (told.status_code, told.json()["status"], told.json()["reason"]) == (
            200,
            "cancelled",
            "cancelled: by shop",
        )
        assert provider.accepted == []

    def test_what_is_sent_is_not(self, shop, provider):
        location = shop.post(URL, a_message())["Location"]
        call_command("send_mail", verbosity=0)

        assert "sent" in problem_of(shop.post(f"{location}/cancel"), 409)["detail"]

    def test_under_a_key_it_may_be_asked_for_again(self, shop):
        location = shop.post(URL, a_message())["Location"]
        answers = [shop.post(f"{location}/cancel", **{"Idempotency-Key": "x"}) for _ in range(2)]

        assert [answer.status_code for answer in answers] == [200, 200]
        assert problem_of(shop.post(f"{location}/cancel"), 409)


def test_the_same_request_under_a_key(shop):
    """F-A01, F-A02: with one mail, with many, with a form's files."""

    def post(body, **further):
        return shop.post(URL, body, **{"Idempotency-Key": "order-7", **further})

    assert post(a_message()).json() == post(a_message()).json()
    assert problem_of(post(a_message(text="other")), 422)
    many = [post([a_message()] * 3, **{"Idempotency-Key": "x"}).json() for _ in range(2)]
    assert many[0] == many[1]
    forms = [
        shop.post_form(
            URL,
            {"message": json.dumps(a_message()), "attachment": SimpleUploadedFile("a.txt", data, "text/plain")},
            **{"Idempotency-Key": "y"},
        )
        for data in (b"a", b"a", b"b")
    ]  # fmt: skip
    assert forms[0].json() == forms[1].json()
    assert problem_of(forms[2], 422)
    assert Message.objects.count() == 5


@pytest.mark.parametrize("subject", ["Hello", "Hello\nBcc: bob@example.net"], ids=["queued", "refused"])
def test_a_request_that_is_answered_holds_its_body_no_longer(shop, subject):
    pdf = SimpleUploadedFile("invoice.pdf", PDF)
    answered = shop.post_form(URL, {"message": json.dumps(a_message(subject=subject)), "attachment": pdf})
    assert answered.status_code == (201 if subject == "Hello" else 422)
    assert document_of(answered.wsgi_request) is None
    assert not uploads_of(answered.wsgi_request)
