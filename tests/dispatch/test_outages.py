"""Providers that are down for long: what that costs, and what comes of the mail."""

from __future__ import annotations

from collections import Counter

import pytest

from mailengine import dispatch_slice
from mailengine.models import Attempt, Message, ProviderState
from mailengine.testing import ESPServer, FakeProvider
from mailengine.testing.esp_server import Answer

from .helpers import queue_many, statuses

pytestmark = pytest.mark.django_db


@pytest.fixture
def esps(configure, settings):
    """Mailgun and, if it fails, Postmark: real servers behind Anymail's backends."""
    with ESPServer() as mailgun, ESPServer() as postmark:
        configure({"mailgun": {}, "postmark": {}})
        settings.MAILERS = {
            **settings.MAILERS,
            "mailgun": mailgun.mailer("mailgun"),
            "postmark": postmark.mailer("postmark"),
        }
        yield mailgun, postmark


def arrived(*servers: ESPServer) -> Counter[str]:
    """How many copies there are of each message."""
    return Counter(mail.mailengine_id for server in servers for mail in server.accepted)


def once_each() -> dict[str, int]:
    return {str(pk): 1 for pk in Message.objects.values_list("pk", flat=True)}


def is_open(alias: str) -> bool:
    return ProviderState.objects.get(alias=alias).is_open


def attempts_at(alias: str) -> int:
    return Attempt.objects.filter(provider=alias).count()


def test_with_one_provider_answering_503_for_ten_minutes_no_mail_waits_for_the_next_run(esps, clock):
    """P10"""
    mailgun, postmark = esps
    mailgun.behave = lambda mail: Answer(503)

    for minute in range(1, 11):
        queue_many(10)
        dispatch_slice()
        assert statuses() == {"sent": 10 * minute}
        clock.advance(minutes=1)

    assert arrived(mailgun, postmark) == once_each()
    assert (len(mailgun.accepted), len(postmark.accepted)) == (0, 100)


def test_with_every_provider_down_for_an_hour_all_is_delivered_once_when_one_is_back(esps, clock):
    """P11"""
    mailgun, postmark = esps
    for server in esps:
        server.down()
    for _run in range(20):
        queue_many(6)
        dispatch_slice()
        clock.advance(minutes=3)
    assert statuses() == {"queued": 120}
    assert set(Message.objects.values_list("attempt_count", flat=True)) == {0}

    postmark.up()
    for _run in range(2):  # a message that has just been a probe in vain leaves the next one to others
        dispatch_slice()
        clock.advance(minutes=3)

    assert statuses() == {"sent": 120}
    assert arrived(mailgun, postmark) == once_each()


@pytest.mark.parametrize(("bad_rounds", "opens"), [(3, False), (4, True)])
def test_a_provider_is_left_alone_after_so_many_bad_rounds_in_a_row_and_no_fewer(configure, bad_rounds, opens):
    """G20"""
    configure({"a": {"script": ["unavailable"] * bad_rounds}, "b": {}}, UNHEALTHY_THRESHOLD=4, CONNECTIONS=1)
    queue_many(bad_rounds)

    dispatch_slice()

    assert is_open("a") is opens


def test_of_a_hundred_a_failing_provider_gets_one_and_the_other_sends_them_all(configure, clock):
    """G21: none, if no probe is due."""
    configure({"a": {"fails_every": 1}, "b": {}})
    ProviderState.objects.create(alias="a", is_open=True)
    queue_many(100)
    dispatch_slice()
    assert (attempts_at("a"), len(FakeProvider.named("b").accepted)) == (1, 100)

    queue_many(100)
    dispatch_slice()

    assert (attempts_at("a"), len(FakeProvider.named("b").accepted)) == (1, 200)


class TestAllDown:
    """G22: all are probed alike, the first to answer takes the mail, and then they share again."""

    @pytest.fixture(autouse=True)
    def _down(self, configure):
        configure({"a": {}, "b": {}}, STRATEGY="weighted", CONNECTIONS=1)
        for alias in ("a", "b"):
            FakeProvider.named(alias).fail()

    def test_both_are_probed_alike(self, clock):
        queue_many(50)
        for _interval in range(10):
            dispatch_slice()
            clock.advance(seconds=61)

        assert attempts_at("a") == pytest.approx(attempts_at("b"), abs=1)
        assert attempts_at("a") >= 10
        assert set(Message.objects.values_list("status", "attempt_count")) == {("queued", 0)}

    def test_the_first_to_answer_takes_the_rest(self, clock):
        queue_many(50)
        dispatch_slice()
        FakeProvider.named("b").recover()
        clock.advance(seconds=61)

        dispatch_slice()

        assert statuses() == {"sent": 50}
        assert len(FakeProvider.named("b").accepted) == 50

    def test_once_both_are_back_they_share_again(self, clock):
        queue_many(20)
        dispatch_slice()
        for alias in ("a", "b"):
            FakeProvider.named(alias).recover()
        clock.advance(seconds=61)
        dispatch_slice()
        assert (is_open("a"), is_open("b")) == (False, False)
        before = attempts_at("a"), attempts_at("b")

        queue_many(100)
        dispatch_slice()

        assert attempts_at("a") - before[0] == pytest.approx(50, abs=1)
        assert attempts_at("b") - before[1] == pytest.approx(50, abs=1)


def test_it_is_in_use_again_after_so_many_good_probes_and_no_fewer(configure, clock):
    """G23"""
    configure({"a": {"script": ["unavailable"] * 3}, "b": {}}, HEALTHY_THRESHOLD=6, CONNECTIONS=1)
    queue_many(3)
    dispatch_slice()
    clock.advance(seconds=61)
    queue_many(6)

    dispatch_slice(limit=5)
    assert (len(FakeProvider.named("a").accepted), is_open("a")) == (5, True)
    dispatch_slice(limit=1)
    assert (len(FakeProvider.named("a").accepted), is_open("a")) == (6, False)


def test_over_twenty_rounds_a_dead_provider_costs_one_failed_attempt_in_each(configure, clock):
    """G27: and no message waits for it."""
    configure({"dead": {"fails_every": 1}, "alive": {}}, STRATEGY="weighted")
    queue_many(10)
    dispatch_slice()
    assert is_open("dead")

    for sent in range(15, 115, 5):
        before = attempts_at("dead")
        clock.advance(seconds=61)
        queue_many(5)
        dispatch_slice()
        assert attempts_at("dead") - before == 1
        assert statuses() == {"sent": sent}
