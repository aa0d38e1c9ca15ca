"""Providers stand in for each other, and the admin is told when one needs a person."""

from __future__ import annotations

import logging
from contextlib import suppress

import pytest
from django.core import mail
from django.core.management import call_command

from mailengine import dispatch_slice
from mailengine.conf import get_settings
from mailengine.models import Message, ProviderState
from mailengine.outcomes import Kind, Outcome
from mailengine.pipeline.dispatch import Dispatcher
from mailengine.pipeline.health import Health
from mailengine.providers.choose import Choice
from mailengine.testing import FakeProvider

from .helpers import ledger, queue, queue_many, send, statuses

pytestmark = pytest.mark.django_db

DOWN = {"fails_every": 1}


def accepted(alias: str) -> int:
    return len(FakeProvider.named(alias).accepted)


def test_a_message_that_one_provider_fails_is_sent_by_the_next_in_the_same_run(configure):
    """P07 and G19: two attempt rows, one mail."""
    configure({"mailgun": DOWN, "ses": {}})
    message = queue()

    send()

    assert ledger(message) == [("mailgun", "unavailable"), ("ses", "accepted")]


def test_the_provider_that_worked_is_tried_first_from_then_on(configure):
    """P08, with the strategy "sticky"."""
    configure({"mailgun": {"script": ["unavailable"]}, "ses": {}}, STRATEGY="sticky", CONNECTIONS=1)
    first, second = queue("a@example.org"), queue("b@example.org")

    send()

    assert ledger(first) == [("mailgun", "unavailable"), ("ses", "accepted")]
    assert ledger(second) == [("ses", "accepted")]


def test_ordered_goes_back_to_the_first_as_soon_as_it_works(configure):
    configure({"mailgun": {"script": ["unavailable"]}, "ses": {}}, CONNECTIONS=1)
    first, second = queue("a@example.org"), queue("b@example.org")

    send()

    assert ledger(first)[-1] == ("ses", "accepted")
    assert ledger(second) == [("mailgun", "accepted")]


def test_two_providers_that_fail_every_second_call_deliver_all_mail(configure):
    """P09: the four-mail trace, switching each time."""
    configure({"lambda": {"fails_every": 2}, "delta": {"fails_every": 2}}, STRATEGY="sticky", CONNECTIONS=1)
    mails = queue_many(4)

    send()

    assert [ledger(mail) for mail in mails] == [
        [("lambda", "accepted")],
        [("lambda", "unavailable"), ("delta", "accepted")],
        [("delta", "unavailable"), ("lambda", "accepted")],
        [("lambda", "unavailable"), ("delta", "accepted")],
    ]
    assert accepted("lambda") + accepted("delta") == 4


def test_after_three_bad_rounds_a_provider_is_left_alone(configure):
    """G18 and G20: its circuit is open, and the rest goes elsewhere at once."""
    configure({"mailgun": DOWN, "ses": {}}, CONNECTIONS=1)
    queue_many(20)

    send()

    assert FakeProvider.named("mailgun").calls == 3
    assert accepted("ses") == 20
    assert ProviderState.objects.get(pk="mailgun").is_open


def test_a_new_provider_starts_healthy(configure):
    """G24."""
    configure({"mailgun": {}})
    queue()

    send()

    assert (accepted("mailgun"), ProviderState.objects.get().is_open) == (1, False)


def test_an_open_circuit_gets_one_probe_in_each_interval(configure, clock):
    """G21: and none between."""
    configure({"mailgun": DOWN, "ses": {}}, CONNECTIONS=1)
    queue_many(10)
    send()
    calls = FakeProvider.named("mailgun").calls
    queue_many(5)
    send()
    assert FakeProvider.named("mailgun").calls == calls

    clock.advance(seconds=61)
    queue_many(100)
    send()

    assert FakeProvider.named("mailgun").calls == calls + 1
    assert statuses() == {"sent": 115}


def test_a_probe_that_another_process_took_holds_nothing_up(configure, clock, monkeypatch):
    """Nor where a transaction reads the same until its end, so that the probe looks due for as long."""
    configure({"mailgun": DOWN, "ses": {}}, CONNECTIONS=1)
    queue_many(3)
    send()
    clock.advance(seconds=61)
    queue()
    tries = []

    def too_late(health, alias):
        tries.append(alias)
        assert len(tries) < 10
        return False

    monkeypatch.setattr(Health, "start_probe", too_late)

    send()

    assert (set(tries), statuses()) == ({"mailgun"}, {"sent": 4})


def test_a_repaired_provider_is_back_in_use_within_one_run(configure, clock):
    configure({"mailgun": {"script": ["unavailable"] * 3}, "ses": {}}, CONNECTIONS=1)
    queue_many(3)
    send()
    clock.advance(seconds=61)
    queue_many(10)

    send()

    assert not ProviderState.objects.get(pk="mailgun").is_open
    assert accepted("mailgun") == 10


class TestUncertainMailAndProbes:
    """Mail that may have gone is the probe of its provider only when no better one waits."""

    @pytest.fixture
    def divided(self, configure):
        """Transactional mail goes by mailgun alone, whose circuit is open and due for a probe; the rest by ses."""
        configure(
            {"mailgun": {}, "ses": {}},
            STREAMS={"transactional": {"PROVIDERS": ["mailgun"]}, "bulk": {"PROVIDERS": ["ses"]}},
        )
        ProviderState.objects.everything(["mailgun", "ses"])
        ProviderState.objects.filter(pk="mailgun").update(is_open=True, bad_rounds=3, opened_at=LONG_AGO)

    def test_it_probes_though_mail_waits_that_could_not_go_there(self, divided):
        message = queue_uncertain("mailgun")
        queue("reader@example.org", stream="bulk")
        ProviderState.objects.filter(pk="ses").update(throttled_until=FAR_AWAY)

        with suppress(SystemExit):
            send()

        assert ledger(message)[-1] == ("mailgun", "accepted")
        assert statuses() == {"sent": 1, "queued": 1}

    @pytest.mark.parametrize("stream", ["transactional", "gone from the settings"])
    def test_it_leaves_the_probe_to_mail_that_was_never_in_doubt(self, divided, settings, stream):
        settings.MAILERS["mailgun"]["OPTIONS"] = {"script": ["unavailable"]}
        message = queue_uncertain("mailgun")
        other = queue("bob@example.org")
        Message.objects.filter(pk=other.pk).update(stream=stream)

        with suppress(SystemExit):
            send()

        assert (len(ledger(message)), ledger(other)) == (1, [("mailgun", "unavailable")])

    def test_what_waits_is_asked_for_once_in_a_turn_and_only_for_a_probe(self, divided, django_assert_num_queries):
        for number in range(30):
            queue_uncertain("mailgun", to=f"u{number}@example.org")
        Message.objects.update(claimed_from="uncertain")
        messages = list(Message.objects.all())
        queue("bob@example.org")
        health = Health(get_settings())
        for _turn in range(2):
            health.refresh()
            with django_assert_num_queries(1):
                assert {health.choose(message, tried=()) for message in messages} == {None}

        ProviderState.objects.update(is_open=False)
        health.refresh(at_once=True)
        with django_assert_num_queries(0):
            assert {health.choose(message, tried=()) for message in messages} == {Choice("mailgun")}


LONG_AGO, FAR_AWAY = "2020-01-01T00:00Z", "2100-01-01T00:00Z"


def queue_uncertain(provider: str, *, to: str = "ann@example.org") -> Message:
    """A message whose handover to this provider had no clear end, and whose window is over."""
    message = queue(to)
    Message.objects.filter(pk=message.pk).update(
        status="uncertain", uncertain_count=1, provider=provider, available_at=LONG_AGO
    )
    message.attempts.create(number=1, provider=provider, begun_at=LONG_AGO, ended_at=LONG_AGO, outcome="uncertain")
    return message


def test_with_all_providers_down_mail_waits_and_spends_no_attempt(configure, capsys):
    """P11 in small, S23: and the command says so by its exit code."""
    configure({"mailgun": DOWN, "ses": DOWN})
    queue_many(5)

    with pytest.raises(SystemExit) as exit_:
        call_command("send_mail")

    assert exit_.value.code == 3
    assert "no provider can be used now" in capsys.readouterr().out
    assert statuses() == {"queued": 5}
    assert set(Message.objects.values_list("attempt_count", flat=True)) == {0}


def test_one_message_alone_is_enough_to_find_that_no_provider_works(configure):
    configure({"mailgun": DOWN})
    queue()

    with pytest.raises(SystemExit) as exit_:
        send()

    assert exit_.value.code == 3
    assert ProviderState.objects.get().is_open


def test_after_an_outage_of_all_everything_is_delivered_once(configure, clock):
    configure({"mailgun": {"script": ["unavailable"] * 3}, "ses": {"script": ["unavailable"] * 3}}, CONNECTIONS=1)
    queue_many(30)
    with pytest.raises(SystemExit):
        send()
    clock.advance(seconds=61)

    send()

    assert statuses() == {"sent": 30}
    assert accepted("mailgun") + accepted("ses") == 30


class TestMisconfigured:
    """A wrong password is a wait, not a failure."""

    @pytest.fixture
    def wrong_password(self, configure, settings):
        def configure_it(*, others=None, repaired_after=1):
            configure({"mailgun": {"script": ["misconfigured"] * repaired_after}, **(others or {})}, CONNECTIONS=1)
            settings.ADMINS = [("Ops", "ops@example.org")]
            import django

            if django.VERSION >= (6, 0):
                settings.ADMINS = ["ops@example.org"]

        return configure_it

    def test_it_opens_the_circuit_at_once_and_spends_nothing(self, wrong_password):
        """S23."""
        wrong_password(others={"ses": {}}, repaired_after=99)
        queue_many(10)

        send()

        assert FakeProvider.named("mailgun").calls == 1
        assert statuses() == {"sent": 10}
        assert set(Message.objects.values_list("attempt_count", flat=True)) == {0}

    def test_the_admin_is_told_once_by_another_road(self, wrong_password, clock, caplog):
        """S14: in the log, and by mail through a provider that works."""
        wrong_password(others={"ses": {}}, repaired_after=99)
        queue_many(3)
        with caplog.at_level(logging.ERROR, logger="mailengine.alerts"):
            send()
            clock.advance(minutes=2)
            queue()
            send()

        alerts = [e for e in FakeProvider.named("ses").accepted if "needs you" in e.subject]
        assert [alert.to for alert in alerts] == [["ops@example.org"]]
        assert "535 5.7.8" in alerts[0].body
        assert len([r for r in caplog.records if "misconfigured" in r.message]) == 1

    def test_the_alert_goes_by_the_alert_mailer_where_there_is_one(self, wrong_password, settings):
        wrong_password(repaired_after=99)
        settings.MAILENGINE = {**settings.MAILENGINE, "ALERT_MAILER": "siren"}
        settings.MAILERS = {**settings.MAILERS, "siren": {"BACKEND": "mailengine.testing.FakeProvider"}}
        queue()

        with pytest.raises(SystemExit):
            send()

        assert accepted("siren") == 1

    def test_once_mended_all_is_delivered_in_order_with_no_other_step(self, wrong_password, clock):
        """S16: the next run within a probe interval sends what was held."""
        wrong_password(repaired_after=1)
        queue_many(5)
        with pytest.raises(SystemExit):
            send()
        assert statuses() == {"queued": 5}
        clock.advance(seconds=61)

        send()

        assert [email.to[0] for email in FakeProvider.named("mailgun").accepted] == [
            f"u{number:04d}@example.org" for number in range(5)
        ]
        state = ProviderState.objects.get(pk="mailgun")
        assert (state.is_open, state.alerted_at) == (False, None)

    def test_a_second_incident_is_told_again(self, wrong_password, clock, caplog):
        wrong_password(repaired_after=0)
        from django.conf import settings

        options = {"script": ["misconfigured", "accept", "accept", "misconfigured"]}
        settings.MAILERS["mailgun"]["OPTIONS"] = options
        queue_many(4)
        with caplog.at_level(logging.ERROR, logger="mailengine.alerts"):
            for _ in range(3):
                try:
                    send()
                except SystemExit:
                    clock.advance(seconds=61)

        assert len([r for r in caplog.records if r.name == "mailengine.alerts" and "misconfigured:" in r.message]) == 2


def test_no_mail_reaches_the_outbox_of_the_test_runner(configure):
    """The fixtures send through real dispatching to scripted providers, not through Django's locmem."""
    configure({"mailgun": {}})
    queue()
    send()
    assert not getattr(mail, "outbox", [])


SEPARATE = {"transactional": {"PROVIDERS": ["relay"]}, "bulk": {"PROVIDERS": ["spare"]}}


def test_a_run_waits_for_a_provider_that_asks_for_a_moment(configure, handed_over):
    """It has time for it, and the mail of other streams is not kept waiting meanwhile."""
    configure({"relay": {}, "spare": {}}, STREAMS=SEPARATE, CONNECTIONS=1)
    asked = []

    def now_and_then(alias, email):
        asked.append(alias)
        is_limit = alias == "relay" and asked.count("relay") % 2 == 0
        return Outcome(Kind.THROTTLED, retry_after_seconds=1.5) if is_limit else Outcome(Kind.ACCEPTED)

    def queue_bulk(report):
        if len(asked) == 2 and not Message.objects.filter(stream="bulk").exists():
            queue("bulk@example.org", stream="bulk")

    handed_over(now_and_then)
    queue_many(3)

    report = Dispatcher("send_mail", max_time=20, on_progress=queue_bulk).run()

    assert (statuses(), report.stopped) == ({"sent": 4}, "done")
    assert asked == ["relay", "relay", "spare", "relay", "relay", "relay"]


def test_a_run_does_not_wait_for_what_comes_after_its_end(configure, handed_over):
    configure()
    handed_over(lambda alias, email: Outcome(Kind.THROTTLED, retry_after_seconds=100.0))
    queue_many(2)

    report = dispatch_slice(max_time=20)

    assert (statuses(), report.stopped, report.is_blocked) == ({"queued": 2}, "done", True)
    assert report.seconds < 20
