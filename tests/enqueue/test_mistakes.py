"""All mistakes of a mail at once, by the name of the argument."""

from __future__ import annotations

from datetime import datetime

import pytest

from mailengine.pipeline.mistakes import mistakes_in

GOOD = {
    "subject": "Hello",
    "message": "Good morning.",
    "html_message": "<p>Good morning.</p>",
    "from_email": "Desk <desk@example.org>",
    "to": ["ann@example.org"],
    "cc": [],
    "headers": {"X-Shop": "1"},
    "attachments": [("a.txt", b"a", "text/plain")],
    "stream": "bulk",
    "priority": "high",
    "metadata": {"order": 7},
    "tags": ["orders"],
}


def test_a_mail_that_can_be_sent_has_none():
    assert mistakes_in(GOOD) == mistakes_in({}) == {}


@pytest.mark.parametrize(
    ("name", "value", "places"),
    [
        ("subject", "a\nb", ["subject"]),
        ("message", "a\0b", ["message"]),
        ("html_message", "\ud800", ["html_message"]),
        ("from_email", "nobody", ["from_email"]),
        ("to", "ann@example.org", ["to"]),
        ("to", ["ann@example.org", "bob", "cee@example.org", "@"], ["to.1", "to.3"]),
        ("reply_to", ["a@b@c"], ["reply_to.0"]),
        ("headers", {"X-Shop": "1", "X Shop": "2", "Bcc": "x@example.org"}, ["headers.X Shop", "headers.Bcc"]),
        ("headers", ["X-Shop"], ["headers"]),
        ("attachments", [("a.txt", b"a", "text/plain"), ("b", b"b", "none")], ["attachments.1"]),
        ("attachments", ["a.txt"], ["attachments.0"]),
        ("stream", "bulky", ["stream"]),
        ("priority", 101, ["priority"]),
        ("send_at", datetime(2030, 1, 1), ["send_at"]),  # noqa: DTZ001  that is the mistake
        ("metadata", {"a": "b\nc"}, ["metadata"]),
        ("tags", "orders", ["tags"]),
        ("context", [], ["context"]),
        ("template", "no/such", ["template"]),
        ("audience", "nobody", ["audience"]),
    ],
)
def test_each_mistake_has_its_name(name, value, places):
    assert list(mistakes_in({**GOOD, name: value})) == places


def test_all_of_them_at_once():
    assert list(mistakes_in({**GOOD, "subject": "a\nb", "cc": ["bob"], "stream": "x"})) == ["subject", "stream", "cc.0"]


def test_merge_fields_are_judged_where_there_is_data_for_them():
    assert mistakes_in({**GOOD, "subject": "{{ a b }}"}) == {}
    assert list(mistakes_in({**GOOD, "subject": "{{ a b }}", "merge_data": {}})) == ["subject"]
