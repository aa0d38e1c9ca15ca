"""The secrets of the webhooks, from the project's environment."""

from __future__ import annotations

import pytest
from django.core.exceptions import ImproperlyConfigured

from ..project.test_environment import project as read_project

__all__ = ["read_project"]


def test_there_is_none_at_first(read_project):
    assert read_project("ANYMAIL") == {"WEBHOOK_SECRET": []}
    assert read_project("ANYMAIL", dotenv="WEBHOOK_SECRET=\nMAILGUN_WEBHOOK_SIGNING_KEY=\n") == {"WEBHOOK_SECRET": []}


def test_secrets_and_keys_are_read(read_project):
    dotenv = "WEBHOOK_SECRET=esp:new,esp:old\nMAILGUN_WEBHOOK_SIGNING_KEY=key-1\nRESEND_SIGNING_SECRET=whsec_1\n"
    assert read_project("ANYMAIL", dotenv=dotenv) == {
        "WEBHOOK_SECRET": ["esp:new", "esp:old"],
        "MAILGUN_WEBHOOK_SIGNING_KEY": "key-1",
        "RESEND_SIGNING_SECRET": "whsec_1",
    }


@pytest.mark.parametrize("secret", ["secret", "esp:", ":secret", "esp:new,old", ":"])
def test_a_secret_that_is_not_whole_ends_the_start(read_project, secret):
    """SW1."""
    with pytest.raises(ImproperlyConfigured, match="WEBHOOK_SECRET must be user:password"):
        read_project("ANYMAIL", dotenv=f"WEBHOOK_SECRET={secret}\n")
