"""`mail_provider`: providers are added, drained, disabled and retired while mail flows."""

from __future__ import annotations

import pytest
from django.core.management import CommandError, call_command

from mailengine import dispatch_slice, queue_mail
from mailengine.models import Attempt, Message, ProviderState
from mailengine.testing import FakeProvider
from tests.commands.programs import run

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _providers(configure):
    FakeProvider.reset()
    configure({"ses": {}, "relay": {}, "spare": {}}, PROVIDERS={"ses": {}, "relay": {}})
    yield
    FakeProvider.reset()


def refused(*arguments, **options):
    """What it says when it won't."""
    with pytest.raises(CommandError) as caught:
        call_command("mail_provider", *arguments, **options)
    return str(caught.value), caught.value.returncode


def uncertain(provider, count):
    for number in range(count):
        message = queue_mail("Hi", "Hello", "a@example.org", [f"r{number}@example.org"])
        Message.objects.filter(pk=message.pk).update(status="uncertain", provider=provider)


def test_by_itself_it_shows_the_providers(said):
    assert said("mail_provider").splitlines() == [
        "provider ses    in use, not tried yet",
        "provider relay  in use, not tried yet",
    ]


def test_as_json_they_are_those_of_mail_status(said_as_json):
    shown = said_as_json("mail_provider")

    assert shown["command"] == "mail_provider"
    assert [provider["alias"] for provider in shown["providers"]] == ["ses", "relay"]
    assert shown["providers"][0].keys() == said_as_json("mail_status")["providers"][0].keys()


@pytest.mark.parametrize(
    ("option", "mode"), [("--drain", "draining"), ("--disable", "disabled"), ("--retire", "retired")]
)
def test_it_switches_one_and_says_what_it_changed(said, option, mode):
    assert (
        said("mail_provider", "ses", option) == f"ses: {mode} (was enabled); running workers follow within a second\n"
    )
    assert ProviderState.objects.get(pk="ses").mode == mode

    assert said("mail_provider", "ses", option) == "ses: nothing changed\n"
    assert said("mail_provider", "ses", "--enable").startswith(f"ses: enabled (was {mode}); ")

    queue_mail("Hi", "Hello", "a@example.org", ["ann@example.org"])
    dispatch_slice()
    assert Attempt.objects.get().provider == "ses"


def test_weight_and_rate_are_set_and_given_back_to_the_settings(said):
    did = said("mail_provider", "ses", "--weight", "3", "--rate", "14/s, 50000/day")
    assert did.startswith("ses: weight 3 (was as the settings say), rate 14/s, 50000/day (was as the settings say); ")
    state = ProviderState.objects.get(pk="ses")
    assert (state.weight, state.rate, state.mode) == (3, "14/s, 50000/day", "enabled")
    assert "set here: weight 3, rate 14/s, 50000/day" in said("mail_provider")

    did = said("mail_provider", "ses", "--weight", "settings", "--rate", "settings")
    assert did.startswith("ses: weight as the settings say (was 3), rate as the settings say (was 14/s, 50000/day); ")
    state.refresh_from_db()
    assert (state.weight, state.rate) == (None, "")


def test_what_workers_write_is_left_alone(said):
    ProviderState.objects.create(alias="ses", is_open=True, usage={"day": {"1": 5}}, last_error="unavailable: 421")

    said("mail_provider", "ses", "--drain")

    state = ProviderState.objects.get(pk="ses")
    assert (state.is_open, state.usage, state.last_error) == (True, {"day": {"1": 5}}, "unavailable: 421")


def test_an_entry_of_mailers_is_put_to_use_and_taken_back(said):
    assert said("mail_provider", "spare", "--add").startswith("spare: put to use; ")
    assert "provider spare  in use" in said("mail_provider")
    said("mail_provider", "spare", "--retire")
    assert said("mail_provider", "spare", "--add").startswith("spare: enabled (was retired); ")

    assert said("mail_provider", "spare", "--remove").startswith("spare: taken back; ")
    assert "spare" not in said("mail_provider")


def test_as_json_it_says_what_it_changed(said_as_json):
    assert said_as_json("mail_provider", "ses", "--drain") == {
        "command": "mail_provider", "provider": "ses", "changed": {"mode": ["enabled", "draining"]}, "warnings": [],
    }  # fmt: skip


class TestWarnings:
    def test_a_stream_that_nobody_carries_any_more(self, said):
        said("mail_provider", "relay", "--disable")

        lines = said("mail_provider", "ses", "--drain").splitlines()

        text = "WARNING: No provider may be given new mail of transactional, bulk any more: it waits."
        assert lines[1:] == [text]
        assert said("mail_provider", "ses", "--weight", "2").count("\n") == 1

    @pytest.mark.parametrize(
        ("option", "words"),
        [
            ("--retire", "3 messages may have gone by ses, and will be kept for a person unless you drain it first"),
            ("--disable", "3 messages may have gone by ses, and wait until it is enabled again."),
        ],
    )
    def test_uncertain_mail_that_only_it_may_carry(self, said, option, words):
        uncertain("ses", 3)
        assert words in said("mail_provider", "ses", option)

    def test_of_one_that_is_taken_back(self, said):
        said("mail_provider", "spare", "--add")
        uncertain("spare", 1)
        assert "1 message may have gone by spare, and will be kept" in said("mail_provider", "spare", "--remove")

    def test_draining_lets_it_end(self, said):
        uncertain("ses", 3)
        assert "WARNING" not in said("mail_provider", "ses", "--drain")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sess", "--drain"], "no provider is called 'sess'. Did you mean 'ses'?"),
        (["spare", "--drain"], "'spare' is no provider so far: add it first."),
        (["spar", "--add"], "no entry of MAILERS is called 'spar'. Did you mean 'spare'?"),
        (["ses", "--add"], "'ses' is a provider by the settings already."),
        (["default", "--add"], "'default' is the queue itself"),
        (["ses", "--remove"], "'ses' was not added here, the settings name it: retire it instead."),
        (["ses"], "say what to do with ses, as --drain"),
        (["--drain"], "name the provider to switch"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_mend(arguments, words):
    text, code = refused(*arguments)

    assert words in text
    assert code == 2
    assert not ProviderState.objects.exclude(mode="enabled", is_added=False).exists()


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (
            {"BACKEND": "django.core.mail.backends.console.EmailBackend"},
            "'new' sends no mail: it prints it or keeps it.",
        ),
        ({"BACKEND": "mailengine.backends.SMTPBackend", "OPTIONS": {"hots": "x"}}, "Did you mean 'host'?"),
        ({"BACKEND": "no.such.Backend"}, "can't be imported"),
    ],
)
def test_what_can_send_nothing_is_not_put_to_use(settings, entry, words):
    settings.MAILERS = {**settings.MAILERS, "new": entry}

    text, code = refused("new", "--add")

    assert words in text
    assert code == 2
    assert not ProviderState.objects.filter(pk="new").exists()


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"--weight": "much"}, "'much' is neither a whole number from 0 to 10,000 nor 'settings'"),
        ({"--weight": "-1"}, "'-1' is neither"),
        ({"--weight": "10001"}, "'10001' is neither"),
        ({"--rate": "fast"}, "'fast' is no rate. Write it like '14/s'"),
        ({"--rate": "0/s"}, "'0/s' is no rate"),
    ],
)
def test_values_that_nobody_can_read_are_refused(option, words):
    ((name, value),) = option.items()
    assert words in refused("ses", name, value)[0]


def test_two_switches_at_once_are_refused():
    assert "not allowed with argument" in refused("ses", "--drain", "--retire")[0]


def test_it_works_while_a_check_fails(said, settings):
    settings.MAILENGINE = {"PROVIDERS": {"ses": {}, "missing": {}}}

    assert said("mail_provider", "missing", "--disable").startswith("missing: disabled (was enabled); ")


@pytest.mark.django_db(transaction=True)
def test_from_the_command_line_wrong_usage_ends_with_2():
    ended = run("mail_provider", "relais", "--drain")

    assert (ended.returncode, ended.stdout) == (2, "")
    assert "Did you mean 'relay'?" in ended.stderr
