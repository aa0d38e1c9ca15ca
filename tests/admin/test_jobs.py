from __future__ import annotations

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from mailengine.models import MessageJob
from mailengine.pipeline.enqueue import queue_job

from .conftest import told

pytestmark = pytest.mark.django_db
LIST = "admin:mailengine_messagejob_changelist"


@pytest.fixture
def job():
    words = "<h1>Headlines</h1><script>alert(1)</script>"
    return queue_job("Headlines", "The whole text", None, ["ann@example.org"], html_message=words)


def page_of(job: MessageJob) -> str:
    return reverse("admin:mailengine_messagejob_change", args=[job.pk])


def test_the_list_shows_where_each_job_stands_and_no_bodies(log_in, job, client):
    """SA6"""
    log_in("view_messagejob")

    page = client.get(reverse(LIST)).content.decode()

    assert "Headlines" in page
    assert "queued" in page
    assert "The whole text" not in page


def test_jobs_are_found_by_words_of_their_subject(log_in, job, client):
    queue_job("Weekend", "Text", None, ["ann@example.org"])
    log_in("view_messagejob")

    page = client.get(reverse(LIST), {"q": "headl"})

    assert [found.subject for found in page.context["cl"].queryset] == ["Headlines"]


def test_the_page_of_a_job_shows_its_progress_in_one_query(log_in, job, client, make_message):
    log_in("view_messagejob", "view_message")
    for status, number in (("sent", 3), ("dead", 1)):
        for i in range(number):
            make_message(f"{status}{i}@example.org", job=job, status=status)

    with CaptureQueriesContext(connection) as queries:
        page = client.get(page_of(job)).content.decode()

    assert "75.0 %" in page
    assert "25.0 %" in page
    asked = [query["sql"].replace("`", '"') for query in queries]
    assert sum('FROM "mailengine_message" ' in sql for sql in asked) == 1


def test_the_figures_lead_to_the_messages_behind_them(log_in, job, client, make_message):
    log_in("view_messagejob", "view_message")
    dead = make_message("ann@example.org", job=job, status="dead")
    make_message("bob@example.org", job=job, status="sent")
    make_message("eve@example.org", status="dead")

    url = reverse("admin:mailengine_message_changelist") + f"?job={job.pk}&status__exact=dead"

    assert url.replace("&", "&amp;") in client.get(page_of(job)).content.decode()
    assert list(client.get(url).context["cl"].queryset) == [dead]


def test_malformed_lines_are_listed_with_their_reason(log_in, job, client):
    log_in("view_messagejob")
    MessageJob.objects.update(problems=[{"line": 17, "address": "bob@@example", "why": "holds several @"}])

    page = client.get(page_of(job)).content.decode()

    assert "<td>bob@@example</td><td>holds several @</td>" in page


def test_the_words_are_shown_in_a_frame_that_can_do_nothing(log_in, job, client):
    """SP1"""
    log_in("view_messagejob")

    page = client.get(page_of(job)).content.decode()
    preview = client.get(reverse("admin:mailengine_messagejob_preview", args=[job.pk]))

    assert 'sandbox="" src="' + reverse("admin:mailengine_messagejob_preview", args=[job.pk]) in page
    assert "alert(1)" not in page
    assert "The whole text" in page
    assert preview.content.decode() == job.html
    assert preview["Content-Security-Policy"].startswith("sandbox; default-src 'none'")


def test_the_words_are_for_those_who_may_see_jobs(log_in, job, client):
    log_in("view_message")

    assert client.get(reverse("admin:mailengine_messagejob_preview", args=[job.pk])).status_code == 403
    assert client.get(page_of(job)).status_code == 403


def test_a_job_is_paused_resumed_and_cancelled(log_in, job, act):
    log_in("view_messagejob", "change_messagejob")
    for action, status in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")):
        answer = act(action, job)

        job.refresh_from_db()
        assert job.status == status
        assert told(answer)[0].startswith("Done for 1: ")


def test_all_that_a_search_found_is_cancelled_and_nothing_else(log_in, job, client):
    log_in("view_messagejob", "change_messagejob")
    other = queue_job("Weekend", "Text", None, ["ann@example.org"])

    ticked = {"action": "cancel", "select_across": "1", "_selected_action": job.pk}
    client.post(reverse(LIST) + "?q=headl", ticked)

    job.refresh_from_db()
    other.refresh_from_db()
    assert (job.status, other.status) == ("cancelled", "queued")


def test_what_can_t_be_done_is_told_with_the_reason(log_in, job, act):
    log_in("view_messagejob", "change_messagejob")

    answer = act("resume", job)

    assert told(answer) == ["Done for 0 of 1: Resume. Only paused jobs can be resumed."]


def test_who_may_only_view_can_t_stop_a_job(log_in, job, act, client):
    """SA1"""
    log_in("view_messagejob")

    assert 'value="cancel"' not in client.get(reverse(LIST)).content.decode()
    assert 'value="cancel"' not in client.get(page_of(job)).content.decode()
    act("cancel", job)
    assert MessageJob.objects.get().status == "queued"


def test_no_form_writes_a_job(client, admin_client, job):
    """A form would save the row as it was read, over what a worker did meanwhile."""
    assert admin_client.get(reverse("admin:mailengine_messagejob_add")).status_code == 403
    assert admin_client.post(page_of(job), {"status": "done"}).status_code == 403
    assert admin_client.post(reverse("admin:mailengine_messagejob_delete", args=[job.pk])).status_code == 403
    assert MessageJob.objects.get().status == "queued"
