from __future__ import annotations

import re
from pathlib import Path

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils.html import escape

from mailengine.admin import SendEmailUpdateMixin
from mailengine.models import Message, MessageJob
from project.newsroom.admin import IssueAdmin
from project.newsroom.models import Article, Issue, Subscriber

from .conftest import told

pytestmark = pytest.mark.django_db
ACTION = "send_email_update"


def token_on(page) -> str:
    return re.search(r'name="token" value="([^"]+)"', page.content.decode())[1]


def url_of(issue: Issue, page: str) -> str:
    return reverse(f"admin:newsroom_issue_{page}", args=[issue.pk])


@pytest.fixture
def template(settings, tmp_path):
    """Writes a template that takes the place of the demonstration's own."""
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [tmp_path, *settings.TEMPLATES[0]["DIRS"]]}]

    def template(name: str, words: str) -> None:
        file: Path = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(words)

    return template


# The page that asks


def test_the_action_asks_before_it_queues_anything(editor, issue, subscribers, act):
    """C17"""
    subscribers(1234)

    page = act(ACTION, issue)

    for words in (
        "Are you sure you want to send an email update?",
        "1,234 recipients now",
        "newsroom@localhost",
        "Daily headlines",
        "All that happened.",
        "Queue for 1,234 recipients",
    ):
        assert words in page.content.decode()
    assert not MessageJob.objects.exists()


def test_the_mail_is_shown_in_a_frame_that_can_do_nothing(editor, issue, subscribers, act):
    """SP1"""
    subscribers(1)

    page = act(ACTION, issue)

    preview = url_of(issue, "email_update_preview")
    assert re.search(rf'<iframe[^>]* sandbox="" src="{preview}"', page.content.decode())
    assert "allow-scripts" not in page.content.decode()


def test_the_preview_is_inert_when_opened_by_itself(editor, issue, client):
    """SP1, SP3"""
    response = client.get(url_of(issue, "email_update_preview"))

    policy = response["Content-Security-Policy"]
    assert "All that happened." in response.content.decode()
    assert {"sandbox", "default-src 'none'", "img-src data:", "frame-ancestors 'self'"} <= set(policy.split("; "))
    assert response["X-Content-Type-Options"] == "nosniff"
    assert response["X-Frame-Options"] == "SAMEORIGIN"
    assert response["Referrer-Policy"] == "no-referrer"
    assert "no-store" in response["Cache-Control"]


def test_merge_fields_are_shown_by_their_defaults_and_else_by_their_names(editor, issue, subscribers, act, template):
    subscribers(1)
    words = '{% verbatim %}Hello {{ name|default:"reader" }} of {{ town }}{% endverbatim %}'
    template("mailengine/newsroom/issue/update.txt", words)

    page = act(ACTION, issue)

    assert "Hello reader of {{ town }}" in page.content.decode()
    assert "name, town" in page.content.decode()


def test_several_objects_are_asked_about_together(editor, issue, subscribers, act):
    subscribers(10)
    other = Issue.objects.create(title="Weekend")

    page = act(ACTION, issue, other)

    assert "Queue for 20 recipients" in page.content.decode()
    act(ACTION, issue, other, token=token_on(page))
    assert MessageJob.objects.count() == 2


def test_articles_have_the_action_too(editor, subscribers, act):
    """C10"""
    subscribers(1)
    article = Article.objects.create(headline="Bridge reopens", body="On Saturday.")

    page = act(ACTION, article)
    act(ACTION, article, token=token_on(page))

    assert MessageJob.objects.get().subject == "Bridge reopens"


def test_the_page_warns_of_an_update_queued_before(editor, issue, subscribers, act):
    subscribers(1)
    act(ACTION, issue, token=token_on(act(ACTION, issue)))

    page = act(ACTION, issue)

    assert "An update of this was queued before" in page.content.decode()
    assert "by ed." in page.content.decode()


def test_the_number_of_queries_does_not_depend_on_the_audience(editor, issue, subscribers, act):
    """C02"""

    def queries() -> tuple[int, int]:
        with CaptureQueriesContext(connection) as asking:
            page = act(ACTION, issue)
        with CaptureQueriesContext(connection) as queueing:
            act(ACTION, issue, token=token_on(page))
        return len(asking), len(queueing)

    subscribers(10)
    with_few = queries()
    Subscriber.objects.all().delete()
    subscribers(1_000)

    assert queries() == with_few
    assert with_few < (16, 40)


# Queueing


def test_the_button_queues_one_job_with_the_rendered_words(editor, issue, subscribers, act):
    """C11, C16"""
    subscribers(1234)
    page = act(ACTION, issue)

    answer = act(ACTION, issue, token=token_on(page))

    job = MessageJob.objects.get()
    assert (job.subject, job.audience, job.stream) == ("Daily headlines", "subscribers", "bulk")
    assert (job.source, job.created_by) == (f"newsroom.issue:{issue.pk}", editor)
    assert "All that happened." in job.text
    assert "<h1" in job.html
    assert told(answer) == ["Queued “Daily headlines” for 1,234 recipients. Follow its progress"]
    assert reverse("admin:mailengine_messagejob_change", args=[job.pk]) in answer.content.decode()
    assert not Message.objects.exists()


def test_the_history_of_the_object_says_who_sent_it(editor, issue, subscribers, act):
    """SA5"""
    subscribers(1)
    act(ACTION, issue, token=token_on(act(ACTION, issue)))

    entry = LogEntry.objects.get(object_id=str(issue.pk))
    assert entry.user == editor
    assert f"job {MessageJob.objects.get().pk}" in entry.get_change_message()


def test_a_page_submitted_twice_queues_one_job(editor, issue, subscribers, act):
    """C17, SA4"""
    subscribers(1)
    token = token_on(act(ACTION, issue))
    act(ACTION, issue, token=token)
    Issue.objects.filter(pk=issue.pk).update(intro="Changed in between.")

    again = act(ACTION, issue, token=token)

    job = MessageJob.objects.get()
    assert "queued already" in told(again)[0]
    assert reverse("admin:mailengine_messagejob_change", args=[job.pk]) in again.content.decode()


@pytest.mark.parametrize("page", ["email_update", "email_update_preview", "change"])
def test_a_get_queues_nothing(editor, issue, subscribers, act, client, page):
    """C17, SA4"""
    subscribers(1)
    token = token_on(act(ACTION, issue))

    response = client.get(url_of(issue, page), {"action": ACTION, "_selected_action": issue.pk, "token": token})

    assert response.status_code == 200
    assert not MessageJob.objects.exists()


def test_the_object_s_own_page_leads_to_the_same_question(editor, issue, subscribers, client):
    subscribers(3)
    url = url_of(issue, "email_update")
    assert url in client.get(url_of(issue, "change")).content.decode()

    page = client.get(url)
    answer = client.post(url, {"token": token_on(page)}, follow=True)

    assert "Queue for 3 recipients" in page.content.decode()
    assert MessageJob.objects.count() == 1
    assert told(answer)[0].startswith("Queued “Daily headlines” for 3 recipients.")


@pytest.mark.parametrize("token", ["", "forged", "forged:1uXyzA:signature"])
def test_a_forged_token_queues_nothing_and_asks_again(editor, issue, subscribers, act, token):
    subscribers(1)

    page = act(ACTION, issue, token=token)

    assert "Are you sure" in page.content.decode()
    assert not MessageJob.objects.exists()


def test_a_post_from_another_site_is_refused(editor, issue, subscribers):
    """SA4"""
    subscribers(1)
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(editor)

    assert strict.post(url_of(issue, "email_update"), {"token": "x"}).status_code == 403


def test_actions_of_the_project_s_own_stay(editor, rf):
    class OwnAdmin(SendEmailUpdateMixin, admin.ModelAdmin):
        actions = ("archive",)

        def archive(self, request, queryset): ...

    request = rf.get("/")
    request.user = editor

    offered = dict(OwnAdmin(Issue, admin.AdminSite()).get_action_choices(request))
    assert {"archive", ACTION} <= set(offered)


# Who may


def test_without_the_permission_nothing_is_offered_and_a_hand_made_post_is_refused(
    log_in, issue, subscribers, act, client
):
    """SA1"""
    subscribers(1)
    log_in("view_issue", "change_issue", "view_messagejob")

    assert ACTION not in client.get(reverse("admin:newsroom_issue_changelist")).content.decode()
    assert "email-update" not in client.get(url_of(issue, "change")).content.decode()
    act(ACTION, issue, token="x")
    assert client.get(url_of(issue, "email_update")).status_code == 403
    assert client.post(url_of(issue, "email_update"), {"token": "x"}).status_code == 403
    assert client.get(url_of(issue, "email_update_preview")).status_code == 403
    assert not MessageJob.objects.exists()


def test_who_may_not_see_the_object_sees_no_preview_of_it(log_in, issue, client):
    log_in("add_messagejob")

    assert client.get(url_of(issue, "email_update_preview")).status_code == 403


def test_objects_that_a_user_may_not_send_are_left_out_even_across_pages(editor, issue, subscribers, act, monkeypatch):
    """SA2"""
    subscribers(1)
    foreign = Issue.objects.create(title="Foreign affairs")
    monkeypatch.setattr(IssueAdmin, "has_send_permission", lambda self, request, obj=None: obj != foreign)

    page = act(ACTION, issue, select_across="1")
    answer = act(ACTION, issue, foreign, token=token_on(page))

    assert "Foreign affairs" not in page.content.decode()
    assert "1 object was left out" in told(answer)[0]
    assert [job.subject for job in MessageJob.objects.all()] == ["Daily headlines"]


def test_who_may_not_see_jobs_gets_no_link_to_one(log_in, issue, subscribers, act):
    subscribers(1)
    log_in("view_issue", "add_messagejob")

    answer = act(ACTION, issue, token=token_on(act(ACTION, issue)))

    assert told(answer)[0].startswith("Queued “Daily headlines” for 1 recipient. Job ")
    assert "messagejob" not in answer.content.decode()


# What can go wrong


def test_a_file_for_one_object_takes_the_place_of_its_model_s(editor, issue, subscribers, act, template):
    """C11"""
    subscribers(1)
    template(f"mailengine/newsroom/issue/{issue.pk}/update.subject.txt", "Only today: {{ issue.title }}")

    act(ACTION, issue, token=token_on(act(ACTION, issue)))

    job = MessageJob.objects.get()
    assert job.subject == "Only today: Daily headlines"
    assert "All that happened." in job.text


def test_the_path_of_a_missing_template_is_told(editor, issue, subscribers, act, settings):
    subscribers(1)
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "APP_DIRS": False, "DIRS": [_admin_templates()]}]

    answer = act(ACTION, issue)

    assert "mailengine/newsroom/issue/update.html" in told(answer)[0]
    assert "was not queued" in told(answer)[0]


def _admin_templates() -> Path:
    import django.contrib.admin

    return Path(django.contrib.admin.__file__).parent / "templates"


def test_an_error_in_a_template_is_told_and_queues_nothing(editor, issue, subscribers, act, template):
    subscribers(1)
    template("mailengine/newsroom/issue/update.txt", "{% nonsense %}")

    assert "nonsense" in told(act(ACTION, issue))[0]


def test_what_looks_like_a_merge_field_and_is_none_is_told_before_it_hurts(editor, issue, subscribers, act):
    subscribers(1)
    Issue.objects.filter(pk=issue.pk).update(intro="Write {{ x|upper }} in templates.")

    answer = act(ACTION, issue)

    assert "is not a merge field" in told(answer)[0]
    assert not MessageJob.objects.exists()


def test_an_unknown_audience_is_told_with_the_nearest_name(editor, issue, subscribers, act, monkeypatch):
    subscribers(1)
    monkeypatch.setattr(IssueAdmin, "update_audience", "subscriber")

    assert "Did you mean 'subscribers'?" in told(act(ACTION, issue))[0]


def test_an_empty_audience_is_told(editor, issue, act):
    assert "the audience “subscribers” is empty" in told(act(ACTION, issue))[0]


def test_a_bad_sender_is_told_and_spares_the_others(editor, issue, subscribers, act, monkeypatch):
    subscribers(1)
    other = Issue.objects.create(title="Weekend")
    sender = {issue.pk: "no address", other.pk: "Ed <ed@example.org>"}
    monkeypatch.setattr(IssueAdmin, "get_update_from_email", lambda self, request, obj: sender[obj.pk])

    page = act(ACTION, issue, other)

    assert "“Daily headlines” was not queued: from_email: 'no address' has no @" in told(page)[0]
    act(ACTION, other, token=token_on(page))
    assert MessageJob.objects.get().from_email == "Ed <ed@example.org>"


def test_what_an_author_writes_is_escaped_on_every_page(editor, subscribers, act):
    subscribers(1)
    hostile = "<script>alert(1)</script>"
    issue = Issue.objects.create(title=hostile, intro=hostile)

    page = act(ACTION, issue)
    answer = act(ACTION, issue, token=token_on(page))

    assert escape(hostile) in page.content.decode()
    assert hostile not in page.content.decode()
    assert hostile not in answer.content.decode()
