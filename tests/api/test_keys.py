"""Who may use the API, and what a key lets its holder do."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from mailengine.models import ApiKey, Message

from .test_email import errors_of, mail


def send(caller, **headers):
    return caller.post("/email/send", mail(), **headers)


def test_of_a_key_nothing_is_kept_that_could_be_used(shop):
    row = ApiKey.objects.values().get()

    assert len(shop.secret) == 55
    assert shop.secret not in str(row)
    assert shop.secret.split("_", 2)[2] not in str(row)
    assert shop.secret.startswith(f"me_{row['prefix']}_")
    assert shop.secret not in repr(shop.key) + str(shop.key)


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer me_aaaaaaaa_" + "x" * 43, "Basic {secret}", "Bearer {secret}x", "Bearer {other}", "{secret}",
     "Bearer me_\u00e9", "Bearer {upper}"],
)  # fmt: skip
def test_whatever_is_wrong_with_a_key_is_answered_alike(shop, header):
    """SI2"""
    changed = shop.secret[:-1] + ("A" if shop.secret[-1] != "A" else "B")
    header = header.format(secret=shop.secret, other=changed, upper=shop.secret.upper())

    response = send(shop, Authorization=header)

    assert errors_of(response, 401) == {"base": "Give a valid key in the header: Authorization: Bearer me_…"}
    assert response["WWW-Authenticate"] == 'Bearer realm="mailengine"'
    assert not Message.objects.exists()


def test_a_key_ends_when_it_is_revoked_or_over(shop, caller):
    """SI1"""
    now = datetime.now(timezone.utc)
    over, good = caller(expires_at=now - timedelta(seconds=1)), caller(expires_at=now + timedelta(hours=1))
    assert send(shop).status_code == 200

    assert ApiKey.objects.filter(pk=shop.key.pk).revoke() == 1

    assert [send(each).status_code for each in (shop, over, good)] == [401, 401, 200]


def test_a_key_in_the_address_is_refused(shop):
    """SI3"""
    response = shop.browser.post(f"/email/send?api_key={shop.secret}", mail(), content_type="application/json")

    assert "Authorization" in errors_of(response, 400)["base"]


@pytest.mark.parametrize(
    ("networks", "address", "status"),
    [
        (["10.0.0.0/8"], "10.1.2.3", 200),
        (["10.0.0.0/8"], "192.0.2.1", 401),
        (["192.0.2.1"], "192.0.2.1", 200),
        (["2001:db8::/32", "10.0.0.0/8"], "2001:db8::7", 200),
        (["10.0.0.0/8"], "", 401),
    ],
)
def test_where_a_key_may_come_from(caller, networks, address, status):
    """SI1"""
    key = caller(networks=networks)
    response = key.browser.post(
        "/email/send", mail(), content_type="application/json", headers=key.headers, REMOTE_ADDR=address
    )

    assert response.status_code == status


@pytest.mark.parametrize(
    ("allowed", "sender", "is_allowed"),
    [
        (["news@example.org"], "news@example.org", True),
        (["news@example.org"], "NEWS@example.org", True),
        (["news@example.org"], "other@example.org", False),
        (["@example.org"], "other@example.org", True),
        (["@example.org"], "other@sub.example.org", False),
        (["@example.org"], "x@badexample.org", False),
        ([], "newsroom@localhost", True),
        ([], "news@example.org", False),
    ],
)
def test_a_key_sends_as_those_it_names(caller, settings, allowed, sender, is_allowed):
    """SI7; as the site itself, where it names none"""
    settings.DEFAULT_FROM_EMAIL = "The newsroom <newsroom@localhost>"
    response = caller(allowed_senders=allowed).post("/email/send", mail(fromEmail=sender))

    assert response.status_code == (200 if is_allowed else 422), response.content


def test_a_key_sends_no_more_than_its_rate(caller):
    """SI1, F-A06"""
    key = caller(rate="2/min, 1000/day")

    assert [send(key).status_code for _ in range(2)] == [200, 200]
    response = send(key)

    assert errors_of(response, 429) == {"base": "This key may send 2/min, 1000/day."}
    assert 0 < int(response["Retry-After"]) <= 70
    assert Message.objects.count() == 2


def test_what_is_refused_does_not_count_for_the_rate(caller):
    key = caller(rate="1/min")
    assert key.post("/email/send", mail(body="")).status_code == 422

    assert send(key).status_code == 200


def test_the_last_use_is_noted_once_in_a_while(shop):
    send(shop)
    shop.key.refresh_from_db()
    assert shop.key.last_used_at is not None

    with CaptureQueriesContext(connection) as queries:
        send(shop)

    shop.key.refresh_from_db()
    written = [query["sql"] for query in queries if query["sql"].startswith("UPDATE") and "apikey" in query["sql"]]
    assert len(written) <= 1


def test_the_body_is_not_read_before_the_key_is_known(shop):
    """SI5"""
    response = shop.browser.post("/email/send", b"x" * 300_000, content_type="application/json")

    assert response.status_code == 401
