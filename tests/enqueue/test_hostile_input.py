"""Each field of each door with each kind of bad value: a ValueError that names the field, without a row; or mail.

What becomes of the mail on the wire is in tests/compose/test_on_the_wire.py.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from django.core.mail import EmailMessage
from django.core.management import call_command
from django.db import connection, transaction

from mailengine import queue_job, queue_mail, queue_message, send_direct_email
from mailengine.backends import EmailBackend
from mailengine.errors import MailengineError
from mailengine.models import Attachment, Content, IdempotencyKey, JobRecipients, Message, MessageJob
from tests.hostile import ADDRESSES, FIELDS, FILES, HEADERS, MAIL, PARTS, PLAIN, UNSAFE, VALUES, email

pytestmark = pytest.mark.django_db

ROWS = (Message, MessageJob, JobRecipients, Content, Attachment, IdempotencyKey)
COUNTS = [f"(SELECT count(*) FROM {model._meta.db_table})" for model in ROWS]  # noqa: S608  names of our own


def row_counts():
    """Of all tables in one statement, and not by the ORM: it is asked before and after each of some 7,000 values."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {', '.join(COUNTS)}")
        return cursor.fetchone()


def what_becomes(queue, *, named):
    """ "queued" or "refused": as mailengine refuses, with the field's name and without a trace."""
    before, refusal = row_counts(), None
    try:
        with transaction.atomic():
            queue()
    except ValueError as error:
        refusal = error
    if refusal is None:
        assert row_counts() != before
        return "queued"
    assert isinstance(refusal, MailengineError)
    assert named.lower() in str(refusal).lower()
    assert str(refusal).endswith((".", "?", "]"))  # a sentence with the mend
    assert row_counts() == before
    return "refused"


@pytest.mark.parametrize("field", FIELDS)
def test_a_value_is_refused_by_name_or_queued(provider, files, field):
    """F-X10: whatever the value is, nothing but a ValueError of ours leaves the door."""
    named, queue = FIELDS[field]
    for value in VALUES.values():
        what_becomes(lambda value=value: queue(value), named=named)


@pytest.mark.parametrize("place", PARTS)
def test_a_part_is_refused_or_queued(provider, files, place):
    """F-X10, SX2"""
    built = 0
    for value in VALUES.values():
        try:
            part = PARTS[place](value)
        except (TypeError, ValueError, AttributeError, LookupError):
            continue  # Python's own class doesn't take it, so that it comes to no door
        built += 1
        what_becomes(lambda part=part: queue_message(email(attachments=[part])), named="attach")
    assert built > len(PLAIN) / 2


IN_HEADERS = {
    **{name: HEADERS[name] for name in ("subject", "an email's subject", "a header", "List-Unsubscribe", "Message-ID")},
    **ADDRESSES,
    "a file's name": FILES["a file's name"],
    "a file's type": FILES["a file's type"],
}


@pytest.mark.parametrize("field", IN_HEADERS)
def test_nothing_ends_or_hides_in_a_header(provider, field):
    """F-X10, SI7, SX2"""
    named, queue = IN_HEADERS[field]
    for name, value in UNSAFE.items():
        assert (name, what_becomes(lambda value=value: queue(value), named=named)) == (name, "refused")


@pytest.mark.parametrize("field", ["subject", "a header", "message", "html_message", "a value in metadata"])
def test_plain_words_of_any_script_get_through(provider, field):
    named, queue = FIELDS[field]
    for name, value in PLAIN.items():
        assert (name, what_becomes(lambda value=value: queue(value), named=named)) == (name, "queued")


@pytest.mark.parametrize("value", ["bidi", "isolates"])
@pytest.mark.parametrize("field", ["a name in to", "its name", "a file's name", "a text file's name"])
def test_no_name_is_reversed(provider, field, value):
    """SI7, SX2: gpj.exe that reads as exe.jpg."""
    named, queue = FIELDS[field]
    assert what_becomes(lambda: queue(PLAIN[value]), named=named) == "refused"


@pytest.mark.parametrize("value", ["bytes", "a list", "a dictionary"])
@pytest.mark.parametrize("field", ["subject", "message", "body", "an email's subject", "a header"])
def test_what_is_no_text_is_not_sent_as_its_repr(provider, field, value):
    named, queue = FIELDS[field]
    assert what_becomes(lambda: queue(VALUES[value]), named=named) == "refused"


def test_a_file_object_is_not_sent_as_its_repr(provider, tmp_path):
    (tmp_path / "a.txt").write_text("abc")
    with (tmp_path / "a.txt").open() as file, pytest.raises(ValueError, match="Give its bytes"):
        queue_mail(**MAIL, attachments=[("a.txt", file, "text/plain")])


def test_double_quotes_leave_a_file_name(provider):
    """SX2"""
    message = queue_mail(**MAIL, attachments=[('C:\\"a".pdf', b"x", "application/pdf")])
    assert message.content.files.get().filename == "'a'.pdf"


# JSON

NAN, ENDLESS = float("nan"), []
ENDLESS.append(ENDLESS)


def nested(levels):
    value = "x"
    for _level in range(levels):
        value = [value]
    return value


BAD_JSON = {
    "NaN": NAN,
    "Infinity": float("-inf"),
    "a NaN deep down": {"a": [NAN]},
    "a list in itself": ENDLESS,
    "21 levels": nested(21),
    "thousands of levels": nested(5_000),
    "an integer of 65 bits": 2**65,
    "an integer of thousands of digits": 10**5_000,
    "a half of a character": "\ud83d",
    "a half of a character as a name": {"\ude00": 1},
    "NUL": "a\0",
    "bytes": b"a",
    "an object": object(),
    "a tuple as a name": {(1, 2): 3},
}
JSON_FIELDS = {
    "metadata": lambda value: queue_mail(**MAIL, metadata={"a": value}),
    "esp_extra": lambda value: queue_message(email(esp_extra={"a": value})),
    "merge_global_data": lambda value: queue_message(email(merge_global_data={"a": value})),
    "merge_data": lambda value: queue_job("", "", None, ["a@b.org"], merge_data={"a@b.org": {"name": value}}),
    "merge data": lambda value: queue_job("", "", None, [("a@b.org", {"name": value})]),
}


@pytest.mark.parametrize("field", JSON_FIELDS)
@pytest.mark.parametrize("value", BAD_JSON)
def test_what_no_database_keeps_as_json_is_named(provider, field, value):
    assert what_becomes(lambda: JSON_FIELDS[field](BAD_JSON[value]), named=field) == "refused"


@pytest.mark.parametrize("field", JSON_FIELDS)
def test_deep_and_large_json_comes_back_as_it_was(provider, field):
    text = "😀" if field == "metadata" else "\x1b\u2028😀"  # metadata may become headers, where a line is one line
    value = {"a": nested(17), "n": 2**63, "f": 1.5, "s": text * 1_000, "none": None}
    assert what_becomes(lambda: JSON_FIELDS[field](value), named=field) == "queued"
    assert value in [
        *(content.extras.get(field, {}).get("a") for content in Content.objects.all()),
        *((job.merge_data or {}).get("a@b.org", {}).get("name") for job in MessageJob.objects.all()),
        *(piece.entries[0][2]["name"] for piece in JobRecipients.objects.all() if len(piece.entries[0]) > 2),
    ]


# Terms

FAR_EAST, FAR_WEST = timezone(timedelta(hours=23)), timezone(timedelta(hours=-23))


@pytest.mark.parametrize("field", ["send_at", "expires_at"])
@pytest.mark.parametrize(
    "value",
    [datetime.max.replace(tzinfo=FAR_WEST), datetime.min.replace(tzinfo=FAR_EAST)],
)
def test_a_time_that_no_database_keeps_is_named(provider, field, value):
    assert what_becomes(lambda: queue_mail(**{**MAIL, field: value}), named=field) == "refused"


def test_a_priority_of_thousands_of_digits_is_named(provider):
    assert what_becomes(lambda: queue_mail(**MAIL, priority="9" * 5_000), named="priority") == "refused"


@pytest.mark.parametrize("name", ["x" * 5_000, "a\0b", "\ud800", "../../etc/passwd", "a\nb"])
def test_a_template_name_that_no_file_can_have_is_named(provider, name):
    assert what_becomes(lambda: queue_mail(**MAIL, template=name), named="template") == "refused"


# The other doors


def test_djangos_own_mail_fails_with_a_value_error_or_in_silence(provider):
    for value in VALUES.values():
        mail = EmailMessage(value, "Text", "shop@example.org", ["ann@example.org"])
        becomes = what_becomes(lambda mail=mail: EmailBackend().send_messages([mail]), named="subject")
        assert EmailBackend(fail_silently=True).send_messages([mail]) == (1 if becomes == "queued" else 0)


@pytest.mark.parametrize("field", ["subject", "from_email"])
def test_mail_sent_directly_is_refused_before_anything_is_stored(provider, field):
    for value in UNSAFE.values():
        mail = {**MAIL, field: value}
        assert what_becomes(lambda mail=mail: send_direct_email(**mail), named=field) == "refused"


def test_a_jobs_recipients_are_refused_by_name_or_judged_one_by_one(provider):
    """F-X06: one malformed line stops no others, and is counted."""
    for value in VALUES.values():
        what_becomes(lambda value=value: queue_job("Hello", "Text", None, value), named="")
        becomes = what_becomes(
            lambda value=value: queue_job("Hello", "Text", None, ["a@example.org", value]), named="recipient 2"
        )
        assert becomes == ("queued" if isinstance(value, str) else "refused")
    call_command("process_mail_jobs", verbosity=0)
    for job in MessageJob.objects.all():
        assert job.status in {"sending", "done"}
        assert job.message_count + job.duplicate_count + job.malformed_count == job.recipient_count


def test_what_a_job_was_made_from_is_one_line(provider):
    for value in VALUES.values():
        what_becomes(lambda value=value: queue_job("Hello", "", None, ["a@example.org"], source=value), named="source")
