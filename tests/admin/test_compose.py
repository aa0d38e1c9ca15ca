"""The page on which staff write a mail."""

from __future__ import annotations

import re
import threading
from html.parser import HTMLParser

import pytest
from django.contrib.admin.models import ADDITION, LogEntry
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import OperationalError, connection
from django.db.models.signals import pre_save
from django.test import Client
from django.urls import reverse

import mailengine
from mailengine.admin.nonce import new_token
from mailengine.models import JobRecipients, Message, MessageJob
from mailengine.pipeline import audience as audiences
from mailengine.pipeline.dispatch import dispatch_slice

from ..attachments import files  # noqa: F401  a fixture
from ..database_faults import database_options, execute, raw_connection, servers_only, through_a_proxy
from .conftest import told

pytestmark = pytest.mark.django_db

MAIL = {
    "kind": "mail",
    "to": "Ann <ann@example.org>, bob@example.org",
    "subject": "Lunch on Friday",
    "message": "Hello,\r\nlunch is at noon.\r\n",
}
JOB = {**MAIL, "kind": "job"}
OTHERS = {
    "html_message": "<p>Hello,</p>\r\n<p>lunch is at noon.</p>",
    "cc": "cee@example.org",
    "bcc": "dee@example.org; ed@example.org",
    "from_email": "Desk <desk@example.org>",
    "reply_to": "answers@example.org",
    "send_at": "2101-01-31T12:30",
    "expires_at": "2101-02-01T12:30",
    "stream": "bulk",
    "priority": "0",
    "tags": "lunch, friday",
}


class _Page(HTMLParser):
    """The errors in the row of each field, and what its form would send."""

    def __init__(self, page) -> None:
        super().__init__()
        self.errors: dict[str, str] = {}
        self.values: dict[str, str] = {}
        self.described: dict[str, str] = {}
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.alert = ""
        self._open: list[tuple[str, dict[str, str]]] = []
        self.feed(page.content.decode())

    def handle_starttag(self, tag, attrs):
        given = {name: value or "" for name, value in attrs}
        self.ids.add(given.get("id", ""))
        if tag == "a":
            self.links.append(given.get("href", ""))
        name = given.get("name", "")
        if name and tag in ("input", "textarea", "select"):
            self.described[name] = given.get("aria-describedby", "")
        if tag == "input" and name and (given.get("type") != "radio" or "checked" in given):
            self.values[name] = given.get("value", "")
        elif tag == "option" and "selected" in given:
            self.values[self._named("select")] = given["value"]
        elif tag == "textarea":
            self.values[name] = ""
        if tag not in ("input", "link", "meta", "br", "img", "path", "use"):
            self._open.append((tag, given))

    def handle_endtag(self, tag):
        if tag == "textarea":  # a line break right after the tag is not part of its text
            name = self._named(tag)
            self.values[name] = self.values[name].removeprefix("\n")
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        if self._open and self._open[-1][0] == "textarea":
            self.values[self._named("textarea")] += data
        if any(attrs.get("role") == "alert" for _tag, attrs in self._open):
            self.alert += data
        if self._open and self._open[-1][0] == "li":
            rows = [attrs["class"] for _tag, attrs in self._open if "form-row" in attrs.get("class", "").split()]
            lists = [attrs for _tag, attrs in self._open if "errorlist" in attrs.get("class", "").split()]
            if rows and lists:
                field = re.search(r"field-(\w+)", rows[-1])[1]
                self.errors[field] = self.errors.get(field, "") + data

    def _named(self, tag: str) -> str:
        return next(attrs["name"] for name, attrs in reversed(self._open) if name == tag)


@pytest.fixture
def url(db):
    return reverse("admin:mailengine_message_compose")


@pytest.fixture
def write(admin_client, url):
    """Opens the page, fills it in and presses the button; gives the page that follows."""

    def write(page=None, **data):
        token = _Page(page or admin_client.get(url)).values["token"]
        return admin_client.post(url, {"token": token, **data})

    return write


@pytest.fixture
def audience():
    """An audience of the test's own, "readers", with merge data."""
    mailengine.audience("readers")(lambda: [("ann@example.org", {"name": "Ann"}), "bob@example.org"])
    yield "readers"
    del audiences._audiences["readers"]


# What is queued


def test_a_mail_is_queued_as_it_was_written(write):
    page = write(**MAIL, **OTHERS)

    assert _Page(page).errors == {}
    message = Message.objects.get()
    content = message.content
    assert (content.subject, content.text, content.html, content.from_email, content.reply_to) == (
        "Lunch on Friday",
        "Hello,\nlunch is at noon.\n",
        "<p>Hello,</p>\n<p>lunch is at noon.</p>",
        "Desk <desk@example.org>",
        ["answers@example.org"],
    )
    assert [(r["kind"], r["address"], r["name"]) for r in message.recipients] == [
        ("to", "ann@example.org", "Ann"),
        ("to", "bob@example.org", ""),
        ("cc", "cee@example.org", ""),
        ("bcc", "dee@example.org", ""),
        ("bcc", "ed@example.org", ""),
    ]
    assert (message.stream, message.priority, content.extras["tags"]) == ("bulk", 0, ["lunch", "friday"])


def test_what_is_left_empty_has_the_usual_defaults(write):
    write(**MAIL)
    write(**JOB)

    message, job = Message.objects.get(), MessageJob.objects.get()
    assert (message.stream, message.priority, message.content.from_email) == ("transactional", 20, "")
    assert (job.stream, job.priority, job.content.from_email) == ("bulk", 40, "")


def test_times_are_of_the_time_zone_of_the_page(write, settings):
    settings.TIME_ZONE = "Europe/Vienna"

    page = write(**MAIL, send_at="2101-01-31T12:30", expires_at="2101-07-31T12:30")

    message = Message.objects.get()
    assert (message.send_at.isoformat(), message.expires_at.isoformat()) == (
        "2101-01-31T11:30:00+00:00",
        "2101-07-31T10:30:00+00:00",
    )
    assert "Europe/Vienna" in page.content.decode()
    assert _Page(page).values["send_at"] == "2101-01-31T12:30"


def test_a_mail_to_each_is_a_job(write):
    page = write(**JOB, reply_to="answers@example.org", tags="lunch")

    job = MessageJob.objects.get()
    assert JobRecipients.objects.get(job=job).entries == [[1, "Ann <ann@example.org>"], [2, "bob@example.org"]]
    assert (job.subject, job.created_by.username, job.content.extras["tags"]) == ("Lunch on Friday", "root", ["lunch"])
    assert told(page) == [f"Queued: job {job.pk}. Follow its progress"]
    assert reverse("admin:mailengine_messagejob_change", args=[job.pk]) in _Page(page).links
    assert not Message.objects.exists()


def test_a_job_may_be_for_an_audience(write, audience):
    write(**{**JOB, "to": "", "subject": "Hello {{ name }}"}, audience=audience)

    assert MessageJob.objects.get().audience == "readers"


def test_files_arrive_byte_for_byte(write, files, provider):  # noqa: F811
    sent = {"a.bin": bytes(range(256)), "menü.txt": "Grüße\r\n".encode(), "empty.txt": b""}
    kinds = {"a.bin": "application/octet-stream", "menü.txt": "text/plain", "empty.txt": "text/plain"}

    page = write(**MAIL, attachments=[SimpleUploadedFile(n, data, kinds[n]) for n, data in sent.items()])
    dispatch_slice(max_time=20)

    assert _Page(page).errors == {}
    (email,) = provider.accepted
    parts = {part.get_filename(): part for part in email.message().walk() if part.get_filename()}
    assert {name: part.get_payload(decode=True) for name, part in parts.items()} == sent
    assert {name: part.get_content_type() for name, part in parts.items()} == kinds


def test_the_log_says_who_queued_what_by_its_id_alone(write):
    write(**MAIL)
    write(**JOB)

    message, job = Message.objects.get(), MessageJob.objects.get()
    entries = LogEntry.objects.order_by("pk")
    assert [(e.user.username, e.action_flag, e.object_id, e.object_repr) for e in entries] == [
        ("root", ADDITION, str(message.pk), f"message {message.pk}"),
        ("root", ADDITION, str(job.pk), f"job {job.pk}"),
    ]
    assert not [e for e in entries if "ann" in f"{e} {e.change_message}" or "Lunch" in f"{e} {e.change_message}"]


def test_what_cannot_be_entered_in_the_log_is_not_queued(write):
    def fail(**_given):
        raise OperationalError("the server closed the connection")

    pre_save.connect(fail, sender=LogEntry)
    try:
        answer = write(**MAIL)
    finally:
        pre_save.disconnect(fail, sender=LogEntry)

    assert answer.status_code == 503
    assert not Message.objects.exists()


def test_reports_of_errors_are_to_leave_out_what_was_written(write):
    assert write(**MAIL).wsgi_request.sensitive_post_parameters == "__ALL__"


# After sending


@pytest.mark.parametrize("given", [{**MAIL, **OTHERS}, JOB])
def test_the_form_keeps_what_was_filled_in(write, given):
    """G11"""
    page = write(**given)

    assert told(page)[0].startswith("Queued: ")
    shown = _Page(page).values
    assert {name: shown[name] for name in given} == given


@pytest.mark.parametrize(("given", "model"), [(MAIL, Message), (JOB, MessageJob)])
def test_submitting_again_queues_another_with_an_id_of_its_own(write, given, model):
    """G11"""
    first = write(**given)
    second = write(first, **given)

    ids = {str(pk) for pk in model.objects.values_list("pk", flat=True)}
    assert len(ids) == 2
    assert {told(page)[0].split()[2].rstrip(".") for page in (first, second)} == ids


@pytest.mark.parametrize(("given", "model"), [(MAIL, Message), (JOB, MessageJob)])
def test_the_same_page_submitted_twice_queues_once(admin_client, url, write, given, model):
    """A double click, or a reload of the answer; and what was changed meanwhile is not added unasked."""
    page = admin_client.get(url)
    write(page, **given)

    again = write(page, **given)
    changed = write(page, **{**given, "subject": "Lunch on Thursday"})
    as_other = write(page, **{**given, "kind": "mail" if given is JOB else "job"})

    made = model.objects.get()
    assert Message.objects.count() + MessageJob.objects.count() == LogEntry.objects.count() == 1
    for answer in (again, changed, as_other):
        assert "Nothing was added" in told(answer)[0]
        assert str(made.pk) in told(answer)[0]
    assert _Page(changed).values["subject"] == "Lunch on Thursday"
    write(changed, **{**given, "subject": "Lunch on Thursday"})
    assert model.objects.count() == 2


def test_the_answer_leads_to_the_page_of_the_message(write, admin_client):
    page = write(**MAIL)

    link = reverse("admin:mailengine_message_change", args=[Message.objects.get().pk])
    assert link in _Page(page).links
    assert admin_client.get(link).status_code == 200


def test_who_may_not_see_messages_is_told_the_id_and_gets_no_link(log_in, client, url):
    log_in("add_message")
    token = _Page(client.get(url)).values["token"]

    page = client.post(url, {"token": token, **MAIL})

    message = Message.objects.get()
    assert told(page)[0].strip() == f"Queued: message {message.pk}."
    assert not [link for link in _Page(page).links if str(message.pk) in link]


def test_that_files_are_to_be_chosen_again_is_said_beside_them(write):
    page = write(**MAIL, attachments=[SimpleUploadedFile("<b>menu.txt", b"Soup", "text/plain")])

    assert "Choose them again" in page.content.decode()
    assert "&lt;b&gt;menu.txt" in page.content.decode()
    assert "Choose them again" not in write(page, **MAIL).content.decode()


def test_rarely_used_fields_are_folded_up_unless_there_is_something_in_them(write, admin_client, url):
    def folded(page) -> int:
        return page.content.decode().count("<details>")

    assert folded(admin_client.get(url)) == 3
    assert folded(write(**MAIL, tags="lunch")) == 2


# Mistakes


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("kind", "parcel", "parcel"),
        ("to", "", "Give at least one address."),
        ("to", "ann@example.org, bob, cee@example.org", "'bob' has no @"),
        ("cc", "bob", "'bob' has no @"),
        ("bcc", "a@b@c.example", "'a@b@c.example' holds"),
        ("audience", "readers", "“A mail to each of them”"),
        ("audience", "nobody", "nobody"),
        ("subject", "", "required"),
        ("subject", "Lunch\r\nBcc: eve@example.org", "holds a line break"),
        ("subject", "=?utf-8?q?Lunch=0ABcc:_eve=40example.org?=", "hides a control character"),
        ("message", "", "Write a text, or HTML."),
        ("message", "a\0b", "Null"),
        ("html_message", "a\0b", "Null"),
        ("from_email", "desk", "'desk' has no @"),
        ("from_email", "a@example.org\r\nBcc: eve@example.org", "holds a line break"),
        ("reply_to", "desk", "'desk' has no @"),
        ("send_at", "tomorrow", "valid date"),
        ("expires_at", "2001-01-01T00:00", "before the mail could be sent"),
        ("stream", "bulky", "bulky"),
        ("priority", "101", "101"),
        ("tags", "lunch\r\nBcc: eve@example.org", "line break"),
    ],
)
def test_each_mistake_is_said_beside_its_field(write, audience, field, value, said):
    """G10"""
    page = write(**{**MAIL, field: value})

    shown = _Page(page)
    assert list(shown.errors) == [field]
    assert said in shown.errors[field]
    assert not Message.objects.exists()
    anchors = [link.removeprefix("#") for link in shown.links if link.startswith("#id_")]
    assert len(anchors) == 1
    assert anchors[0].startswith(f"id_{field}")
    assert anchors[0] in shown.ids
    if field != "kind":
        assert f"id_{field}_error" in shown.described[field].split()
    assert f"id_{field}_error" in shown.ids
    assert shown.alert.strip()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"cc": "cee@example.org"}, "cc"),
        ({"bcc": "cee@example.org"}, "bcc"),
        ({"to": ""}, "to"),
        ({"to": "ann@example.org, bob"}, "to"),
        ({"audience": "readers"}, "audience"),
        ({"audience": "readers", "to": "", "subject": "Hello {{ a name }}"}, "subject"),
        ({"expires_at": "2001-01-01T00:00"}, "expires_at"),
    ],
)
def test_each_mistake_in_a_job_is_said_beside_its_field(write, audience, changes, field):
    page = write(**{**JOB, **changes})

    assert list(_Page(page).errors) == [field]
    assert not MessageJob.objects.exists()


def test_a_bad_file_is_said_beside_the_files(write):
    page = write(**MAIL, attachments=[SimpleUploadedFile("a.txt", b"a", "multipart/mixed")])

    assert "'multipart/mixed'" in _Page(page).errors["attachments"]


def test_all_mistakes_are_said_at_once_and_everything_is_kept(write):
    given = {**MAIL, "to": "ann@example.org, bob, @", "cc": "cee", "subject": "", "tags": "lunch"}

    shown = _Page(write(**given))

    assert list(shown.errors) == ["to", "subject", "cc"]
    assert "'bob'" in shown.errors["to"]
    assert "'@'" in shown.errors["to"]
    assert {name: shown.values[name] for name in ("to", "cc", "tags")} == {n: given[n] for n in ("to", "cc", "tags")}


def test_of_a_list_with_a_thousand_mistakes_some_are_shown(write):
    page = write(**{**JOB, "to": "\r\n".join(f"nobody{i}" for i in range(1000))})

    errors = _Page(page).errors["to"]
    assert errors.count("has no @") == 20
    assert errors.endswith("And 980 more like these.")


def test_what_was_typed_is_escaped(write):
    hostile = "<script>alert(1)</script>"

    page = write(**{**MAIL, "to": hostile, "subject": hostile, "message": f"</textarea>{hostile}"})

    assert hostile not in page.content.decode()


# Who may


def test_who_is_not_logged_in_is_asked_to(client, url):
    for answer in (client.get(url), client.post(url, MAIL)):
        assert answer.status_code == 302
        assert "/login/" in answer["Location"]
    assert not Message.objects.exists()


@pytest.mark.parametrize(
    ("permissions", "kinds"),
    [
        ([], []),
        (["view_message", "change_message", "view_messagejob", "change_messagejob"], []),
        (["add_message"], ["mail"]),
        (["add_messagejob"], ["job"]),
        (["add_message", "add_messagejob"], ["mail", "job"]),
    ],
)
def test_each_kind_takes_a_permission_of_its_own(log_in, client, url, rf, permissions, kinds, audience):
    request = rf.get(url)
    request.user = log_in(*permissions)

    assert client.get(url).status_code == (200 if kinds else 403)
    for given in (MAIL, JOB):
        is_allowed = given["kind"] in kinds
        answer = client.post(url, {"token": new_token(request, page="compose"), **given})
        assert (
            client.get(url, {"kind": given["kind"]}).status_code == answer.status_code == (200 if is_allowed else 403)
        )
    assert Message.objects.count() == kinds.count("mail")
    assert MessageJob.objects.count() == kinds.count("job")
    if kinds:
        offered = client.get(url).content.decode()
        assert [kind for kind in ("mail", "job") if f'value="{kind}"' in offered] == kinds
        assert ('name="cc"' in offered) == ("mail" in kinds)
        assert ('name="audience"' in offered) == ("job" in kinds)


@pytest.mark.parametrize(
    ("list_", "kind", "permission"),
    [("message", "mail", "add_message"), ("messagejob", "job", "add_messagejob")],
)
def test_the_lists_lead_to_the_page(log_in, client, url, list_, kind, permission):
    log_in(f"view_{list_}", permission)

    links = _Page(client.get(reverse(f"admin:mailengine_{list_}_changelist"))).links

    (link,) = [link for link in links if link.startswith(url)]
    assert _Page(client.get(link)).values["kind"] == kind


def test_the_lists_offer_nothing_to_who_may_not(log_in, client, url):
    log_in("view_message", "view_messagejob")

    for list_ in ("message", "messagejob"):
        page = client.get(reverse(f"admin:mailengine_{list_}_changelist"))
        assert page.status_code == 200
        assert url not in page.content.decode()


def test_a_get_queues_nothing(admin_client, url):
    token = _Page(admin_client.get(url)).values["token"]

    assert admin_client.get(url, {"token": token, **MAIL}).status_code == 200
    assert not Message.objects.exists()
    assert not LogEntry.objects.exists()


def test_a_post_from_another_site_is_refused(log_in, url):
    user = log_in("add_message")
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(user)
    token = _Page(strict.get(url)).values["token"]

    assert strict.post(url, {"token": token, **MAIL}).status_code == 403
    assert not Message.objects.exists()


@pytest.mark.parametrize("token", [None, "", "forged", "forged:1uXyzA:signature"])
def test_without_the_token_of_a_page_nothing_is_queued_and_everything_kept(admin_client, url, token):
    page = admin_client.post(url, MAIL if token is None else {"token": token, **MAIL})

    assert "nothing was queued" in told(page)[0]
    assert _Page(page).values["subject"] == MAIL["subject"]
    assert not Message.objects.exists()


def test_the_token_of_another_user_s_page_is_none(log_in, client, admin_client, url):
    token = _Page(admin_client.get(url)).values["token"]
    log_in("add_message")

    client.post(url, {"token": token, **MAIL})

    assert not Message.objects.exists()


# The database is away


@pytest.fixture
def locked(monkeypatch):
    """A database whose table of words somebody has locked, and who waits for that only a moment: `release()`."""
    monkeypatch.setattr("mailengine.pipeline.enqueue.PATIENCE_SECONDS", 0)
    options = dict(connection.settings_dict["OPTIONS"])
    if connection.vendor == "postgresql":
        options["options"] = "-c lock_timeout=100ms"
        take, release = ["BEGIN", "LOCK TABLE mailengine_content IN EXCLUSIVE MODE"], "ROLLBACK"
    elif connection.vendor == "mysql":
        options["init_command"] += ", lock_wait_timeout=1"
        take, release = ["LOCK TABLES mailengine_content WRITE"], "UNLOCK TABLES"
    else:
        options["timeout"] = 0.1
        take, release = ["BEGIN IMMEDIATE"], "ROLLBACK"
    with raw_connection() as other, database_options(OPTIONS=options):

        def lock():
            for statement in take:
                execute(other, statement)
            return lambda: execute(other, release)

        yield lock


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("given", "model"), [({**MAIL, **OTHERS}, Message), (JOB, MessageJob)])
def test_while_the_database_is_away_a_banner_says_so_and_everything_is_kept(
    admin_client, url, write, locked, given, model
):
    """G10"""
    page = admin_client.get(url)
    release = locked()

    answer = write(page, **given, attachments=[SimpleUploadedFile("menu.txt", b"Soup", "text/plain")])

    assert (answer.status_code, answer["Retry-After"].isdecimal()) == (503, True)
    shown = _Page(answer)
    assert "could not be queued" in shown.alert
    assert "Files have to be chosen again" in shown.alert
    assert shown.errors == {}
    assert {name: shown.values[name] for name in given} == given
    assert not told(answer)
    release()
    assert not Message.objects.exists()
    assert not LogEntry.objects.exists()
    assert told(write(answer, **given))[0].startswith("Queued: ")
    assert (model.objects.count(), LogEntry.objects.count()) == (1, 1)


@pytest.mark.django_db(transaction=True)
@servers_only
def test_when_only_the_answer_to_the_commit_is_lost_trying_again_adds_nothing(admin_client, url, write, monkeypatch):
    monkeypatch.setattr("mailengine.pipeline.enqueue.PATIENCE_SECONDS", 0)
    page = admin_client.get(url)
    with through_a_proxy() as proxy:
        connection.ensure_connection()  # what MySQL is asked then has the word in it, too
        proxy.next_commit = "arrived"
        answer = write(page, **MAIL)
        assert (answer.status_code, proxy.cut_count) == (503, 1)
        again = write(answer, **MAIL)

    assert "Nothing was added" in told(again)[0]
    assert (Message.objects.count(), LogEntry.objects.count()) == (1, 1)


@pytest.mark.django_db(transaction=True)
def test_a_double_click_queues_once(admin_client, url):
    """Both requests at the same time, each with a connection of its own."""
    token = _Page(admin_client.get(url)).values["token"]
    cookies, answers, start = admin_client.cookies, [], threading.Barrier(2)

    def click():
        client = Client()
        client.cookies = cookies
        start.wait()
        try:
            answers.append(client.post(url, {"token": token, **MAIL}).status_code)
        finally:
            connection.close()

    clicks = [threading.Thread(target=click) for _ in range(2)]
    for thread in clicks:
        thread.start()
    for thread in clicks:
        thread.join()

    assert answers == [200, 200]
    assert Message.objects.count() == 1
