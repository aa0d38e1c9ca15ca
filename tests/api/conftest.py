from __future__ import annotations

import json

import pytest
from django.test.client import encode_multipart

from mailengine.api.backpressure import forget_depth
from mailengine.models import ApiKey

EVERYTHING = [
    "send:transactional", "send:bulk", "urgent", "read", "cancel", "suppressions", "template:", "audience:readers",
]  # fmt: skip
BOUNDARY = "a-boundary"


class Caller:
    """A client of the API with a key of its own."""

    def __init__(self, browser, *, client="shop", **fields):
        self.browser = browser
        fields = {"scopes": EVERYTHING, "allowed_senders": ["@example.org"], **fields}
        self.key, self.secret = ApiKey.objects.issue(client, **fields)

    @property
    def headers(self):
        return {"Authorization": f"Bearer {self.secret}"}

    def post(self, path, body=None, *, content_type="application/json", **headers):
        data = body if isinstance(body, bytes | str) else json.dumps(body)
        return self.browser.post(path, data, content_type=content_type, headers={**self.headers, **headers})

    def post_form(self, path, fields, **headers):
        body = encode_multipart(BOUNDARY, fields)
        return self.post(path, body, content_type=f"multipart/form-data; boundary={BOUNDARY}", **headers)

    def get(self, path, query=None, **headers):
        return self.browser.get(path, query, headers={**self.headers, **headers})

    def delete(self, path, query=None, **headers):
        return self.browser.delete(path, query_params=query, headers={**self.headers, **headers})


@pytest.fixture
def caller(client, db):
    """Makes a client of the API: `caller(client="shop", scopes=["read"])`."""
    forget_depth()
    return lambda **fields: Caller(client, **fields)


@pytest.fixture
def shop(caller):
    return caller()


def problem_of(response, status):
    """The problem of an answer, once it is seen to be one as RFC 9457 has it."""
    assert response.status_code == status, response.content
    assert response["Content-Type"] == "application/problem+json"
    problem = response.json()
    assert (problem["type"], problem["status"]) == ("about:blank", status)
    assert problem["title"]
    assert problem["detail"]
    return problem


def errors_of(response, status=422):
    """Its wrong fields: the sentence by JSON pointer, or by parameter."""
    found = problem_of(response, status).get("errors", [])
    return {error.get("pointer", error.get("parameter")): error["detail"] for error in found}
