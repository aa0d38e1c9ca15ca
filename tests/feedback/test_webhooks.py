"""The webhooks as ESPs post them, through the project's own pages."""

from __future__ import annotations

import importlib
import json

import pytest
from django.db import OperationalError, connection
from django.test import Client
from django.urls import clear_url_caches

import project.urls

from ..models.helpers import begin, claim, make_message, new_lease
from .payloads import REQUESTS, SECRETS, post, request, send, signature_of_mailgun

pytestmark = [
    pytest.mark.django_db,
    # Anymail's views of SendGrid warn whenever they are made, and refusals are logged as what they are.
    pytest.mark.filterwarnings("ignore::anymail.exceptions.AnymailNotSupportedWarning"),
]


@pytest.fixture(params=sorted(REQUESTS))
def esp(request):
    if request.param == "amazon_ses":
        pytest.importorskip("boto3")
    return request.param


def in_doubt(provider: str):
    """A message whose handover to this provider has begun, and no more is known."""
    message, lease = make_message(), new_lease()
    claim(lease)
    begin(message, lease, provider=provider)
    return message


def is_proven(message) -> bool:
    message.refresh_from_db()
    [attempt] = message.attempts.all()
    assert (message.status == "sent") == (attempt.code == "webhook")
    return message.status == "sent"


def test_an_event_proves_that_the_esp_has_the_message(esps, pages, esp):
    message = in_doubt(esp)

    assert post(esp, str(message.pk)).status_code == 200

    assert is_proven(message)
    assert message.provider == esp
    assert message.provider_message_id


def test_the_secret_before_is_good_while_it_is_changed(esps, pages):
    message = in_doubt("postmark")

    assert post("postmark", str(message.pk), secret=SECRETS[1]).status_code == 200

    assert is_proven(message)


@pytest.mark.parametrize("secret", [None, "", ":", "esp:", ":new-secret", "esp:NEW-SECRET", "esp:new-secret:"])
def test_without_the_secret_nothing_happens(esps, pages, esp, secret):
    """F-W02."""
    message = in_doubt(esp)

    assert post(esp, str(message.pk), secret=secret).status_code in {400, 401}

    assert not is_proven(message)


@pytest.mark.parametrize("key", ["key-of-postmark", "", "key-of-mailgun "])
def test_the_signature_of_another_key_is_refused(esps, pages, key):
    """F-W02."""
    message = in_doubt("mailgun")

    assert post("mailgun", str(message.pk), key=key).status_code == 400

    assert not is_proven(message)


@pytest.mark.parametrize("change", ["removed", "emptied", "of another token"])
def test_a_request_of_mailgun_without_its_signature_is_refused(esps, pages, change):
    """F-W02."""
    message = in_doubt("mailgun")
    webhook = request("mailgun", str(message.pk))
    body = json.loads(webhook["data"])
    if change == "removed":
        del body["signature"]
    else:
        body["signature"]["signature"] = "" if change == "emptied" else signature_of_mailgun("1763700000", "other")

    assert send({**webhook, "data": json.dumps(body)}).status_code == 400

    assert not is_proven(message)


def test_one_esp_has_no_say_about_mail_at_another(esps, pages, esp, caplog):
    """SW3."""
    elsewhere = "postmark" if esp == "mailgun" else "mailgun"
    message = in_doubt(elsewhere)

    assert post(esp, str(message.pk)).status_code == 200

    assert not is_proven(message)
    assert str(message.pk) in caplog.text


@pytest.mark.parametrize("unknown", ["0190c0de-0000-7000-8000-000000000000", "garbage", "", "\u0000"])
def test_an_unknown_message_is_no_error(esps, pages, esp, unknown):
    """F-W05."""
    assert post(esp, unknown).status_code == 200


def test_a_purged_message_is_no_error(esps, pages, esp):
    """F-W05."""
    message = in_doubt(esp)
    message.delete()

    assert post(esp, str(message.pk)).status_code == 200


@pytest.mark.parametrize(
    "event", ["accepted", "delivered", "opened", "clicked", "unsubscribed", "complained", "failed"]
)
def test_whatever_became_of_it_mailgun_has_it(esps, pages, event):
    message = in_doubt("mailgun")

    post("mailgun", str(message.pk), event=event)

    assert is_proven(message)


def test_an_esp_posts_again_what_could_not_be_entered(esps, pages):
    """SW5: 2xx only after the commit."""
    message = in_doubt("postmark")

    def fail(execute, sql, params, many, context):
        if sql.startswith("UPDATE"):
            raise OperationalError("the server closed the connection")
        return execute(sql, params, many, context)

    with connection.execute_wrapper(fail):
        assert post("postmark", str(message.pk), client=Client(raise_request_exception=False)).status_code == 500
    assert not is_proven(message)

    assert post("postmark", str(message.pk)).status_code == 200
    assert is_proven(message)


@pytest.mark.parametrize("method", ["get", "put", "patch", "delete"])
def test_only_a_post_is_read(esps, pages, esp, method):
    """SW6."""
    assert getattr(Client(), method)(f"/anymail/{esp}/tracking/").status_code == 405


def test_without_a_secret_there_are_no_such_pages(esps, pages, settings, esp):
    settings.ANYMAIL = {"WEBHOOK_SECRET": []}
    importlib.reload(project.urls)
    clear_url_caches()

    assert post(esp, "0190c0de-0000-7000-8000-000000000000").status_code == 404
