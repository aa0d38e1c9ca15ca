"""The reference pages say what the code has: no more, no less, and the same figures."""

import ast
import inspect
import json
import re
import smtplib

import pytest
from anymail.exceptions import AnymailAPIError
from django.core.management import load_command_class
from django.core.management.base import BaseCommand
from requests import Response

import mailengine
from mailengine import errors, models
from mailengine.backends.dialogue import Phase, set_phase
from mailengine.conf import _API, _PROVIDER, _STREAM, _TOP, NUMBERS, ApiPolicy, ProviderPolicy, Settings, StreamPolicy
from mailengine.models import Message, MessageJob
from mailengine.outcomes import Kind
from mailengine.providers.classify import outcome_of_error
from tests.docs.pages import DOCS, ROOT, blocks, section, table

SETTINGS = DOCS / "reference" / "settings.md"
COMMANDS = DOCS / "reference" / "commands.md"
PYTHON = DOCS / "reference" / "python.md"
STATES = DOCS / "reference" / "states.md"
OUTCOMES = DOCS / "reference" / "outcomes.md"
CHECKS = DOCS / "reference" / "checks.md"

OWN_COMMANDS = [
    "process_mail_jobs",
    "send_mail",
    "retry_deferred",
    "mail_worker",
    "mail_status",
    "mail_provider",
    "purge_mail",
    "demo",
]
MEANINGS = {
    "not here": {"kind": Kind.REFUSED, "elsewhere": True},
    "refused, address suppressed": {"kind": Kind.REFUSED, "address_is_bad": True},
    "deferred, for at least 5 minutes": {"kind": Kind.DEFERRED, "greylisted": True},
    "deferred, bad round": {"kind": Kind.DEFERRED, "counts_as_bad": True},
    "deferred, 2nd refused": {"kind": Kind.DEFERRED, "tries": 2, "then": Kind.REFUSED},
    "deferred, 2nd misconfigured": {"kind": Kind.DEFERRED, "tries": 2, "then": Kind.MISCONFIGURED},
}


def code(cell):
    """The text in a cell's backticks, or what stands there bare."""
    found = re.fullmatch(r"`(.*)`", cell)
    return found[1] if found else cell


def assert_settings(heading, known, defaults):
    """A table of settings has these names, with their defaults and smallest values."""
    rows = {code(row[0]): row for row in table(section(SETTINGS, heading))}

    assert set(rows) == set(known)
    for name, (_, unit, default, smallest, what) in rows.items():
        if default != "twice `CONNECTIONS`":
            value = None if defaults[name] == () else defaults[name]  # nothing is None to whoever writes settings
            assert ast.literal_eval(code(default)) == value, name
        if name in NUMBERS:
            assert ast.literal_eval(code(smallest)) == NUMBERS[name], name
            assert unit in {"whole", "seconds", "part"}, name
        assert what, name


def test_every_setting_is_on_its_page_with_its_default():
    """G09"""
    assert_settings("## MAILENGINE", _TOP, {name: getattr(Settings(), name.lower()) for name in _TOP} | {"API": {}})
    assert_settings("## The HTTP API", _API, {name: getattr(ApiPolicy(), name.lower()) for name in _API})
    assert Settings().rows_in_a_claim == 2 * Settings().connections


def test_every_setting_of_a_provider_is_on_the_page():
    """G09"""
    plain = ProviderPolicy("own")

    assert_settings("## A provider", _PROVIDER, {name: getattr(plain, name.lower()) for name in _PROVIDER})


def test_every_setting_of_a_stream_is_on_the_page():
    """G09"""
    plain = StreamPolicy("own", priority=models.Priority.NORMAL)

    assert_settings("## A stream", _STREAM, {name: getattr(plain, name.lower()) for name in _STREAM})


@pytest.mark.parametrize("name", OWN_COMMANDS)
def test_every_option_of_a_command_is_on_the_page_with_its_default(name):
    app = "project.newsroom" if name == "demo" else "mailengine"
    shared = {action.dest for action in BaseCommand().create_parser("manage.py", "any")._actions}
    parser = load_command_class(app, name).create_parser("manage.py", name)
    options = {
        (action.option_strings or [action.metavar])[-1]: action
        for action in parser._actions
        if action.dest not in shared
    }

    documented = {code(row[0]).split()[0]: row[1] for row in table(section(COMMANDS, f"## {name}"))}

    assert set(documented) == set(options)
    for option, default in documented.items():
        expected = options[option].default
        assert default in {"", "none", "all"} if expected in {None, False} else default == str(expected), option


def test_functions_have_the_signatures_on_the_page():
    for block in blocks(PYTHON):
        [function] = ast.parse(block.code).body
        real = inspect.signature(getattr(mailengine, function.name))
        arguments = [argument.arg for argument in [*function.args.args, *function.args.kwonlyargs]]

        assert arguments == list(real.parameters), function.name
        for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
            assert ast.literal_eval(default) == real.parameters[argument.arg].default, (function.name, argument.arg)


def test_every_public_name_is_on_the_page():
    page = PYTHON.read_text()

    assert [name for name in mailengine.__all__ if name not in page] == []


def test_every_error_is_on_the_page_under_its_family():
    family = {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and kind.__module__ == errors.__name__
    }

    rows = {code(name): code(base) for name, base, _ in table(section(PYTHON, "## Errors"))}

    assert set(rows) == set(family)
    for name, base in rows.items():
        assert base in {parent.__name__ for parent in family[name].__mro__[1:]}, name


def test_the_fields_on_the_page_exist():
    for model, name, _ in table(section(PYTHON, "## Rows")):
        kind = getattr(models, code(model))

        assert hasattr(kind, code(name)), (model, name)


@pytest.mark.parametrize(("heading", "model"), [("## Of a message", Message), ("## Of a job", MessageJob)])
def test_every_state_is_on_the_page(heading, model):
    assert [code(row[0]) for row in table(section(STATES, heading))] == model.Status.values


def test_every_check_is_on_the_page():
    """G09"""
    used = set(re.findall(r"mailengine\.[EW]\d{3}", (ROOT / "mailengine" / "checks.py").read_text()))

    assert {code(row[0]) for row in table(CHECKS.read_text())} == used


def test_every_outcome_is_on_the_page():
    """N3"""
    assert [code(row[0]) for row in table(OUTCOMES.read_text())] == list(map(str, Kind))


def assert_means(outcome, words):
    """The outcome is what the page calls by these words."""
    meaning = {"elsewhere": False, "address_is_bad": False, "greylisted": False, "counts_as_bad": False, "tries": 0}
    meaning |= MEANINGS.get(words) or {"kind": Kind(words)}
    assert {name: getattr(outcome, name) for name in meaning} == meaning, outcome


@pytest.mark.parametrize(("phase", "reply", "words"), table(section(OUTCOMES, "## SMTP")))
def test_replies_mean_what_the_page_says(phase, reply, words):
    """N3"""
    status, _, text = code(reply).partition(" ")
    error = smtplib.SMTPDataError(int(status), text.encode())
    set_phase(error, Phase[phase])

    assert_means(outcome_of_error(error), words)


def test_a_broken_connection_means_what_the_page_says():
    """N3"""
    second_table = section(OUTCOMES, "## SMTP").split("When the connection breaks")[1]
    for phases, words in table(second_table):
        for phase in phases.split(", "):
            error = smtplib.SMTPServerDisconnected("Connection unexpectedly closed")
            set_phase(error, Phase[phase])

            assert_means(outcome_of_error(error), words)


@pytest.mark.parametrize(("esp", "status", "body", "words"), table(section(OUTCOMES, "## HTTP")))
def test_answers_mean_what_the_page_says(esp, status, body, words):
    """N3"""
    answer = Response()
    answer.status_code = int(status)
    answer._content = code(body).encode()
    if esp == "Amazon SES":  # boto3 gives a dictionary
        answer = {**json.loads(code(body)), "ResponseMetadata": {"HTTPStatusCode": int(status)}}

    assert_means(outcome_of_error(AnymailAPIError("no", response=answer, esp_name=esp)), words)
