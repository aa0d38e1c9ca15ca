"""What schemathesis is told of values that no schema can: what there is to find, and what a mail must have."""

from __future__ import annotations

import os
from datetime import datetime, timezone

import schemathesis
from hypothesis import strategies as st

# Addresses that the key may send as, and ids of messages and jobs that are there; among others.
addresses = st.from_regex(r"\A[a-z]{1,9}@example\.org\Z")
ids = st.sampled_from(os.environ["MAILENGINE_TEST_IDS"].split(","))
times = st.datetimes(datetime(2100, 1, 1), datetime(2200, 1, 1), timezones=st.just(timezone.utc))  # noqa: DTZ001

schemathesis.openapi.format("email", addresses | addresses | addresses | st.emails())
schemathesis.openapi.format("mailbox", addresses | addresses.map("Ann <{}>".format) | st.text())
schemathesis.openapi.format("uuid", ids | st.uuids().map(str))
schemathesis.openapi.format("date-time", times.map(datetime.isoformat))


@schemathesis.hook
def map_body(context, body):
    """The body with somebody to write to, and without a template, which the site would have to have."""
    form = body if isinstance(body, dict) else {}
    for mail in body if isinstance(body, list) else [form.get("message", form)]:
        if not isinstance(mail, dict):
            continue
        mail.pop("template", None)
        if context.operation.path.endswith("/messages") and not (mail.get("cc") or mail.get("bcc")):
            mail["to"] = mail.get("to") or ["ann@example.org"]
        if context.operation.path.endswith("/jobs"):
            mail.pop("audience", None)
            mail["recipients"] = mail.get("recipients") or ["ann@example.org"]
    return body
