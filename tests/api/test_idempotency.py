"""`Idempotency-Key`: one request, however often it comes."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from unittest.mock import patch

import pytest
from django.db import connection

from mailengine.models import ApiKey, IdempotencyKey, Message
from mailengine.pipeline.enqueue import place_all
from mailengine.pipeline.purge import purge

from .conftest import EVERYTHING, problem_of
from .test_email import errors_of, mail
from .test_mail import a_mail


def test_the_same_request_gives_the_same_answer(shop):
    """F-A01"""
    answers = [shop.post("/email/send", mail(), **{"Idempotency-Key": "order-7"}).json() for _ in range(3)]

    assert answers == answers[:1] * 3
    assert Message.objects.count() == 1
    others = [shop.post("/mail", [a_mail(), a_mail()], **{"Idempotency-Key": "order-7"}).json() for _ in range(2)]
    assert (others[0] == others[1], Message.objects.count()) == (True, 3), "a key is that of an endpoint"


def test_another_request_under_the_same_key(shop):
    """F-A02"""
    shop.post("/email/send", mail(), **{"Idempotency-Key": "order-7"})
    response = shop.post("/email/send", mail(body="other words"), **{"Idempotency-Key": "order-7"})

    assert "Use a new key" in errors_of(response, 422)["base"]
    assert Message.objects.count() == 1


def test_another_client_s_key_is_another(caller):
    """F-A03"""
    shops = [caller(client="shop"), caller(client="other"), caller(client="shop")]
    ids = [each.post("/email/send", mail(), **{"Idempotency-Key": "order-7"}).json()["messageId"] for each in shops]

    assert (ids[0] == ids[2], ids[0] == ids[1], Message.objects.count()) == (True, False, 2)


def test_what_was_refused_is_no_answer(caller):
    key = caller(rate="1/min")
    key.post("/email/send", mail())
    refused = key.post("/email/send", mail(), **{"Idempotency-Key": "order-7"})
    assert refused.status_code == 429
    assert not IdempotencyKey.objects.exists()
    ApiKey.objects.update(rate="")

    assert key.post("/email/send", mail(), **{"Idempotency-Key": "order-7"}).status_code == 200


def test_an_answer_is_kept_for_a_day_at_least(shop, clock):
    shop.post("/email/send", mail(), **{"Idempotency-Key": "order-7"})
    clock.advance(seconds=86_000)
    purge(days=0)
    assert IdempotencyKey.objects.count() == 1

    clock.advance(seconds=1_000)
    purge(days=0)

    assert not IdempotencyKey.objects.exists()


@pytest.mark.parametrize("name", ["", "x" * 256, "a\tb"])
def test_what_is_no_key(shop, name):
    assert shop.post("/email/send", mail(), **{"Idempotency-Key": name}).status_code == 422
    assert not Message.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_of_fifty_at_a_time_one_is_queued(live_server):
    """F-A01, over real sockets."""
    _key, secret = ApiKey.objects.issue("shop", scopes=EVERYTHING, allowed_senders=["@example.org"])
    answers, start = [], threading.Barrier(50)

    def post():
        request = urllib.request.Request(
            f"{live_server.url}/email/send",
            json.dumps(mail()).encode(),
            {"Authorization": f"Bearer {secret}", "Idempotency-Key": "order-7", "Content-Type": "application/json"},
        )
        start.wait()
        while True:
            try:
                with urllib.request.urlopen(request, timeout=60) as response:
                    answers.append((response.status, json.load(response)["messageId"]))
            except urllib.error.HTTPError as error:
                answers.append((error.code, error.headers["Retry-After"]))
            except OSError:  # the server's queue of connections holds ten: ask again, which the key makes safe
                continue
            return

    threads = [threading.Thread(target=post) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    message = Message.objects.get()
    assert {status for status, _told in answers} <= {200, 409, 503}
    assert {told for status, told in answers if status == 200} == {str(message.pk)}
    assert all(int(told) > 0 for status, told in answers if status != 200)


@pytest.mark.skipif(connection.vendor == "sqlite", reason="there a writer waits for the whole database")
@pytest.mark.django_db(transaction=True)
def test_a_twin_that_takes_long(shop):
    """SI4, F-A01: it is told to ask again, and then gets the answer of the first."""
    url, key = "/api/v1/messages", {"Idempotency-Key": "order-7"}
    mail = {"from": "a@example.org", "to": ["ann@example.net"], "text": "Good morning."}
    writing, written = threading.Event(), threading.Event()
    first = []

    def slowly():
        try:
            with patch("mailengine.api.orders.place_all", lambda *args, **kw: slow_place(*args, **kw)):
                first.append(shop.post(url, mail, **key))
        finally:
            connection.close()

    def slow_place(*args, **kwargs):
        writing.set()
        assert written.wait(30)
        return place_all(*args, **kwargs)

    thread = threading.Thread(target=slowly)
    thread.start()
    try:
        assert writing.wait(30)
        told = shop.post(url, mail, **key)
    finally:
        written.set()
        thread.join()

    assert "under way" in problem_of(told, 409)["detail"]
    assert told["Retry-After"] == "1"
    assert shop.post(url, mail, **key).json() == first[0].json()
    assert Message.objects.count() == 1
    with connection.cursor() as cursor:  # the session waits as long as before
        cursor.execute(
            "SHOW lock_timeout" if connection.vendor == "postgresql" else "SELECT @@innodb_lock_wait_timeout"
        )
        assert cursor.fetchone()[0] in ("0", 50)
