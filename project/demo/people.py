"""What people do at their browsers, through Django's test client: real URLs, real forms, CSRF tokens and all."""

from __future__ import annotations

import re
from html import unescape

from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from project.newsroom.models import Issue

HIDDEN = re.compile(r'<input type="hidden" name="([^"]+)" value="([^"]*)"')
BUTTON = re.compile(r'<input type="submit" class="default" value="([^"]+)"')
SUCCESS = re.compile(r'<li class="success">(.*?)</li>', re.DOTALL)


def press_the_button(issue: Issue) -> tuple[str, str]:
    """The editor ticks an issue, chooses "Send email update" and confirms: the button's words, and the answer."""
    client = _client()
    client.force_login(User.objects.get(username="editor"))
    url = reverse("admin:newsroom_issue_changelist")
    ticked = {"action": "send_email_update", "_selected_action": str(issue.pk)}
    confirmation = _post(client, url, _hidden(_get(client, url)) | ticked)
    answer = _post(client, url, _hidden(confirmation))
    return _only(BUTTON, confirmation), " ".join(re.sub(r"<[^>]+>", "", _only(SUCCESS, answer)).split())


def ask_for_a_new_password(email: str) -> None:
    """Somebody fills in Django's own "Forgotten your password?" form."""
    client = _client()
    url = reverse("password_reset")
    _post(client, url, _hidden(_get(client, url)) | {"email": email})


def _client() -> Client:
    return Client(enforce_csrf_checks=True, SERVER_NAME="localhost")


def _get(client: Client, url: str) -> str:
    return client.get(url).content.decode()


def _post(client: Client, url: str, fields: dict[str, str]) -> str:
    response = client.post(url, fields, follow=True)
    if response.status_code != 200:
        raise RuntimeError(f"POST {url} was answered with {response.status_code}.")
    return response.content.decode()


def _hidden(page: str) -> dict[str, str]:
    """The hidden fields of a page, which a browser sends along."""
    return {unescape(name): unescape(value) for name, value in HIDDEN.findall(page)}


def _only(pattern: re.Pattern[str], page: str) -> str:
    found = pattern.search(page)
    if found is None:
        raise RuntimeError(f"The page does not show {pattern.pattern!r}:\n{page}")
    return unescape(found[1])
