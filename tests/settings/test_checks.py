"""`manage.py check` names what would keep mail from leaving."""

from __future__ import annotations

import django
import pytest
from django.core.checks import ERROR, run_checks
from django.db import connection, connections

from mailengine.checks import QUEUE, check_database

SMTP = "mailengine.backends.SMTPBackend"
DJANGOS_SMTP = "django.core.mail.backends.smtp.EmailBackend"


@pytest.fixture
def found(settings):
    """What the checks say, as {id: message}; settings are given by name, MAILERS besides "default" by alias."""
    settings.ADMINS = ["ann@example.org"] if django.VERSION >= (6, 0) else [("Ann", "ann@example.org")]
    settings.DEFAULT_FROM_EMAIL = "desk@example.org"

    def check(mailers, **changes):
        settings.MAILERS = {"default": {"BACKEND": QUEUE}, "alerts": {"BACKEND": SMTP}, **mailers}
        if django.VERSION < (6, 1):
            settings.EMAIL_BACKEND = QUEUE
        for name, value in {**mailengine(), **changes}.items():
            setattr(settings, name, value)
        return {message.id: message for message in run_checks(tags=["mailengine"])}

    return check


def mailengine(**entries):
    return {"MAILENGINE": {"PROVIDERS": ["relay"], "ALERT_MAILER": "alerts", **entries}}


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
    assert set(found(mailers, MAILENGINE=example)) == {"mailengine.W007"}


@pytest.mark.parametrize(
    ("mailers", "changes", "number", "words"),
    [
        (RELAY, mailengine(LEASE_SECOND=1), "E004", "Did you mean 'LEASE_SECONDS'?"),
        (RELAY, mailengine(LEASE_SECONDS=30), "E004", "SEND_DEADLINE_SECONDS + 3"),
        (RELAY, mailengine(PROVIDERS={}), "E003", 'MAILENGINE = {"PROVIDERS": {"relay": {}}}'),
        (RELAY, mailengine(PROVIDERS=["rely"]), "E001", "Did you mean 'relay'?"),
        ({"relay": {"BACKEND": QUEUE}}, {}, "E002", "let only MAILERS['default'] queue"),
        ({"relay": {"BACKEND": "no.such.Backend"}}, {}, "E006", "'no.such.Backend' can't be imported"),
        (RELAY, mailengine(ALERT_MAILER="relai"), "E007", "Did you mean 'relay'?"),
        (RELAY, mailengine(ALERT_MAILER="default"), "E007", "Name an alias of MAILERS that sends"),
        (RELAY, {"USE_TZ": False}, "E005", "Set USE_TZ = True"),
        (RELAY, {"DEFAULT_FROM_EMAIL": "desk"}, "W009", "DEFAULT_FROM_EMAIL"),
        ({"relay": {"BACKEND": DJANGOS_SMTP}}, {}, "W004", '["OPTIONS"]["timeout"] = 10'),
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
    assert words in f"{message.msg} {message.hint}"
    assert (message.level >= ERROR) == number.startswith("E")


@pytest.mark.parametrize(
    "mailer",
    [
        {"BACKEND": DJANGOS_SMTP, "OPTIONS": {"timeout": 5}},
        {"BACKEND": "django.core.mail.backends.console.EmailBackend"},
        {"BACKEND": SMTP, "OPTIONS": {"host": "127.0.0.1", "password": "secret"}},
        {"BACKEND": SMTP, "OPTIONS": {"host": "smtp.example.org", "password": "secret", "use_ssl": True}},
    ],
)
def test_no_false_alarm(found, mailer):
    assert found({"relay": mailer}) == {}


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
