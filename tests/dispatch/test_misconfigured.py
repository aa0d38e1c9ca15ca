"""A misconfiguration is a wait: how few messages it touches, and how the admins hear of it."""

from __future__ import annotations

import json
import logging

import django
import pytest
from django.db import connection, transaction
from django.utils import timezone

from mailengine.conf import get_settings
from mailengine.ids import uuid7
from mailengine.models import Attempt, Message, ProviderState
from mailengine.outcomes import Kind, Outcome
from mailengine.pipeline.alerts import send_alert
from mailengine.pipeline.health import Health
from mailengine.pipeline.rounds import Result
from mailengine.testing import FakeProvider, SMTPServer

from .. import processes
from ..providers.scripted import no_more_threads
from .helpers import ledger, queue, queue_many, send, statuses

pytestmark = pytest.mark.django_db

ACCEPTED = Outcome(Kind.ACCEPTED)
WRONG_PASSWORD = Outcome(Kind.MISCONFIGURED, code="535 5.7.8", detail="Wrong password", phase="auth")
REFUSED = Outcome(Kind.REFUSED, code="550 5.7.0", phase="rcpt")


@pytest.fixture(autouse=True)
def _fresh(settings):
    settings.ADMINS = ["ops@example.org"] if django.VERSION >= (6, 0) else [("Ops", "ops@example.org")]
    FakeProvider.reset()
    yield
    FakeProvider.reset()


def run(command: str = "send_mail") -> None:
    try:
        send(command)
    except SystemExit:
        return


def result(outcome, alias="relay", *, domain="example.org"):
    now = timezone.now()
    return Result(alias, outcome, "transactional", False, f"u@{domain}", uuid7(), begun_at=now, ended_at=now)


def told(alias="siren") -> list[str]:
    """The subjects of the alerts that this provider took."""
    return [email.subject for email in FakeProvider.named(alias).accepted if "needs you" in email.subject]


@pytest.fixture
def siren(configure, settings):
    """Set the providers, and an alert mailer that plays a script."""

    def set_up(providers, /, *, script=(), **mailengine):
        configure(providers, ALERT_MAILER="siren", **mailengine)
        fake = {"BACKEND": "mailengine.testing.FakeProvider", "OPTIONS": {"script": list(script)}}
        settings.MAILERS = {**settings.MAILERS, "siren": fake}

    return set_up


class TestFigures:
    def test_a_wrong_password_touches_few_messages_and_all_leave_after_the_repair(self, siren, clock):
        """F-S23, P20: one alert, no attempt spent, drained within a probe interval."""
        siren({"relay": {"script": ["misconfigured"] * 5}})
        queue_many(200)
        for _ in range(5):
            run()
            clock.advance(seconds=61)
        assert FakeProvider.named("relay").calls <= 5
        assert (statuses(), told()) == ({"queued": 200}, ["[Django] mail provider relay needs you"])

        for _ in range(2):
            run()
            clock.advance(seconds=61)

        assert statuses() == {"sent": 200}
        assert set(Message.objects.values_list("attempt_count", flat=True)) == {0}
        assert len(told()) == 1

    def test_one_dead_provider_of_two_costs_no_message_more_than_one_attempt(self, configure):
        configure({"relay": {"fails_every": 1}, "spare": {}})
        messages = queue_many(60)

        send()

        assert statuses() == {"sent": 60}
        assert max(len(ledger(message)) for message in messages) == 2
        assert Attempt.objects.filter(provider="relay").count() == 3

    @pytest.mark.parametrize("outcome", [WRONG_PASSWORD, Outcome(Kind.UNAVAILABLE), Outcome(Kind.UNCERTAIN)])
    def test_with_eight_connections_a_bad_provider_gets_one_handover_at_a_time(self, configure, handed_over, outcome):
        configure(CONNECTIONS=8)
        handovers = handed_over(lambda alias, email: outcome)
        queue_many(50)

        run()

        assert len(handovers) <= 3

    def test_with_eight_connections_five_refusals_are_enough(self, configure, handed_over):
        """F-S22."""
        configure(CONNECTIONS=8)
        handovers = handed_over(lambda alias, email: REFUSED)
        for number in range(50):
            queue(f"u@d{number}.example")

        run()

        assert (len(handovers), statuses()) == (5, {"queued": 50})


class TestRoom:
    @pytest.fixture
    def health(self, configure):
        configure({"relay": {}, "spare": {}}, CONNECTIONS=8)
        health = Health(get_settings())
        health.refresh()
        return health

    def test_it_doubles_with_each_acceptance_up_to_the_connections(self, health):
        rooms = []
        for _ in range(6):
            rooms.append(health.room("relay"))
            health.note([result(ACCEPTED)])

        assert rooms == [1, 2, 4, 8, 8, 8]
        assert health.room("spare") == 1

    def test_a_provider_s_own_connections_are_the_most(self, configure, settings):
        configure(CONNECTIONS=8)
        settings.MAILENGINE = {**settings.MAILENGINE, "PROVIDERS": {"relay": {"CONNECTIONS": 2}}}
        health = Health(get_settings())
        health.refresh()
        health.note([result(ACCEPTED)] * 5)

        assert health.room("relay") == 2

    @pytest.mark.parametrize("kind", [Kind.UNAVAILABLE, Kind.MISCONFIGURED, Kind.UNCERTAIN])
    def test_a_bad_round_begins_anew(self, health, kind):
        health.note([result(ACCEPTED)] * 5)
        health.note([result(Outcome(kind))])

        assert health.room("relay") == 1

    def test_what_is_the_message_s_fault_changes_nothing(self, health):
        health.note([result(ACCEPTED)] * 5)
        health.note([result(Outcome(Kind.DEFERRED, code="450", phase="rcpt"))])

        assert health.room("relay") == 8

    def test_alike_refusals_make_it_smaller_until_something_is_accepted(self, health):
        health.note([result(ACCEPTED)] * 5)
        rooms = []
        for number in range(5):
            health.note([result(REFUSED, domain=f"d{number}.example")])
            rooms.append(health.room("relay"))
        assert rooms[:4] == [4, 3, 2, 1]

        health.note([result(ACCEPTED)] * 5)
        assert health.room("relay") == 8


class TestAlert:
    def test_one_that_could_not_go_is_tried_again_with_the_next_bad_probe(self, siren, clock, caplog):
        siren({"relay": {"script": ["misconfigured"] * 9}}, script=["unavailable"])
        queue()
        run()
        assert (told(), ProviderState.objects.get().alerted_at) == ([], None)
        clock.advance(seconds=61)

        run()
        clock.advance(seconds=61)
        run()

        assert len(told()) == 1
        assert ProviderState.objects.get().alerted_at is not None
        assert len([r for r in caplog.records if "is misconfigured:" in r.getMessage() and r.levelname == "ERROR"]) == 1

    def test_when_the_road_for_alerts_fails_another_provider_carries_it(self, siren):
        siren({"relay": {"script": ["misconfigured"]}, "spare": {}}, script=["unavailable"])
        queue()

        run()

        assert len(told("spare")) == 1

    @pytest.mark.parametrize("alert_mailer", [None, "relay"])
    def test_it_never_goes_by_the_failing_provider(self, configure, alert_mailer):
        configure({"relay": {"script": ["misconfigured"]}}, ALERT_MAILER=alert_mailer)
        queue()

        run()

        assert FakeProvider.named("relay").calls == 1
        assert ProviderState.objects.get().alerted_at is None

    def test_without_admins_the_log_is_enough(self, siren, settings):
        settings.ADMINS = []
        siren({"relay": {"script": ["misconfigured"]}})
        queue()

        run()

        assert ProviderState.objects.get().alerted_at is not None
        assert FakeProvider.named("siren").calls == 0

    def test_eight_connections_that_find_it_out_together_tell_it_once(self, siren):
        siren({"relay": {}}, CONNECTIONS=8)
        health = Health(get_settings())
        health.refresh()

        health.note([result(WRONG_PASSWORD)] * 8)

        assert len(health.incidents.alerts) == 1

    def test_of_two_processes_one_tells_it(self, siren, clock):
        siren({"relay": {}})
        first, second = Health(get_settings()), Health(get_settings())
        for health in (first, second):
            health.refresh()
        first.note([result(WRONG_PASSWORD)])

        second.note([result(WRONG_PASSWORD)])
        assert not second.incidents.alerts

        # It was killed before anybody was told.
        clock.advance(minutes=5)
        second.refresh(at_once=True)
        second.note([result(WRONG_PASSWORD)])
        assert len(second.incidents.alerts) == 1

    @pytest.mark.django_db(transaction=True)
    def test_two_real_processes_with_eight_connections_send_one_mail(self, configure, settings, server_without_login):
        """S14."""
        with SMTPServer() as siren:
            configure(CONNECTIONS=8, ALERT_MAILER="siren")
            relay = server_without_login.mailer(username="desk", password="wrong password")
            settings.MAILERS = {**settings.MAILERS, "relay": relay, "siren": siren.mailer()}
            queue_many(40)
            environment = {**processes.environment(), "TEST_SETTINGS": json.dumps({"ADMINS": settings.ADMINS})}

            workers = [processes.start("send_mail", "--workers=2", env=environment) for _ in range(2)]
            errors = [worker.communicate(timeout=60)[1] for worker in workers]

        assert [worker.returncode for worker in workers] == [3, 3], errors
        assert ["needs you" in alert.message["Subject"] for alert in siren.accepted] == [True]
        assert ProviderState.objects.get().alerted_at is not None
        assert Attempt.objects.count() <= 4  # one for each process
        assert statuses() == {"queued": 40}

    def test_a_long_run_enters_it_as_soon_as_it_is_known(self, siren):
        siren({"relay": {}})
        health = Health(get_settings())
        health.refresh()
        health.note([result(WRONG_PASSWORD)])
        alarm = send_alert(health.incidents.alerts.pop())
        super(type(alarm), alarm).join()
        assert ProviderState.objects.get().alerted_at is None

        health.refresh(at_once=True)

        assert ProviderState.objects.get().alerted_at is not None

    def test_a_host_without_a_thread_for_it_goes_on_and_tells_them_later(self, siren):
        siren({"relay": {}})
        health = Health(get_settings())
        health.refresh()
        health.note([result(WRONG_PASSWORD)])
        with no_more_threads():
            send_alert(health.incidents.alerts.pop()).join()

        assert told() == []
        assert ProviderState.objects.get().alerted_at is None

    def test_news_of_an_incident_that_is_over_leave_the_next_one_alone(self, siren):
        siren({"relay": {}})
        health = Health(get_settings())
        health.refresh()
        health.note([result(WRONG_PASSWORD)])
        alarm = send_alert(health.incidents.alerts.pop())
        health.note([result(ACCEPTED)] * 2)
        assert not ProviderState.objects.get().is_open
        health.note([result(WRONG_PASSWORD)])

        alarm.join()

        assert ProviderState.objects.get().alerted_at is None
        assert len(health.incidents.alerts) == 1

    def test_it_has_no_secret(self, siren, settings, server_without_login, caplog):
        siren({})
        mailer = server_without_login.mailer(username="desk", password="hunter2secret", use_tls=False)
        settings.MAILERS = {**settings.MAILERS, "relay": mailer}
        settings.MAILENGINE = {**settings.MAILENGINE, "PROVIDERS": {"relay": {}}}
        queue()

        with caplog.at_level(logging.DEBUG):
            run()

        bodies = [email.body for email in FakeProvider.named("siren").accepted]
        assert len(bodies) == 1
        assert "hunter2secret" not in bodies[0] + caplog.text + ProviderState.objects.get().last_error


@pytest.fixture
def server_without_login():
    with SMTPServer(credentials=("desk", "another password")) as server:
        yield server


def test_a_commit_that_fails_tells_nothing_and_leaves_the_incident_open(siren):
    siren({"relay": {}})
    health = Health(get_settings())
    health.refresh()
    with transaction.atomic():
        health.note([result(WRONG_PASSWORD)])
        transaction.set_rollback(True)
    health.incidents.alerts.clear()
    health.refresh(at_once=True)

    health.note([result(WRONG_PASSWORD)])

    assert len(health.incidents.alerts) == 1


@pytest.mark.django_db(transaction=True)
def test_that_they_were_told_is_entered_while_no_message_can_be_locked(siren, monkeypatch):
    """Messages are locked before providers, everywhere: else two processes may wait for each other."""
    siren({"relay": {"script": ["misconfigured"]}, "spare": {}}, CONNECTIONS=1)
    monkeypatch.setattr("mailengine.pipeline.picture.REFRESH_SECONDS", 0)
    enter, within = type(ProviderState.objects.all()).told, []

    def note(self, *args, **kwargs):
        within.append(connection.in_atomic_block)
        return enter(self, *args, **kwargs)

    monkeypatch.setattr(type(ProviderState.objects.all()), "told", note)
    queue_many(20)

    send()

    assert statuses() == {"sent": 20}
    assert set(within) == {False}
