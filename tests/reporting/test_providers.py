"""How a provider stands: its state, since when and why, its limits, what is left with it."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import translation

from mailengine import dispatch_slice, queue_mail
from mailengine.clock import read_now
from mailengine.models import Message
from mailengine.rate import per, taken
from mailengine.reporting import trouble
from mailengine.reporting.providers import addable, picture

pytestmark = pytest.mark.django_db


def now():
    return read_now("default")


def ago(**time):
    return now() - timedelta(**time)


def used(most, unit, *, count):
    return taken([per(most, unit)], {}, now=now(), count=count)


def uncertain(provider, *, count=1, kept=False):
    for number in range(count):
        message = queue_mail("Hi", "Hello", "a@example.org", [f"r{number}@example.org"])
        waits = {"available_at": None} if kept else {}
        Message.objects.filter(pk=message.pk).update(status="uncertain", provider=provider, **waits)


class TestState:
    @pytest.fixture(autouse=True)
    def _one(self, providers):
        providers(ses={})

    def test_one_without_a_row_was_not_tried_yet(self, look):
        report = look().reports["ses"]
        assert (report.state, report.detail, report.is_usable) == ("in use", "not tried yet", True)

    def test_one_that_works_says_no_more(self, look, row):
        row("ses")
        assert (look().reports["ses"].state, look().reports["ses"].detail) == ("in use", "")

    def test_bad_rounds_are_told_before_it_rests(self, look, row):
        row("ses", bad_rounds=2, last_error="unavailable: TimeoutError timed out")
        report = look().reports["ses"]
        assert (report.state, report.is_usable) == ("in use", True)
        assert report.detail == "2 bad in a row; unavailable: TimeoutError timed out"
        assert report.trouble.what == trouble.TOO_LATE

    def test_an_error_that_is_over_is_not_told(self, look, row):
        row("ses", last_error="unavailable: TimeoutError timed out", last_error_at=ago(hours=1))
        assert look().reports["ses"].trouble is None

    def test_one_that_rests_is_tried_again_at(self, look, row):
        row("ses", is_open=True, opened_at=ago(hours=2), failed_at=ago(seconds=20), last_error="unavailable: 421")
        report = look().reports["ses"]
        assert (report.state, report.is_usable) == ("resting", False)
        assert report.next_try_at - report.now == pytest.approx(timedelta(seconds=40), abs=timedelta(seconds=5))
        assert report.detail.startswith("since ")
        assert ", next try " in report.detail
        assert report.trouble.mend == trouble.WAIT

    def test_one_that_is_overdue_is_tried_now(self, look, row):
        row("ses", is_open=True, opened_at=ago(hours=2), failed_at=ago(seconds=80))
        assert look().reports["ses"].detail.endswith("next try now")

    def test_one_that_rejects_us_says_what_to_mend(self, look, row):
        row("ses", is_open=True, misconfigured=True, opened_at=ago(hours=2), last_error="misconfigured: 535 5.7.8 No")
        report = look().reports["ses"]
        assert (report.state, report.is_usable) == ("misconfigured", False)
        assert report.trouble.what == trouble.LOG_IN
        assert "MAILERS['ses']" in report.trouble.mend

    def test_one_that_asked_us_to_wait_says_until_when(self, look, row):
        until = now() + timedelta(minutes=5)
        row("ses", throttled_until=until, last_error="throttled: HTTP 429", last_error_at=ago(seconds=2))
        report = look().reports["ses"]
        assert (report.state, report.until, report.is_usable) == ("throttled", until, False)
        assert report.detail.startswith(f"until {until:%H:%M:%S} UTC" if until.date() == now().date() else "until ")

    def test_one_that_was_slowed_down_says_to_what(self, look, row):
        row("ses", slowed_to=4, slowed_at=ago(minutes=2))
        report = look().reports["ses"]
        assert (report.state, report.is_usable) == ("slowed", True)
        assert [(limit.name, limit.most) for limit in report.limits] == [("s", 8)]
        assert str(report.limits[0]) == "0 of 8 in this second, since it asked us to slow down"
        assert report.detail.startswith("to 8/s, and more as time goes on; it asked us to at ")

    @pytest.mark.parametrize("mode", ["draining", "disabled", "retired"])
    def test_one_that_is_switched_off_says_so_whatever_its_circuit(self, look, row, mode):
        row("ses", mode=mode, is_open=True)
        report = look().reports["ses"]
        assert (report.state, report.mode, report.is_usable) == (mode, mode, False)

    def test_what_is_left_with_it_is_told(self, look, row):
        uncertain("ses", count=3)
        uncertain("ses", kept=True)
        row("ses", mode="draining")
        report = look().reports["ses"]
        assert (report.uncertain, report.kept) == (3, 1)
        assert report.detail == "no new mail; 3 uncertain left that no other may carry"

    def test_when_nothing_is_left_it_can_be_retired(self, look, row):
        row("ses", mode="draining")
        assert "nothing is left that only it may carry, so it can be retired" in look().reports["ses"].detail

    def test_an_instant_of_another_day_has_its_date(self, look, row):
        row("ses", is_open=True, opened_at=ago(days=3))
        assert f"since {ago(days=3):%Y-%m-%d %H:%M} UTC" in look().reports["ses"].detail


class TestLimits:
    def test_each_says_how_much_of_it_is_used(self, look, row, providers):
        providers(ses={"RATE": "14/s, 50000/day"})
        row("ses", usage={**used(14, "s", count=9), **used(50_000, "day", count=41_200)})

        second, day = look().reports["ses"].limits

        assert (str(second).partition(" of ")[2], str(day)) == ("14 in this second", "41,200 of 50,000 in 24 hours")
        assert day.percent == pytest.approx(82.4)

    def test_a_warm_up_says_which_day_it_is(self, look, row, providers):
        providers(ses={"WARM_UP": [50, 100, 500]})
        row("ses", warming_since=ago(days=1))

        (limit,) = look().reports["ses"].limits

        assert str(limit) == "0 of 100 today (warm-up day 2 of 3)"

    def test_before_its_first_mail_it_is_the_first_day(self, look, providers):
        providers(ses={"WARM_UP": [50, 100, 500]})
        assert str(look().reports["ses"].limits[0]) == "0 of 50 today (warm-up day 1 of 3)"

    def test_one_that_has_had_its_day_is_limited(self, look, row, providers):
        providers(ses={"RATE": "100/day"})
        row("ses", usage=used(100, "day", count=100))

        report = look().reports["ses"]

        assert (report.state, report.is_usable) == ("limited", True)
        assert timedelta(hours=23) < report.until - report.now <= timedelta(hours=27)

    def test_bulk_mail_waits_before_other_mail_does(self, look, row, providers):
        providers(ses={"RATE": "100/day"})
        row("ses", usage=used(100, "day", count=90))

        report = look().reports["ses"]

        assert (report.state, report.until) == ("in use", None)
        assert report.detail.startswith("bulk mail waits for its limit until ")

    def test_that_of_a_switch_counts(self, look, row, providers):
        providers(ses={"RATE": "100/day"})
        row("ses", rate="5/min, 7/h", weight=3)

        report = look().reports["ses"]

        assert [str(limit) for limit in report.limits] == ["0 of 5 in this minute", "0 of 7 in 60 minutes"]
        assert (report.rate, report.own_rate, report.weight, report.own_weight) == ("5/min, 7/h", "5/min, 7/h", 3, 3)


@pytest.mark.parametrize(
    "values", [{"mode": "asleep"}, {"usage": ["x"]}, {"usage": {"day": {"x": "y"}}}, {"rate": "fast"}]
)
def test_what_somebody_wrote_into_the_row_by_hand_stops_no_report(look, row, providers, values):
    providers(ses={"RATE": "100/day"})
    row("ses", **values)

    report = look().reports["ses"]

    assert (report.state, str(report.limits[0])) == ("in use", "0 of 100 in 24 hours")


class TestOrder:
    def test_it_is_that_of_the_settings_then_added_ones_then_what_is_gone(self, look, row, providers, hand_over):
        providers({"PROVIDERS": {"z": {}, "gone": {}, "a": {}}}, z={}, gone={}, a={}, spare={}, other={})
        row("spare", is_added=True)
        row("gone", mode="retired")
        row("forgotten")
        row("removed")
        hand_over("removed", at=ago(hours=2))

        reports = look().reports

        assert {alias: report.state for alias, report in reports.items()} == {
            "z": "in use", "a": "in use", "spare": "in use", "gone": "retired", "removed": "not configured",
        }  # fmt: skip
        assert list(reports) == ["z", "a", "spare", "gone", "removed"]

    def test_one_that_is_gone_matters_while_mail_is_left_with_it(self, look, row, providers):
        providers(a={})
        row("gone")
        assert "gone" not in look().reports
        uncertain("gone")
        assert look().reports["gone"].detail == "left with it, to be kept for a person: 1 uncertain"

    def test_one_that_was_added_elsewhere_says_what_it_lacks(self, look, row, providers):
        providers(a={})
        row("elsewhere", is_added=True)
        assert look().reports["elsewhere"].detail == "added here, but MAILERS has no entry for it"


def test_what_can_be_added_sends_and_is_no_provider_yet(configure, settings):
    configure({"a": {}, "spare": {}, "other": {}}, PROVIDERS={"a": {}})
    for name in ("console", "locmem", "filebased", "dummy"):
        settings.MAILERS = {**settings.MAILERS, name: {"BACKEND": f"django.core.mail.backends.{name}.EmailBackend"}}

    assert addable() == ["spare", "other"]
    assert addable(["spare"]) == ["other"]


def test_what_a_run_has_done_is_seen(configure, look):
    configure({"a": {"script": ["unavailable"]}, "b": {}})
    for number in range(4):
        queue_mail("Hi", "Hello", "a@example.org", [f"r{number}@example.org"])
    dispatch_slice()

    reports = look().reports

    assert {alias: report.traffic.failed for alias, report in reports.items()} == {"a": 1, "b": 0}
    assert sum(report.traffic.accepted for report in reports.values()) == 4
    assert sum(report.share for report in reports.values()) == 1


def test_it_takes_the_same_queries_however_many_there_are(look, row, providers, django_assert_num_queries):
    providers(**{f"p{number}": {"RATE": "5/day"} for number in range(20)})
    for number in range(20):
        row(f"p{number}", is_open=number % 2 == 0)
    at = now()

    with django_assert_num_queries(2 + 24):  # each hour of the traffic by itself
        picture(now=at)
    with django_assert_num_queries(2):
        picture(now=at, with_traffic=False)


def test_what_json_has_is_the_same_in_every_language(look, row, providers):
    providers(ses={})
    row("ses", is_open=True, misconfigured=True, opened_at=ago(hours=1), last_error="misconfigured: 535 No")
    with translation.override("de"):
        told = look().reports["ses"].as_dict()
    assert (told["state"], told["mode"], told["last_error"]) == ("misconfigured", "enabled", "misconfigured: 535 No")
