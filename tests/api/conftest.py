from __future__ import annotations

import json

import pytest

from mailengine.models import ApiKey

EVERYTHING = ["send:transactional", "send:bulk", "read", "cancel", "suppressions"]


class Caller:
    """A client of the API with a key of its own."""

    def __init__(self, browser, *, client="shop", **fields):
        self.browser = browser
        fields = {"scopes": EVERYTHING, "allowed_senders": ["@example.org"], **fields}
        self.key, self.secret = ApiKey.objects.issue(client, **fields)

    @property
    def headers(self):
        return {"Authorization": f"Bearer {self.secret}"}

    def post(self, path, body, *, content_type="application/json", **headers):
        data = body if isinstance(body, bytes | str) else json.dumps(body)
        return self.browser.post(path, data, content_type=content_type, headers={**self.headers, **headers})

    def get(self, path, **headers):
        return self.browser.get(path, headers={**self.headers, **headers})


@pytest.fixture
def caller(client, db):
    """Makes a client of the API: `caller(client="shop", scopes=["read"])`."""
    return lambda **fields: Caller(client, **fields)


@pytest.fixture
def shop(caller):
    return caller()
