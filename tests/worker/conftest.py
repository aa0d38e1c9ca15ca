"""What the tests of `mail_worker` share: real workers, and a real server that they send to."""

from __future__ import annotations

import time

import pytest
from django.db import close_old_connections

from mailengine.models import Worker
from mailengine.models.workers import forget_who_is_at_work
from mailengine.testing import FakeProvider, SMTPServer
from tests.commands.programs import relay, start


@pytest.fixture(autouse=True)
def _fresh():
    """Scripts of fake providers start anew, and nobody believes to know who is at work."""
    FakeProvider.reset()
    forget_who_is_at_work()
    yield
    FakeProvider.reset()


@pytest.fixture
def smtp():
    with SMTPServer() as server:
        yield server


@pytest.fixture
def wait_until():
    """Wait for a condition, not for a time."""

    def wait(condition, *, seconds=30):
        ends_at = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < ends_at, "it did not happen in time"
            time.sleep(0.01)

    return wait


@pytest.fixture
def work(smtp, wait_until):
    """Start `mail_worker` with these options as a process of its own; all are stopped in the end."""
    started = []

    def start_one(*options, **variables):
        known = set(Worker.objects.values_list("pk", flat=True))
        process = start("mail_worker", *options, **relay(smtp), **variables)
        started.append(process)
        wait_until(lambda: process.poll() is not None or Worker.objects.exclude(pk__in=known).exists())
        return process

    yield start_one
    for process in started:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=30)
    close_old_connections()
