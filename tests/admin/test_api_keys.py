from __future__ import annotations

import re

import pytest
from django.urls import reverse

from mailengine.models import ApiKey

pytestmark = pytest.mark.django_db
ADD = "admin:mailengine_apikey_add"
LIST = "admin:mailengine_apikey_changelist"
ENTRY = {
    "client": "shop",
    "scopes": ["send:transactional", "read"],
    "allowed_senders": "news@example.org, @shop.example\n",
    "networks": "10.0.0.0/8",
    "rate": "100/min",
    "expires_at_0": "",
    "expires_at_1": "",
}


def test_a_key_is_made_and_shown_once(admin_client):
    page = admin_client.post(reverse(ADD), ENTRY, follow=True).content.decode()

    secret = re.search(r"<code>(me_[^<]+)</code>", page)[1]
    key = ApiKey.objects.get()
    assert ApiKey.objects.authenticate(secret, address="10.1.1.1") == key
    assert (key.client, key.scopes, key.allowed_senders, key.networks, key.rate) == (
        "shop", ["send:transactional", "read"], ["news@example.org", "@shop.example"], ["10.0.0.0/8"], "100/min",
    )  # fmt: skip
    assert key.created_by is not None
    again = admin_client.get(reverse(LIST)).content.decode()
    assert f"me_{key.prefix}_…" in again
    assert secret not in again
    assert secret not in admin_client.get(reverse("admin:mailengine_apikey_change", args=[key.pk])).content.decode()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("client", "<b>shop"),
        ("scopes", []),
        ("scopes", ["everything"]),
        ("allowed_senders", "shop.example"),
        ("networks", "10.0.0.0/99"),
        ("rate", "many"),
    ],
)
def test_what_makes_no_sense_is_said_beside_its_field(admin_client, field, value):
    page = admin_client.post(reverse(ADD), {**ENTRY, field: value})

    assert list(page.context["adminform"].form.errors) == [field]
    assert not ApiKey.objects.exists()


def test_keys_are_revoked(admin_client):
    key, secret = ApiKey.objects.issue("shop")

    admin_client.post(reverse(LIST), {"action": "revoke", "_selected_action": [key.pk]})

    assert ApiKey.objects.authenticate(secret, address="") is None
    assert "revoked" in admin_client.get(reverse(LIST)).content.decode()


def test_nobody_changes_a_key(admin_client):
    key, _secret = ApiKey.objects.issue("shop")

    admin_client.post(reverse("admin:mailengine_apikey_change", args=[key.pk]), {**ENTRY, "client": "eve"})

    assert ApiKey.objects.get().client == "shop"


def test_templates_and_audiences_are_scopes(admin_client):
    admin_client.post(
        reverse(ADD), {**ENTRY, "scopes": ["urgent"], "templates": "shop/, news/", "audiences": "readers"}
    )

    assert ApiKey.objects.get().scopes == ["urgent", "template:shop/", "template:news/", "audience:readers"]
