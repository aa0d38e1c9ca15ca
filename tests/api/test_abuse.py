"""What a client with a valid key could do to a site, and what a site can do to itself."""

from __future__ import annotations

import json
import logging
import threading
import urllib.error
import urllib.request
from base64 import b64encode

import pytest
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.db import OperationalError, ProgrammingError
from django.db.backends.base.base import BaseDatabaseWrapper

import mailengine
from mailengine.api.backpressure import forget_depth
from mailengine.models import ApiKey, JobRecipients, Message, MessageJob
from mailengine.models.jobs import JobRecipientsQuerySet
from mailengine.pipeline.audience import _audiences

from .conftest import EVERYTHING, errors_of, problem_of
from .test_jobs import URL as JOBS
from .test_jobs import a_job
from .test_messages import URL, a_message


class TestAnswersStaySmall:
    @pytest.mark.parametrize("path", [URL, "/mail", JOBS])
    def test_to_a_million_mistakes(self, shop, path):
        body = a_job(recipients=[1] * 1_000_000) if path == JOBS else [1] * 1_000_000
        response = shop.post(path, body)

        assert response.status_code == 422
        assert len(response.content) < 1_000

    @pytest.mark.parametrize("path", [URL, "/mail", "/email/send", JOBS])
    def test_to_many_names_that_are_not_known(self, shop, path):
        response = shop.post(path, {f"x{n}": 1 for n in range(5_000)})
        assert response.status_code == 422
        assert len(response.content) < 20_000

        assert shop.post(path, {f"x{n}": 1 for n in range(10_001)}).status_code == 400

    def test_to_many_mails_with_mistakes(self, shop):
        mails = [a_message(to=[{"email": "bob"}] * 100)] * 100

        assert len(errors_of(shop.post(URL, mails))) == 100


def test_names_of_files_are_not_decoded_for_minutes(shop):
    file = {"filename": "=?utf-8?q?a?= " * 400_000, "content": ""}

    assert list(errors_of(shop.post(URL, a_message(attachments=[file])))) == ["#/attachments/0"]


@pytest.mark.parametrize(
    "name", ["shop/../secret", "shop/./welcome", "shop//welcome", "shop/..\\secret", "../shop/welcome"]
)
def test_templates_beside_those_of_its_scopes(caller, settings, tmp_path, name):
    for folder in ("shop", "."):
        (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / "secret.txt").write_text("the secret")
    (tmp_path / "shop" / "welcome.txt").write_text("welcome")
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [tmp_path]}]
    key = caller(scopes=["send:transactional", "template:shop/"])

    assert key.post(URL, a_message(text=..., template=name)).status_code in (403, 422)
    assert key.post(URL, a_message(text=..., template="shop/welcome")).status_code == 201


def test_a_full_queue_is_no_error_to_be_mailed(shop, settings, caplog):
    """Django has errors of the site mailed to ADMINS, by the queue that is full."""
    settings.MAILENGINE = {**settings.MAILENGINE, "API": {"QUEUE": 1}}
    shop.post(URL, [a_message()] * 3)
    forget_depth()
    assert problem_of(shop.post(URL, a_message()), 503)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("name", ["ACME", "Acme", "acme ", " acme", ""])
def test_clients_that_some_databases_take_for_one(db, name):
    with pytest.raises(ValidationError):
        ApiKey.objects.issue(name)


def test_wherever_its_urls_are(shop, settings):
    settings.ROOT_URLCONF = "tests.api.urls_elsewhere"
    response = shop.post(f"/post/one{URL}", a_message())

    assert response["Location"].startswith(f"/post/one{URL}/")
    assert shop.get(response["Location"]).status_code == 200
    job = shop.post(f"/post/one{JOBS}", a_job())
    assert shop.get(job["Location"]).json()["id"] == job.json()["id"]


class TestPartsWithinParts:
    @staticmethod
    def mail_of(levels):
        return b"Content-Type: message/rfc822\n\n" * levels + b"Subject: x\n\nHello."

    def attached(self, shop, levels):
        file = {"filename": "a.eml", "type": "message/rfc822", "content": b64encode(self.mail_of(levels)).decode()}
        return shop.post(URL, a_message(attachments=[file]))

    @pytest.mark.parametrize("levels", [31, 400, 5_000])
    def test_too_many(self, shop, levels):
        assert list(errors_of(self.attached(shop, levels))) == ["#/attachments/0"]

    def test_as_many_as_can_be_sent(self, shop, provider):
        assert self.attached(shop, 28).status_code == 201
        call_command("send_mail", verbosity=0)

        assert len(provider.accepted) == 1


def test_a_job_is_never_urgent(shop):
    for priority in ("urgent", "high", 10):
        assert list(errors_of(shop.post(JOBS, a_job(priority=priority)))) == ["#/priority"]
    assert shop.post(JOBS, a_job(priority="normal")).status_code == 201


def test_an_audience_counts_for_the_rate(caller):
    mailengine.audience("readers")(lambda: [f"r{n}@example.net" for n in range(3)])
    try:
        key = caller(rate="4/day")
        assert key.post(JOBS, a_job(recipients=..., audience="readers")).status_code == 201
        assert problem_of(key.post(JOBS, a_job(recipients=..., audience="readers")), 429)
    finally:
        del _audiences["readers"]


@pytest.mark.django_db(transaction=True)
def test_urgent_mails_at_the_same_time(live_server):
    """SI12"""
    _key, secret = ApiKey.objects.issue("shop", scopes=EVERYTHING, allowed_senders=["@example.org"])
    statuses, start = [], threading.Barrier(16)

    def post():
        body = json.dumps(a_message(priority="urgent")).encode()
        headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
        start.wait(30)
        try:
            with urllib.request.urlopen(urllib.request.Request(live_server.url + URL, body, headers)) as response:
                statuses.append(response.status)
        except urllib.error.HTTPError as error:
            with error:
                statuses.append(error.code)

    threads = [threading.Thread(target=post) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(statuses) == [201] * 5 + [429] * 11
    assert Message.objects.count() == 5


class TestTheSameRequestAgain:
    def test_gets_what_it_was_told_first(self, shop):
        location = shop.post(JOBS, a_job())["Location"]
        key = {"Idempotency-Key": "x"}
        first = shop.post(f"{location}/pause", **key).json()
        shop.post(f"{location}/resume")

        assert shop.post(f"{location}/pause", **key).json() == first
        assert (first["status"], shop.get(location).json()["status"]) == ("paused", "queued")

    def test_is_not_judged_again(self, shop, settings, tmp_path):
        (tmp_path / "welcome.txt").write_text("Welcome")
        settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [tmp_path]}]
        key = {"Idempotency-Key": "x"}
        first = shop.post(URL, a_message(template="welcome", text=...), **key)
        settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": []}]

        assert first.status_code == 201
        assert shop.post(URL, a_message(template="welcome", text=...), **key).json() == first.json()
        assert shop.post(URL, a_message(template="welcome", text="x"), **key).status_code == 422

    @pytest.mark.django_db(transaction=True)
    def test_stores_all_recipients_though_the_database_failed_meanwhile(self, shop, monkeypatch):
        usual, calls = JobRecipientsQuerySet.create, []

        def fails_first(self, **fields):
            calls.append(fields)
            if len(calls) == 1:
                raise OperationalError("server closed the connection unexpectedly")
            return usual(self, **fields)

        monkeypatch.setattr(JobRecipientsQuerySet, "create", fails_first)
        assert shop.post(JOBS, a_job(), **{"Idempotency-Key": "x"}).status_code == 201

        assert (len(calls), MessageJob.objects.count()) == (2, 1)
        assert len(JobRecipients.objects.get().entries) == 4


def test_a_fault_that_does_not_pass_is_ours(shop, monkeypatch):
    def broken(*args, **kwargs):
        raise ProgrammingError('relation "mailengine_apikey" does not exist')

    with monkeypatch.context() as patched:
        patched.setattr(BaseDatabaseWrapper, "cursor", broken)
        response = shop.get(URL)

    assert "mailengine" not in problem_of(response, 500)["detail"]


def test_what_is_no_object(shop):
    assert shop.post("/email/send", []).json() == {"errors": {"base": "is no object"}}
    assert shop.post("/mail", [5]).json()["errors"] == {"0": "is no object"}
    assert errors_of(shop.post(JOBS, [])) == {"#": "is no object"}


def test_data_of_a_recipient_is_blamed_by_its_place(shop):
    recipients = [{"email": "ann@example.net", "data": {"a": "b"}}, {"email": "bob@example.net", "data": {"a": "\0"}}]

    assert list(errors_of(shop.post(JOBS, a_job(recipients=recipients)))) == ["#/recipients/1/data"]


def test_the_site_s_streams_are_not_listed(shop):
    for response in (
        shop.post(URL, a_message(stream="x")),
        shop.post("/api/v1/suppressions", {"address": "a@b.de", "stream": "x"}),
    ):
        assert errors_of(response) == {"#/stream": "is none that this site has"}
