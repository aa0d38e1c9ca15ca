"""From a job to its messages: how many, whose, and what is left out."""

import datetime

import pytest
from django.core.management import call_command
from django.utils import timezone

from mailengine import Priority, queue_job
from mailengine.models import Message, MessageJob
from mailengine.models.jobs import PROBLEMS_KEPT
from mailengine.pipeline.expand import expand_jobs

pytestmark = pytest.mark.django_db

MALFORMED = [
    "foo",
    "a@",
    "@b",
    "",
    "a@b..c",
    '"a b"@c',
    "a@[127.0.0.1]",
    f"{'x' * 65}@example.org",
    f"{'x' * 290}@b.org",
]


def queue(recipients, **options):
    return queue_job("News", "Hello", "news@example.org", recipients, **options)


def addresses(count):
    return [f"reader{number}@example.org" for number in range(count)]


def recipients_of(job):
    return sorted(job.messages.values_list("recipient", flat=True))


def test_a_job_becomes_one_message_for_each_recipient():
    """C13"""
    job = queue(addresses(5_000))

    report = expand_jobs()

    assert report.messages == 5_000
    assert recipients_of(job) == sorted(addresses(5_000))
    job.refresh_from_db()
    assert (job.status, job.message_count) == ("sending", 5_000)


def test_messages_take_stream_priority_and_expiry_from_their_job():
    expires_at = timezone.now() + datetime.timedelta(hours=1)
    job = queue(["ann@example.org"], stream="transactional", priority=Priority.HIGH, expires_at=expires_at)

    expand_jobs()

    message = job.messages.get()
    assert (message.stream, message.priority, message.status) == ("transactional", Priority.HIGH, "queued")
    assert message.expires_at == expires_at
    assert message.content == job.content


def test_every_spelling_of_an_address_is_one_recipient():
    """F-X05"""
    job = queue(["A@x.com", "a@X.com", " a@x.com ", "Ann <a@x.com>", "u@b\u00fccher.example", "u@bu\u0308cher.example"])

    report = expand_jobs()

    assert recipients_of(job) == ["a@x.com", "u@xn--bcher-kva.example"]
    assert report.duplicates == 4


def test_a_duplicate_in_a_later_piece_is_one_recipient_too():
    job = queue([*addresses(2_500), "READER0@example.org"])

    expand_jobs()

    job.refresh_from_db()
    assert (job.message_count, job.duplicate_count, job.messages.count()) == (2_500, 1, 2_500)


def test_the_first_spelling_is_the_one_that_is_written_to():
    job = queue(["Ann Lee <Ann.Lee@Example.org>", "ann.lee@example.org"])

    expand_jobs()

    message = job.messages.get()
    assert message.recipient == "ann.lee@example.org"
    assert message.recipients == [{"address": "Ann.Lee@example.org", "name": "Ann Lee", "kind": "to", "outcome": ""}]


def test_malformed_entries_are_counted_with_their_lines_and_the_others_go():
    """F-X06"""
    job = queue([*MALFORMED, "good@example.org"])

    report = expand_jobs()

    job.refresh_from_db()
    assert recipients_of(job) == ["good@example.org"]
    assert report.malformed == job.malformed_count == len(MALFORMED)
    assert [problem["line"] for problem in job.problems] == list(range(1, len(MALFORMED) + 1))
    assert all(problem["why"] for problem in job.problems)


def test_of_many_malformed_entries_the_first_are_kept_in_the_row_and_in_memory(monkeypatch):
    job = queue(["foo"] * 5_000)
    kept, hold = [], MessageJob.hold

    def note(self):
        kept.append(len(self.problems))
        return hold(self)

    monkeypatch.setattr(MessageJob, "hold", note)
    expand_jobs()

    job.refresh_from_db()
    assert (job.malformed_count, len(job.problems)) == (5_000, PROBLEMS_KEPT)
    assert max(kept) == PROBLEMS_KEPT


def test_a_delimited_list_keeps_the_lines_of_its_mistakes():
    """C12"""
    job = queue("ann@example.org, bob@example.org\nnobody\n\nEve <eve@example.org>; nowhere@\n")

    expand_jobs()

    job.refresh_from_db()
    assert recipients_of(job) == ["ann@example.org", "bob@example.org", "eve@example.org"]
    assert [(problem["line"], problem["address"]) for problem in job.problems] == [(2, "nobody"), (4, "nowhere@")]


def test_a_list_without_one_good_address_is_done():
    job = queue(["nobody", "nowhere@"])

    call_command("process_mail_jobs", verbosity=0)

    job.refresh_from_db()
    assert (job.status, job.malformed_count) == ("done", 2)
    assert job.finished_at is not None


def test_merge_data_reaches_the_mail_of_its_recipient(provider):
    job = queue_job(
        "For {{ name }}",
        "Hello {{ name }} from {{ city }}",
        "news@example.org",
        [("ann@example.org", {"name": "Ann"}), ("BOB@example.org", {"name": "Bob"})],
        merge_data={"ann@example.org": {"city": "Bern"}, "Bob@example.org": {"city": "Oslo", "name": "not this"}},
    )

    expand_jobs()
    call_command("send_mail", verbosity=0)

    mails = sorted((mail.subject, mail.body) for mail in provider.accepted)
    assert mails == [("For Ann", "Hello Ann from Bern"), ("For Bob", "Hello Bob from Oslo")]
    job.refresh_from_db()
    assert job.status == "done"


def test_the_most_urgent_job_comes_first():
    later, sooner = queue(addresses(10)), queue(addresses(10), priority=Priority.URGENT)

    expand_jobs(limit=10)

    assert (sooner.messages.count(), later.messages.count()) == (10, 0)


def test_a_job_waits_for_its_time(clock):
    job = queue(["ann@example.org"], send_at=timezone.now() + datetime.timedelta(hours=1))

    assert expand_jobs().jobs == 0

    clock.advance(hours=1, seconds=1)
    assert expand_jobs().messages == 1
    assert job.messages.get().status == "queued"


def test_the_mail_of_a_job_that_is_expanded_too_late_expires_unsent(provider, clock):
    job = queue(["ann@example.org"], expires_at=timezone.now() + datetime.timedelta(hours=1))
    clock.advance(hours=2)

    expand_jobs()
    call_command("send_mail", verbosity=0)
    expand_jobs()

    job.refresh_from_db()
    assert (job.messages.get().status, job.status, provider.calls) == ("expired", "done", 0)


@pytest.mark.parametrize("limit", [1, 1_999, 2_000, 2_001])
def test_a_limit_is_exact_and_the_next_run_goes_on_behind_it(limit):
    """C09"""
    job = queue([*addresses(2_100), "READER7@example.org"])

    report = expand_jobs(limit=limit)

    assert (report.messages, report.stopped, job.messages.count()) == (limit, "limit", limit)
    expand_jobs()
    job.refresh_from_db()
    assert (job.messages.count(), job.message_count, job.duplicate_count) == (2_100, 2_100, 1)


def test_a_run_that_is_out_of_time_begins_nothing():
    job = queue(["ann@example.org"])

    report = expand_jobs(max_time=0)

    assert (report.stopped, job.messages.count()) == ("max_time", 0)
    job.refresh_from_db()
    assert job.status == "queued"


def test_the_words_are_stored_once_however_many_get_them():
    """C05, N11"""
    job = queue(addresses(50))

    expand_jobs()

    assert set(Message.objects.values_list("content", flat=True)) == {job.content_id}


def test_expansion_costs_a_handful_of_queries_a_piece(django_assert_max_num_queries):
    """C05"""
    queue(addresses(2_000))

    with django_assert_max_num_queries(20):
        expand_jobs()

    assert MessageJob.objects.get().message_count == 2_000
