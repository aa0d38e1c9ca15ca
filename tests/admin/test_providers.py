from __future__ import annotations

import html
import re
from datetime import timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from mailengine.admin.providers import SwitchesForm
from mailengine.clock import read_now
from mailengine.models import Attempt, ProviderState, Worker
from mailengine.rate import per, taken

from .conftest import told

pytestmark = pytest.mark.django_db
CHANGELIST = "/admin/mailengine/providerstate/"


@pytest.mark.parametrize("model", ["messagejob", "message", "providerstate"])
def test_a_rejected_configuration_is_told_above_the_lists(admin_client, model):
    since = read_now("default") - timedelta(hours=2)
    ProviderState.objects.create(
        alias="ses", is_open=True, misconfigured=True, opened_at=since, last_error="535 authentication failed"
    )
    ProviderState.objects.create(alias="relay", is_open=True, opened_at=since)

    page = admin_client.get(reverse(f"admin:mailengine_{model}_changelist")).content.decode()

    assert "The provider “ses” has rejected our configuration since" in page
    assert "2\xa0hours ago" in page
    assert "535 authentication failed" in page
    assert "Mend the entry “ses” of MAILERS" in page
    assert "The provider “relay”" not in page


@pytest.mark.parametrize("values", [{"alias": "ses", "mode": "disabled"}, {"alias": "gone"}])
def test_of_one_that_is_switched_off_or_gone_nothing_is_told(admin_client, values):
    ProviderState.objects.create(is_open=True, misconfigured=True, **values)

    page = admin_client.get(reverse("admin:mailengine_message_changelist")).content.decode()

    assert "rejected our configuration" not in page


def test_without_a_rejected_configuration_nothing_is_told(admin_client):
    ProviderState.objects.create(alias="ses", is_open=True)

    page = admin_client.get(reverse("admin:mailengine_message_changelist")).content.decode()

    assert "rejected our configuration" not in page


@pytest.fixture(autouse=True)
def _providers(configure):
    configure({"ses": {}, "relay": {}, "spare": {}}, PROVIDERS={"ses": {"RATE": "50000/day"}, "relay": {}})


@pytest.fixture
def hand_over(make_message):
    """Enter handovers of one message in the ledger, begun just now."""
    message = make_message()
    numbers = iter(range(1, 10_000))

    def hand_over(provider, outcome="accepted", *, count=1, **values):
        now = read_now("default")
        Attempt.objects.bulk_create(
            Attempt(
                message=message,
                number=next(numbers),
                provider=provider,
                outcome=outcome,
                begun_at=now,
                ended_at=now,
                **values,
            )
            for _ in range(count)
        )
        return message

    return hand_over


def overview(client) -> str:
    return client.get(CHANGELIST).content.decode()


def page_of(client, alias: str) -> str:
    return client.get(reverse("admin:mailengine_providerstate_change", args=[alias])).content.decode()


def text_of(page: str) -> str:
    """As it is read, but for what stands in attributes."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def history_of(alias: str) -> list[str]:
    return list(LogEntry.objects.filter(object_id=alias).order_by("pk").values_list("change_message", flat=True))


class TestOverview:
    def test_it_has_a_row_for_each_provider_in_the_order_of_the_settings(self, admin_client, configure):
        configure({"z": {}, "a": {}, "spare": {}}, PROVIDERS={"z": {}, "a": {}})
        ProviderState.objects.create(alias="forgotten")
        ProviderState.objects.create(alias="a", mode="retired")
        ProviderState.objects.create(alias="spare", is_added=True)

        assert re.findall(r'name="_selected_action" value="(\w+)"', overview(admin_client)) == ["z", "spare", "a"]

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({}, "In use"),
            (
                {"bad_rounds": 2, "last_error": "unavailable: TimeoutError timed out"},
                "In use 2 bad in a row It does not",
            ),
            (
                {"is_open": True, "last_error": "unavailable: HTTP 503 Busy"},
                "Resting since ?, next try now It says that",
            ),
            ({"is_open": True, "misconfigured": True, "last_error": "misconfigured: 535 No"}, "Misconfigured since ?"),
            ({"throttled_in": 600, "last_error": "throttled: HTTP 429"}, "It asked us to wait until "),
            ({"throttled_in": -60}, "In use"),
            ({"mode": "draining"}, "Draining no new mail; nothing is left"),
            ({"mode": "disabled"}, "Disabled"),
            ({"mode": "retired"}, "Retired"),
        ],
    )
    def test_a_state_is_told_in_words(self, admin_client, values, words):
        values = dict(values)
        if "throttled_in" in values:
            values["throttled_until"] = read_now("default") + timedelta(seconds=values.pop("throttled_in"))
        ProviderState.objects.create(alias="ses", **values)

        assert words in text_of(overview(admin_client))
        assert words in text_of(page_of(admin_client, "ses"))

    def test_an_error_comes_with_what_to_do_and_the_words_of_the_provider(self, admin_client):
        error = "misconfigured: 535 5.7.8 Authentication failed"
        ProviderState.objects.create(alias="ses", is_open=True, misconfigured=True, last_error=error)

        text = text_of(overview(admin_client))

        assert "It refuses our user name, password or key. Compare MAILERS['ses'] with the account" in text
        assert "It said: “535 5.7.8 Authentication failed”" in text

    def test_a_stream_that_nobody_carries_is_told_above(self, admin_client, configure):
        streams = {"bulk": {"PROVIDERS": ["relay"]}}
        configure({"ses": {}, "relay": {}}, STREAMS=streams)
        text = "No provider may be given new mail of the stream “bulk”: it waits until one of its providers is enabled."
        assert text not in overview(admin_client)

        ProviderState.objects.filter(alias="relay").update(mode="draining")

        page = overview(admin_client)
        assert text in page
        assert "of the stream “transactional”" not in page

    def test_it_shows_what_was_used_and_sent(self, admin_client, hand_over):
        usage = taken([per(50_000, "day")], {}, now=read_now("default"), count=41_200)
        ProviderState.objects.create(alias="ses", usage=usage, weight=3)
        hand_over("ses", count=3)
        hand_over("relay")

        text = text_of(overview(admin_client))

        assert "41,200 of 50,000 in 24 hours 3 today 75 % of all mail" in text
        assert "weight 3 (set here) rate 50000/day" in text

    def test_the_drawing_says_in_words_what_it_shows(self, admin_client, hand_over):
        hand_over("ses", count=3)
        hand_over("ses", "refused", count=2)
        hand_over("ses", "unavailable")

        page = overview(admin_client)

        assert "Last 24 hours: 3 accepted, 2 refused, 1 failed; at most 6 in an hour, that from" in page
        assert "Last 24 hours: nothing was handed over." in page
        drawing = page[page.index('<svg class="mailengine-drawing') :].partition("</svg>")[0]
        kinds = re.findall(r'class="mailengine-(accepted|refused|failed)"', drawing)
        assert (kinds, drawing.count("<g>")) == (["accepted", "refused", "failed"], 24)

    def test_what_a_stranger_said_is_text(self, admin_client, hand_over, configure, settings):
        evil = "<script>alert(1)</script>"
        ProviderState.objects.create(alias="ses", is_open=True, misconfigured=True, last_error=f"misconfigured: {evil}")
        hand_over("ses", "misconfigured", code=evil, detail=evil)
        settings.MAILERS = {**settings.MAILERS, evil: settings.MAILERS["spare"]}

        for page in (overview(admin_client), page_of(admin_client, "ses")):
            assert evil not in page
            assert "&lt;script&gt;alert(1)" in page

    def test_nothing_in_it_needs_an_exception_from_a_strict_policy(self, admin_client, hand_over):
        hand_over("ses", "unavailable", count=2)
        for page in (overview(admin_client), page_of(admin_client, "ses")):
            ours = page[page.index('id="content"') :]
            assert " style=" not in ours
            assert not re.search(r"\son\w+=", ours)
            assert "<style" not in ours

    def test_figures_are_drawn_alike_in_every_language(self, admin_client, hand_over, settings):
        settings.LANGUAGE_CODE = "de"
        hand_over("ses", count=3)
        numbers = re.findall(
            r' (?:x|y|width|height)="([^"]*)"', overview(admin_client).partition("mailengine-drawing")[2]
        )
        assert numbers
        assert not any("," in number for number in numbers)

    def test_it_takes_the_same_queries_however_many_there_are(self, admin_client, configure, hand_over):
        def queries(count):
            names = [f"p{number}" for number in range(count)]
            configure({name: {} for name in names}, PROVIDERS={name: {"RATE": "9/day"} for name in names})
            for name in names:
                ProviderState.objects.get_or_create(alias=name)
                hand_over(name)
            with CaptureQueriesContext(connection) as captured:
                assert overview(admin_client).count('<svg class="mailengine-drawing') == count
            return len(captured)

        assert queries(2) == queries(30)

    def test_who_may_not_see_providers_sees_none(self, log_in, client):
        log_in("view_message")
        assert client.get(CHANGELIST).status_code == 403

    def test_who_may_only_look_has_no_switches(self, log_in, client):
        log_in("view_providerstate")

        page = overview(client)

        assert "Put to use" not in page
        assert 'name="action"' not in page
        assert 'name="mode"' not in page_of(client, "ses")
        assert client.post(reverse("admin:mailengine_providerstate_put_to_use"), {"alias": "spare"}).status_code == 403
        assert not ProviderState.objects.filter(is_added=True).exists()


class TestActions:
    @pytest.mark.parametrize(
        ("action", "mode"),
        [("drain", "draining"), ("disable", "disabled"), ("retire", "retired"), ("enable", "enabled")],
    )
    def test_they_switch_what_is_ticked(self, admin_client, act, action, mode):
        before = "draining" if action == "enable" else "enabled"
        rows = [ProviderState.objects.create(alias=alias, mode=before) for alias in ("ses", "relay")]

        page = act(action, *rows)

        assert set(ProviderState.objects.values_list("mode", flat=True)) == {mode}
        assert f"ses: {mode} (was {before}). Running workers follow within a second." in told(page)
        assert history_of("ses") == history_of("relay") == [f"{mode} (was {before})"]

    def test_what_is_so_already_is_not_entered_in_the_history(self, admin_client, act):
        page = act("enable", ProviderState.objects.create(alias="ses"))

        assert told(page) == ["ses: nothing changed."]
        assert history_of("ses") == []

    def test_the_last_one_of_a_stream_warns(self, admin_client, act):
        rows = [ProviderState.objects.create(alias=alias) for alias in ("ses", "relay")]

        page = act("disable", *rows)

        assert "No provider may be given new mail of transactional, bulk any more: it waits." in told(page)

    def test_mail_that_only_it_may_carry_warns(self, admin_client, act, make_message):
        make_message(status="uncertain", provider="ses")

        page = act("retire", ProviderState.objects.create(alias="ses"))

        assert any("1 message may have gone by ses, and will be kept for a person" in text for text in told(page))

    def test_they_need_the_permission_to_change(self, log_in, act):
        log_in("view_providerstate")
        act("disable", ProviderState.objects.create(alias="ses"))
        assert ProviderState.objects.get(pk="ses").mode == "enabled"


class TestPutToUse:
    def put_to_use(self, client, alias):
        return client.post(reverse("admin:mailengine_providerstate_put_to_use"), {"alias": alias}, follow=True)

    def test_an_entry_of_mailers_has_a_button(self, admin_client):
        assert re.findall(r'name="alias" value="(\w+)"', overview(admin_client)) == ["spare"]

    def test_it_becomes_a_provider_and_is_taken_back(self, admin_client, act):
        page = self.put_to_use(admin_client, "spare")
        assert told(page) == ["spare: put to use. Running workers follow within a second."]
        assert "Put to use" not in overview(admin_client)
        assert 'value="take_back" class="button"' in page_of(admin_client, "spare")

        page = act("take_back", ProviderState.objects.get(pk="spare"))

        assert told(page) == ["spare: taken back. Running workers follow within a second."]
        assert ProviderState.objects.get(pk="spare").is_added is False
        assert history_of("spare") == ["put to use", "taken back"]

    def test_what_the_settings_name_is_not_taken_back(self, admin_client, act):
        page = act("take_back", ProviderState.objects.create(alias="ses"))
        assert told(page) == ["'ses' was not added here, the settings name it: retire it instead."]

    @pytest.mark.parametrize("alias", ["default", "ses", "never-heard-of", ""])
    def test_what_can_be_none_is_refused(self, admin_client, alias):
        self.put_to_use(admin_client, alias)
        assert not ProviderState.objects.filter(is_added=True).exists()

    def test_by_a_link_nothing_is_done(self, admin_client):
        url = reverse("admin:mailengine_providerstate_put_to_use")
        assert admin_client.get(url, {"alias": "spare"}).status_code == 405
        assert not ProviderState.objects.filter(is_added=True).exists()


class TestForm:
    def save(self, client, alias="ses", **values):
        data = {"mode": "enabled", "weight": "", "rate": "", **values}
        return client.post(reverse("admin:mailengine_providerstate_change", args=[alias]), data, follow=True)

    def test_each_mode_says_what_it_does(self, admin_client):
        ProviderState.objects.create(alias="ses")
        text = text_of(page_of(admin_client, "ses"))
        assert "Draining: no new mail; what may have gone by it already is brought to an end." in text

    def test_what_the_settings_say_is_shown_where_nothing_is_set(self, admin_client):
        ProviderState.objects.create(alias="ses")
        assert 'placeholder="50000/day"' in page_of(admin_client, "ses")

    def test_it_sets_the_switches_and_enters_what_they_were(self, admin_client):
        ProviderState.objects.create(alias="ses", weight=2)

        self.save(admin_client, mode="draining", weight="5", rate="14/s, 900/day")

        state = ProviderState.objects.get(pk="ses")
        assert (state.mode, state.weight, state.rate) == ("draining", 5, "14/s, 900/day")
        assert history_of("ses") == [
            "draining (was enabled), weight 5 (was 2), rate 14/s, 900/day (was as the settings say)"
        ]
        self.save(admin_client, mode="draining", rate="14/s, 900/day")
        assert ProviderState.objects.get(pk="ses").weight is None

    def test_what_workers_wrote_meanwhile_stays(self, admin_client, monkeypatch):
        ProviderState.objects.create(alias="ses")
        clean = SwitchesForm.full_clean

        def meanwhile(form):
            clean(form)
            ProviderState.objects.filter(pk="ses").update(is_open=True, usage={"day": {"1": 7}}, weight=9)

        monkeypatch.setattr(SwitchesForm, "full_clean", meanwhile)
        self.save(admin_client, mode="disabled")

        state = ProviderState.objects.get(pk="ses")
        assert (state.mode, state.is_open, state.usage, state.weight) == ("disabled", True, {"day": {"1": 7}}, 9)

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({"rate": "fast"}, "'fast' is no rate. Write it like '14/s', '200/min', '1000/h' or '14/s, 50000/day'."),
            ({"weight": "-1"}, "Ensure this value is greater than or equal to 0."),
            ({"weight": "1000000"}, "Ensure this value is less than or equal to 10000."),
            ({"mode": "asleep"}, "asleep is not one of the available choices."),
        ],
    )
    def test_what_nobody_can_read_is_refused_with_the_mend(self, admin_client, values, words):
        ProviderState.objects.create(alias="ses")

        page = self.save(admin_client, **values)

        assert words in text_of(page.content.decode())
        assert history_of("ses") == []

    def test_the_last_one_of_a_stream_warns(self, admin_client):
        ProviderState.objects.create(alias="relay", mode="retired")
        ProviderState.objects.create(alias="ses")

        page = self.save(admin_client, mode="disabled")

        assert "No provider may be given new mail of transactional, bulk any more: it waits." in told(page)

    def test_who_may_only_look_can_not_save(self, log_in, client):
        log_in("view_providerstate")
        ProviderState.objects.create(alias="ses")
        assert self.save(client, mode="disabled").status_code == 403
        assert ProviderState.objects.get(pk="ses").mode == "enabled"


class TestFailures:
    def test_the_last_ten_are_listed_with_their_messages(self, admin_client, hand_over):
        message = hand_over("ses", "unavailable", count=12, code="HTTP 503", detail="Busy")
        hand_over("ses", "refused", detail="No such user")
        hand_over("relay", "unavailable", detail="Elsewhere")
        ProviderState.objects.create(alias="ses")

        page = page_of(admin_client, "ses")

        assert page.count(reverse("admin:mailengine_message_change", args=[message.pk])) == 10
        assert "No such user" not in page
        assert "Elsewhere" not in page

    def test_who_may_not_see_messages_gets_no_link(self, log_in, client, hand_over):
        log_in("view_providerstate")
        message = hand_over("ses", "unavailable", code="HTTP 503")
        ProviderState.objects.create(alias="ses")

        page = page_of(client, "ses")

        assert "HTTP 503" in page
        assert str(message.pk)[-12:] not in page

    def test_an_error_that_is_over_is_told_as_that(self, admin_client):
        ProviderState.objects.create(alias="ses", last_error="unavailable: HTTP 503 Busy")
        text = text_of(page_of(admin_client, "ses"))
        assert "Its last trouble, which is over unavailable: HTTP 503 Busy" in text

    def test_one_that_is_not_configured_any_more_has_a_page(self, admin_client, hand_over):
        hand_over("gone")
        ProviderState.objects.create(alias="gone")
        assert "Not configured the settings no longer name it" in text_of(page_of(admin_client, "gone"))


@pytest.mark.parametrize(
    ("seen_ago", "stopped", "words"),
    [(10, False, "at work"), (600, False, "not seen any more"), (10, True, "stopped")],
)
def test_workers_are_listed_with_what_became_of_them(admin_client, seen_ago, stopped, words):
    now = read_now("default")
    seen = now - timedelta(seconds=seen_ago)
    Worker.objects.create(
        name="mail-1:4711", command="send_mail", started_at=seen, seen_at=seen, stopped_at=seen if stopped else None
    )

    page = admin_client.get(reverse("admin:mailengine_worker_changelist")).content.decode()

    assert "mail-1:4711" in page
    assert f'field-state">{words}' in page
