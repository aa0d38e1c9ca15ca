"""Mail of a job of which one call of an ESP's API carries many: `BATCH`."""

from __future__ import annotations

from collections import Counter

import pytest
from anymail.signals import AnymailTrackingEvent, tracking
from django.core.management import call_command

from mailengine import dispatch_slice, queue_job, queue_mail
from mailengine.consent.suppress import suppress
from mailengine.models import Attempt, Message, ProviderState, Suppression
from mailengine.pipeline.dispatch import Dispatcher
from mailengine.testing import ESPServer
from mailengine.testing.esp_server import Answer, Fault, in_turn

from .helpers import statuses

pytestmark = pytest.mark.django_db

MAIL = "News", "Read this.", "desk@example.org"


@pytest.fixture
def esp():
    with ESPServer() as esp:
        yield esp


@pytest.fixture
def configure_esp(esp, settings):
    """One provider, "esp", with a BATCH: `configure_esp("postmark", 100, CONNECTIONS=1)`."""

    def set_up(name, batch, /, policy=None, **mailengine):
        settings.MAILERS = {
            "default": {"BACKEND": "mailengine.backends.EmailBackend"},
            "esp": esp.mailer(name, timeout=30),
        }
        settings.MAILENGINE = {"PROVIDERS": {"esp": {"BATCH": batch, **(policy or {})}}, **mailengine}

    return set_up


def queue_news(count: int, **options) -> None:
    queue_job(*MAIL, [f"u{number:05d}@example.org" for number in range(count)], **options)
    call_command("process_mail_jobs", verbosity=0)


def sizes() -> Counter[int]:
    """How many messages went in calls of which size."""
    return Counter(Attempt.objects.values_list("call_size", flat=True))


@pytest.mark.parametrize("name", ["brevo", "mailgun", "postmark", "sendgrid"])
def test_the_first_goes_alone_and_the_others_in_few_calls(esp, configure_esp, name):
    """A provider that has not shown that it works gets one message, whatever its BATCH."""
    configure_esp(name, 100, CONNECTIONS=4)
    queue_news(300)

    dispatch_slice()

    assert statuses() == {"sent": 300}
    assert esp.calls == 4
    assert sizes() == {1: 1, 99: 99, 100: 200}
    assert sorted(mail.recipients for mail in esp.accepted) == [
        (f"u{number:05d}@example.org",) for number in range(300)
    ]


def test_each_has_its_own_id_and_a_ledger_of_its_own(esp, configure_esp):
    configure_esp("postmark", 50)
    queue_news(20)

    dispatch_slice()

    by_address = {mail.recipients[0]: mail for mail in esp.accepted}
    for message in Message.objects.all():
        mail = by_address[message.recipient]
        assert mail.mailengine_id == str(message.pk)
        assert message.provider_message_id
        assert list(message.attempts.values_list("outcome", flat=True)) == ["accepted"]
    assert Message.objects.values("provider_message_id").distinct().count() == 20


def test_a_larger_batch_than_an_esp_takes_is_cut_to_what_it_takes(esp, configure_esp):
    configure_esp("mailjet", 1_000, CONNECTIONS=1)
    queue_news(101)

    dispatch_slice()

    assert (statuses(), sizes()) == ({"sent": 101}, {1: 1, 50: 100})


def test_by_default_each_goes_alone(esp, configure_esp):
    configure_esp("postmark", 1)
    queue_news(10)
    dispatch_slice()
    assert sizes() == {1: 10}


@pytest.mark.parametrize(
    "options",
    [
        {"stream": "transactional"},
        {"priority": "NORMAL"},
        {"merge_data": {f"u{number:05d}@example.org": {"name": str(number)} for number in range(10)}},
    ],
)
def test_what_is_urgent_or_differs_in_words_goes_alone(esp, configure_esp, options):
    configure_esp("postmark", 100)
    queue_news(10, **options)
    dispatch_slice()
    assert (statuses(), sizes()) == ({"sent": 10}, {1: 10})


def test_mail_of_no_job_and_of_two_jobs_goes_apart(esp, configure_esp):
    configure_esp("postmark", 100, CONNECTIONS=1)
    for number in range(5):
        queue_mail(*MAIL, [f"v{number}@example.org"], stream="bulk")
    queue_news(10)
    queue_news(20)

    dispatch_slice()

    assert (statuses(), sizes()) == ({"sent": 35}, {1: 5, 10: 10, 20: 20})


def test_large_mail_shares_a_call_since_it_is_in_memory_once(esp, configure_esp):
    configure_esp("sendgrid", 100, CONNECTIONS=1)
    queue_news(81, attachments=[("a.bin", b"\xff" * 1_000_000, "application/octet-stream")])

    dispatch_slice()

    assert (statuses(), sizes()) == ({"sent": 81}, {1: 1, 80: 80})


def test_a_suppressed_address_is_left_out_of_the_call(esp, configure_esp):
    configure_esp("postmark", 100, CONNECTIONS=1)
    queue_news(21)
    for number in (5, 6):
        suppress(f"u{number:05d}@example.org", reason=Suppression.Reason.REFUSED)

    dispatch_slice()

    assert (statuses(), sizes()) == ({"sent": 19, "suppressed": 2}, {1: 1, 18: 18})


def test_each_recipient_has_its_own_outcome(esp, configure_esp):
    configure_esp("postmark", 100, CONNECTIONS=1)
    queue_news(21)
    esp.inactive = {"u00007@example.org", "u00009@example.org"}

    dispatch_slice()

    assert statuses() == {"sent": 19, "dead": 2}
    dead = Message.objects.filter(status="dead")
    assert {message.recipient for message in dead} == esp.inactive
    assert sizes() == {1: 1, 20: 20}
    assert not ProviderState.objects.get(alias="esp").is_open


def test_a_rate_counts_messages_and_not_calls(esp, configure_esp):
    configure_esp("postmark", 100, {"RATE": "20/day", "RESERVE": 0})
    queue_news(50)

    dispatch_slice()

    assert (statuses(), sizes()) == ({"sent": 20, "queued": 30}, {1: 1, 19: 19})


class TestFailingCalls:
    def test_a_call_that_is_surely_lost_is_one_bad_round_and_its_mail_goes_on(self, esp, configure_esp, settings):
        configure_esp("postmark", 100, CONNECTIONS=1)
        queue_news(21)
        esp.behave = in_turn(None, Answer(503))

        dispatch_slice()

        assert statuses() == {"sent": 21}
        assert Counter(Attempt.objects.values_list("outcome", flat=True)) == {"accepted": 21, "unavailable": 20}

    def test_another_provider_takes_over_a_whole_call(self, esp, configure_esp, settings):
        configure_esp("postmark", 100, CONNECTIONS=1)
        settings.MAILERS = {**settings.MAILERS, "other": esp.mailer("sendgrid", timeout=30)}
        settings.MAILENGINE = {**settings.MAILENGINE, "PROVIDERS": {"esp": {"BATCH": 100}, "other": {"BATCH": 100}}}
        queue_news(21)
        esp.behave = lambda mail: Answer(401) if mail.esp == "postmark" and len(esp.accepted) else None

        dispatch_slice()

        assert statuses() == {"sent": 21}
        assert Counter(mail.esp for mail in esp.accepted) == {"postmark": 1, "sendgrid": 20}
        assert ProviderState.objects.get(alias="esp").misconfigured

    def test_mail_of_an_uncertain_call_is_kept_and_never_sent_again(self, esp, configure_esp, clock):
        configure_esp("postmark", 100, CONNECTIONS=1)
        queue_news(21)
        esp.behave = in_turn(None, Fault.ACCEPT_AND_HANG_UP)

        dispatch_slice()
        clock.advance(days=2)
        dispatch_slice()

        assert statuses() == {"sent": 1, "uncertain": 20}
        kept = Message.objects.filter(status="uncertain")
        assert set(kept.values_list("available_at", "uncertain_count")) == {(None, 1)}
        assert "it went in one call with others and is kept for a person" in kept[0].reason
        assert len(esp.accepted) == 21

    def test_a_call_that_is_refused_as_a_whole_goes_one_by_one(self, esp, configure_esp):
        """One of them may be what the ESP can't stand: alone, it shows that."""
        configure_esp("sendgrid", 100, CONNECTIONS=1)
        queue_news(31)
        bad = "u00012@example.org"
        esp.behave = lambda mail: (
            Answer(400, {"errors": [{"message": "Bad"}]}) if bad in str(mail.fields["personalizations"]) else None
        )

        dispatch_slice()

        assert statuses() == {"sent": 30, "dead": 1}
        assert Message.objects.get(status="dead").recipient == bad
        assert sizes() == {30: 30, 1: 31}
        assert Attempt.objects.filter(call_size=30).values_list("outcome", flat=True).distinct().get() == "unavailable"

    def test_the_webhook_of_one_proves_that_one(self, esp, configure_esp):
        configure_esp("postmark", 100, CONNECTIONS=1)
        queue_news(11)
        esp.behave = in_turn(None, Fault.ACCEPT_AND_HANG_UP)
        dispatch_slice()
        message = Message.objects.filter(status="uncertain").first()
        event = AnymailTrackingEvent(
            event_type="delivered", metadata={"mailengine_id": str(message.pk)}, recipient=message.recipient
        )

        tracking.send(sender=object(), event=event, esp_name="Postmark")

        assert statuses() == {"sent": 2, "uncertain": 9}


def test_mail_of_a_call_whose_worker_was_lost_is_kept_for_a_person(esp, configure_esp, clock, monkeypatch):
    """Nobody knows of any of them whether it arrived."""

    class Lost(BaseException):
        """As if the process were gone between a handover and its End."""

    configure_esp("postmark", 100, CONNECTIONS=1)
    queue_news(11)
    run = Dispatcher("send_mail", max_time=5)
    collect = run.team.collect

    def lose_a_call_of_many(**how):
        ended = collect(**how)
        if any(len(outcomes) > 1 for _call, outcomes in ended):
            raise Lost
        return ended

    monkeypatch.setattr(run.team, "collect", lose_a_call_of_many)
    monkeypatch.setattr(run.recovery, "save_what_is_known", lambda *, give_back: None)
    with pytest.raises(Lost):
        run.run()
    assert statuses() == {"sent": 1, "sending": 10}
    clock.advance(minutes=10)

    dispatch_slice()

    assert statuses() == {"sent": 1, "uncertain": 10}
    assert set(Message.objects.filter(status="uncertain").values_list("available_at", flat=True)) == {None}
    assert len(esp.accepted) == 11
