"""Rows that no door let in: by an older version, by a migration, by hand. Each is dead with its reason, or goes clean.

And the messages behind it go out, whatever it is.
"""

from __future__ import annotations

import pytest
from django.core.management import call_command
from django.db import connection, transaction
from django.db.models import TextField
from django.db.models.expressions import RawSQL
from django.db.models.functions import Cast
from django.db.utils import DatabaseError

from mailengine import dispatch_slice, queue_job, queue_mail
from mailengine.models import Content, ContentFile, Message, MessageJob
from mailengine.models.jobs import JobRecipients
from tests.hostile import MAIL, UNSAFE

pytestmark = pytest.mark.django_db

FORGED = "\r\nBcc: eve@example.net"


def entry(**changes):
    return {"address": "ann@example.org", "name": "", "kind": "to", "outcome": "", **changes}


CONTENTS = [
    *(("subject", value) for value in map(str, UNSAFE.values())),
    ("text", "a\0b"),
    ("text", "\ud800"),
    ("html", "a\0b"),
    ("html", "\udfff\ud800"),
    ("from_email", "shop"),
    ("from_email", f"Shop{FORGED} <shop@example.org>"),
    ("from_email", "jörg@exämple.com"),
    ("reply_to", "ann@example.org"),
    ("reply_to", {"ann@example.org": 1}),
    ("reply_to", 7),
    ("reply_to", [7]),
    ("reply_to", [None]),
    ("reply_to", [f"Help{FORGED} <help@example.org>"]),
    ("headers", [["X-A", "1"]]),
    ("headers", "X-A: 1"),
    ("headers", 7),
    ("headers", {"Bcc": "eve@example.net"}),
    ("headers", {"Subject": "Another"}),
    ("headers", {"X-Mailengine-Id": "another"}),
    ("headers", {"X-A": ["1"]}),
    ("headers", {"X-A": {"a": 1}}),
    ("headers", {"To": f"ann@example.org{FORGED}"}),
    ("headers", {"To": "=?utf-8?b?####?="}),
    ("headers", {"From": "=?utf-8?b?YQ0KQmNjOiBldmVAZXhhbXBsZS5uZXQ=?="}),
    ("headers", {"Date": "tomorrow"}),
    ("headers", {"Message-ID": "é"}),
    *(("headers", {"X-A": str(value)}) for value in UNSAFE.values()),
    *(("headers", {f"X-{value}": "1"}) for value in UNSAFE.values()),
    ("extras", ["tags"]),
    ("extras", "tags"),
    ("extras", 7),
    ("extras", {"encoding": "nope"}),
    ("extras", {"encoding": "utf-16"}),
    ("extras", {"encoding": f"utf-8{FORGED}"}),
    ("extras", {"encoding": 7}),
    ("extras", {"alternatives": "abc"}),
    ("extras", {"alternatives": [["abc"]]}),
    ("extras", {"alternatives": [["abc", "no type"]]}),
    ("extras", {"alternatives": [["abc", f"text/x{FORGED}"]]}),
    ("extras", {"alternatives": [[{"a": 1}, "text/calendar"]]}),
    ("extras", {"content_subtype": f"markdown{FORGED}"}),
    ("extras", {"content_subtype": ["html"]}),
    ("extras", {"mixed_subtype": {"a": 1}}),
    ("extras", {"metadata": "abc"}),
    ("extras", {"metadata": [1, 2]}),
    ("extras", {"metadata": {f"a{FORGED}": 1}}),
    ("extras", {"metadata": {"a": f"b{FORGED}"}}),
    ("extras", {"tags": "abc"}),
    ("extras", {"tags": [7]}),
    ("extras", {"tags": [f"a{FORGED}"]}),
    ("extras", {"merge_data": ["a"]}),
    ("extras", {"merge_headers": {"ann@example.org": {"X-A": f"a{FORGED}"}}}),
    ("extras", {"envelope_sender": f"a@example.org{FORGED}"}),
    ("extras", {"esp_extra": "abc"}),
    ("extras", {"track_opens": "yes"}),
    ("extras", {"send_at": "2030-99-99T00:00:00"}),
]
MESSAGES = [
    ("recipient", ""),
    ("recipient", "ann"),
    ("recipient", "jörg@exämple.com"),
    ("recipient", "=?utf-8?b?asO2cmc=?=@example.org"),
    ("recipient", "a@[127.0.0.1]"),
    ("recipient", f"ann@example.org{FORGED}"),
    ("recipient", "ann@example.org>\r\nRCPT TO:<eve@example.net"),
    ("recipient", "ann@example.org, eve@example.net"),
    ("other_recipients", []),
    ("other_recipients", {}),
    ("other_recipients", "ann@example.org"),
    ("other_recipients", 7),
    ("other_recipients", True),
    ("other_recipients", [7]),
    ("other_recipients", [None]),
    ("other_recipients", ["ann@example.org"]),
    ("other_recipients", [["ann@example.org", "to"]]),
    ("other_recipients", [{}]),
    ("other_recipients", [{"address": "ann@example.org"}]),
    ("other_recipients", [{"kind": "to", "name": "", "outcome": ""}]),
    ("other_recipients", [entry(kind="all")]),
    ("other_recipients", [entry(kind=["to"])]),
    ("other_recipients", [entry(address=None)]),
    ("other_recipients", [entry(address=["ann@example.org"])]),
    ("other_recipients", [entry(), entry(address=7)]),
    ("other_recipients", [entry(), entry(address=f"bob@example.org{FORGED}")]),
    ("other_recipients", [entry(name=f"Ann{FORGED}")]),
    ("other_recipients", [entry(name="\ud800")]),
    ("other_recipients", [entry(address="jörg@exämple.com")]),
]
FILES = [
    ("filename", f"a.pdf{FORGED}"),
    ("filename", "=?utf-8?q?a=0d=0aBcc:_eve@example.net?=.pdf"),
    ("filename", "fdp.\u202eexe"),
    ("mimetype", "pdf"),
    ("mimetype", f"application/pdf{FORGED}"),
    ("mimetype", "application/pdf; name*=utf-8''a%0d%0aBcc"),
]


def store(model, pk, field, value):
    """Past all checks; PostgreSQL has its own, against what no text can hold."""
    try:
        model.objects.filter(pk=pk).update(**{field: value})
    except (DatabaseError, ValueError) as error:
        pytest.skip(f"{connection.vendor} does not hold it: {error}")


def sent_behind(server, message):
    """Send the bad message and one behind it; that one arrives, and nothing that was forged."""
    behind = queue_mail(**{**MAIL, "recipient_list": ["behind@example.org"]})
    dispatch_slice()
    behind.refresh_from_db()
    message.refresh_from_db()
    assert behind.status == "sent"
    for mail in server.accepted:
        assert b"eve@example.net" not in mail.content.partition(b"\r\n\r\n")[0]
        assert "eve@example.net" not in mail.recipients
    return [mail.mailengine_id for mail in server.accepted]


@pytest.mark.parametrize(("field", "value"), CONTENTS)
def test_content_that_no_mail_can_have_is_dead_with_its_reason(server, field, value):
    """F-X10"""
    message = queue_mail(**MAIL)
    store(Content, message.content_id, field, value)
    assert str(message.pk) not in sent_behind(server, message)
    assert (message.status, message.reason.partition(":")[0], message.attempt_count) == ("dead", "invalid", 0)


@pytest.mark.parametrize(("field", "value"), MESSAGES)
def test_a_recipient_that_no_mail_can_have_is_dead_with_its_reason(server, field, value):
    """F-X09: never a mangled address on the wire."""
    message = queue_mail(**MAIL)
    store(Message, message.pk, field, value)
    assert str(message.pk) not in sent_behind(server, message)
    assert (message.status, message.reason.partition(":")[0], message.attempt_count) == ("dead", "invalid", 0)


@pytest.mark.parametrize("recipients", [["ann@example.org"], {"ann@example.org": 1}, [7]])
def test_what_fails_before_anybody_asks_whom_it_is_for_is_dead_too(server, recipients):
    message = queue_mail(**MAIL)
    store(Content, message.content_id, "headers", 7)
    store(Message, message.pk, "other_recipients", recipients)
    assert str(message.pk) not in sent_behind(server, message)
    assert (message.status, message.reason.partition(":")[0], message.attempt_count) == ("dead", "invalid", 0)


@pytest.mark.parametrize(("field", "value"), FILES)
def test_a_file_that_no_mail_can_have_is_dead_with_its_reason(server, field, value):
    message = queue_mail(**MAIL, attachments=[("a.pdf", b"%PDF", "application/pdf")])
    store(ContentFile, message.content.files.get().pk, field, value)
    assert str(message.pk) not in sent_behind(server, message)
    assert (message.status, message.reason.partition(":")[0], message.attempt_count) == ("dead", "invalid", 0)


@pytest.mark.parametrize("value", [*map(str, UNSAFE.values()), "\0"])
def test_merge_data_that_no_subject_can_have_is_dead_with_its_reason(server, value):
    message = queue_mail(**{**MAIL, "subject": "For {{ name }}"})
    store(Message, message.pk, "merge_data", {"name": value})
    assert str(message.pk) not in sent_behind(server, message)
    assert (message.status, message.reason.partition(":")[0]) == ("dead", "invalid")


@pytest.mark.parametrize("value", ["a\0b", "\ud800"])
def test_merge_data_that_no_text_can_have_is_dead_with_its_reason(server, value):
    message = queue_mail(**{**MAIL, "message": "Dear {{ name }}"})
    store(Message, message.pk, "merge_data", {"name": value})
    assert str(message.pk) not in sent_behind(server, message)
    assert (message.status, "{{ name }}" in message.reason) == ("dead", True)


@pytest.mark.parametrize("value", [[], "abc", 7, [{"name": "Ann"}]])
def test_merge_data_of_another_shape_is_no_data(server, value):
    message = queue_mail(**{**MAIL, "subject": 'For {{ name|default:"you" }}'})
    store(Message, message.pk, "merge_data", value)
    assert str(message.pk) in sent_behind(server, message)
    assert server.accepted[0].message["Subject"] == "For you"


@pytest.mark.parametrize(
    ("field", "value"),
    [("stream", "no such"), ("stream", "\r\n"), ("priority", -5), ("priority", 500), ("claimed_from", "nonsense")],
)
def test_terms_that_nobody_knows_hold_nothing_up(server, field, value):
    message = queue_mail(**MAIL)
    store(Message, message.pk, field, value)
    assert str(message.pk) in sent_behind(server, message)


ENTRIES = [7, "abc", {"a": 1}, [7], [[]], [[1]], [[1, 7]], [[1, "a@example.org", {}, 4]]]


@pytest.mark.parametrize("entries", ENTRIES)
def test_a_list_of_another_shape_pauses_its_job_and_no_other(server, entries):
    job = queue_job("Hello", "Text", None, ["a@example.org"])
    other = queue_job("Hello", "Text", None, ["b@example.org"])
    job.recipients.update(entries=entries)
    call_command("process_mail_jobs", verbosity=0)
    job.refresh_from_db()
    other.refresh_from_db()
    assert (job.status, other.status) == ("paused", "sending")
    assert "expanded" in job.reason


@pytest.mark.parametrize("data", [7, "abc", ["a"], {"a@example.org": 7}, {"a@example.org": ["x"]}])
def test_merge_data_of_another_shape_pauses_its_job(server, data):
    job = queue_job("Hello", "Text", None, ["a@example.org"])
    MessageJob.objects.filter(pk=job.pk).update(merge_data=data)
    call_command("process_mail_jobs", verbosity=0)
    job.refresh_from_db()
    assert job.status == "paused"


def nested(levels):
    return "[" * levels + "]" * levels


UNREADABLE = [nested(101), nested(990), nested(5_000), f"[{'9' * 5_000}]"]


def write(model, pk, field, document):
    """As a hand at the database does it."""
    as_json = RawSQL("%s::jsonb" if connection.vendor == "postgresql" else "%s", [document])  # noqa: S611
    try:
        with transaction.atomic():
            model.objects.filter(pk=pk).update(**{field: as_json})
    except DatabaseError as error:
        pytest.skip(f"{connection.vendor} does not hold it: {error}")


@pytest.mark.parametrize("document", UNREADABLE, ids=len)
@pytest.mark.parametrize("field", ["other_recipients", "merge_data"])
def test_a_message_whose_json_nobody_can_read_is_dead_with_its_reason(server, field, document):
    message = queue_mail(**{**MAIL, "subject": "For {{ name }}"})
    write(Message, message.pk, field, document)
    assert str(message.pk) not in sent_behind(server, message)
    assert (message.status, message.reason.partition(":")[0], message.attempt_count) == ("dead", "invalid", 0)
    assert "nested more than 100 levels" in message.reason or "limit (4300 digits)" in message.reason


@pytest.mark.parametrize("document", UNREADABLE, ids=len)
@pytest.mark.parametrize("field", ["reply_to", "headers", "extras"])
def test_content_whose_json_nobody_can_read_is_dead_with_its_reason(server, field, document):
    message = queue_mail(**MAIL)
    write(Content, message.content_id, field, document)
    assert str(message.pk) not in sent_behind(server, message)
    assert (message.status, message.reason.partition(":")[0], message.attempt_count) == ("dead", "invalid", 0)


@pytest.mark.parametrize("field", ["merge_data", "problems", "entries"])
def test_a_job_whose_json_nobody_can_read_is_paused_and_no_other(field):
    job, other = (queue_job("Hello", "Text", None, [to]) for to in ("a@example.org", "b@example.org"))
    row = (JobRecipients, job.recipients.get().pk) if field == "entries" else (MessageJob, job.pk)
    write(*row, field, f"[{'9' * 5_000}]")
    call_command("process_mail_jobs", verbosity=0)
    statuses = dict(MessageJob.objects.values_list("pk", "status"))
    assert statuses == {job.pk: "paused", other.pk: "sending"}
    assert "digits" in MessageJob.objects.values_list("reason", flat=True).get(pk=job.pk)
    MessageJob.objects.filter(pk=job.pk).cancel()
    call_command("process_mail_jobs", verbosity=0)
    assert MessageJob.objects.values_list("status", flat=True).get(pk=job.pk) == "cancelled"


@pytest.mark.parametrize("document", UNREADABLE, ids=len)
def test_json_that_nobody_can_read_is_saved_as_it_was(document):
    message = queue_mail(**MAIL)
    write(Message, message.pk, "merge_data", document)
    message.refresh_from_db()

    message.save()

    stored = Message.objects.annotate(text=Cast("merge_data", TextField())).get(pk=message.pk).text
    assert stored.replace(" ", "") == document
