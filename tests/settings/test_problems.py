"""What is wrong in MAILENGINE is named, with the mend; the rest of it holds."""

from __future__ import annotations

import pytest

from mailengine.conf import Problem, ProviderPolicy, get_settings, problems
from mailengine.errors import UnknownProvider, UnknownStream
from mailengine.models import Priority


@pytest.fixture
def mailengine(settings):
    """Sets MAILENGINE; one provider, "relay", unless it says otherwise."""

    def set_up(value=None, /, **entries):
        settings.MAILENGINE = {"PROVIDERS": {"relay": {}}, **entries} if value is None else value

    set_up()
    return set_up


def the_problem() -> Problem:
    (problem,) = problems()
    return problem


def test_the_defaults(mailengine):
    settings = get_settings()
    assert problems() == ()
    assert settings.providers == {"relay": ProviderPolicy("relay")}
    assert (settings.strategy, settings.alert_mailer) == ("ordered", None)
    assert (settings.connections, settings.rows_in_a_claim) == (8, 16)
    assert (settings.lease_seconds, settings.send_deadline_seconds, settings.trusted_seconds) == (240, 60, 165)
    assert (settings.max_attempts, settings.backoff_first_seconds, settings.backoff_longest_seconds) == (35, 60, 14_400)
    circuit = (settings.unhealthy_threshold, settings.healthy_threshold, settings.probe_interval_seconds)
    assert circuit == (3, 2, 60)
    assert {name: policy.priority for name, policy in settings.streams.items()} == {"transactional": 20, "bulk": 40}
    assert {policy.lifetime_seconds for policy in settings.streams.values()} == {5 * 86_400}
    assert {policy.uncertain for policy in settings.streams.values()} == {"resend"}


def test_without_the_setting_there_are_the_defaults(settings):
    del settings.MAILENGINE
    assert problems() == ()
    assert get_settings().providers == {}


@pytest.mark.parametrize(
    ("entries", "text", "hint"),
    [
        ({"LEASE_SECOND": 100}, "MAILENGINE has no setting 'LEASE_SECOND'.", "Did you mean 'LEASE_SECONDS'?"),
        (
            {"PROVIDERS": {"relay": {"CONECTIONS": 1}}},
            "MAILENGINE[\"PROVIDERS\"]['relay'] has no setting 'CONECTIONS'.",
            "Did you mean 'CONNECTIONS'?",
        ),
        (
            {"STREAMS": {"bulk": {"PRIORTY": "LOW"}}},
            "MAILENGINE[\"STREAMS\"]['bulk'] has no setting 'PRIORTY'.",
            "Did you mean 'PRIORITY'?",
        ),
        ({"STRATEGY": "stiky"}, "MAILENGINE[\"STRATEGY\"] is 'stiky'.", "Did you mean 'sticky'?"),
        (
            {"STREAMS": {"bulk": {"PROVIDERS": ["rely"]}}},
            "MAILENGINE[\"STREAMS\"]['bulk'][\"PROVIDERS\"] names 'rely', which is no provider.",
            "Did you mean 'relay'?",
        ),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest_right_one(mailengine, entries, text, hint):
    mailengine(**entries)
    assert the_problem() == Problem(text, hint)


def test_a_name_like_no_other_is_answered_with_all_of_them(mailengine):
    mailengine(XYZZY=1)
    assert "Known: ALERT_MAILER, API, BACKOFF_FIRST_SECONDS" in the_problem().hint


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("CONNECTIONS", "8", "a whole number, 1 or more"),
        ("CONNECTIONS", 2.5, "a whole number, 1 or more"),
        ("CONNECTIONS", True, "a whole number, 1 or more"),
        ("CONNECTIONS", 0, "a whole number, 1 or more"),
        ("MAX_ATTEMPTS", None, "a whole number, 1 or more"),
        ("LEASE_SECONDS", "240", "a number, 1 or more"),
        ("SEND_DEADLINE_SECONDS", 0, "a number, 0.1 or more"),
        ("PROBE_INTERVAL_SECONDS", -1, "a number, 0 or more"),
        ("PROBE_INTERVAL_SECONDS", float("inf"), "a number, 0 or more"),
        ("PROBE_INTERVAL_SECONDS", float("nan"), "a number, 0 or more"),
        ("BACKOFF_FIRST_SECONDS", [60], "a number, 0 or more"),
    ],
)
def test_a_value_of_the_wrong_kind_is_left_at_its_default(mailengine, name, value, kind):
    default = getattr(get_settings(), name.lower())
    mailengine(**{name: value})
    assert the_problem() == Problem(f"MAILENGINE[{name!r}] is {value!r}.", f"It is {kind}.")
    assert getattr(get_settings(), name.lower()) == default


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (["relay"], "MAILENGINE is ['relay']."),
        ("relay", "MAILENGINE is 'relay'."),
        ({"PROVIDERS": "relay"}, "MAILENGINE[\"PROVIDERS\"] is 'relay'."),
        ({"PROVIDERS": [{"relay": {}}]}, "MAILENGINE[\"PROVIDERS\"] is [{'relay': {}}]."),
        ({"PROVIDERS": {"relay": None}}, "MAILENGINE[\"PROVIDERS\"]['relay'] is None."),
        ({"STREAMS": ["bulk"]}, "MAILENGINE[\"STREAMS\"] is ['bulk']."),
        ({"STREAMS": {"bulk": "LOW"}}, "MAILENGINE[\"STREAMS\"]['bulk'] is 'LOW'."),
        ({"STREAMS": {"bulk": {"UNCERTAIN": "keep"}}}, "MAILENGINE[\"STREAMS\"]['bulk'][\"UNCERTAIN\"] is 'keep'."),
        ({"STREAMS": {"bulk": {"PRIORITY": "SOON"}}}, "MAILENGINE[\"STREAMS\"]['bulk'][\"PRIORITY\"] is 'SOON'."),
        ({"STREAMS": {"bulk": {"PRIORITY": True}}}, 'MAILENGINE["STREAMS"][\'bulk\']["PRIORITY"] is True.'),
        ({"STREAMS": {"bulk": {"PRIORITY": 101}}}, 'MAILENGINE["STREAMS"][\'bulk\']["PRIORITY"] is 101.'),
        ({"STREAMS": {"bulk": {"PROVIDERS": []}}}, 'MAILENGINE["STREAMS"][\'bulk\']["PROVIDERS"] names no provider.'),
        (
            {"PROVIDERS": ["relay"], "STREAMS": {"bulk": {"PROVIDERS": [{"relay": 1}]}}},
            "MAILENGINE[\"STREAMS\"]['bulk'][\"PROVIDERS\"] names {'relay': 1}, which is no provider.",
        ),
        ({"STRATEGY": ["ordered"]}, "MAILENGINE[\"STRATEGY\"] is ['ordered']."),
        ({"STREAMS": {"bulk": {"STRATEGY": None}}}, "MAILENGINE[\"STREAMS\"]['bulk']['STRATEGY'] is None."),
    ],
)
def test_a_wrong_shape_is_reported_and_nothing_breaks(mailengine, value, text):
    mailengine(value)
    assert the_problem().text == text
    assert the_problem().hint
    assert set(get_settings().streams) >= {"transactional", "bulk"}


def test_a_plain_list_of_providers_will_do(mailengine):
    mailengine({"PROVIDERS": ["ses", "relay"]})
    assert problems() == ()
    assert list(get_settings().providers) == ["ses", "relay"]


@pytest.mark.parametrize(
    ("lease", "deadline", "is_wrong"), [(240, 226, True), (240, 225, False), (66, 60, True), (100, 90, False)]
)
def test_a_send_may_not_outlive_its_lease(mailengine, lease, deadline, is_wrong):
    """F-L03: lease >= deadline + min(15 s, a tenth of the lease)."""
    mailengine(LEASE_SECONDS=lease, SEND_DEADLINE_SECONDS=deadline)
    assert any(problem.serious for problem in problems()) == is_wrong


def test_the_mend_of_a_short_lease_has_the_figure(mailengine):
    mailengine(LEASE_SECONDS=60)
    assert the_problem() == Problem(
        "LEASE_SECONDS is 60: a send may outlive its lease.",
        "Make it at least SEND_DEADLINE_SECONDS + 6, or shorten SEND_DEADLINE_SECONDS (60).",
    )


def test_a_lease_that_leaves_no_time_to_begin_is_warned_of(mailengine):
    mailengine(LEASE_SECONDS=240, SEND_DEADLINE_SECONDS=223)
    assert not the_problem().serious
    assert "leaves 2 s" in the_problem().text


def test_the_projects_streams_merge_over_the_two_that_exist(mailengine):
    mailengine(STREAMS={"bulk": {"UNCERTAIN": "hold"}, "login": {"PRIORITY": "URGENT", "PROVIDERS": "relay"}})
    streams = get_settings().streams
    assert problems() == ()
    assert (streams["bulk"].priority, streams["bulk"].uncertain) == (Priority.BULK, "hold")
    assert (streams["login"].priority, streams["login"].providers) == (Priority.URGENT, ("relay",))
    assert streams["transactional"].priority == Priority.NORMAL


@pytest.mark.parametrize("priority", [Priority.HIGH, 10, "HIGH", "high"])
def test_a_priority_is_a_name_or_a_number(mailengine, priority):
    mailengine(STREAMS={"alerts": {"PRIORITY": priority}})
    assert problems() == ()
    assert get_settings().stream("alerts").priority == 10


@pytest.mark.parametrize(
    ("entries", "stream", "priority", "seconds"),
    [
        ({}, "transactional", Priority.NORMAL, 600),
        ({}, "transactional", Priority.URGENT, 30),
        ({}, "bulk", Priority.BULK, 3_600),
        ({}, "bulk", Priority.URGENT, 30),
        ({"STREAMS": {"news": {}}}, "news", Priority.NORMAL, 3_600),
        ({"UNCERTAIN_WINDOW_SECONDS": 5}, "bulk", Priority.BULK, 5),
        ({"UNCERTAIN_WINDOW_SECONDS": 5}, "transactional", Priority.URGENT, 5),
        ({"UNCERTAIN_WINDOW_SECONDS": 5, "STREAMS": {"bulk": {"UNCERTAIN_WINDOW_SECONDS": 7}}}, "bulk", 0, 7),
        ({"UNCERTAIN_WINDOW_SECONDS": None}, "bulk", Priority.BULK, 3_600),
        ({}, "gone", Priority.NORMAL, 600),
    ],
)
def test_how_long_uncertain_mail_waits(mailengine, entries, stream, priority, seconds):
    mailengine(**entries)
    assert get_settings().uncertain_window(stream, priority=priority) == seconds


def test_a_stream_has_its_own_providers_and_strategy_or_everybodys(mailengine):
    streams = {"bulk": {"PROVIDERS": ["b"], "STRATEGY": "sticky"}}
    mailengine(PROVIDERS=["a", "b"], STREAMS=streams)
    settings = get_settings()
    assert (settings.aliases_for("bulk"), settings.strategy_for("bulk")) == (("b",), "sticky")
    assert (settings.aliases_for("transactional"), settings.strategy_for("transactional")) == (("a", "b"), "ordered")
    assert settings.aliases_for("a stream that is gone") == ("a", "b")


def test_an_unknown_provider_or_stream_is_named_with_the_nearest(mailengine):
    with pytest.raises(UnknownProvider, match=r"'rely'\. Did you mean 'relay'\? Add others"):
        get_settings().provider("rely")
    with pytest.raises(UnknownStream, match=r"'bilk'\. Did you mean 'bulk'\? Add others"):
        get_settings().stream("bilk")


@pytest.mark.parametrize("name", ["KICK", "FAILOVER"])
def test_a_switch_of_a_stream_is_true_or_false(mailengine, name):
    """S08"""
    mailengine(STREAMS={"bulk": {name: "yes"}, "own": {name: True}, "other": {name: False}})
    assert f"[{name!r}] is 'yes'." in the_problem().text
    streams = get_settings().streams
    values = {stream: getattr(streams[stream], name.lower()) for stream in ("bulk", "own", "other")}
    assert values == {"bulk": name == "FAILOVER", "own": True, "other": False}


@pytest.mark.parametrize(
    "entries",
    [
        {"STREAMS": {"bulk": {"UNDO_SECONDS": 60}}},
    ],
)
def test_what_a_later_version_will_know_is_no_error(mailengine, entries):
    mailengine(**entries)
    assert not the_problem().serious
    assert "no effect in this version" in the_problem().text
    assert get_settings().strategy_for("bulk") == "ordered"


@pytest.mark.parametrize(
    ("allowed", "seen"),
    [
        (["example.org"], "has 'example.org', which is neither"),
        (["@"], "has '@', which is neither"),
        (["a b@example.org"], "which is neither"),
        ([None], "has None, which is neither"),
        ([], "is []"),
        ({"a": 1}, "is {'a': 1}"),
    ],
)
def test_senders_that_make_no_sense_hold_up_no_mail(mailengine, allowed, seen):
    mailengine(PROVIDERS={"relay": {"ALLOWED_SENDERS": allowed}})
    assert seen in the_problem().text
    assert "@example.org" in the_problem().hint
    assert get_settings().provider("relay").may_send_as("ann@example.org")


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"RATE": "14 a second"}, "'14 a second' is no rate. Write it like '14/s', '200/min'"),
        ({"RATE": 14}, "'14' is no rate."),
        ({"RATE": "0/s"}, "'0/s' is no rate."),
        ({"RESERVE": 1.5}, "['RESERVE'] is 1.5."),
        ({"RESERVE": "10%"}, "['RESERVE'] is '10%'."),
        ({"WARM_UP": []}, '["WARM_UP"] is [].'),
        ({"WARM_UP": 50}, '["WARM_UP"] is 50.'),
        ({"WARM_UP": [50, 0]}, '["WARM_UP"] is [50, 0].'),
        ({"WARM_UP": [50, True]}, '["WARM_UP"] is [50, True].'),
    ],
)
def test_a_limit_that_nobody_can_read_is_named_and_left_out(mailengine, entry, text):
    mailengine(PROVIDERS={"relay": entry})
    assert text in the_problem().text
    assert get_settings().provider("relay") == ProviderPolicy("relay")


def test_the_limits_of_a_provider(mailengine):
    mailengine(PROVIDERS={"relay": {"RATE": "14/s, 50000/day", "RESERVE": 0, "WARM_UP": (50, 100)}})
    policy = get_settings().provider("relay")
    assert problems() == ()
    assert ([str(limit) for limit in policy.rate], policy.reserve, policy.warm_up) == (
        ["14/s", "50,000/day"],
        0,
        (50, 100),
    )


@pytest.mark.parametrize("value", ["no", 1, None])
def test_failover_is_yes_or_no(mailengine, value):
    mailengine(STREAMS={"bulk": {"FAILOVER": value}})
    assert the_problem().text == f"MAILENGINE[\"STREAMS\"]['bulk']['FAILOVER'] is {value!r}."
    assert get_settings().stream("bulk").failover is True


@pytest.mark.parametrize("name", ["SHOULD_PROBE", "CLASSIFIER"])
def test_a_function_is_named_by_its_dotted_path(mailengine, name):
    mailengine(**{name: "judge"})
    assert the_problem().text == f"MAILENGINE[{name!r}] is 'judge'."
