"""`manage.py check` names what would keep mail from leaving."""

from __future__ import annotations

import django
import pytest
from django.core.checks import ERROR, run_checks
from django.core.mail.backends import smtp
from django.core.mail.backends.base import BaseEmailBackend
from django.db import connection, connections

from mailengine.backends import EmailBackend
from mailengine.checks import QUEUE, check_database
from mailengine.testing.esp_server import ESPS, ESPServer

SMTP = "mailengine.backends.SMTPBackend"
DJANGOS_SMTP = "django.core.mail.backends.smtp.EmailBackend"
MAILGUN = "anymail.backends.mailgun.EmailBackend"


@pytest.fixture
def found(settings):
    """What the checks say, as {id: message}; settings are given by name, MAILERS besides "default" by alias."""
    settings.ADMINS = ["ann@example.org"] if django.VERSION >= (6, 0) else [("Ann", "ann@example.org")]
    settings.DEFAULT_FROM_EMAIL = "desk@example.org"

    def check(mailers, **changes):
        settings.MAILERS = {"default": {"BACKEND": QUEUE}, "alerts": RELAY["relay"], **mailers}
        if django.VERSION < (6, 1):
            settings.EMAIL_BACKEND = QUEUE
        for name, value in {**mailengine(), **changes}.items():
            setattr(settings, name, value)
        return {message.id: message for message in run_checks(tags=["mailengine"])}

    return check


def mailengine(**entries):
    return {"MAILENGINE": {"PROVIDERS": ["relay"], "ALERT_MAILER": "alerts", **entries}}


def an_smtp(**options):
    return {"relay": {"BACKEND": SMTP, "OPTIONS": {"host": "127.0.0.1", **options}}}


class OwnQueue(EmailBackend):
    """A project's own queue."""


class Silent(BaseEmailBackend):
    """It sends nothing."""


class Spy(BaseEmailBackend):
    """A project's own backend, whose constructor does things."""

    made = 0

    def __init__(self, *, path="", alias=None):
        type(self).made += 1
        raise ConnectionRefusedError("secret")

    def send_messages(self, email_messages):
        return 0


nothing = None
RELAY = {"relay": {"BACKEND": SMTP, "OPTIONS": {"host": "127.0.0.1"}}}


def test_a_good_configuration_is_silent(found):
    assert found(RELAY) == {}


def test_the_example_of_the_documentation_has_no_error(found):
    mailers = {
        "ses": {"BACKEND": "anymail.backends.test.EmailBackend", "OPTIONS": {}},
        "relay": {"BACKEND": SMTP, "OPTIONS": {"host": "smtp.example.org", "port": 587}},
    }
    example = {
        "PROVIDERS": {
            "ses": {"WEIGHT": 3, "RATE": "14/s", "CONNECTIONS": 4, "ALLOWED_SENDERS": ["@example.org"], "BATCH": 1},
            "relay": {},
        },
        "STRATEGY": "ordered",
        "STREAMS": {"bulk": {"PROVIDERS": ["ses"], "SHARE": 0.2}},
        "CONNECTIONS": 8,
        "CLAIM_BATCH": 16,
        "LEASE_SECONDS": 240,
        "SEND_DEADLINE_SECONDS": 60,
        "MAX_ATTEMPTS": 35,
        "BACKOFF_FIRST_SECONDS": 60,
        "BACKOFF_LONGEST_SECONDS": 14400,
        "UNHEALTHY_THRESHOLD": 3,
        "HEALTHY_THRESHOLD": 2,
        "PROBE_INTERVAL_SECONDS": 60,
        "ALERT_MAILER": None,
    }
    assert not found(mailers, MAILENGINE=example)


@pytest.mark.parametrize(
    ("mailers", "changes", "number", "words"),
    [
        (RELAY, mailengine(LEASE_SECOND=1), "E004", "Did you mean 'LEASE_SECONDS'?"),
        (RELAY, mailengine(LEASE_SECONDS=30), "E004", "SEND_DEADLINE_SECONDS + 3"),
        (RELAY, mailengine(PROVIDERS={}), "E003", 'MAILENGINE = {"PROVIDERS": {"relay": {}}}'),
        (RELAY, mailengine(PROVIDERS=["rely"]), "E001", "Did you mean 'relay'?"),
        ({"relay": {"BACKEND": QUEUE}}, {}, "E002", "let only MAILERS['default'] queue"),
        ({"relay": {"BACKEND": f"{__name__}.OwnQueue"}}, {}, "E002", "let only MAILERS['default'] queue"),
        ({"relay": {"BACKEND": "no.such.Backend"}}, {}, "E006", "'no.such.Backend' can't be imported"),
        ({"relay": {"BACKEND": "tests.dispatch.failing.Backend"}}, {}, "E006", "can't be imported: RuntimeError"),
        ({"relay": {"BACKEND": smtp.EmailBackend}}, {}, "E006", "BACKEND is the dotted path of a class"),
        ({"relay": "smtp://127.0.0.1"}, {}, "E006", "It is not a dictionary"),
        ({"relay": {"BACKEND": SMTP, "OPTIONS": ["host"]}}, {}, "E010", "OPTIONS is not a dictionary"),
        (an_smtp(usernme="desk"), {}, "E010", "'usernme'"),
        (an_smtp(port="abc"), {}, "E010", "'port' is no number from 1 to 65535"),
        (an_smtp(host="127.0.0.1\n"), {}, "E010", "'host' is no name or address of a host"),
        (an_smtp(timeout="soon"), {}, "E010", "'timeout' is no number of seconds"),
        (an_smtp(password=["secret"]), {}, "E010", "'password' is a list: it is text"),
        (an_smtp(use_tls=True, use_ssl=True), {}, "E010", "'use_ssl'"),
        ({"relay": {"BACKEND": MAILGUN}}, {}, "E010", "'api_key'" if django.VERSION >= (6, 1) else "MAILGUN_API_KEY"),
        ({"relay": {"BACKEND": MAILGUN, "OPTIONS": {"api_key": "secret", "api_kee": 1}}}, {}, "E010", "'api_kee'"),
        ({"relay": {"BACKEND": MAILGUN, "OPTIONS": {"api_key": "secret", "timeout": -1}}}, {}, "E010", "'timeout'"),
        ({"relay": {"BACKEND": f"{__name__}.Spy", "OPTIONS": {"pth": "x"}}}, {}, "E010", "'pth'"),
        ({"relay": {"BACKEND": f"{__name__}.nothing"}}, {}, "E010", "nothing is not a backend"),
        ({"relay": {"BACKEND": f"{__name__}.Silent"}}, {}, "E010", "Silent is not a backend"),
        ({**RELAY, "alerts": {"BACKEND": "no.such.Backend"}}, {}, "E006", "ALERT_MAILER is 'alerts'"),
        ({**RELAY, "alerts": an_smtp(port="abc")["relay"]}, {}, "E010", "ALERT_MAILER is 'alerts'"),
        ({**RELAY, "alerts": {"BACKEND": f"{__name__}.OwnQueue"}}, {}, "E007", "Name an alias of MAILERS that sends"),
        (RELAY, mailengine(PROVIDERS={"relay": {"BATCH": 10}}), "W011", "Leave BATCH out"),
        (
            {"relay": {"BACKEND": MAILGUN, "OPTIONS": {"api_key": "key", "timeout": 5}}},
            mailengine(PROVIDERS={"relay": {"BATCH": 2_000}}),
            "W011",
            "Make it 1,000 or less",
        ),
        (RELAY, mailengine(CLASSIFIER="paper.mail.judge"), "E011", "which can't be imported"),
        (RELAY, mailengine(SHOULD_PROBE="mailengine.conf.URGENT"), "E011", "which can't be called"),
        (RELAY, mailengine(ALERT_MAILER="relai"), "E007", "Did you mean 'relay'?"),
        (RELAY, mailengine(ALERT_MAILER="default"), "E007", "Name an alias of MAILERS that sends"),
        (RELAY, {"USE_TZ": False}, "E005", "Set USE_TZ = True"),
        (RELAY, {"DEFAULT_FROM_EMAIL": "desk"}, "W009", "DEFAULT_FROM_EMAIL"),
        (
            {"relay": {"BACKEND": DJANGOS_SMTP, "OPTIONS": {"host": "127.0.0.1"}}},
            {},
            "W004",
            '["OPTIONS"]["timeout"] = 10',
        ),
        ({**RELAY, "default": {"BACKEND": SMTP}}, {}, "W001", "does not go through the queue"),
        (RELAY, {"ADMINS": []}, "W005", "Set ADMINS"),
        (RELAY, mailengine(ALERT_MAILER=None), "W006", "Set ALERT_MAILER"),
        (
            {"relay": {"BACKEND": SMTP, "OPTIONS": {"host": "smtp.example.org", "password": "secret"}}},
            {},
            "W008",
            '["OPTIONS"]["use_tls"] = True',
        ),
    ],
)
def test_each_fault_has_an_id_and_says_the_mend(found, mailers, changes, number, words):
    messages = found(mailers, **changes)
    assert list(messages) == [f"mailengine.{number}"]
    message = messages[f"mailengine.{number}"]
    assert "secret" not in f"{message.msg} {message.hint}"
    assert words in f"{message.msg} {message.hint}"
    assert (message.level >= ERROR) == number.startswith("E")


@pytest.mark.parametrize(
    "mailer",
    [
        {"BACKEND": DJANGOS_SMTP, "OPTIONS": {"host": "127.0.0.1", "timeout": 5}},
        {"BACKEND": "django.core.mail.backends.console.EmailBackend"},
        {"BACKEND": SMTP, "OPTIONS": {"host": "127.0.0.1", "password": "secret"}},
        {"BACKEND": SMTP, "OPTIONS": {"host": "smtp.example.org", "password": "secret", "use_ssl": True}},
    ],
)
def test_no_false_alarm(found, mailer):
    assert found({"relay": mailer}) == {}


def test_a_port_may_be_text_as_it_comes_from_the_environment(found):
    for port in ("587", 587, None):
        assert found(an_smtp(port=port, timeout=2.5)) == {}


def test_nothing_of_a_projects_own_is_run_by_a_check(found, tmp_path):
    """Its constructor may make folders or talk to a network, before each command."""
    files = {"BACKEND": "django.core.mail.backends.filebased.EmailBackend", "OPTIONS": {"file_path": tmp_path / "out"}}

    assert found({"relay": {"BACKEND": f"{__name__}.Spy", "OPTIONS": {"path": "x"}}}).keys() == {"mailengine.W004"}
    assert found({"relay": files}) == {}
    assert (Spy.made, list(tmp_path.iterdir())) == (0, [])


@pytest.mark.parametrize("esp", sorted(ESPS))
def test_a_check_makes_anymails_backends_and_opens_none(found, esp):
    if esp == "amazon_ses":
        pytest.importorskip("boto3")
    with ESPServer() as server:
        assert found({"relay": server.mailer(esp)}) == {}
        assert server.connection_count == 0


@pytest.mark.parametrize(
    "garbage", [None, 1, "x", [], ["relay"], {"relay": None}, {"relay": {"OPTIONS": None}}, {1: {}}]
)
@pytest.mark.parametrize("name", ["MAILERS", "MAILENGINE", "ALERT_MAILER", "OPTIONS of the queue"])
def test_a_check_never_raises(found, settings, name, garbage):
    mailers = {"default": {"BACKEND": QUEUE}, **RELAY}
    found(RELAY)
    if name == "MAILERS":
        settings.MAILERS = garbage
    elif name == "MAILENGINE":
        settings.MAILENGINE = garbage
    elif name == "ALERT_MAILER":
        settings.MAILENGINE = {"PROVIDERS": ["relay"], "ALERT_MAILER": garbage}
    else:
        settings.MAILERS = {
            **mailers,
            "default": {"BACKEND": QUEUE, "OPTIONS": {"stream": garbage, "priority": garbage}},
        }

    assert all(message.id.startswith("mailengine.") for message in run_checks(tags=["mailengine"]))


@pytest.mark.django_db
def test_the_projects_own_database_has_no_fault():
    assert check_database(databases=["default"]) == []


@pytest.mark.skipif(connection.vendor != "sqlite", reason="about SQLite")
@pytest.mark.parametrize("options", [{}, {"transaction_mode": "DEFERRED"}])
def test_a_sqlite_that_would_fail_under_two_writers(monkeypatch, options):
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", options)
    (message,) = check_database(databases=["default"])
    assert message.id == "mailengine.W003"


@pytest.mark.skipif(connection.vendor == "postgresql", reason="PostgreSQL keeps instants, whatever the zone")
def test_a_database_that_keeps_local_times(monkeypatch):
    monkeypatch.setattr(connections["default"], "timezone_name", "Europe/Berlin")
    (message,) = check_database(databases=["default"])
    assert (message.id, message.level) == ("mailengine.E009", ERROR)
