from __future__ import annotations

import pytest
from django.urls import reverse

from mailengine.clock import read_now
from mailengine.models import Attempt

pytestmark = pytest.mark.django_db


@pytest.fixture
def attempts(make_message):
    now = read_now("default")
    tried = {"number": 1, "begun_at": now, "ended_at": now}
    ann, bob = make_message("ann@example.org"), make_message("bob@example.org")
    refused = {"provider": "ses", "outcome": "refused", "code": "550 5.1.1", "detail": "no such user here"}
    down = {
        "provider": "relay",
        "outcome": "unavailable",
        "code": "ConnectionRefusedError",
        "detail": "refused",
    }
    return (
        Attempt.objects.create(message=ann, **tried, **refused),
        Attempt.objects.create(message=bob, **tried, **down),
    )


@pytest.mark.parametrize("term", ["550 5.1.1", "no such user", "ses", "ann@example.org", "ann@"])
def test_a_failed_attempt_is_found_by_what_is_known_of_it(log_in, client, attempts, term):
    """S22"""
    log_in("view_attempt")

    page = client.get(reverse("admin:mailengine_attempt_changelist"), {"q": term})

    assert list(page.context["cl"].queryset) == [attempts[0]]


def test_attempts_are_found_by_the_id_of_their_message(log_in, client, attempts):
    log_in("view_attempt")

    page = client.get(reverse("admin:mailengine_attempt_changelist"), {"q": str(attempts[1].message_id)})

    assert list(page.context["cl"].queryset) == [attempts[1]]


def test_the_ledger_can_only_be_read(admin_client, attempts):
    change = reverse("admin:mailengine_attempt_change", args=[attempts[0].pk])

    assert "no such user here" in admin_client.get(change).content.decode()
    assert admin_client.post(change, {"outcome": "accepted"}).status_code == 403
    assert admin_client.get(reverse("admin:mailengine_attempt_add")).status_code == 403
