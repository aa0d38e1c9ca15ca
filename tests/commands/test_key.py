"""`mail_key`: keys to the HTTP API are made, listed and revoked."""

from __future__ import annotations

import pytest
from django.core.management import CommandError, call_command

from mailengine.models import ApiKey

pytestmark = pytest.mark.django_db


def test_a_key_is_shown_once(said):
    secret = said(
        "mail_key", "create", "shop", "--sender", "@shop.example", "--rate", "100/min", "--days", "30"
    ).strip()

    key = ApiKey.objects.authenticate(secret, address="")
    assert (key.client, key.allowed_senders, key.rate) == ("shop", ["@shop.example"], "100/min")
    assert key.scopes == ["send:transactional", "read", "cancel"]
    assert 29 <= (key.expires_at - key.created_at).days <= 30
    listed = said("mail_key", "list")
    assert f"me_{key.prefix}  shop  until " in listed
    assert secret not in listed


def test_as_json(said_as_json):
    made = said_as_json("mail_key", "create", "shop", "--scope", "read", "--network", "10.0.0.0/8")

    assert ApiKey.objects.authenticate(made["key"], address="10.0.0.1").scopes == ["read"]
    (listed,) = said_as_json("mail_key", "list")["keys"]
    assert (listed["client"], listed["begins_with"], listed["networks"]) == (
        "shop", made["begins_with"], ["10.0.0.0/8"],
    )  # fmt: skip
    assert "key" not in listed
    assert said_as_json("mail_key", "revoke", made["begins_with"])["revoked"] == 1
    assert ApiKey.objects.authenticate(made["key"], address="10.0.0.1") is None


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["create", "shop", "--scope", "all"], "scopes"),
        (["create", "shop", "--sender", "shop"], "allowed_senders"),
        (["create", "shop", "--network", "here"], "networks"),
        (["create", "shop", "--rate", "fast"], "rate"),
        (["create", "x" * 51], "client"),
        (["revoke", "me_nothing"], "me_nothing"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, word):
    with pytest.raises(CommandError) as caught:
        call_command("mail_key", *arguments)

    assert word in str(caught.value)
    assert caught.value.returncode == 2
    assert not ApiKey.objects.exists()


def test_a_key_that_is_not_known_revokes_none():
    key, _secret = ApiKey.objects.issue("shop")
    with pytest.raises(CommandError):
        call_command("mail_key", "revoke", f"me_{key.prefix}", "me_zzzzzzzz")

    assert ApiKey.objects.get().revoked_at is None
