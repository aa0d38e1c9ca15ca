"""From the environment to Django's settings, in processes of their own, as cron starts them."""

import json
import shutil
import subprocess
import sys

import pytest
from django.core.exceptions import ImproperlyConfigured
from environ import Env

from project import environment
from tests.commands.programs import ROOT

PRINT = """
import json
from project import settings
print(json.dumps({name: getattr(settings, name) for name in NAMES}, default=str))
"""


@pytest.fixture
def project(tmp_path):
    """A copy of the project with a `.env` of its own: its settings by name, under these variables."""
    shutil.copytree(ROOT / "project", tmp_path / "project", ignore=shutil.ignore_patterns("__pycache__"))

    def read(*names, dotenv="", **variables):
        (tmp_path / ".env").write_text(dotenv)
        ended = subprocess.run(
            [sys.executable, "-W", "error", "-c", f"NAMES = {names}\n{PRINT}"],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", **variables},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if ended.returncode:
            raise ImproperlyConfigured(ended.stderr.strip().splitlines()[-1])
        values = json.loads(ended.stdout)
        return values[names[0]] if len(names) == 1 else [values[name] for name in names]

    read.folder = tmp_path
    return read


def database(project, url):
    return project("DATABASES", DATABASE_URL=url)["default"]


@pytest.mark.parametrize("url", ["", "sqlite:///db.sqlite3"])
def test_the_database_is_sqlite_beside_manage_py(project, url):
    """P14"""
    assert database(project, url)["NAME"] == str(project.folder / "db.sqlite3")


def test_four_slashes_of_sqlite_are_an_absolute_path(project):
    settings = database(project, "sqlite:////var/lib/mail/queue.sqlite3")

    assert settings["NAME"] == "/var/lib/mail/queue.sqlite3"
    assert (settings["OPTIONS"]["transaction_mode"], settings["OPTIONS"]["timeout"]) == ("IMMEDIATE", 20)
    assert "journal_mode=WAL" in settings["OPTIONS"]["init_command"]


def test_postgresql_keeps_its_connections_and_gives_up_on_dead_ones(project):
    settings = database(project, "postgres://ann:p%40ss@db.example.com:5433/mail?sslmode=require")

    assert settings["ENGINE"] == "django.db.backends.postgresql"
    assert [settings[name] for name in ("HOST", "PORT", "NAME", "USER", "PASSWORD")] == [
        "db.example.com",
        5433,
        "mail",
        "ann",
        "p@ss",
    ]
    assert (settings["OPTIONS"]["connect_timeout"], settings["OPTIONS"]["sslmode"]) == (10, "require")
    assert settings["OPTIONS"]["tcp_user_timeout"] == 60_000
    assert settings["CONN_HEALTH_CHECKS"] is True


def test_mysql_refuses_what_does_not_fit(project):
    settings = database(project, "mysql://ann:pass@db.example.com/mail")

    assert settings["ENGINE"] == "django.db.backends.mysql"
    assert settings["OPTIONS"]["charset"] == "utf8mb4"
    assert settings["OPTIONS"]["isolation_level"] == "read committed"
    assert "STRICT_TRANS_TABLES" in settings["OPTIONS"]["init_command"]


def test_the_environment_wins_over_the_file(project):
    dotenv = "DEFAULT_FROM_EMAIL=file@example.org\nTIME_ZONE=Europe/Oslo\n"

    names = ("DEFAULT_FROM_EMAIL", "TIME_ZONE")
    assert project(*names, dotenv=dotenv, DEFAULT_FROM_EMAIL="shell@example.org") == [
        "shell@example.org",
        "Europe/Oslo",
    ]


@pytest.mark.parametrize(
    ("variables", "is_on"),
    [
        ({}, True),
        ({"DEBUG": "0"}, None),
        ({"DEBUG": "1", "SECRET_KEY": "x"}, True),
        ({"DEBUG": "false", "SECRET_KEY": "x"}, False),
        ({"SECRET_KEY": "x"}, False),
        ({"SECRET_KEY": "x", "ALLOWED_HOSTS": "news.example.com"}, False),
    ],
    ids=str,
)
def test_debugging_is_for_laptops_and_whoever_asks_for_it(project, variables, is_on):
    if is_on is None:
        with pytest.raises(ImproperlyConfigured, match="SECRET_KEY is not set, and DEBUG is off"):
            project("DEBUG", **variables)
    else:
        assert project("DEBUG", **variables) is is_on


def test_a_laptop_gets_a_key_that_stays_and_that_nobody_else_can_read(project):
    assert project("SECRET_KEY") == project("SECRET_KEY")

    key = project.folder / "var" / "secret-key"
    assert len(key.read_text()) > 50
    assert key.stat().st_mode & 0o077 == 0
    assert [path.name for path in key.parent.iterdir()] == ["secret-key"]


def test_without_credentials_mail_is_printed(project):
    """P14"""
    mailers, mailengine = project("MAILERS", "MAILENGINE")

    assert mailers["default"] == {"BACKEND": "mailengine.backends.EmailBackend"}
    assert mailers["console"] == {"BACKEND": "django.core.mail.backends.console.EmailBackend"}
    assert mailengine == {"PROVIDERS": {"console": {}}}


def test_every_provider_with_credentials_is_used_in_the_order_that_is_asked_for(project):
    credentials = {
        "MAILGUN_API_KEY": "k",
        "MAILGUN_SENDER_DOMAIN": "mg.example.com",
        "POSTMARK_SERVER_TOKEN": "t",
        "SENDGRID_API_KEY": "s",
        "RESEND_API_KEY": "r",
        "SMTP_HOST": "smtp.example.com",
    }

    assert list(project("MAILENGINE", **credentials)["PROVIDERS"]) == [
        "mailgun",
        "postmark",
        "sendgrid",
        "resend",
        "relay",
    ]
    chosen = project("MAILENGINE", **credentials, MAIL_PROVIDERS="relay,postmark")
    assert list(chosen["PROVIDERS"]) == ["relay", "postmark"]


def test_every_provider_has_a_timeout_and_may_be_elsewhere(monkeypatch):
    monkeypatch.setenv("MAILGUN_API_KEY", "k")
    monkeypatch.setenv("MAILGUN_SENDER_DOMAIN", "mg.example.com")
    monkeypatch.setenv("MAILGUN_API_URL", "https://api.eu.mailgun.net/v3")

    assert environment.providers(Env())["mailgun"] == {
        "BACKEND": "anymail.backends.mailgun.EmailBackend",
        "OPTIONS": {
            "api_key": "k",
            "sender_domain": "mg.example.com",
            "timeout": 10,
            "api_url": "https://api.eu.mailgun.net/v3",
        },
    }


@pytest.mark.parametrize(
    ("tls", "options"),
    [
        ("starttls", {"port": 587, "use_tls": True}),
        ("implicit", {"port": 465, "use_ssl": True}),
        ("none", {"port": 25}),
    ],
)
def test_a_relay_is_reached_the_way_that_is_asked_for(tls, options, monkeypatch):
    for name, value in {"SMTP_HOST": "smtp.example.com", "SMTP_TLS": tls}.items():
        monkeypatch.setenv(name, value)

    relay = environment.providers(Env())["relay"]

    assert relay["BACKEND"] == "mailengine.backends.SMTPBackend"
    assert relay["OPTIONS"] == {"host": "smtp.example.com", "timeout": 10, **options}


def test_a_relay_takes_a_port_and_a_login(monkeypatch):
    login = {"SMTP_HOST": "smtp.example.com", "SMTP_PORT": "2525", "SMTP_USER": "ann", "SMTP_PASSWORD": "secret"}
    for name, value in login.items():
        monkeypatch.setenv(name, value)

    options = environment.providers(Env())["relay"]["OPTIONS"]

    assert (options["port"], options["username"], options["password"]) == (2525, "ann", "secret")


def test_an_unknown_kind_of_tls_is_named_with_those_there_are(monkeypatch):
    monkeypatch.setenv("SMTP_HOST", "smtp.example.com")
    monkeypatch.setenv("SMTP_TLS", "ssl")

    with pytest.raises(ImproperlyConfigured, match="SMTP_TLS is 'ssl'; it can be starttls, implicit, none"):
        environment.providers(Env())
