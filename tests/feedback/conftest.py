"""ESPs behind their real Anymail backends, and the project's own webhook pages."""

from __future__ import annotations

import importlib

import pytest
from django.urls import clear_url_caches

import project.urls
from mailengine.testing import ESPServer

from .payloads import MAILGUN_KEY, SECRETS

OPTIONS = {
    "amazon_ses": {},
    "brevo": {"api_key": "test"},
    "mailgun": {"api_key": "test", "sender_domain": "example.org"},
    "mailjet": {"api_key": "test", "secret_key": "test"},
    "postmark": {"server_token": "test"},
    "resend": {"api_key": "test"},
    "sendgrid": {"api_key": "test"},
}


@pytest.fixture
def esps(configure, settings):
    """Providers of seven ESPs, and one of no ESP, "relay". Nobody listens."""
    configure()
    ours = {
        esp: {"BACKEND": f"anymail.backends.{esp}.EmailBackend", "OPTIONS": options} for esp, options in OPTIONS.items()
    }
    settings.MAILERS = {**settings.MAILERS, **ours}
    settings.MAILENGINE = {**settings.MAILENGINE, "PROVIDERS": ["relay", *ours]}


@pytest.fixture
def mailgun(configure, settings):
    """A server that speaks as Mailgun does, behind the one provider, "mailgun", with one connection."""
    with ESPServer() as server:
        configure()
        settings.MAILERS = {**settings.MAILERS, "mailgun": server.mailer("mailgun")}
        settings.MAILENGINE = {"PROVIDERS": ["mailgun"], "CONNECTIONS": 1}
        yield server


@pytest.fixture
def pages(settings):
    """The project's pages, as they are with webhook secrets in its environment."""
    settings.ANYMAIL = {"WEBHOOK_SECRET": SECRETS, "MAILGUN_WEBHOOK_SIGNING_KEY": MAILGUN_KEY}
    settings.ROOT_URLCONF = "project.urls"
    importlib.reload(project.urls)
    clear_url_caches()
    yield
    settings.ANYMAIL = {"WEBHOOK_SECRET": []}
    importlib.reload(project.urls)
    clear_url_caches()
