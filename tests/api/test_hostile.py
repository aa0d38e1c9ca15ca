"""What a client must not get by asking oddly: more than its key allows, others' secrets, or a fault of ours."""

from __future__ import annotations

import gzip
import json
from http.client import HTTPConnection

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import call_command
from django.test import Client

from mailengine.models import MessageJob

from .conftest import errors_of, problem_of
from .test_messages import a_message

JOBS = "/api/v1/jobs"


def a_job(**changes):
    job = {"from": "shop@example.org", "subject": "News", "text": "Good morning.", "recipients": ["ann@example.net"]}
    return {name: value for name, value in {**job, **changes}.items() if value is not ...}


class TestAudiences:
    @pytest.mark.parametrize("audience", ["a@example.net", "a@example.net, b@example.net", "a b", "a;b", "", "x" * 101])
    def test_it_is_a_name_and_no_list_of_addresses(self, caller, audience):
        """A list there would be counted as one mail, and needed no scope."""
        key = caller(rate="1/min", scopes=["send:bulk"])

        assert list(errors_of(key.post(JOBS, a_job(recipients=..., audience=audience)))) == ["#/audience"]
        assert not MessageJob.objects.exists()

    def test_those_of_others_are_not_named(self, shop):
        answers = [shop.post(JOBS, a_job(recipients=..., audience=name)) for name in ("subscribers", "subscriber")]

        assert {response.status_code for response in answers} == {403}
        assert "subscribers" not in problem_of(answers[1], 403)["detail"]

    def test_one_that_is_gone(self, caller):
        key = caller(scopes=["send:bulk", "audience:gone"])

        assert list(errors_of(key.post(JOBS, a_job(recipients=..., audience="gone")))) == ["#/audience"]


class TestWhereNothingIs:
    @pytest.mark.parametrize(
        "path", ["", "/", "/nothing", "/messages/", "/messages/7/cancel/", "/jobs/7/8/9", "/mess%0aages", "/%00"]
    )
    @pytest.mark.parametrize("method", ["get", "post", "delete", "options"])
    def test_a_path_that_is_none(self, shop, path, method):
        response = getattr(Client(enforce_csrf_checks=True), method)(f"/api/v1{path}", headers=shop.headers)

        assert problem_of(response, 404)["detail"] == "Not found."

    @pytest.mark.parametrize("method", ["put", "patch", "options", "trace", "head"])
    def test_a_method_that_is_none(self, shop, method):
        """SI10: no preflight of another site's page is let through either."""
        headers = {**shop.headers, "Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        response = getattr(shop.browser, method)("/api/v1/messages", headers=headers)

        assert (response.status_code, response["Content-Type"]) == (405, "application/problem+json")
        assert response["Allow"] == "GET, POST"
        assert not [name for name in response.headers if name.startswith("Access-Control-")]

    def test_a_method_in_a_header_is_none(self, shop):
        response = shop.get(
            "/api/v1/suppressions", {"address": "a@example.org"}, **{"X-HTTP-Method-Override": "DELETE"}
        )

        assert response.json() == {"items": [], "next": None}


def test_the_session_of_an_admin_is_no_key(admin_client):
    """SI10"""
    assert problem_of(admin_client.get("/api/v1/messages"), 401)
    assert problem_of(admin_client.post(JOBS, a_job(), content_type="application/json"), 401)


def test_a_key_in_the_address_is_refused_whatever_it_is_called(shop):
    """SI3"""
    assert problem_of(shop.get("/api/v1/messages", {"q": [shop.secret, ""]}), 400)


class TestStrangeValues:
    def test_a_thousand_parameters(self, shop):
        query = "&".join(f"p{n}=1" for n in range(1_100))

        assert problem_of(shop.get(f"/api/v1/messages?{query}"), 400)
        assert problem_of(shop.browser.get(f"/api/v1/messages?{query}"), 400)

    @pytest.mark.parametrize("when", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", "1969-01-01T00:00:00Z"])
    @pytest.mark.parametrize("name", ["queued_from", "queued_until"])
    def test_times_that_no_database_knows(self, shop, name, when):
        assert list(errors_of(shop.get("/api/v1/messages", {name: when}))) == [name]

    @pytest.mark.parametrize("path", ["messages", "suppressions"])
    @pytest.mark.parametrize("stream", ["a\0b", "x" * 65])
    def test_streams_that_no_database_knows(self, shop, path, stream):
        assert list(errors_of(shop.get(f"/api/v1/{path}", {"stream": stream}))) == ["stream"]
        if path == "suppressions":
            query = {"address": "ann@example.net", "stream": stream}
            assert list(errors_of(shop.delete("/api/v1/suppressions", query))) == ["stream"]

    @pytest.mark.parametrize("name", ["a\ud800b", "a\0b", "a\r\nBcc: x@example.org", "a\u202eb", "a\u2028b"])
    def test_names_that_no_mail_can_hold(self, shop, name):
        person = {"email": "shop@example.org", "name": name}
        mail = {"from": person, "to": [person], "subject": "", "content": [{"type": "text/plain", "value": "Hello"}]}
        email = {"fromEmail": "shop@example.org", "toEmail": "a@example.net", "body": "Hello", "toName": name}

        assert list(errors_of(shop.post("/api/v1/messages", a_message(to=[person])))) == ["#/to/0/name"]
        assert list(errors_of(shop.post(JOBS, a_job(**{"from": person})))) == ["#/from/name"]
        assert list(shop.post("/mail", [mail]).json()["errors"]) == ["name"]
        assert list(shop.post("/email/send", {"email": email}).json()["errors"]) == ["toName"]

    @pytest.mark.parametrize("number", ["1e400", "-1e400", "[1e400]", "NaN", "Infinity"])
    def test_numbers_that_are_none(self, shop, number):
        body = json.dumps(a_message())[:-1] + f', "context": {{"a": {number}}}}}'

        assert problem_of(shop.post("/api/v1/messages", body), 400)

    @pytest.mark.parametrize("form", ["{%s}", "urn:uuid:%s", "%s%%0a", "%s%%20", "{%s", "%%00%s"])
    def test_an_id_is_written_in_one_way(self, shop, form):
        message = shop.post("/api/v1/messages", a_message()).json()["id"]

        assert shop.get(f"/api/v1/messages/{message.upper()}").status_code == 200
        assert problem_of(shop.get("/api/v1/messages/" + form % message), 404)
        assert problem_of(shop.get("/api/v1/messages/" + message.replace("-", "")), 404)


@pytest.mark.parametrize("kind", ["to", "cc", "bcc"])
def test_copies_fill_nobody_s_mailbox_either(shop, kind):
    """SI12"""
    victim = ["Victim <VICTIM@example.net>"]
    for number in range(5):
        people = {"to": [f"r{number}@example.net", *victim]} if kind == "to" else {kind: victim}
        mail = a_message(priority="urgent", **{"to": [f"r{number}@example.net"], **people})
        assert shop.post("/api/v1/messages", mail).status_code == 201

    for mail in (a_message(to=victim), a_message(cc=victim), a_message(to=["x@example.net", *victim])):
        response = shop.post("/api/v1/messages", {**mail, "priority": "urgent"})
        assert problem_of(response, 429)
        assert 3_500 < int(response["Retry-After"]) <= 3_600
    assert shop.post("/api/v1/messages", a_message(priority="urgent", to=["r0@example.net"])).status_code == 201


class TestTooMuch:
    """SI5"""

    @pytest.mark.parametrize(
        "changes",
        [
            {"metadata": {"a": "x" * 1_050_000}},
            {"context": {"a": "x" * 1_050_000}},
            {"tags": ["x"] * 300_000},
            {"headers": {"X-A": "x " * 525_000}},
            {"text": "ж" * 525_000},
        ],
    )
    def test_of_all_words_together(self, shop, changes):
        """MariaDB takes 16 MB in a statement, and each list of messages shows their metadata."""
        assert problem_of(shop.post("/api/v1/messages", a_message(**changes)), 413)
        assert problem_of(shop.post(JOBS, a_job(**changes)), 413)

    def test_of_addresses_for_answers(self, shop):
        people = [f"r{n}@example.net" for n in range(101)]

        assert list(errors_of(shop.post("/api/v1/messages", a_message(reply_to=people)))) == ["#/reply_to"]

    @pytest.mark.parametrize("subject", ["x " * 500, "ж " * 300, "x " * 500_000])
    def test_of_a_subject(self, shop, subject):
        mail = {"to": [{"email": "a@example.net"}], "from": {"email": "shop@example.org"}, "subject": subject,
                "content": [{"type": "text/plain", "value": "Hello"}]}  # fmt: skip
        email = {"fromEmail": "shop@example.org", "toEmail": "a@example.net", "body": "Hello", "subject": subject}

        assert list(errors_of(shop.post("/api/v1/messages", a_message(subject=subject)))) == ["#/subject"]
        assert list(errors_of(shop.post(JOBS, a_job(subject=subject)))) == ["#/subject"]
        assert list(shop.post("/mail", [mail]).json()["errors"]) == ["0.subject"]
        if len(subject) < 100_000:
            assert list(shop.post("/email/send", {"email": email}).json()["errors"]) == ["subject"]

    def test_of_the_words_of_a_mail(self, shop):
        mail = {"to": [{"email": "a@example.net"}], "from": {"email": "shop@example.org"}, "subject": "",
                "content": [{"type": "text/plain", "value": "x" * 1_050_000}]}  # fmt: skip

        assert list(shop.post("/mail", [mail]).json()["errors"]) == ["0.content"]

    def test_for_a_statement(self, shop):
        """MariaDB takes none over 16 MB, and a row has the data of 2,000 recipients."""
        recipients = [{"email": f"r{n}@example.net", "data": {"a": "x" * 4_000}} for n in range(2_000)]
        assert shop.post(JOBS, a_job(recipients=recipients)).status_code == 201

        recipients[7]["data"]["b"] = "x" * 1_000
        assert list(errors_of(shop.post(JOBS, a_job(recipients=recipients)))) == ["#/recipients/7/data"]

    def test_about_a_suppression(self, shop):
        entry = {"address": "ann@example.net", "detail": "x" * 501}

        assert list(errors_of(shop.post("/api/v1/suppressions", entry))) == ["#/detail"]


class TestTemplates:
    @pytest.fixture
    def templates(self, settings, tmp_path):
        (tmp_path / "reset.txt").write_text("{% url 'password_reset_confirm' uidb64=uid token=token %}")
        (tmp_path / "names.txt").write_text("{{ name }}")
        settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [tmp_path]}]

    @pytest.mark.parametrize("context", [{}, {"uid": "/", "token": "/"}])
    def test_one_that_fails_by_its_context(self, shop, templates, context):
        """What fails may tell of URLs, paths, values: the client hears that it failed."""
        body = {"subject": "Reset", "text": ..., "template": "reset", "context": context}

        told = errors_of(shop.post("/api/v1/messages", a_message(**body)))
        assert list(told) == ["#/template"]
        assert "reset/" not in told["#/template"]
        assert list(errors_of(shop.post(JOBS, a_job(**body)))) == ["#/template"]
        assert set(errors_of(shop.post(JOBS, a_job(**body, tags=["a\nb"])))) == {"#/tags", "#/template"}

    @pytest.mark.parametrize("name", ["{{ settings.SECRET_KEY }}", "{% include 'reset.txt' %}", "{% debug %}"])
    def test_what_comes_as_data_is_no_template(self, shop, templates, provider, name):
        shop.post("/api/v1/messages", a_message(text=..., template="names", context={"name": name}))
        shop.post(JOBS, a_job(text="{{ name }}", recipients=[{"email": "ann@example.net", "data": {"name": name}}]))
        call_command("process_mail_jobs", verbosity=0)
        call_command("send_mail", verbosity=0)

        assert [email.body.strip() for email in provider.accepted] == [name, name]

    @pytest.mark.parametrize(
        "name", ["../../../../../../etc/passwd", "/etc/passwd", "a\0b", "x" * 5_000, "..", "", "a\ud800"]
    )
    def test_what_is_outside_is_none(self, shop, name):
        assert list(errors_of(shop.post("/api/v1/messages", a_message(template=name)))) == ["#/template"]


class TestForms:
    @pytest.mark.parametrize("kind", ["multipart/mixed", "message/rfc822", "message/external-body"])
    def test_an_inline_image_is_no_mail(self, shop, kind):
        file = {"filename": "a.eml", "content": "aGk=", "type": kind, "content_id": "a"}

        assert list(errors_of(shop.post("/api/v1/messages", a_message(attachments=[file])))) == ["#/attachments/0"]
        assert problem_of(shop.post_form("/api/v1/messages", a_form(inline=SimpleUploadedFile("a", b"hi", kind))), 422)

    @pytest.mark.parametrize("name", ["a b.png", "a>b<.png", "ж.png", "x" * 129])
    def test_an_inline_image_is_called_by_an_id(self, shop, name):
        form = a_form(inline=SimpleUploadedFile(name, b"hi", "image/png"))

        assert "content id" in problem_of(shop.post_form("/api/v1/messages", form), 422)["detail"]

    def test_a_thousand_files(self, shop):
        form = a_form(attachment=[SimpleUploadedFile(f"{n}.txt", b"hi", "text/plain") for n in range(1_000)])

        assert "DATA_UPLOAD" not in problem_of(shop.post_form("/api/v1/messages", form), 413)["detail"]

    def test_a_file_is_no_message(self, shop):
        form = {"message": SimpleUploadedFile("m.json", json.dumps(a_message()).encode(), "application/json")}

        assert problem_of(shop.post_form("/api/v1/messages", form), 422)


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate, identity"])
def test_a_body_comes_as_it_is(shop, coding):
    """A small one may unpack to a large one."""
    body = gzip.compress(json.dumps(a_message()).encode())

    assert problem_of(shop.post("/api/v1/messages", body, **{"Content-Encoding": coding}), 415)


def a_form(**files):
    return {"message": json.dumps(a_message(html="<p>Hello")), **files}


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x"])
def test_a_body_of_unknown_length(live_server, shop, kind):
    """WSGI as Django has it reads none: a client is told that, and not that its JSON is broken."""
    http = HTTPConnection("127.0.0.1", live_server.thread.port, timeout=60)
    headers = {**shop.headers, "Content-Type": kind, "Transfer-Encoding": "chunked"}
    http.request("POST", "/api/v1/messages", iter([json.dumps(a_message()).encode()]), headers, encode_chunked=True)
    response = http.getresponse()

    assert (response.status, response.headers["Content-Type"]) == (411, "application/problem+json")
    assert "Content-Length" in json.load(response)["detail"]
    http.close()
