"""The examples of the page on the HTTP API, run as they stand there, over real sockets."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from mailengine.api.urls import api
from mailengine.models import ApiKey, Message, MessageJob, Suppression
from tests.docs.pages import DOCS, blocks

PAGE = DOCS / "how-to" / "use-the-http-api.md"
SCOPES = ["send:transactional", "send:bulk", "read", "cancel", "suppressions"]

pytestmark = pytest.mark.django_db(transaction=True)


def code(language):
    """The examples in a language; what goes into a project's settings is none."""
    return [
        each.code
        for each in blocks(PAGE)
        if each.language == language and ("call(" in each.code or "curl" in each.code)
    ]


@pytest.fixture
def run(live_server, tmp_path):
    """What a program prints that knows the URL and a key."""
    _key, secret = ApiKey.objects.issue("shop", scopes=SCOPES, allowed_senders=["@shop.example"])
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}

    def run(*command, **variables):
        env = {**keep, "MAIL_URL": live_server.url, "MAIL_KEY": secret, **variables}
        ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, cwd=tmp_path)
        assert (ended.returncode, ended.stderr) == (0, "")
        return ended.stdout

    return run


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_by_curl(run):
    known, answers = {}, []
    for program in code("sh"):
        printed = run("sh", "-c", program, **known)
        answers += [json.JSONDecoder().raw_decode(part)[0] for part in _documents(printed)]
        answer = answers[-1]
        if isinstance(answer, dict) and "id" in answer and answer["status"] == "queued":
            name = "JOB_ID" if "/jobs" in program else "MESSAGE_ID"
            known.setdefault(name, answer["id"])

    (one, two, form, looked_up, listed, withdrawn, job, progress, jobs, paused, resumed, ended,
     entered, entries, lifted, sent, told, mailed) = answers  # fmt: skip
    assert (looked_up["id"], looked_up["status"], len(two), form["status"]) == (one["id"], "queued", 2, "queued")
    assert (looked_up["metadata"], looked_up["tags"]) == ({"order": 4711}, ["orders"])
    assert one["id"] in [item["id"] for item in listed["items"]]
    assert (withdrawn["id"], withdrawn["status"]) == (one["id"], "cancelled")
    assert [each["id"] for each in (progress, paused, resumed, ended, *jobs["items"])] == [job["id"]] * 5
    assert [each["status"] for each in (paused, resumed, ended)] == ["paused", "queued", "cancelled"]
    assert (entered["reason"], entries["items"], lifted) == ("unsubscribed", [entered], {"lifted": 1})
    assert (told["messageId"], mailed["queued"]) == (known["MESSAGE_ID"], True)
    assert (Message.objects.count(), MessageJob.objects.count(), "messageId" in sent) == (6, 1, True)
    files = Message.objects.get(pk=form["id"]).content.files
    assert sorted(files.values_list("filename", flat=True)) == ["invoice.pdf", "logo.png"]
    assert not Suppression.objects.exists()


def _documents(printed):
    """The JSON documents that were printed one after the other."""
    decoder, place = json.JSONDecoder(), 0
    while place < len(printed):
        _document, end = decoder.raw_decode(printed, place)
        yield printed[place:end]
        place = end


def test_by_python(run):
    program = "\n".join(code("python"))

    assert run(sys.executable, "-W", "error", "-c", program).splitlines() == [
        "queued", "2", "queued", "True", "cancelled", "paused", "queued", "cancelled", "{} 1",
        "['manual']", "{'lifted': 1}", "queued", "1",
    ]  # fmt: skip
    assert {message.client for message in Message.objects.all()} == {"shop"}


def test_every_call_has_its_examples():
    """By curl and by Python."""
    by_curl, by_python = "\n".join(code("sh")), "\n".join(code("python"))
    for path, operations in api.get_openapi_schema(path_prefix="")["paths"].items():
        beginning, _, rest = path.partition("{")
        verb = rest.partition("}")[2].strip("/")
        for method in operations:
            for text in (by_curl, by_python):
                assert beginning.rstrip("/") in text, (method, path)
                assert not verb or verb in text, (method, path)
    assert "--request DELETE" in by_curl
    assert '"DELETE"' in by_python
