from __future__ import annotations

import html
import re

import pytest
from django.contrib.auth.models import Permission, User
from django.urls import reverse

from mailengine.clock import read_now
from mailengine.models import Content, Message
from project.newsroom.models import Issue, Subscriber


@pytest.fixture
def log_in(db, client):
    """Logs a member of staff in, who has these permissions: "view_issue", "add_messagejob"."""

    def log_in(*codenames: str) -> User:
        user = User.objects.create_user("ed", is_staff=True)
        found = Permission.objects.filter(codename__in=codenames)
        assert found.count() == len(codenames)
        user.user_permissions.set(found)
        client.force_login(user)
        return user

    return log_in


@pytest.fixture
def admin_client(db, client):
    """A client whose user may do everything; unlike pytest-django's, without the time it takes to hash a password."""
    client.force_login(User.objects.create(username="root", is_staff=True, is_superuser=True))
    return client


@pytest.fixture
def editor(log_in):
    """Writes issues, sends updates, and sees jobs."""
    return log_in("view_issue", "change_issue", "view_article", "change_article", "add_messagejob", "view_messagejob")


@pytest.fixture
def issue(db):
    return Issue.objects.create(title="Daily headlines", intro="All that happened.")


@pytest.fixture
def subscribers(db):
    """Makes so many subscribers."""

    def subscribers(number: int) -> None:
        Subscriber.objects.bulk_create(Subscriber(email=f"s{i}@example.org", name=f"S {i}") for i in range(number))

    return subscribers


@pytest.fixture
def make_message(db):
    """Makes a message in some state."""

    def make_message(recipient: str = "ann@example.org", **values: object) -> Message:
        now = read_now("default")
        content = Content.objects.create(subject="Hello", text="The body", from_email="", created_at=now)
        fields = {"stream": "transactional", "priority": 20, "available_at": now, "created_at": now, **values}
        return Message.objects.create(content=content, recipient=recipient, **fields)

    return make_message


@pytest.fixture
def act(client):
    """Runs an action on rows, as the list's form does; gives the page that follows."""

    def act(action: str, *rows, **further: str):
        url = reverse(f"admin:{rows[0]._meta.app_label}_{rows[0]._meta.model_name}_changelist")
        data = {"action": action, "_selected_action": [row.pk for row in rows], **further}
        return client.post(url, data, follow=True)

    return act


def told(response) -> list[str]:
    """What the page tells its user, as text."""
    messages = response.context["messages"] if response.context else []
    return [html.unescape(re.sub(r"<[^>]+>", "", str(message))) for message in messages]
