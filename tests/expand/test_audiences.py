"""Audiences: recipients by name, from the project's own code, which may fail."""

import pytest
from django.contrib.auth import get_user_model
from django.db import OperationalError, connection
from django.test.utils import CaptureQueriesContext

import mailengine
from mailengine import queue_job
from mailengine.errors import UnknownAudience
from mailengine.models import MessageJob
from mailengine.pipeline.audience import Size, find_audience
from mailengine.pipeline.expand import expand_jobs
from project.newsroom.models import Subscriber

pytestmark = pytest.mark.django_db


def queue(recipients):
    return queue_job("News", "Hello {{ name }}", "news@example.org", recipients)


def test_an_audience_is_asked_when_its_job_is_expanded():
    job = queue("subscribers")
    Subscriber.objects.create(email="ann@example.org", name="Ann")

    expand_jobs()

    message = job.messages.get()
    assert (message.recipient, message.merge_data) == ("ann@example.org", {"name": "Ann"})


def test_a_union_of_sources_has_everybody_once():
    """C27"""

    @mailengine.audience("everybody")
    def everybody():
        yield from Subscriber.objects.order_by("pk").values_list("email", flat=True)
        yield from get_user_model().objects.order_by("pk").values_list("email", flat=True)

    Subscriber.objects.create(email="both@example.org")
    get_user_model().objects.create(username="both", email="Both@Example.org")
    get_user_model().objects.create(username="one", email="one@example.org")

    job = queue_job("News", "Hello", "news@example.org", "everybody")
    report = expand_jobs()

    assert sorted(job.messages.values_list("recipient", flat=True)) == ["both@example.org", "one@example.org"]
    assert report.duplicates == 1


def test_a_queryset_that_is_an_audience_keeps_nothing_of_what_it_has_read():
    """Memory stays flat however many there are."""
    emails = Subscriber.objects.order_by("pk").values_list("email", flat=True)
    mailengine.audience("unkept")(lambda: emails)
    Subscriber.objects.create(email="ann@example.org")

    job = queue_job("News", "Hello", "news@example.org", "unkept")
    expand_jobs()

    assert job.messages.count() == 1
    with CaptureQueriesContext(connection) as queries:
        assert list(emails) == ["ann@example.org"]
    assert len(queries) == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("is_queryset", [True, False], ids=["queryset", "generator"])
def test_an_audience_of_several_pieces_is_read_while_messages_are_committed(is_queryset):
    emails = Subscriber.objects.order_by("pk").values_list("email", flat=True)
    mailengine.audience("several")(lambda: emails if is_queryset else (email for email in emails.iterator()))
    Subscriber.objects.bulk_create(Subscriber(email=f"reader{number}@example.org") for number in range(4_500))

    job = queue_job("News", "Hello", "news@example.org", "several")
    report = expand_jobs()

    assert (report.messages, report.postponed, report.paused) == (4_500, 0, 0)
    assert job.messages.count() == 4_500


def test_a_queryset_is_an_audience():
    mailengine.audience("emails")(lambda: Subscriber.objects.order_by("pk").values_list("email", flat=True))
    Subscriber.objects.create(email="ann@example.org")

    job = queue("emails")
    expand_jobs()

    assert job.messages.count() == 1


def test_an_empty_audience_is_done_at_once():
    job = queue("subscribers")

    expand_jobs()

    job.refresh_from_db()
    assert (job.status, job.message_count) == ("done", 0)


def test_an_audience_that_fails_pauses_its_job_with_the_reason_and_no_other(caplog):
    fails = True

    @mailengine.audience("fragile")
    def fragile():
        for number in range(2_500):
            if fails and number == 2_400:
                raise LookupError("the address book is closed")
            yield f"reader{number}@example.org"

    broken, sound = queue("fragile"), queue(["ann@example.org"])
    report = expand_jobs()
    broken.refresh_from_db()
    assert (broken.status, report.paused, sound.messages.count()) == ("paused", 1, 1)
    assert "the address book is closed" in broken.reason
    assert "LookupError" in caplog.text

    fails = False
    MessageJob.objects.filter(pk=broken.pk).resume()
    expand_jobs()
    broken.refresh_from_db()
    assert (broken.status, broken.reason, broken.messages.count()) == ("sending", "", 2_500)


def test_an_audience_whose_database_is_away_is_asked_again_by_the_next_run(caplog):
    is_away = True

    @mailengine.audience("remote")
    def remote():
        if is_away:
            raise OperationalError("could not connect to server")
        yield "ann@example.org"

    job, other = queue("remote"), queue(["bob@example.org"])
    report = expand_jobs()
    assert (report.postponed, report.paused, other.messages.count()) == (1, 0, 1)
    assert "could not connect to server" in caplog.text

    is_away = False
    expand_jobs()
    assert job.messages.get().recipient == "ann@example.org"


def test_an_audience_that_is_gone_from_the_code_pauses_the_job_with_the_reason():
    job = queue("subscribers")
    MessageJob.objects.filter(pk=job.pk).update(audience="subscriber")

    expand_jobs()

    job.refresh_from_db()
    assert job.status == "paused"
    assert "Did you mean 'subscribers'?" in job.reason


@pytest.mark.parametrize("entry", [None, 7, ("ann@example.org", "Ann"), ("ann@example.org",)])
def test_an_entry_of_the_wrong_kind_pauses_the_job_and_says_what_to_yield(entry):
    mailengine.audience("odd")(lambda: ["bob@example.org", entry])
    job = queue("odd")

    expand_jobs()

    job.refresh_from_db()
    assert job.status == "paused"
    assert "entry 2 of the audience" in job.reason
    assert "Yield an address" in job.reason


def test_a_job_for_an_unknown_audience_is_refused_at_the_front_door():
    with pytest.raises(UnknownAudience, match="Did you mean 'subscribers'"):
        queue("subscriber")


def test_the_size_of_an_audience_is_known_without_loading_it(django_assert_num_queries):
    Subscriber.objects.create(email="ann@example.org")
    mailengine.audience("queryset")(lambda: Subscriber.objects.values_list("email", flat=True))
    mailengine.audience("endless")(lambda: (f"reader{n}@example.org" for n in iter(int, 1)))

    with django_assert_num_queries(2):
        assert find_audience("subscribers").size() == find_audience("queryset").size() == Size(1)
    assert find_audience("endless").size() == Size(10_000, at_least=True)


@pytest.mark.parametrize("name", ["", "all readers", "a@example.org", "a,b", "a;b", "a\n"])
def test_a_name_that_would_be_taken_for_addresses_is_none(name):
    with pytest.raises(ValueError, match="is no name of an audience"):
        mailengine.audience(name)
