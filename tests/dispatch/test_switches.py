"""Providers that an operator adds, drains, disables, retires and weighs anew while mail flows."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from django.core.management import call_command

from mailengine import dispatch_slice, queue_job, send_direct_email
from mailengine.errors import NotSent
from mailengine.models import Attempt, Message, ProviderState
from mailengine.pipeline.dispatch import Dispatcher
from mailengine.testing import FakeProvider

from .helpers import ledger, queue, queue_many, statuses

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _fresh():
    FakeProvider.reset()
    yield
    FakeProvider.reset()


def switch(alias: str, **switches) -> None:
    ProviderState.objects.update_or_create(alias=alias, defaults=switches)


def begun_by() -> Counter[str]:
    return Counter(Attempt.objects.values_list("provider", flat=True))


@pytest.mark.parametrize("mode", ["draining", "disabled", "retired"])
def test_one_that_is_switched_off_gets_no_new_mail(configure, mode):
    configure({"a": {}, "b": {}})
    switch("a", mode=mode)
    queue_many(5)

    dispatch_slice()

    assert begun_by() == {"b": 5}


@pytest.mark.parametrize("mode", ["draining", "disabled", "retired"])
def test_with_no_other_provider_mail_waits(configure, mode):
    configure({"a": {}})
    switch("a", mode=mode)
    queue_many(2)

    report = dispatch_slice()

    assert (statuses(), report.is_blocked) == ({"queued": 2}, True)
    switch("a", mode="enabled")
    dispatch_slice()
    assert statuses() == {"sent": 2}


@pytest.mark.parametrize("mode", ["draining", "disabled", "retired"])
def test_one_that_is_switched_off_is_not_probed(configure, clock, mode):
    configure({"a": {"script": ["unavailable"] * 3}, "b": {}})
    queue_many(3)
    dispatch_slice()
    switch("a", mode=mode)
    queue_many(3)
    clock.advance(minutes=5)

    dispatch_slice()

    assert begun_by() == {"a": 3, "b": 6}


class TestMailThatOnlyItMayCarry:
    """Uncertain mail is sent once more by the same provider, and by no other."""

    @pytest.fixture
    def uncertain(self, configure, clock):
        configure({"a": {"script": ["uncertain"]}, "b": {}})
        message = queue()
        dispatch_slice()
        clock.advance(hours=2)
        return message

    def test_a_draining_one_carries_it(self, uncertain):
        switch("a", mode="draining")

        dispatch_slice()

        assert ledger(uncertain) == [("a", "uncertain"), ("a", "accepted")]

    def test_a_draining_one_carries_it_though_no_other_can_be_used(self, uncertain):
        switch("a", mode="draining")
        switch("b", mode="disabled")

        dispatch_slice()

        assert ledger(uncertain) == [("a", "uncertain"), ("a", "accepted")]

    @pytest.mark.parametrize("others", [{"b": {}}, {}])
    def test_a_draining_one_that_failed_is_probed_by_it(self, configure, clock, others):
        """By no other mail, however much there is."""
        configure({"a": {"script": ["uncertain", "unavailable", "unavailable"]}, **others})
        message = queue()
        dispatch_slice()
        queue_many(2)
        dispatch_slice()
        assert ProviderState.objects.get(pk="a").is_open
        switch("a", mode="draining")
        clock.advance(hours=2)
        queue_many(3)

        dispatch_slice()

        assert ledger(message) == [("a", "uncertain"), ("a", "accepted")]

    def test_for_a_disabled_one_it_waits(self, uncertain, clock):
        switch("a", mode="disabled")
        dispatch_slice()
        assert statuses() == {"uncertain": 1}

        switch("a", mode="enabled")
        clock.advance(hours=1)
        dispatch_slice()

        assert statuses() == {"sent": 1}

    def test_of_a_retired_one_it_is_kept_for_a_person(self, uncertain):
        switch("a", mode="retired")

        dispatch_slice()

        uncertain.refresh_from_db()
        assert (uncertain.status, uncertain.available_at) == ("uncertain", None)
        assert "no longer configured" in uncertain.reason


def test_a_weight_set_here_counts_more_than_that_of_the_settings(configure):
    configure({"a": {}, "b": {}}, STRATEGY="weighted")
    switch("b", weight=3)
    queue_many(40)

    dispatch_slice()

    assert begun_by() == {"a": pytest.approx(10, abs=1), "b": pytest.approx(30, abs=1)}


def test_a_rate_set_here_counts_more_than_that_of_the_settings(configure):
    configure({"a": {}}, PROVIDERS={"a": {"RATE": "100/day"}})
    switch("a", rate="3/day")
    queue_many(5)

    dispatch_slice()

    assert statuses() == {"sent": 3, "queued": 2}


def test_a_rate_that_nobody_can_read_is_that_of_the_settings(configure):
    configure({"a": {}}, PROVIDERS={"a": {"RATE": "3/day"}})
    switch("a", rate="three a day")
    queue_many(5)

    dispatch_slice()

    assert statuses() == {"sent": 3, "queued": 2}


def test_a_mode_that_nobody_can_read_is_none(configure):
    """A row may be written by hand, or by a newer version on another host."""
    configure({"a": {}})
    switch("a", mode="xyz")
    queue()

    dispatch_slice()

    assert statuses() == {"sent": 1}


class TestAdded:
    """An entry of MAILERS that the settings don't name as a provider."""

    @pytest.fixture(autouse=True)
    def _spare(self, configure):
        configure({"a": {"fails_every": 1}, "spare": {}}, PROVIDERS={"a": {}})

    def test_by_itself_it_is_none(self):
        queue()
        dispatch_slice()
        assert set(begun_by()) == {"a"}

    def test_once_added_it_takes_mail_after_the_others(self):
        switch("spare", is_added=True)
        message = queue()
        dispatch_slice()
        assert ledger(message) == [("a", "unavailable"), ("spare", "accepted")]

    def test_a_process_that_has_no_entry_for_it_does_without(self):
        switch("elsewhere", is_added=True)
        message = queue()
        dispatch_slice()
        assert set(ledger(message)) == {("a", "unavailable")}

    def test_it_has_connections_of_its_own(self, configure):
        configure({"a": {}, "spare": {}}, PROVIDERS={"a": {"CONNECTIONS": 1}}, CONNECTIONS=4)
        switch("spare", is_added=True)
        queue()
        run = Dispatcher("send_mail")
        run.run()
        assert run.team.size == 4

    @pytest.mark.django_db(transaction=True)
    def test_it_may_be_the_only_one(self, configure):
        configure({"spare": {}}, PROVIDERS={})
        switch("spare", is_added=True)
        message = queue()
        dispatch_slice()
        assert ledger(message) == [("spare", "accepted")]
        assert send_direct_email("Hi", "Hello", "desk@example.org", ["ann@example.org"]).provider == "spare"

    @pytest.mark.django_db(transaction=True)
    def test_mail_can_be_sent_directly_by_it(self):
        switch("spare", is_added=True)
        mail = "Hi", "Hello", "desk@example.org", ["ann@example.org"]
        assert send_direct_email(*mail, provider="spare").provider == "spare"
        with pytest.raises(NotSent):
            send_direct_email(*mail, provider="a")


def test_a_run_follows_the_switches_while_it_goes_on(configure, monkeypatch):
    """P12: one is added, one drained and removed in the midst of it, and no message fails."""
    configure({"a": {}, "b": {}, "c": {}}, PROVIDERS={"a": {}, "b": {}}, STRATEGY="weighted")
    monkeypatch.setattr("mailengine.pipeline.picture.REFRESH_SECONDS", 0)
    queue_job("News", "Read this.", "desk@example.org", [f"u{number:04d}@example.org" for number in range(1_000)])

    call_command("process_mail_jobs", verbosity=0)
    switches = {200: ("c", {"is_added": True}), 400: ("a", {"mode": "draining"}), 600: ("a", {"mode": "retired"})}
    counts = {}

    def turn_switches(report):
        sent = report.outcomes["sent"]
        for due in [due for due in switches if sent >= due]:
            alias, how = switches.pop(due)
            switch(alias, **how)
            counts[due] = begun_by()

    report = Dispatcher("send_mail", max_time=300, on_progress=turn_switches).run()

    assert (statuses(), report.outcomes) == ({"sent": 1_000}, {"sent": 1_000})
    assert Message.objects.filter(attempts__number__gt=1).count() == 0
    assert counts[200]["c"] == 0
    assert counts[400]["c"] > 0
    assert begun_by()["a"] - counts[400]["a"] <= 16  # what was about to begin
    assert begun_by()["a"] == counts[600]["a"]


class TestInTheMidstOfARun:
    """What is under way at a provider that goes away is recorded all the same."""

    @pytest.fixture
    def send_until_5_then(self, monkeypatch):
        """Send a job to 30 by providers that take a moment, and do this once 5 are sent."""
        monkeypatch.setattr("mailengine.pipeline.picture.REFRESH_SECONDS", 0)
        take = FakeProvider.send_messages
        monkeypatch.setattr(FakeProvider, "send_messages", lambda self, emails: time.sleep(0.03) or take(self, emails))
        queue_job("News", "Read this.", "desk@example.org", [f"u{number:02d}@example.org" for number in range(30)])
        call_command("process_mail_jobs", verbosity=0)

        def run(action):
            done = []

            def act_once(report):
                if report.outcomes["sent"] >= 5 and not done:
                    done.append(action())

            Dispatcher("send_mail", max_time=60, on_progress=act_once).run()
            assert done
            return set(Attempt.objects.values_list("outcome", flat=True)), statuses()

        return run

    @pytest.mark.parametrize("strategy", ["ordered", "sticky"])
    def test_one_is_retired_and_another_goes_on(self, configure, send_until_5_then, strategy):
        configure({"a": {}, "b": {}}, STRATEGY=strategy)
        assert send_until_5_then(lambda: switch("a", mode="retired")) == ({"accepted"}, {"sent": 30})
        assert set(begun_by()) == {"a", "b"}

    @pytest.mark.parametrize("strategy", ["ordered", "sticky"])
    def test_the_last_one_is_retired(self, configure, send_until_5_then, strategy):
        configure({"a": {}}, STRATEGY=strategy)
        outcomes, states = send_until_5_then(lambda: switch("a", mode="retired"))
        assert (outcomes, set(states)) == ({"accepted"}, {"sent", "queued"})

    def test_the_row_of_an_added_one_is_deleted(self, configure, send_until_5_then):
        configure({"a": {"fails_every": 1}, "spare": {}}, PROVIDERS={"a": {}})
        switch("a", mode="disabled")
        switch("spare", is_added=True)
        outcomes, states = send_until_5_then(ProviderState.objects.filter(pk="spare").delete)
        assert (outcomes, set(states)) == ({"accepted"}, {"sent", "queued"})
