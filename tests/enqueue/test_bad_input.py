"""What can't be sent is refused at once, by a ValueError that names the field; and no row is left."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django.utils.timezone import now

from mailengine import queue_job, queue_mail, queue_message, send_direct_email
from mailengine.errors import MailengineError
from mailengine.models import Attachment, Content, IdempotencyKey, Message, MessageJob

pytestmark = pytest.mark.django_db

LINE_ENDS = ["\r", "\n", "\r\n", "\r\n ", "\x00", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\ud800"]
PLAIN = {
    "subject": "Hello",
    "message": "Text",
    "from_email": "shop@example.org",
    "recipient_list": ["ann@example.org"],
}


def refused(**changes) -> str:
    """The text of the error; nothing may be left behind."""
    with pytest.raises(ValueError, match=r".") as caught:
        queue_mail(**{**PLAIN, **changes})
    assert isinstance(caught.value, MailengineError)
    for model in (Message, MessageJob, Content, Attachment, IdempotencyKey):
        assert not model.objects.exists()
    return str(caught.value)


@pytest.mark.parametrize("end", LINE_ENDS)
@pytest.mark.parametrize(
    ("field", "make", "named"),
    [
        ("subject", lambda end: f"Hello{end}Bcc: x@example.org", "subject"),
        ("from_email", lambda end: f"Shop{end}Bcc: x@example.org <shop@example.org>", "from_email"),
        ("from_email", lambda end: f"shop{end}@example.org", "from_email"),
        ("recipient_list", lambda end: [f"ann@example.org{end}Bcc: x@example.org"], "to"),
        ("recipient_list", lambda end: [f'"Ann{end}" <ann@example.org>'], "to"),
        ("cc", lambda end: [f"ann@example{end}.org"], "cc"),
        ("bcc", lambda end: [f"Ann{end} <ann@example.org>"], "bcc"),
        ("reply_to", lambda end: [f"Ann{end} <ann@example.org>"], "reply_to"),
        ("headers", lambda end: {f"X-A{end}Bcc": "x@example.org"}, "header"),
        ("headers", lambda end: {"X-A": f"1{end}Bcc: x@example.org"}, "X-A"),
        ("attachments", lambda end: [(f"a{end}.pdf", b"", "application/pdf")], "attachment"),
        ("attachments", lambda end: [("a.pdf", b"", f"application/pdf{end}")], "type"),
    ],
)
def test_nothing_can_end_a_header(provider, field, make, named, end):
    """F-X10"""
    assert named in refused(**{field: make(end)})


@pytest.mark.parametrize("bad", ["\x00", "\ud800"])
@pytest.mark.parametrize(
    ("field", "make", "named"),
    [
        ("message", lambda bad: f"a{bad}", "text"),
        ("html_message", lambda bad: f"<p>{bad}", "HTML"),
        ("metadata", lambda bad: {"a": [{"b": bad}]}, "metadata"),
        ("metadata", lambda bad: {bad: 1}, "metadata"),
        ("tags", lambda bad: [bad], "tags"),
        ("idempotency_key", lambda bad: bad, "idempotency_key"),
    ],
)
def test_what_a_database_cannot_hold_is_named(provider, field, make, named, bad):
    assert named in refused(**{field: make(bad)})


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("recipient_list", "ann@example.org", "recipient_list"),
        ("recipient_list", [], "no recipients"),
        ("recipient_list", None, "no recipients"),
        ("recipient_list", 5, "recipient_list"),
        ("recipient_list", ["ann"], "to: 'ann'"),
        ("recipient_list", ["ann@example.org, bob@example.org"], "to:"),
        ("cc", "ann@example.org", "cc"),
        ("bcc", "ann@example.org", "bcc"),
        ("reply_to", "ann@example.org", "reply_to"),
        ("from_email", "shop", "from_email"),
        ("headers", [("X-A", "1")], "headers"),
        ("headers", {"X A": "1"}, "X A"),
        ("headers", {"X-Ä": "1"}, "X-Ä"),
        ("headers", {"bcc": "x@example.org"}, "bcc"),
        ("headers", {"content-type": "text/html"}, "content-type"),
        ("headers", {"MIME-Version": "1.0"}, "MIME-Version"),
        ("headers", {"Subject": "Other"}, "Subject"),
        ("headers", {"X-Order": "1", "x-order": "2"}, "x-order"),
        ("headers", {"Date": "tomorrow"}, "Date"),
        ("headers", {"Date": "1 Jan 2020 00:00:00 +9999999999999999999999"}, "Date"),
        ("attachments", ["a.pdf"], "attachment 1"),
        ("attachments", [("a.pdf", b"", "pdf")], "attachment 1"),
        ("attachments", [("a.txt", "\ud800", "text/plain")], "a.txt"),
        ("attachments", [("a" * 200, b"", "application/pdf")], "longer"),
        ("tags", "order", "tags"),
        ("metadata", "order", "metadata"),
        ("metadata", {"a": object()}, "metadata"),
        ("metadata", {"a": float("nan")}, "metadata"),
        ("stream", "bulq", "Did you mean 'bulk'"),
        ("priority", "hihg", "priority"),
        ("priority", -1, "priority"),
        ("priority", True, "priority"),
        ("send_at", datetime(2030, 1, 1), "send_at"),  # noqa: DTZ001
        ("send_at", "tomorrow", "send_at"),
        ("expires_at", datetime(2030, 1, 1), "expires_at"),  # noqa: DTZ001
        ("expires_at", now() - timedelta(days=1), "expires_at"),
        ("template", "no/such/mail", "no/such/mail"),
        ("idempotency_key", "", "idempotency_key"),
        ("idempotency_key", "x" * 256, "idempotency_key"),
        ("idempotency_key", 7, "idempotency_key"),
    ],
)
def test_a_mistake_is_named(provider, field, value, named):
    assert named in refused(**{field: value})


def test_mail_cannot_expire_before_it_may_go(provider):
    assert "expires_at" in refused(send_at=now() + timedelta(days=2), expires_at=now() + timedelta(days=1))


def test_a_letter_outside_ascii_before_the_at_is_refused(provider):
    """F-X09: never the mangled address that an older Django would write to."""
    assert "jörg@exämple.com" in refused(recipient_list=["jörg@exämple.com"])


def test_an_unknown_provider_is_named(provider):
    with pytest.raises(ValueError, match="Did you mean 'relay'"):
        send_direct_email(**PLAIN, provider="relai")


def test_a_template_that_lacks_a_part_is_named(provider, settings, tmp_path):
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [tmp_path]}]
    (tmp_path / "welcome.txt").write_text("{% include 'footer.txt' %}")
    assert "footer.txt" in refused(template="welcome")


def test_an_alternative_that_is_no_text_is_named(provider):
    email = EmailMultiAlternatives("Hello", "", None, ["ann@example.org"])
    email.attach_alternative(b"\xff", "application/x-thing")
    with pytest.raises(ValueError, match="application/x-thing"):
        queue_message(email)


def test_an_email_without_recipients_is_named(provider):
    with pytest.raises(ValueError, match="no recipients"):
        queue_message(EmailMessage("Hello"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"recipients": []}, "no recipients"),
        ({"recipients": ""}, "no recipients"),
        ({"recipients": " \n"}, "no recipients"),
        ({"recipients": None}, "recipients"),
        ({"recipients": [None]}, "recipient 1"),
        ({"recipients": ["a@example.org", ("b@example.org", {}, 3)]}, "recipient 2"),
        ({"recipients": ["a@example.org", ("b@example.org", "Ann")]}, "recipient 2"),
        ({"recipients": [("a@example.org", {"name": "\x00"})]}, "recipient 1"),
        ({"recipients": [("a@example.org", {"name": object()})]}, "recipient 1"),
        ({"recipients": "subscribres"}, "subscribres"),
        ({"merge_data": [1]}, "merge_data"),
        ({"merge_data": {"a@example.org": "Ann"}}, "merge_data"),
        ({"merge_data": {"a@example.org": {"name": "\ud800"}}}, "merge_data"),
        ({"merge_data": {"nobody": {}}}, "merge_data"),
        ({"message": "Dear {{ name.upper() }}", "merge_data": {}}, "not a merge field"),
        ({"source": "a\nb"}, "source"),
    ],
)
def test_a_mistake_in_a_job_is_named(provider, changes, named):
    arguments = {"subject": "Hello", "message": "", "from_email": None, "recipients": ["a@example.org"], **changes}
    with pytest.raises(ValueError, match=named):
        queue_job(**arguments)
    assert not MessageJob.objects.exists()
    assert not Content.objects.exists()
