"""`/api/v1/jobs`: one mail to each of many."""

from __future__ import annotations

from uuid import uuid4

import pytest
from django.core.management import call_command
from django.utils import timezone

import mailengine
from mailengine import queue_job
from mailengine.conf import get_settings
from mailengine.models import Content, Message, MessageJob
from mailengine.outcomes import Kind, Outcome
from mailengine.pipeline.audience import _audiences
from mailengine.pipeline.partial import split_refused

from .conftest import errors_of, problem_of
from .test_messages import file_of

URL = "/api/v1/jobs"
MESSAGES = "/api/v1/messages"


@pytest.fixture
def readers():
    """An audience of two."""
    mailengine.audience("readers")(lambda: ["ann@example.net", "bob@example.net"])
    yield
    del _audiences["readers"]


def a_job(**changes):
    job = {
        "from": "news@example.org",
        "recipients": ["ann@example.net", "Bob <bob@example.net>", "ann@example.net", "nobody"],
        "subject": "News",
        "text": "Good morning.",
    }
    return {name: value for name, value in {**job, **changes}.items() if value is not ...}


def test_a_mail_to_each(shop, provider):
    response = shop.post(URL, a_job(attachments=[file_of()], tags=["news"]))
    job = MessageJob.objects.get()
    assert (response.status_code, response.json()) == (201, {"id": str(job.public_id), "status": "queued"})
    assert response["Location"] == f"{URL}/{job.public_id}"
    assert (job.client, job.stream, job.priority, job.source) == ("shop", "bulk", 40, "API: shop")

    call_command("process_mail_jobs", verbosity=0)
    call_command("send_mail", verbosity=0)
    call_command("process_mail_jobs", verbosity=0)

    told = shop.get(response["Location"]).json()
    assert (told["status"], told["progress"]) == ("done", {"sent": 2})
    assert (told["recipients"], told["messages"], told["duplicates"], told["malformed"]) == (4, 2, 1, 1)
    (bad,) = told["malformed_recipients"]
    assert (bad["line"], bad["address"]) == (4, "nobody")
    assert sorted(email.to for email in provider.accepted) == [["Bob <bob@example.net>"], ["ann@example.net"]]


def test_its_messages_are_the_client_s(caller):
    shop, other = caller(), caller(client="other")
    job = shop.post(URL, a_job()).json()["id"]
    call_command("process_mail_jobs", verbosity=0)

    found = shop.get(MESSAGES, {"job": job}).json()["items"]
    assert sorted(item["recipients"][0]["address"] for item in found) == ["ann@example.net", "bob@example.net"]
    assert {item["job"] for item in found} == {job}
    assert shop.get(f"{MESSAGES}/{found[0]['id']}").status_code == 200
    assert problem_of(other.get(f"{MESSAGES}/{found[0]['id']}"), 404)


def test_so_is_what_goes_on_by_itself(shop):
    """An address that was refused for now, where the server took the mail for others."""
    shop.post(MESSAGES, {"from": "a@example.org", "to": ["ann@example.net", "bob@example.net"], "text": "Hello."})
    outcome = Outcome(Kind.ACCEPTED, refusals={"bob@example.net": Outcome(Kind.DEFERRED, code="450")})
    (alone,) = split_refused(Message.objects.get(), outcome, now=timezone.now(), settings=get_settings())

    assert shop.get(f"{MESSAGES}/{alone.pk}").json()["status"] == "deferred"


def test_words_for_each(shop, provider):
    recipients = [
        {"email": "ann@example.net", "data": {"name": "Ann"}},
        {"email": "bob@example.net", "data": {"name": "Bob"}},
    ]
    shop.post(URL, a_job(recipients=recipients, subject="Hello {{ name }}"))
    call_command("process_mail_jobs", verbosity=0)
    call_command("send_mail", verbosity=0)

    assert sorted(email.subject for email in provider.accepted) == ["Hello Ann", "Hello Bob"]


def test_to_an_audience(shop, provider, readers):
    response = shop.post(URL, a_job(recipients=..., audience="readers"))
    call_command("process_mail_jobs", verbosity=0)

    told = shop.get(response["Location"]).json()
    assert (told["audience"], told["messages"], told["progress"]) == ("readers", 2, {"queued": 2})


def test_audiences_are_those_of_its_scopes(caller, readers):
    key = caller(scopes=["send:bulk"])

    assert "audience:readers" in problem_of(key.post(URL, a_job(recipients=..., audience="readers")), 403)["detail"]
    assert "send:transactional" in problem_of(key.post(URL, a_job(stream="transactional")), 403)["detail"]
    assert "urgent" in problem_of(key.post(URL, a_job(priority="normal")), 403)["detail"]
    assert key.post(URL, a_job()).status_code == 201


@pytest.mark.parametrize(
    ("changes", "places"),
    [
        ({"recipients": ...}, ["#/recipients"]),
        ({"audience": "readers"}, ["#/recipients"]),
        ({"recipients": []}, ["#/recipients"]),
        ({"recipients": "ann@example.net"}, ["#/recipients"]),
        ({"recipients": ["ann@example.net", 5]}, ["#/recipients/1"]),
        ({"recipients": [{"email": "ann@example.net", "data": {}}], "subject": "{{ a b }}"}, ["#/subject"]),
        ({"from": "eve@example.com"}, ["#/from"]),
        ({"subject": "a\nb"}, ["#/subject"]),
        ({"to": ["ann@example.net"]}, ["#/to"]),
    ],
)  # fmt: skip
def test_each_mistake_is_named_by_its_field(shop, readers, changes, places):
    assert list(errors_of(shop.post(URL, a_job(**changes)))) == places
    assert not Content.objects.exists()


def test_as_many_recipients_as_the_limits_say(shop, settings):
    settings.MAILENGINE = {**settings.MAILENGINE, "API": {"RECIPIENTS": 3}}

    assert list(errors_of(shop.post(URL, a_job()))) == ["#/recipients"]


def test_the_rate_counts_each(caller):
    key = caller(rate="10/min")

    assert key.post(URL, a_job()).status_code == 201
    assert key.post(URL, a_job()).status_code == 201
    assert problem_of(key.post(URL, a_job()), 429)
    assert problem_of(key.post(URL, a_job(recipients=["ann@example.net"] * 11)), 422)


class TestSteered:
    def test_paused_resumed_cancelled(self, shop, provider):
        location = shop.post(URL, a_job())["Location"]
        call_command("process_mail_jobs", verbosity=0)

        assert shop.post(f"{location}/pause").json()["status"] == "paused"
        call_command("send_mail", verbosity=0)
        assert provider.accepted == []
        assert problem_of(shop.post(f"{location}/pause"), 409)
        assert shop.post(f"{location}/resume").json()["status"] == "sending"
        assert problem_of(shop.post(f"{location}/resume"), 409)
        assert shop.post(f"{location}/cancel").json()["status"] == "cancelled"
        call_command("process_mail_jobs", verbosity=0)
        call_command("send_mail", verbosity=0)

        assert "cancelled" in problem_of(shop.post(f"{location}/cancel"), 409)["detail"]
        assert (provider.accepted, shop.get(location).json()["progress"]) == ([], {"cancelled": 2})

    def test_another_client_s_is_none(self, caller):
        """F-A07"""
        shop, other, lame = caller(), caller(client="other"), caller(scopes=["send:bulk"])
        location = shop.post(URL, a_job())["Location"]

        unknown = problem_of(other.get(f"{URL}/{uuid4()}"), 404)
        assert problem_of(other.get(location), 404) == problem_of(other.get(f"{URL}/7"), 404) == unknown
        for verb in ("pause", "resume", "cancel"):
            assert problem_of(other.post(f"{location}/{verb}"), 404) == unknown
            assert problem_of(lame.post(f"{location}/{verb}"), 403)
        assert problem_of(lame.get(location), 403)
        assert MessageJob.objects.get().status == "queued"

    def test_a_job_of_the_site_itself_is_nobody_s(self, shop):
        job = queue_job("News", "Good morning.", None, ["ann@example.net"])

        assert problem_of(shop.get(f"{URL}/{job.public_id}"), 404)


def test_a_list_a_page_at_a_time(caller):
    shop, other = caller(), caller(client="other")
    ids = [shop.post(URL, a_job(subject=f"No. {n}")).json()["id"] for n in range(5)]
    other.post(URL, a_job())
    shop.post(f"{URL}/{ids[1]}/cancel")

    first = shop.get(URL, {"limit": 3}).json()
    second = shop.get(URL, {"limit": 3, "cursor": first["next"]}).json()
    assert [item["id"] for item in first["items"] + second["items"]] == ids[::-1]
    assert second["next"] is None
    assert [item["id"] for item in shop.get(URL, {"status": "cancelled"}).json()["items"]] == [ids[1]]
    assert list(errors_of(shop.get(URL, {"status": "lost", "cursor": "x"}))) == ["status"]


def test_the_same_request_under_a_key(shop):
    """F-A01, F-A02"""
    first, second = [shop.post(URL, a_job(), **{"Idempotency-Key": "x"}).json() for _ in range(2)]
    assert first == second
    assert problem_of(shop.post(URL, a_job(text="other"), **{"Idempotency-Key": "x"}), 422)
    location = f"{URL}/{first['id']}"
    assert [shop.post(f"{location}/pause", **{"Idempotency-Key": "y"}).status_code for _ in range(2)] == [200, 200]

    assert MessageJob.objects.count() == 1
