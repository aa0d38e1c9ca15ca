"""The OpenAPI document: what it says of the API is so, whatever is sent."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mailengine.api.urls import api
from mailengine.models import Message, MessageJob

from .test_jobs import a_job
from .test_messages import a_message

CONFIG = Path(__file__).with_name("schemathesis.toml")


@pytest.fixture
def shop(transactional_db, caller):
    return caller(allowed_senders=["@example.org", "@localhost"])  # the second is the site itself


@pytest.fixture
def ids(shop):
    """Of messages and jobs that are there."""
    shop.post("/api/v1/messages", [a_message()] * 5)
    for _ in range(10):
        shop.post("/api/v1/jobs", a_job())
    shop.post("/api/v1/suppressions", {"address": "ann@example.net"})
    return [*Message.objects.values_list("pk", flat=True), *MessageJob.objects.values_list("public_id", flat=True)]


def test_schemathesis_finds_nothing(shop, ids, live_server):
    """With a key that may do everything: each operation, in all phases, by all checks."""
    pytest.importorskip("schemathesis")
    command = [
        sys.executable, "-m", "schemathesis.cli", "--config-file", CONFIG, "run",
        f"{live_server.url}/api/v1/openapi.json", "--header", f"Authorization: Bearer {shop.secret}",
        "--header", "Connection: close",  # otherwise each answer waits for an acknowledgement of its headers
    ]  # fmt: skip
    environment = {**os.environ, "MAILENGINE_TEST_IDS": ",".join(map(str, ids))}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert found.returncode == 0, found.stdout + found.stderr
    # It came through to what the operations do.
    assert Message.objects.count() > 25
    assert Message.objects.filter(status="cancelled").exists()
    assert MessageJob.objects.count() > 20
    assert MessageJob.objects.filter(status="cancelled").exists()


def test_the_document_is_one(client):
    validators = pytest.importorskip("schemathesis.specs.openapi.definitions")

    validators.OPENAPI_31_VALIDATOR.validate(client.get("/api/v1/openapi.json").json())


def test_operations_are_called_as_a_client_would_call_them(client):
    document = client.get("/api/v1/openapi.json").json()

    named = {operation["operationId"]: (method, path) for method, path, operation in operations(document)}
    assert named == {
        "sendEmail": ("post", "/email/send"),
        "getEmailStatus": ("get", "/email/status/{message_id}"),
        "sendMail": ("post", "/mail"),
        "createMessages": ("post", "/api/v1/messages"),
        "listMessages": ("get", "/api/v1/messages"),
        "getMessage": ("get", "/api/v1/messages/{message_id}"),
        "cancelMessage": ("post", "/api/v1/messages/{message_id}/cancel"),
        "createJob": ("post", "/api/v1/jobs"),
        "listJobs": ("get", "/api/v1/jobs"),
        "getJob": ("get", "/api/v1/jobs/{job_id}"),
        "pauseJob": ("post", "/api/v1/jobs/{job_id}/pause"),
        "resumeJob": ("post", "/api/v1/jobs/{job_id}/resume"),
        "cancelJob": ("post", "/api/v1/jobs/{job_id}/cancel"),
        "listSuppressions": ("get", "/api/v1/suppressions"),
        "createSuppression": ("post", "/api/v1/suppressions"),
        "deleteSuppression": ("delete", "/api/v1/suppressions"),
    }


def test_each_operation_says_what_a_client_needs(client):
    document = client.get("/api/v1/openapi.json").json()

    assert document["servers"]
    assert document["components"]["securitySchemes"]["BearerKey"]["description"]
    for method, path, operation in operations(document):
        assert operation["description"], operation["operationId"]
        assert operation["security"] == [{"BearerKey": []}]
        assert {"401", "403", "503"} <= set(operation["responses"])
        assert ("Idempotency-Key" in {p["name"] for p in operation["parameters"]}) == (method == "post")
        for status, response in operation["responses"].items():
            kind = "application/problem+json" if status >= "400" and path.startswith("/api/v1/") else "application/json"
            assert list(response["content"]) == [kind]


def test_it_is_made_once(client):
    """Anybody may ask for it, and it takes its time to make."""
    assert api.get_openapi_schema() is api.get_openapi_schema()
    assert "/elsewhere/mail" in api.get_openapi_schema(path_prefix="/elsewhere/")["paths"]
    assert "/mail" in client.get("/api/v1/openapi.json").json()["paths"]


def test_the_page_of_the_document_asks_no_other_host(client):
    page = client.get("/api/v1/docs").content.decode()

    assert re.findall(r'(?:href|src)="([^"]+)"', page)
    assert not re.findall(r"https?://|[\"']//", page)


def test_there_is_no_page_that_would_ask_one(client, settings):
    settings.INSTALLED_APPS = [app for app in settings.INSTALLED_APPS if app != "ninja"]

    assert client.get("/api/v1/docs").status_code == 404


def operations(document):
    return [(m, path, o) for path, methods in document["paths"].items() for m, o in methods.items()]
