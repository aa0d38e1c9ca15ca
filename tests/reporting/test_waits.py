"""Why the mail of a stream waits, as `mail_status` says it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from mailengine import queue_mail
from mailengine.clock import read_now
from mailengine.models import Message
from mailengine.rate import per, taken
from mailengine.reporting.status import CRITICAL, GOOD, WARNING, queue_status
from mailengine.reporting.waits import carriers_of, switched_off

pytestmark = pytest.mark.django_db


def used_up(most, unit):
    return taken([per(most, unit)], {}, now=read_now("default"), count=most)


def queue(*, count=1, **options):
    for number in range(count):
        queue_mail("Hi", "Hello", "a@example.org", [f"r{number}@example.org"], **options)


def findings():
    return queue_status().findings


class TestForALimit:
    def test_it_is_as_it_should_be(self, providers, row):
        providers(ses={"RATE": "100/day"})
        row("ses", usage=used_up(100, "day"))
        queue(stream="bulk")

        ((level, text),) = findings()

        assert level == GOOD
        assert text.startswith("bulk: mail waits for the limit of ses until ")
        assert text.endswith(" UTC")

    def test_however_long_ago_it_was_due(self, providers, row, clock):
        providers(ses={"RATE": "100/day"})
        queue()
        clock.advance(hours=20)
        row("ses", usage=used_up(100, "day"))

        ((level, text),) = findings()

        assert level == GOOD
        assert "transactional: mail waits for the limit of ses until " in text
        assert "does send_mail run?" not in text

    def test_for_more_than_a_day_an_operator_should_know(self, providers, row, clock):
        providers(ses={"RATE": "100/day"})
        queue()
        clock.advance(hours=49)
        row("ses", usage=used_up(100, "day"))

        ((level, text),) = findings()

        assert level == WARNING
        assert text.endswith("; the oldest has been due for 49 h")

    def test_mail_that_it_leaves_room_for_is_late_all_the_same(self, providers, row, clock):
        providers(ses={"RATE": "100/day"})
        queue(stream="bulk")
        clock.advance(minutes=5)
        queue()
        clock.advance(minutes=15)
        row("ses", usage=taken([per(100, "day")], {}, now=read_now("default"), count=95))

        told = dict(reversed(finding) for finding in findings())

        assert sorted(told.values()) == [GOOD, WARNING]
        assert told["transactional: the oldest mail has been due for 15 min; does send_mail run?"] == WARNING

    def test_another_provider_that_has_none_could_carry_it(self, providers, row, clock):
        providers(ses={"RATE": "100/day"}, relay={})
        queue()
        clock.advance(minutes=20)
        row("ses", usage=used_up(100, "day"))

        assert findings() == [(WARNING, "transactional: the oldest mail has been due for 20 min; does send_mail run?")]

    def test_unless_the_stream_would_rather_wait(self, providers, row):
        providers({"STREAMS": {"bulk": {"FAILOVER": False}}}, ses={"RATE": "100/day"}, relay={})
        row("ses", usage=used_up(100, "day"))
        queue(stream="bulk")

        assert "waits for the limit of ses" in findings()[0][1]

    @pytest.mark.parametrize(("begun", "level"), [(1_500, GOOD), (500, CRITICAL)])
    def test_a_rate_that_lets_some_go_all_the_time_is_seen_by_its_pace(self, providers, clock, hand_over, begun, level):
        providers(ses={"RATE": "200/min"})
        queue()
        clock.advance(minutes=90)
        hand_over("ses", count=begun, at=read_now("default") - timedelta(minutes=5))

        ((found, text),) = [finding for finding in findings() if finding[1].startswith("transactional: ")]

        assert found == level
        assert ("goes as fast as the limit of ses lets it" in text) == (level == GOOD)


class TestSwitchedOff:
    def test_it_is_a_warning_and_critical_once_mail_waits(self, providers, row):
        providers({"STREAMS": {"bulk": {"PROVIDERS": ["a", "b"]}}}, a={}, b={}, c={})
        row("a", mode="draining")
        row("b", mode="disabled")
        text = "bulk: none of its providers may be given new mail: a is draining, b is disabled"
        assert findings() == [(WARNING, text)]

        queue(stream="bulk")
        assert findings() == [(CRITICAL, text)]

    def test_late_mail_is_not_blamed_on_send_mail(self, providers, row, clock):
        providers(a={})
        row("a", mode="retired")
        queue()
        clock.advance(minutes=20)

        texts = [text for _level, text in findings()]

        assert "transactional: none of its providers may be given new mail: a is retired" in texts
        assert not any("does send_mail run?" in text for text in texts)

    def test_one_in_use_is_enough(self, providers, row, look):
        providers(a={}, b={})
        row("a", mode="disabled")
        assert switched_off(look()) == []
        assert findings() == []


class TestBroken:
    def test_late_mail_is_not_blamed_on_send_mail(self, providers, row, clock):
        providers(a={}, b={})
        row("a", mode="disabled")
        row("b", is_open=True, opened_at=read_now("default"), last_error="unavailable: 421 busy")
        queue()
        clock.advance(minutes=20)

        texts = [text for _level, text in findings()]

        late = "transactional: the oldest mail has been due for 20 min, and none of its providers can be used"
        assert texts[0] == late

    def test_the_mend_is_told_with_it_and_no_other_is_left(self, providers, row):
        providers(a={}, b={})
        row("a", mode="disabled")
        row("b", is_open=True, misconfigured=True, last_error="misconfigured: 535 5.7.8 No")
        queue()

        ((level, text),) = findings()

        assert level == CRITICAL
        assert text.startswith("provider b is misconfigured, since ?, next try now; misconfigured: 535 5.7.8 No. It ")
        assert text.endswith("was a password changed, a key withdrawn?")


class TestUncertain:
    """Mail that may have gone by a provider, and may go by no other."""

    @pytest.fixture(autouse=True)
    def _in_doubt(self, providers, clock):
        providers(a={}, b={})
        message = queue_mail("Hi", "Hello", "a@example.org", ["ann@example.org"])
        Message.objects.filter(pk=message.pk).update(status="uncertain", provider="a")
        clock.advance(minutes=20)

    def test_it_is_late_when_nobody_sends_it(self):
        text = "the oldest mail that may have gone by a has been due for 20 min; does send_mail run?"
        assert findings() == [(WARNING, text)]

    def test_for_a_disabled_one_it_waits_and_an_operator_should_know(self, row):
        row("a", mode="disabled")
        assert findings() == [(WARNING, "provider a is disabled, waiting for it: 1 uncertain")]

    def test_for_one_that_rests_it_waits(self, row):
        row("a", is_open=True, last_error="unavailable: 421")
        ((_level, text),) = findings()
        assert text.startswith("provider a is resting, ")


class TestCarriers:
    def carriers(self, look, stream="bulk"):
        return [report.alias for report in carriers_of(stream, look())]

    def test_all_in_the_order_of_the_settings(self, providers, row, look):
        providers({"PROVIDERS": {"b": {}, "a": {}}}, a={}, b={}, c={})
        row("c", is_added=True)
        assert self.carriers(look) == ["b", "a", "c"]

    def test_those_that_the_stream_names(self, providers, look):
        providers({"STREAMS": {"bulk": {"PROVIDERS": ["c", "a"]}}}, a={}, b={}, c={})
        assert self.carriers(look) == ["c", "a"]

    @pytest.mark.parametrize(
        ("strategy", "carriers"),
        [("ordered", ["b"]), ("sticky", ["c"]), ("weighted", ["b", "c"]), ("spread", ["b", "c", "d"])],
    )
    def test_without_failover_the_preferred_ones_alone(self, providers, row, look, strategy, carriers):
        policy = {"bulk": {"FAILOVER": False, "STRATEGY": strategy}}
        providers({"STREAMS": policy}, b={}, c={}, d={"WEIGHT": 0})
        row("c", took_over_at=read_now("default"))
        assert self.carriers(look) == carriers

    def test_a_retired_one_is_followed_by_the_next(self, providers, row, look):
        providers({"STREAMS": {"bulk": {"FAILOVER": False}}}, a={}, b={})
        row("a", mode="retired")
        assert self.carriers(look) == ["b"]
