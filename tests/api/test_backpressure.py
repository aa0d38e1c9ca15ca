"""When the queue is too long, or the database away: what can wait is told to."""

from __future__ import annotations

import pytest
from django.db import OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper

from mailengine import queue_mail
from mailengine.api.backpressure import forget_depth
from mailengine.models import Message

from .conftest import problem_of
from .test_jobs import a_job
from .test_messages import URL as MESSAGES
from .test_messages import a_message

JOBS = "/api/v1/jobs"


@pytest.fixture
def queued(settings, shop):
    """Let so many messages wait, where 10 are as many as there should be."""
    settings.MAILENGINE = {**settings.MAILENGINE, "API": {"QUEUE": 10}}

    def queued(count):
        for number in range(count):
            queue_mail("Hello", "Good morning.", None, [f"r{number}@example.net"])
        forget_depth()

    return queued


def test_bulk_is_refused_before_other_mail(shop, queued):
    """F-A06"""
    queued(10)
    assert shop.post(MESSAGES, a_message(stream="bulk")).status_code == 201

    forget_depth()
    refused = shop.post(MESSAGES, a_message(stream="bulk"))
    assert "queue is full" in problem_of(refused, 503)["detail"]
    assert int(refused["Retry-After"]) > 0
    assert problem_of(shop.post(JOBS, a_job()), 503)
    assert shop.post(MESSAGES, a_message()).status_code == 201

    queued(10)
    assert problem_of(shop.post(MESSAGES, a_message()), 503)
    assert (
        shop.post(
            "/email/send", {"email": {"fromEmail": "a@example.org", "toEmail": "a@example.net", "body": "x"}}
        ).status_code
        == 503
    )
    assert shop.post(MESSAGES, a_message(priority="urgent")).status_code == 201
    assert not Message.objects.filter(stream="bulk", client="").exists()


def test_what_is_sent_makes_room(shop, queued):
    queued(11)
    assert problem_of(shop.post(MESSAGES, a_message(stream="bulk")), 503)
    Message.objects.update(status="sent")
    forget_depth()

    assert shop.post(MESSAGES, a_message(stream="bulk")).status_code == 201


def test_it_is_not_counted_with_each_request(shop, queued):
    queued(10)
    for _ in range(3):  # within the seconds that a count is believed
        assert shop.post(MESSAGES, a_message(stream="bulk")).status_code == 201


@pytest.mark.parametrize("method", ["get", "post"])
@pytest.mark.parametrize(
    "path", ["/api/v1/messages", "/api/v1/jobs", "/api/v1/suppressions", "/api/v1/jobs/7/pause", "/email/send", "/mail"]
)
def test_the_database_is_away(shop, monkeypatch, method, path):
    def away(*args, **kwargs):
        raise OperationalError("server closed the connection: password=hunter2")

    with monkeypatch.context() as patched:
        patched.setattr(BaseDatabaseWrapper, "cursor", away)
        response = getattr(shop, method)(path, {})

    if response.status_code == 405:
        return
    assert response.status_code == 503
    assert int(response["Retry-After"]) > 0
    assert b"hunter2" not in response.content
    assert response.json() in (
        {"errors": {"base": "Service unavailable"}},
        {"queued": False, "errors": {"base": "Service unavailable"}},
        {"type": "about:blank", "title": "Service Unavailable", "status": 503, "detail": "Service unavailable"},
    )
