from __future__ import annotations

import pytest
from django.urls import reverse

from mailengine.consent.policy import refusal_for
from mailengine.models import Suppression

pytestmark = pytest.mark.django_db
ADD = "admin:mailengine_suppression_add"


def entry(address: str, stream: str = "") -> dict[str, str]:
    return {"address": address, "stream": stream, "reason": "manual", "detail": "asked by phone"}


def test_an_address_is_entered_as_people_type_it(admin_client):
    admin_client.post(reverse(ADD), entry("Ann Lee <Ann@Example.ORG>"))

    assert refusal_for("ann@example.org", stream="bulk")
    assert refusal_for("ann@example.org", stream="transactional")


def test_a_stream_can_be_stopped_alone(admin_client):
    admin_client.post(reverse(ADD), entry("ann@example.org", "bulk"))

    assert refusal_for("ann@example.org", stream="bulk")
    assert not refusal_for("ann@example.org", stream="transactional")


@pytest.mark.parametrize("address", ["no address", "ann@", "ann@example.org, bob@example.org"])
def test_what_is_no_address_is_refused_with_the_reason(admin_client, address):
    page = admin_client.post(reverse(ADD), entry(address))

    assert page.context["adminform"].form.errors["address"]
    assert not Suppression.objects.exists()


def test_an_address_is_entered_once(admin_client):
    Suppression.objects.create(address="ann@example.org")

    page = admin_client.post(reverse(ADD), entry("ANN@example.org"))

    assert page.status_code == 200
    assert Suppression.objects.count() == 1


def test_an_address_is_found_and_taken_off(admin_client):
    row = Suppression.objects.create(address="ann@example.org")
    Suppression.objects.create(address="bob@example.org")

    page = admin_client.get(reverse("admin:mailengine_suppression_changelist"), {"q": "ANN@example.org"})
    assert list(page.context["cl"].queryset) == [row]

    admin_client.post(reverse("admin:mailengine_suppression_delete", args=[row.pk]), {"post": "yes"})

    assert not refusal_for("ann@example.org", stream="bulk")


def test_who_may_only_view_can_neither_enter_nor_take_off(log_in, client):
    log_in("view_suppression")
    row = Suppression.objects.create(address="ann@example.org")

    assert client.post(reverse(ADD), entry("bob@example.org")).status_code == 403
    assert client.post(reverse("admin:mailengine_suppression_delete", args=[row.pk])).status_code == 403
    assert Suppression.objects.get() == row
