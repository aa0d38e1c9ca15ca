"""N13: a clock that stands still until it is moved, and the runs under it, which end nevertheless."""

from __future__ import annotations

import time
from datetime import datetime, timedelta

import pytest

from mailengine import dispatch_slice, queue_mail
from mailengine.clock import db_now, read_now, stopped_at
from mailengine.models import Message
from mailengine.testing import FakeProvider
from mailengine.testing.clock import FrozenClock

from ..models.helpers import make_message

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _fresh():
    FakeProvider.reset()
    yield
    FakeProvider.reset()


@pytest.fixture
def frozen():
    with FrozenClock() as clock:
        yield clock


def read_twice() -> set[datetime]:
    first = read_now("default")
    time.sleep(0.01)
    return {first, read_now("default")}


def test_it_gives_the_same_instant_until_it_is_moved(frozen):
    start = frozen.now
    assert read_twice() == {start}

    frozen.advance(hours=1, seconds=0.5)

    assert read_twice() == {start + timedelta(hours=1, seconds=0.5)}
    assert frozen.now == start + timedelta(hours=1, seconds=0.5)


def test_without_it_time_goes_on():
    assert len(read_twice()) == 2


def test_afterwards_time_goes_on_where_it_is():
    with FrozenClock() as clock:
        clock.advance(days=400)
        with FrozenClock() as inner:
            inner.advance(days=1)
        later = clock.now
        assert read_twice() == {later}

    assert stopped_at() is None
    assert read_now("default") < later - timedelta(days=399)


@pytest.mark.parametrize(
    "step", [{"seconds": 0.001}, {"seconds": 0.000001}, {"seconds": 1}, {"minutes": 5}, {"days": 400}]
)
def test_what_is_stored_is_due_at_its_very_instant_and_not_before(frozen, step):
    """Whether the database reckons the instant or Python does."""
    make_message(recipient="by the database", available_at=db_now(timedelta(**step).total_seconds()))
    make_message(recipient="by Python", available_at=frozen.now + timedelta(**step))
    assert not Message.objects.due().exists()

    frozen.advance(**step)

    assert {message.recipient for message in Message.objects.due()} == {"by the database", "by Python"}
    assert {message.available_at for message in Message.objects.due()} == {frozen.now}


def test_a_whole_second_is_an_instant_like_any_other(frozen):
    """SQLite compares instants as text, and this one has no fraction."""
    frozen.advance(seconds=1 - frozen.now.microsecond / 1e6)
    assert frozen.now.microsecond == 0
    make_message(recipient="by the database", available_at=db_now())
    make_message(recipient="by Python", available_at=frozen.now)

    assert Message.objects.due().count() == 2


@pytest.mark.parametrize("passed", [{}, {"seconds": 2}, {"seconds": 2.5}])
def test_a_run_does_not_wait_for_a_moment_that_never_comes(configure, frozen, passed):
    """A provider that wants to be left alone for two seconds is waited for, but not while the clock stands still."""
    configure({"relay": {"script": ["throttled", "accept", "throttled"], "retry_after_seconds": 2}}, CONNECTIONS=1)
    for _ in range(3):
        queue_mail("Hello", "Good morning.", None, ["ann@example.org"])
    dispatch_slice(max_time=3)
    frozen.advance(**passed)

    report = dispatch_slice(max_time=3)

    assert report.stopped == "done"
    assert Message.objects.filter(status="sent").count() == (1 if passed else 0)


def test_a_run_is_at_one_instant_however_long_it_takes(configure, frozen, monkeypatch):
    """So what it reckons from now on, the end of a wait, say, is the same on each machine."""
    configure({"relay": {"script": ["uncertain"]}}, UNCERTAIN_WINDOW_SECONDS=600)
    send = FakeProvider.send_messages
    monkeypatch.setattr(FakeProvider, "send_messages", lambda *args: (time.sleep(0.01), send(*args))[1])
    queue_mail("Hello", "Good morning.", None, ["ann@example.org"])

    dispatch_slice()

    message = Message.objects.get()
    assert (message.status, message.available_at) == ("uncertain", frozen.now + timedelta(seconds=600))
    assert message.attempts.get().ended_at == frozen.now
