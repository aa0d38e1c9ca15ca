"""What a provider may be given, by all processes and hosts together."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from threading import Event

import pytest
from django.core.management import call_command
from django.db import connection

from mailengine import dispatch_slice, queue_job, send_direct_email
from mailengine.clock import read_now
from mailengine.models import Attempt, Message, ProviderState
from mailengine.pipeline.dispatch import Dispatcher
from mailengine.testing import FakeProvider, FrozenClock

from .helpers import ledger, queue, queue_many, send, statuses

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _fresh():
    FakeProvider.reset()
    yield
    FakeProvider.reset()


@pytest.fixture
def limited(configure):
    """Providers as scripts, the policy of each beside it: `limited(a=({}, {"RATE": "5/day"}))`."""

    def set_up(_settings=None, /, **providers):
        options = {alias: script for alias, (script, _policy) in providers.items()}
        policies = {alias: policy for alias, (_script, policy) in providers.items()}
        configure(options, **{"PROVIDERS": policies, **(_settings or {})})

    return set_up


def queue_bulk(count: int) -> None:
    queue_job("News", "Read this.", "desk@example.org", [f"u{number:04d}@example.org" for number in range(count)])
    send("process_mail_jobs")


def begun_by() -> Counter[str]:
    return Counter(Attempt.objects.values_list("provider", flat=True))


def most_in(seconds: float) -> int:
    """The most handovers that began within so many seconds of each other."""
    instants = sorted(Attempt.objects.values_list("begun_at", flat=True))
    window = timedelta(seconds=seconds)
    return max(sum(first <= instant < first + window for instant in instants) for first in instants)


def test_no_more_begin_in_a_second_than_the_rate_allows(limited):
    limited(a=({}, {"RATE": "10/s"}))
    queue_many(25)

    send()

    assert statuses() == {"sent": 25}
    assert most_in(1) == 10


def test_each_run_counts_what_others_have_begun(limited):
    limited(a=({}, {"RATE": "5/day"}))
    queue_many(12)

    assert [dispatch_slice(limit=3).outcomes["sent"] for _ in range(4)] == [3, 2, 0, 0]
    assert statuses() == {"sent": 5, "queued": 7}


def test_mail_that_waits_for_a_limit_spends_nothing_and_goes_when_it_may(limited, clock):
    limited(a=({}, {"RATE": "5/day"}))
    queue_many(8)
    send()
    assert set(Message.objects.filter(status="queued").values_list("attempt_count", "claim_count")) == {(0, 0)}

    clock.advance(hours=27)
    send()

    assert statuses() == {"sent": 8}


def test_a_run_that_ends_for_a_limit_alone_says_so_and_is_no_failure(limited, capsys):
    limited(a=({}, {"RATE": "5/day"}))
    queue_many(8)

    call_command("send_mail")

    printed = capsys.readouterr().out
    assert "5 sent" in printed
    assert "3 waiting" in printed
    assert "the rest waits for the limits of its providers: manage.py mail_status says until when" in printed


def test_with_nothing_left_for_today_a_run_is_silent(limited, capsys):
    limited(a=({}, {"RATE": "5/day"}))
    queue_many(8)
    send()

    call_command("send_mail")

    assert capsys.readouterr().out == ""


def test_one_that_has_had_its_day_is_passed_over(limited):
    limited(a=({}, {"RATE": "5/day"}), b=({}, {}))
    queue_many(12)

    send()

    assert begun_by() == {"a": 5, "b": 7}


def test_for_one_that_may_have_more_in_a_moment_mail_waits(limited):
    limited(a=({}, {"RATE": "10/s"}), b=({}, {}))
    queue_many(15)

    send()

    assert begun_by() == {"a": 15}


def test_mail_of_another_stream_does_not_wait_behind_it(limited):
    """However much of it there is, and however much sooner it was queued."""
    streams = {"slow": {"PROVIDERS": ["a"]}, "fast": {"PROVIDERS": ["b"]}}
    limited({"STREAMS": streams}, a=({}, {"RATE": "10/s"}), b=({}, {}))
    queue_many(60, stream="slow")
    queue_many(40, stream="fast")
    stop = Event()

    def stop_when_through(_report):
        if begun_by()["b"] == 40:
            stop.set()

    Dispatcher("send_mail", stop=stop, on_progress=stop_when_through).run()

    assert begun_by()["a"] < 60


@pytest.mark.django_db(transaction=True)
def test_what_is_sent_directly_counts_as_well(limited):
    limited(a=({}, {"RATE": "2/day"}), b=({}, {}))
    mail = "Hi", "Hello", "desk@example.org", ["ann@example.org"]

    assert [send_direct_email(*mail).provider for _ in range(3)] == ["a", "a", "b"]


class TestReserve:
    """Mail of priority BULK leaves a part of each limit to other mail."""

    def test_bulk_leaves_it(self, limited):
        limited(a=({}, {"RATE": "10/day", "RESERVE": 0.3}))
        queue_bulk(20)
        send()
        assert statuses() == {"sent": 7, "queued": 13}

        urgent = queue()
        send()

        urgent.refresh_from_db()
        assert urgent.status == "sent"
        assert statuses() == {"sent": 8, "queued": 13}

    def test_with_none_bulk_takes_all(self, limited):
        limited(a=({}, {"RATE": "10/day", "RESERVE": 0}))
        queue_bulk(20)
        send()
        assert statuses() == {"sent": 10, "queued": 10}


class TestWarmUp:
    """N10: bulk fails over within a new provider's schedule, other mail at once."""

    @pytest.fixture
    def warming(self, limited):
        limited(main=({"script": ["unavailable"] * 100}, {}), new=({}, {"WARM_UP": [20, 50], "RESERVE": 0.25}))

    def test_no_day_s_volume_exceeds_the_schedule(self, warming, clock):
        queue_bulk(100)
        by_day = []
        for _ in range(3):
            send()
            by_day.append(begun_by()["new"] - sum(by_day))
            clock.advance(days=1)

        # A quarter is left to other mail, of which there was none; on the third day it is over.
        assert by_day == [15, 37, 48]
        assert statuses() == {"sent": 100}

    def test_transactional_mail_fails_over_at_once(self, warming):
        queue_bulk(100)
        send()
        password = queue()

        send()

        password.refresh_from_db()
        assert (password.status, password.provider) == ("sent", "new")
        assert Message.objects.filter(stream="bulk", status="queued").count() == 85

    def test_the_first_day_is_that_of_its_first_mail(self, warming, clock):
        clock.advance(days=5)
        queue_bulk(30)
        send()
        assert begun_by()["new"] == 15


class TestFailover:
    """A stream may rather wait than go by another provider."""

    def test_its_mail_waits_for_the_provider_that_it_prefers(self, limited, clock):
        limited({"STREAMS": {"bulk": {"FAILOVER": False}}}, a=({"script": ["unavailable"] * 3}, {}), b=({}, {}))
        queue_bulk(2)
        message = queue()

        dispatch_slice()
        message.refresh_from_db()
        assert (message.provider, Message.objects.filter(stream="bulk", status="queued").count()) == ("b", 2)

        clock.advance(minutes=5)
        dispatch_slice()
        assert set(Message.objects.filter(stream="bulk").values_list("status", "provider")) == {("sent", "a")}

    def test_by_weight_it_goes_by_those_that_have_some(self, limited):
        limited(
            {"STRATEGY": "weighted", "STREAMS": {"bulk": {"FAILOVER": False}}},
            a=({"script": ["unavailable"] * 100}, {"WEIGHT": 1}),
            b=({"script": ["unavailable"] * 100}, {"WEIGHT": 1}),
            c=({}, {"WEIGHT": 0}),
        )
        queue_bulk(4)

        dispatch_slice()

        assert begun_by()["c"] == 0
        assert statuses() == {"queued": 4}

    def test_what_the_preferred_one_will_not_have_is_given_up(self, limited):
        """No other will ever be asked."""
        limited({"STREAMS": {"transactional": {"FAILOVER": False}}}, a=({"script": ["too_large"]}, {}), b=({}, {}))
        message = queue()

        dispatch_slice()

        assert (ledger(message), statuses()) == ([("a", "refused")], {"dead": 1})

    def test_what_the_preferred_one_may_not_send_is_given_up(self, limited):
        streams = {"transactional": {"FAILOVER": False}}
        limited({"STREAMS": streams}, a=({}, {"ALLOWED_SENDERS": ["@example.net"]}), b=({}, {}))
        message = queue()

        dispatch_slice()

        assert (ledger(message), statuses()) == ([], {"dead": 1})

    def test_uncertain_mail_stays_with_its_provider_when_another_is_preferred(self, limited, clock):
        streams = {"transactional": {"FAILOVER": False}}
        limited({"STREAMS": streams}, a=({"script": ["uncertain"]}, {}), b=({}, {}))
        message = queue()
        dispatch_slice()
        limited({"STREAMS": streams}, b=({}, {}), a=({}, {}))
        clock.advance(hours=1)

        dispatch_slice()

        assert ledger(message) == [("a", "uncertain"), ("a", "accepted")]


class TestSlowing:
    """A provider that asks us to slow down gets half of what it got, and more as time goes on."""

    def test_it_is_given_less_once_it_takes_mail_again(self, limited):
        limited({"CONNECTIONS": 1}, a=({"script": ["accept"] * 9 + ["throttled"]}, {}))
        queue_many(25)
        with FrozenClock() as clock:
            dispatch_slice()
            assert ProviderState.objects.get(alias="a").slowed_to == 4

            by_second = []
            for seconds in (31, 1.1, 1.1):
                clock.advance(seconds=seconds)
                by_second.append(dispatch_slice().outcomes["sent"])

        assert by_second == [4, 4, 4]

    def test_what_others_have_under_way_counts_as_taken(self, limited):
        """Or a burst of which little has been answered yet would slow it down to next to nothing."""
        limited(a=({"script": ["throttled"]}, {}))
        now = read_now(connection.alias)
        for message in queue_many(8, send_at=now + timedelta(days=1)):
            message.attempts.create(number=1, provider="a", begun_at=now)
        queue()

        dispatch_slice()

        assert ProviderState.objects.get(alias="a").slowed_to == 4

    def test_a_pause_before_it_asked_shows_nothing_of_what_it_takes(self, limited):
        limited(a=({"script": ["throttled"]}, {}))
        now = read_now(connection.alias)
        for message in queue_many(8, send_at=now + timedelta(days=1)):
            message.attempts.create(number=1, provider="a", begun_at=now - timedelta(seconds=2), outcome="accepted")
        queue()

        dispatch_slice()

        assert ProviderState.objects.get(alias="a").slowed_to == 4

    def test_one_that_throttles_the_first_mail_of_all_is_only_left_alone(self, limited):
        limited(a=({"script": ["throttled"]}, {}))
        message = queue()
        dispatch_slice()
        state = ProviderState.objects.get(alias="a")
        assert (state.slowed_to, ledger(message)) == (None, [("a", "throttled")])
        assert state.throttled_until is not None
