"""However many mails of a run have a file, it is in memory once (F-X13)."""

from __future__ import annotations

import tracemalloc

import pytest
from django.core.management import call_command

from mailengine import dispatch_slice, queue_job, queue_mail

pytestmark = pytest.mark.django_db

MAIL = ("Hello", "Text", "shop@example.org")
SIZE = 2_000_000
MAILS = 24
READERS = [f"reader.{n}@example.org" for n in range(MAILS)]


def as_a_job(file):
    queue_job(*MAIL, READERS, attachments=[file])
    call_command("process_mail_jobs", verbosity=0)


def as_mails_of_their_own(file):
    for address in READERS:
        queue_mail(*MAIL, [address], attachments=[file])


@pytest.mark.parametrize("queue", [as_a_job, as_mails_of_their_own])
def test_a_file_is_held_once_in_a_run(provider, files, queue):
    queue(("a.pdf", b"%PDF" * (SIZE // 4), "application/pdf"))
    tracemalloc.start()
    try:
        dispatch_slice()
        _now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(provider.accepted) == MAILS  # and all of them are still there, with their file
    assert all(len(email.attachments[0].content) == SIZE for email in provider.accepted)
    assert peak < 4 * SIZE
