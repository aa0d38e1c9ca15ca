"""The examples of the page on the HTTP API, run as they stand there, over real sockets."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from mailengine.models import ApiKey, Message
from tests.docs.pages import DOCS, blocks

PAGE = DOCS / "how-to" / "use-the-http-api.md"
SEND, STATUS, MAIL = (block.code for block in blocks(PAGE) if block.language == "sh")

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def run(live_server):
    """What a program prints that knows the URL and a key."""
    _key, secret = ApiKey.objects.issue("shop", allowed_senders=["@shop.example"])
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}

    def run(*command, **variables):
        env = {**keep, "MAIL_URL": live_server.url, "MAIL_KEY": secret, **variables}
        ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
        assert (ended.returncode, ended.stderr) == (0, "")
        return ended.stdout

    return run


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_by_curl(run):
    sent = json.loads(run("sh", "-c", SEND))
    assert json.loads(run("sh", "-c", SEND)) == sent
    told = json.loads(run("sh", "-c", STATUS, MESSAGE_ID=sent["messageId"]))
    queued = json.loads(run("sh", "-c", MAIL))

    assert (told["messageId"], told["status"]) == (sent["messageId"], "queued")
    assert (queued["queued"], len(queued["tracking-ids"])) == (True, 1)
    first, second = Message.objects.order_by("id")
    assert (first.content.subject, str(second.pk)) == ("Your order", queued["tracking-ids"][0])
    assert [person["address"] for person in second.recipients] == ["ann@example.org", "bob@example.org"]


def test_by_python(run):
    (program,) = (block.code for block in blocks(PAGE) if block.language == "python" and "urlopen" in block.code)

    assert run(sys.executable, "-W", "error", "-c", program) == "queued\n"
    assert Message.objects.get().client == "shop"
