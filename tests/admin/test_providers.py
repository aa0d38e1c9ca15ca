from __future__ import annotations

from datetime import timedelta

import pytest
from django.urls import reverse

from mailengine.clock import read_now
from mailengine.models import ProviderState, Worker

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("model", ["messagejob", "message", "providerstate"])
def test_a_rejected_configuration_is_told_above_the_lists(admin_client, model):
    since = read_now("default") - timedelta(hours=2)
    ProviderState.objects.create(
        alias="ses", is_open=True, misconfigured=True, opened_at=since, last_error="535 authentication failed"
    )
    ProviderState.objects.create(alias="relay", is_open=True, opened_at=since)

    page = admin_client.get(reverse(f"admin:mailengine_{model}_changelist")).content.decode()

    assert "The provider “ses” has rejected our configuration since" in page
    assert "2\xa0hours ago" in page
    assert "535 authentication failed" in page
    assert "Mend the entry “ses” of MAILERS" in page
    assert "The provider “relay”" not in page


def test_without_a_rejected_configuration_nothing_is_told(admin_client):
    ProviderState.objects.create(alias="ses", is_open=True)

    page = admin_client.get(reverse("admin:mailengine_message_changelist")).content.decode()

    assert "rejected our configuration" not in page


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "Closed: in use"),
        ({"bad_rounds": 1}, "Closed: in use, though the last handovers failed"),
        ({"is_open": True}, "Open: it failed too often"),
        ({"is_open": True, "misconfigured": True}, "Open: it rejects our configuration"),
        ({"throttled_in": 60}, "Closed, but it asked us to wait"),
        ({"throttled_in": -60}, "Closed: in use"),
    ],
)
def test_the_circuit_is_told_in_words(admin_client, values, words):
    values = dict(values)
    if "throttled_in" in values:
        values["throttled_until"] = read_now("default") + timedelta(seconds=values.pop("throttled_in"))
    ProviderState.objects.create(alias="ses", **values)

    assert words in admin_client.get(reverse("admin:mailengine_providerstate_changelist")).content.decode()
    assert words in admin_client.get(reverse("admin:mailengine_providerstate_change", args=["ses"])).content.decode()


@pytest.mark.parametrize(
    ("seen_ago", "stopped", "words"),
    [(10, False, "at work"), (600, False, "not seen any more"), (10, True, "stopped")],
)
def test_workers_are_listed_with_what_became_of_them(admin_client, seen_ago, stopped, words):
    now = read_now("default")
    seen = now - timedelta(seconds=seen_ago)
    Worker.objects.create(
        name="mail-1:4711", command="send_mail", started_at=seen, seen_at=seen, stopped_at=seen if stopped else None
    )

    page = admin_client.get(reverse("admin:mailengine_worker_changelist")).content.decode()

    assert "mail-1:4711" in page
    assert f'field-state">{words}' in page
