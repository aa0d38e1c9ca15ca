"""A provider that can't be used as it is configured: it alone is set aside, told once, and used again when mended.

Commands refuse to run with failed checks; schedulers that call `dispatch_slice()`, and who sends directly, have none.
"""

from __future__ import annotations

import logging

import django
import pytest
from django.core.mail.backends.base import BaseEmailBackend

from mailengine import dispatch_slice, send_direct_email
from mailengine.backends import EmailBackend as Queue
from mailengine.errors import NotSent
from mailengine.models import Attempt, Message, ProviderState
from mailengine.outcomes import Kind
from mailengine.testing import FakeProvider

from .helpers import ledger, queue, statuses

pytestmark = pytest.mark.django_db

SMTP = "mailengine.backends.SMTPBackend"
QUEUE = "mailengine.backends.EmailBackend"
FAKE = {"BACKEND": "mailengine.testing.FakeProvider"}
HERE = __name__
SECRET = "hunter2secret"


class OwnQueue(Queue):
    """A project's own queue."""


class Wrapper(BaseEmailBackend):
    """Hands mail on to the queue, as a backend that counts or logs does."""

    def send_messages(self, email_messages):
        return Queue(alias="wrapped").send_messages(email_messages)


class Silent(BaseEmailBackend):
    """It inherits a `send_messages()` that sends nothing."""


class Sendless:
    """A backend that is none."""

    def __init__(self, alias=None):
        pass


class Fragile(BaseEmailBackend):
    """Its constructor quotes a password."""

    def __init__(self, password="", **kwargs):
        super().__init__(**kwargs)
        raise RuntimeError(f"no service for {password}")

    def send_messages(self, email_messages):
        return 0


def no_backend(**options):
    return None


def makes_a_queue(**options):
    return OwnQueue(**options)


def smtp(**options):
    return {"BACKEND": SMTP, "OPTIONS": {"host": "127.0.0.1", "password": SECRET, **options}}


BROKEN = {
    # what is wrong: its entry of MAILERS or None, and words that name the mend
    "an alias that MAILERS lacks": (None, "MAILERS has no 'broken'"),
    "the queue itself": ({"BACKEND": QUEUE}, "let only MAILERS['default'] queue"),
    "the queue by its other name": (
        {"BACKEND": "mailengine.backends.queueing.EmailBackend"},
        "let only MAILERS['default'] queue",
    ),
    "a subclass of the queue": ({"BACKEND": f"{HERE}.OwnQueue"}, "let only MAILERS['default'] queue"),
    "a function that makes the queue": (
        {"BACKEND": f"{HERE}.makes_a_queue"},
        "let only MAILERS['default'] queue",
    ),
    "a wrapper of the queue": ({"BACKEND": f"{HERE}.Wrapper"}, "let its backend send"),
    "no such module": ({"BACKEND": "no.such.Backend"}, "'no.such.Backend' can't be imported"),
    "no such class": ({"BACKEND": "mailengine.backends.SMTPBackened"}, "SMTPBackened' can't be imported"),
    "no dotted path": ({"BACKEND": "smtp"}, "'smtp' can't be imported"),
    "a class and not its path": ({"BACKEND": OwnQueue}, "BACKEND is the dotted path of a class"),
    "a module that fails": ({"BACKEND": "tests.dispatch.failing.Backend"}, "can't be imported"),
    "an option misspelt": (smtp(usernme="desk"), "'usernme'"),
    "an option misspelt, of Anymail": (
        {"BACKEND": "anymail.backends.mailgun.EmailBackend", "OPTIONS": {"api_key": SECRET, "api_kee": SECRET}},
        "'api_kee'",
    ),
    "the option that is Django's own": (smtp(alias="relay"), "must not define 'alias'"),
    "no API key": (
        {"BACKEND": "anymail.backends.mailgun.EmailBackend"},
        "'api_key'" if django.VERSION >= (6, 1) else "MAILGUN_API_KEY",
    ),
    "no host, or one that nobody has": (smtp(host=""), "'host'"),
    "a port that is a word": (smtp(port="abc"), "'port'"),
    "a port out of range": (smtp(port=70000), "'port'"),
    "a host of two lines": (smtp(host="127.0.0.1\nevil"), "'host'"),
    "a host that is no text": (smtp(host=["127.0.0.1"]), "'host'"),
    "a timeout below zero": (smtp(timeout=-1), "'timeout'"),
    "a timeout that is a word": (smtp(timeout="soon"), "'timeout'"),
    "an API's timeout that is a word": (
        {
            "BACKEND": "anymail.backends.mailgun.EmailBackend",
            "OPTIONS": {"api_key": SECRET, "timeout": "soon", "api_url": "http://127.0.0.1:9/v3"},
        },
        "'timeout'",
    ),
    "two ways of TLS at once": (smtp(use_tls=True, use_ssl=True), "'use_ssl'"),
    "an entry that is no dictionary": ("smtp://relay", "MAILERS['broken']: It is not a dictionary"),
    "options that are no dictionary": ({"BACKEND": SMTP, "OPTIONS": ["host"]}, "OPTIONS is not a dictionary"),
    "a function": ({"BACKEND": f"{HERE}.no_backend"}, "no_backend is not a backend"),
    "a class that can't send": ({"BACKEND": f"{HERE}.Sendless"}, "Sendless is not a backend"),
    "a class that does not send": ({"BACKEND": f"{HERE}.Silent"}, "Silent is not a backend"),
    "a constructor that fails": ({"BACKEND": f"{HERE}.Fragile", "OPTIONS": {"password": SECRET}}, "RuntimeError"),
}


@pytest.fixture(params=BROKEN, ids=lambda name: name.replace(" ", "-"))
def case(request):
    return BROKEN[request.param]


@pytest.fixture(autouse=True)
def _told(settings):
    settings.ADMINS = ["ops@example.org"] if django.VERSION >= (6, 0) else [("Ops", "ops@example.org")]
    settings.DEBUG = False
    FakeProvider.reset()
    yield
    FakeProvider.reset()


@pytest.fixture
def provide(settings):
    """Set the entry of MAILERS for "broken", and which providers there are; "siren" is the road for alerts."""

    def provide(entry, *providers, alert_mailer="siren", **mailengine):
        mailers = {"default": {"BACKEND": QUEUE}, "spare": FAKE, "siren": FAKE}
        settings.MAILERS = mailers if entry is None else {**mailers, "broken": entry}
        if django.VERSION < (6, 1):
            settings.EMAIL_BACKEND = QUEUE
        settings.MAILENGINE = {"PROVIDERS": list(providers), "ALERT_MAILER": alert_mailer, **mailengine}

    return provide


def alerts(alias="siren"):
    return [email for email in FakeProvider.named(alias).accepted if "needs you" in email.subject]


def test_it_alone_is_set_aside_with_one_alert_and_its_mail_goes_by_the_next(provide, case, caplog):
    entry, mend = case
    provide(entry, "broken", "spare")
    messages = [queue(f"u{number}@example.org") for number in range(3)]

    with caplog.at_level(logging.DEBUG):
        dispatch_slice()

    assert statuses() == {"sent": 3}
    assert {message.provider for message in Message.objects.all()} == {"spare"}
    assert set(Message.objects.values_list("attempt_count", flat=True)) == {0}
    assert ledger(messages[0])[0] == ("broken", "misconfigured")
    assert Attempt.objects.filter(provider="broken").count() == 1
    states = {state.alias: (state.is_open, state.misconfigured) for state in ProviderState.objects.all()}
    assert (states["broken"], states.get("spare", (False, False))) == ((True, True), (False, False))
    (alert,) = alerts()
    assert mend in alert.body
    assert SECRET not in alert.body + caplog.text + ProviderState.objects.get(alias="broken").last_error


def test_as_the_only_one_its_mail_waits_and_leaves_when_it_is_mended(provide, case, clock):
    entry, _mend = case
    provide(entry, "broken")
    message = queue()
    dispatch_slice()
    assert (statuses(), ledger(message)) == ({"queued": 1}, [("broken", "misconfigured")])

    provide(FAKE, "broken")
    clock.advance(seconds=61)
    dispatch_slice()

    message.refresh_from_db()
    assert (message.status, message.attempt_count, len(alerts())) == ("sent", 0, 1)


@pytest.mark.parametrize("name", ["an alias that MAILERS lacks", "the queue itself", "a wrapper of the queue"])
def test_sent_directly_it_goes_by_the_next(provide, name):
    provide(BROKEN[name][0], "broken", "spare")

    message = send_direct_email("Hello", "Good morning.", "desk@example.org", ["ann@example.org"])

    assert (message.provider, ledger(message)) == ("spare", [("broken", "misconfigured"), ("spare", "accepted")])


@pytest.mark.parametrize("name", ["an alias that MAILERS lacks", "the queue itself", "a wrapper of the queue"])
def test_sent_directly_by_it_alone_its_caller_is_told(provide, name):
    provide(BROKEN[name][0], "broken", "spare")

    with pytest.raises(NotSent) as caught:
        send_direct_email("Hello", "Good morning.", "desk@example.org", ["ann@example.org"], provider="broken")

    assert (caught.value.outcome.kind, Message.objects.get().status) == (Kind.MISCONFIGURED, "dead")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "alert_mailer", ["broken", "nowhere", ["siren"], {"alias": "siren"}], ids=["broken", "nowhere", "list", "dict"]
)
@pytest.mark.parametrize("backend", [QUEUE, f"{HERE}.OwnQueue"])
def test_an_alert_takes_no_road_that_leads_to_the_queue_or_nowhere(provide, settings, backend, alert_mailer):
    provide({"BACKEND": backend}, "relay", "spare", alert_mailer=alert_mailer)
    relay = {**FAKE, "OPTIONS": {"script": ["misconfigured"]}}
    settings.MAILERS = {**settings.MAILERS, "relay": relay}
    queue()

    dispatch_slice()

    assert (Message.objects.count(), statuses()) == (1, {"sent": 1})
    assert len(alerts("spare")) == 1


def test_all_providers_broken_at_once_are_told_apart_and_drain_when_one_is_mended(provide, settings, clock):
    settings.ADMINS = []  # the log is enough
    provide({"BACKEND": QUEUE}, "broken", "worse")
    message = queue()
    dispatch_slice()
    states = {state.alias: state.last_error for state in ProviderState.objects.all()}
    assert "the queue itself" in states["broken"]
    assert "MAILERS has no 'worse'" in states["worse"]
    assert statuses() == {"queued": 1}

    provide(FAKE, "broken", "worse")
    clock.advance(seconds=61)
    dispatch_slice()

    assert ledger(message)[-1] == ("broken", "accepted")
    assert Message.objects.get().attempt_count == 0
