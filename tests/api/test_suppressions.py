"""`/api/v1/suppressions`: look up, enter, lift."""

from __future__ import annotations

import pytest
from django.core.management import call_command

from mailengine import queue_mail
from mailengine.models import Message, Suppression

from .conftest import errors_of, problem_of

URL = "/api/v1/suppressions"


def test_entered_looked_up_and_lifted(shop, provider):
    response = shop.post(URL, {"address": "Ann <ANN@example.net>", "detail": "asked by telephone"})
    assert response.status_code == 201
    entry = response.json()
    assert {name: entry[name] for name in ("address", "stream", "reason", "detail")} == {
        "address": "ann@example.net", "stream": "", "reason": "manual", "detail": "asked by telephone",
    }  # fmt: skip
    assert shop.get(URL, {"address": "ann@example.net"}).json() == {"items": [entry], "next": None}
    assert shop.get(URL, {"address": "bob@example.net"}).json()["items"] == []
    queue_mail("Hello", "Good morning.", None, ["ann@example.net"])
    call_command("send_mail", verbosity=0)
    assert (Message.objects.get().status, provider.accepted) == ("suppressed", [])

    assert shop.delete(URL, {"address": "ann@example.net"}).json() == {"lifted": 1}
    assert not Suppression.objects.exists()
    assert problem_of(shop.delete(URL, {"address": "ann@example.net"}), 404)


def test_one_stream_of_several(shop):
    shop.post(URL, {"address": "ann@example.net", "stream": "bulk", "reason": "unsubscribed"})
    shop.post(URL, {"address": "ann@example.net"})

    assert len(shop.get(URL, {"address": "ann@example.net"}).json()["items"]) == 2
    (bulk,) = shop.get(URL, {"stream": "bulk"}).json()["items"]
    assert (bulk["reason"], bulk["detail"]) == ("unsubscribed", "by shop")
    assert shop.delete(URL, {"address": "ann@example.net", "stream": "bulk"}).json() == {"lifted": 1}
    assert Suppression.objects.get().stream == ""


def test_what_is_there_stays(shop):
    shop.post(URL, {"address": "ann@example.net", "reason": "complained"})

    assert shop.post(URL, {"address": "ann@example.net"}).json()["reason"] == "complained"
    assert Suppression.objects.count() == 1


def test_a_list_a_page_at_a_time(shop):
    for number in range(5):
        shop.post(URL, {"address": f"r{number}@example.net"})

    first = shop.get(URL, {"limit": 3}).json()
    second = shop.get(URL, {"limit": 3, "cursor": first["next"]}).json()
    addresses = [item["address"] for item in first["items"] + second["items"]]
    assert addresses == [f"r{number}@example.net" for number in reversed(range(5))]
    assert second["next"] is None


@pytest.mark.parametrize(
    ("body", "places"),
    [
        ({"address": "ann"}, ["#/address"]),
        ({}, ["#/address"]),
        ({"address": "ann@example.net", "stream": "bulky"}, ["#/stream"]),
        ({"address": "ann@example.net", "reason": "dislike"}, ["#/reason"]),
        ({"address": "ann@example.net", "detail": "a\nb"}, ["#/detail"]),
        ({"address": "ann@example.net", "since": "x"}, ["#/since"]),
    ],
)
def test_each_mistake_is_named_by_its_field(shop, body, places):
    assert list(errors_of(shop.post(URL, body))) == places
    assert not Suppression.objects.exists()


def test_what_is_no_filter(shop):
    assert list(errors_of(shop.get(URL, {"address": "ann"}))) == ["address"]
    assert list(errors_of(shop.get(URL, {"cursor": "9" * 30}))) == ["cursor"]
    assert list(errors_of(shop.get(URL, {"cursor": "x"}))) == ["cursor"]
    assert list(errors_of(shop.delete(URL))) == ["address"]


def test_it_has_a_scope_of_its_own(caller):
    key = caller(scopes=["send:transactional", "read", "cancel"])

    answers = [
        key.get(URL),
        key.post(URL, {"address": "ann@example.net"}),
        key.delete(URL, {"address": "a@example.net"}),
    ]
    assert [problem_of(answer, 403)["detail"] for answer in answers] == ["This key has no scope 'suppressions'."] * 3


def test_the_same_request_under_a_key(shop):
    answers = [shop.post(URL, {"address": "ann@example.net"}, **{"Idempotency-Key": "x"}).json() for _ in range(2)]

    assert answers[0] == answers[1]
