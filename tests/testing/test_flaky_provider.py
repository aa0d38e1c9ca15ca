"""N13, P09: providers that fail by a script, by counting, or by a seed."""

from __future__ import annotations

import pytest
from anymail.signals import tracking
from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage

from mailengine import dispatch_slice, queue_mail
from mailengine.compat import get_mailer
from mailengine.models import Message, ProviderState
from mailengine.outcomes import Kind
from mailengine.providers.connection import Connection
from mailengine.testing import FakeProvider, FrozenClock, flaky_provider
from mailengine.testing.providers import ACTS, FAILURES

SENDS_BEFORE_IT_KNOWS = {"accept", "bounce", "lost_reply"}


@pytest.fixture(autouse=True)
def _fresh():
    FakeProvider.reset()
    yield
    FakeProvider.reset()


@pytest.fixture
def providers(settings):
    """Set MAILERS and PROVIDERS to these entries, with one handover at a time."""

    def set_up(*, strategy="ordered", deadline_seconds=60, **entries):
        settings.MAILERS = entries
        settings.MAILENGINE = {
            "PROVIDERS": list(entries),
            "STRATEGY": strategy,
            "CONNECTIONS": 1,
            "SEND_DEADLINE_SECONDS": deadline_seconds,
        }

    return set_up


def an_email() -> EmailMessage:
    return EmailMessage("Hello", "Good morning.", "desk@example.org", ["ann@example.org"])


def words(calls: int, provider: str = "relay") -> list[str]:
    """What this provider does at so many calls."""
    connection = Connection(provider)
    for _ in range(calls):
        connection.hand_over(an_email())
    return [handover.did for handover in FakeProvider.handovers() if handover.provider == provider][-calls:]


def test_a_script_is_played_call_by_call(providers):
    providers(relay=flaky_provider(script=["unavailable", "deferred", "accept"]))
    assert words(5) == ["unavailable", "deferred", "accept", "accept", "accept"]


def test_a_script_starts_again_where_it_is_to(providers):
    providers(relay=flaky_provider(script=["unavailable", "accept"], repeat=True))
    assert words(5) == ["unavailable", "accept", "unavailable", "accept", "unavailable"]


def test_it_fails_every_so_many_calls(providers):
    providers(relay=flaky_provider(fails_every=3))
    assert words(6) == ["accept", "accept", "unavailable"] * 2


def test_without_a_word_it_accepts_everything(providers):
    providers(relay=flaky_provider())
    assert words(2) == ["accept", "accept"]


def test_the_same_seed_gives_the_same_failures(providers):
    chances = {"unavailable": 0.3, "throttled": 0.2}
    providers(relay=flaky_provider(seed=7, **chances))
    first = words(200)
    FakeProvider.reset()
    assert words(200) == first

    FakeProvider.reset()
    providers(relay=flaky_provider(seed=8, **chances))
    assert words(200) != first


def test_the_chances_are_about_what_they_say(providers):
    providers(relay=flaky_provider(unavailable=0.3, throttled=0.2))
    drawn = words(1_000)
    assert set(drawn) == {"accept", "unavailable", "throttled"}
    assert 250 < drawn.count("unavailable") < 350
    assert 150 < drawn.count("throttled") < 250


def test_two_providers_of_one_seed_fail_at_different_calls(providers):
    entry = flaky_provider(seed=7, unavailable=0.5)
    providers(relay=entry, ses=entry)
    assert words(50, "relay") != words(50, "ses")


def test_a_certain_failure_and_an_impossible_one(providers):
    providers(relay=flaky_provider(unavailable=1.0, deferred=0.0))
    assert set(words(50)) == {"unavailable"}


KINDS = {
    "accept": Kind.ACCEPTED,
    "bad_address": Kind.REFUSED,
    "bounce": Kind.ACCEPTED,
    "deferred": Kind.DEFERRED,
    "greylisted": Kind.DEFERRED,
    "hang": Kind.UNCERTAIN,
    "lost_reply": Kind.UNCERTAIN,
    "misconfigured": Kind.MISCONFIGURED,
    "refused": Kind.REFUSED,
    "throttled": Kind.THROTTLED,
    "too_large": Kind.REFUSED,
    "unavailable": Kind.UNAVAILABLE,
    "uncertain": Kind.UNCERTAIN,
}


@pytest.mark.parametrize("word", ACTS)
def test_each_word_is_the_outcome_that_it_says(providers, word):
    """And the mail is there, or is not, whatever was heard of it."""
    providers(relay=flaky_provider(script=[word]), deadline_seconds=0.1)

    outcome = Connection("relay").hand_over(an_email())

    assert outcome.kind is KINDS[word]
    assert len(FakeProvider.named("relay").accepted) == (word in SENDS_BEFORE_IT_KNOWS)


def test_unavailable_is_before_a_connection_is_made(providers):
    """P09"""
    providers(relay=flaky_provider(script=["unavailable"]))
    backend = get_mailer("relay")

    with pytest.raises(ConnectionRefusedError) as caught:
        backend.send_messages([an_email()])

    assert caught.value.mailengine_phase.value == "connect"


def test_throttled_asks_for_so_many_seconds(providers):
    providers(relay=flaky_provider(script=["throttled", "throttled"], retry_after_seconds=90))
    outcome = Connection("relay").hand_over(an_email())
    assert (outcome.kind, outcome.retry_after_seconds) == (Kind.THROTTLED, 90)


@pytest.mark.django_db
def test_a_provider_that_hangs_keeps_its_mail_in_doubt_and_costs_a_test_no_time(providers, slept):
    providers(relay=flaky_provider(script=["hang"]))
    message = queue_mail("Hello", "Good morning.", None, ["ann@example.org"])

    with FrozenClock():
        report = dispatch_slice(max_time=30)

    message.refresh_from_db()
    assert message.status == "uncertain"
    assert slept == []
    assert report.stopped == "done"


@pytest.fixture
def slept(monkeypatch):
    """For how long providers have slept."""
    waits: list[float] = []
    monkeypatch.setattr("mailengine.testing.providers.time.sleep", waits.append)
    return waits


def test_while_time_goes_on_it_hangs_until_the_deadline(providers, slept):
    providers(relay=flaky_provider(script=["hang"]), deadline_seconds=30)

    outcome = Connection("relay").hand_over(an_email())

    assert [20 < seconds <= 30 for seconds in slept] == [True]
    assert (outcome.kind, outcome.code) == (Kind.UNCERTAIN, "TimeoutError")


@pytest.mark.django_db
def test_mail_whose_reply_is_lost_has_arrived_though_nobody_knows(providers):
    providers(relay=flaky_provider(script=["lost_reply"]))
    message = queue_mail("Hello", "Good morning.", None, ["ann@example.org"])

    dispatch_slice()

    message.refresh_from_db()
    assert message.status == "uncertain"
    assert [email.to for email in FakeProvider.named("relay").accepted] == [["ann@example.org"]]


@pytest.fixture
def events():
    """What Anymail's signal has reported."""
    heard = []

    def hear(sender, event, esp_name, **_):
        heard.append((event.event_type, event.recipient, event.reject_reason, event.metadata.get("mailengine_id")))

    tracking.connect(hear)
    yield heard
    tracking.disconnect(hear)


@pytest.mark.django_db
def test_what_bounces_was_accepted_and_is_reported_later(providers, events):
    providers(relay=flaky_provider(script=["bounce", "accept"]))
    gone, there = (queue_mail("Hello", "Good morning.", None, [f"{name}@example.org"]) for name in ("gone", "there"))

    dispatch_slice()

    assert set(Message.objects.values_list("status", flat=True)) == {"sent"}
    assert events == []
    assert FakeProvider.report_bounces() == 1
    assert events == [("bounced", "gone@example.org", "bounced", str(gone.pk))]
    assert FakeProvider.report_bounces() == 0
    assert there.pk


@pytest.mark.django_db
def test_the_four_mail_trace_of_two_providers_that_fail_every_second_call(providers):
    """N13, P09: 4 of 4 delivered, switching each time."""
    flaky = flaky_provider(fails_every=2)
    providers(strategy="sticky", **{"lambda": flaky, "delta": flaky})
    for number in range(1, 5):
        queue_mail(f"Mail {number}", "Hello there, how are you doing?", None, ["ann@example.org"])

    dispatch_slice()

    trace = [f"{call.provider}: {call.did} {call.email.subject}" for call in FakeProvider.handovers()]
    assert trace == [
        "lambda: accept Mail 1",
        "lambda: unavailable Mail 2",
        "delta: accept Mail 2",
        "delta: unavailable Mail 3",
        "lambda: accept Mail 3",
        "lambda: unavailable Mail 4",
        "delta: accept Mail 4",
    ]
    assert set(Message.objects.values_list("status", flat=True)) == {"sent"}
    assert not ProviderState.objects.filter(is_open=True).exists()


def test_it_fails_as_it_is_told_and_goes_on_with_its_script(providers):
    providers(relay=flaky_provider(script=["accept", "deferred", "accept"]))
    record = FakeProvider.named("relay")
    done = words(1)
    record.fail("misconfigured", times=2)
    done += words(3)
    record.fail()
    done += words(2)
    record.recover()

    assert done + words(2) == [
        *("accept", "misconfigured", "misconfigured", "deferred"),
        *("unavailable", "unavailable"),
        *("accept", "accept"),
    ]


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"script": ["unavailible"]}, "can't play 'unavailible'. Did you mean 'unavailable'?"),
        ({"unavailible": 0.1}, "can't play 'unavailible' by chance. Did you mean 'unavailable'?"),
        ({"accept": 0.9}, "can't play 'accept' by chance. Known: bad_address, "),
        ({"scrpt": ["accept"]}, "can't play 'scrpt' by chance. Did you mean 'script'?"),
        ({"unavailable": 1.2}, "the chance of 'unavailable' is 1.2. Give a number from 0 to 1."),
        ({"unavailable": -0.1}, "the chance of 'unavailable' is -0.1. Give a number from 0 to 1."),
        ({"unavailable": "often"}, "the chance of 'unavailable' is 'often'. Give a number from 0 to 1."),
        ({"unavailable": 0.6, "throttled": 0.6}, "the chances add up to 1.2. Let them be 1 or less together."),
        ({"fails_every": -2}, "fails_every is -2. Give 2 for every second call."),
        ({"fails_every": 2, "unavailable": 0.1}, "takes one of script, fails_every and chances. Leave out the others."),
        ({"fails_every": 2, "script": ["accept"]}, "takes one of script, fails_every and chances."),
        ({"script": ["throttled"], "retry_after_seconds": -1}, "retry_after_seconds is -1. Give seconds, 1 to 3600."),
        ({"script": "unavailable accept"}, "can't play 'unavailable accept'. Did you mean 'unavailable'?"),
    ],
)
def test_what_it_cannot_do_is_said_with_the_mend(wrong, text):
    with pytest.raises(ImproperlyConfigured) as caught:
        flaky_provider(**wrong)
    assert text in str(caught.value)


def test_an_option_that_it_does_not_have_is_said_with_the_nearest():
    with pytest.raises(ImproperlyConfigured, match=r"has no option 'fail_every'\. Did you mean 'fails_every'\?"):
        FakeProvider(fail_every=2)


@pytest.mark.parametrize("word", ["accept", "unavailible", ""])
def test_it_can_be_told_to_fail_by_a_failure_only(word):
    with pytest.raises(ValueError, match=f"can't fail by '{word}'"):
        FakeProvider.named("relay").fail(word)
    assert "accept" not in FAILURES
