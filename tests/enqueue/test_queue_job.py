"""One call asks for a mail to each of many, whoever they are and however they are given."""

from __future__ import annotations

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth import get_user_model
from django.core.management import call_command

from mailengine import aqueue_job, audience, dispatch_slice, queue_job
from mailengine.errors import UnknownAudience
from mailengine.models import JobRecipients, Message, Priority
from mailengine.pipeline.audience import _audiences

pytestmark = pytest.mark.django_db

WORDS = ("News", "Dear reader", "news@example.org")
THREE = ["a@example.org", "b@example.org", "c@example.org"]


def expanded(job):
    call_command("process_mail_jobs", verbosity=0)
    job.refresh_from_db()
    return sorted(job.messages.values_list("recipient", flat=True))


@pytest.fixture
def readers():
    """An audience of that name, with three addresses."""
    audience("readers")(lambda: iter(THREE))
    yield THREE
    del _audiences["readers"]


@pytest.mark.parametrize(
    "recipients",
    [
        THREE,
        tuple(THREE),
        (address for address in THREE),
        [(address, {}) for address in THREE],
        [("a@example.org",), ("b@example.org", {"name": "Bob"}), "c@example.org"],
        "a@example.org,b@example.org;c@example.org",
        "a@example.org\n\nb@example.org\tc@example.org\n",
        '"Lee, Ann" <a@example.org>; b@example.org\r\n, c@example.org',
        "a@example.org nonsense\nb@example.org;c@example.org",
    ],
    ids=lambda recipients: type(recipients).__name__,
)
def test_recipients_can_be_given_in_many_ways(provider, recipients):
    """C12"""
    assert expanded(queue_job(*WORDS, recipients)) == THREE


def test_a_query_of_addresses_will_do(provider):
    """C12"""
    users = get_user_model().objects
    for address in THREE:
        users.create_user(address[0], address)
    queries = users.order_by("pk").values_list("email", flat=True), users.order_by("pk").values_list("email")
    for recipients in queries:
        assert expanded(queue_job(*WORDS, recipients)) == THREE


def test_what_was_left_out_is_counted(provider):
    job = queue_job(*WORDS, [*THREE, "A@Example.org", "nonsense", "a\x00@example.org", "Ann\ud800 <d@example.org>"])
    assert expanded(job) == THREE
    assert (job.duplicate_count, job.malformed_count) == (1, 3)
    assert [problem["line"] for problem in job.problems] == [5, 6, 7]


def test_a_word_is_the_name_of_an_audience(provider, readers):
    job = queue_job(*WORDS, "readers")
    assert (job.audience, JobRecipients.objects.count()) == ("readers", 0)
    assert expanded(job) == THREE


def test_the_nearest_audience_is_named(provider, readers):
    with pytest.raises(UnknownAudience, match="Did you mean 'readers'"):
        queue_job(*WORDS, "raeders")


def test_an_audience_costs_the_door_nothing(provider, django_assert_max_num_queries):
    """C01: the editor's request doesn't wait for the recipients to be read, however many there are."""

    @audience("everybody")
    def everybody():
        raise AssertionError("the front door must not read the audience")

    try:
        with django_assert_max_num_queries(6):
            queue_job(*WORDS, "everybody")
    finally:
        del _audiences["everybody"]


def test_a_long_list_is_kept_in_pieces(provider, django_assert_max_num_queries):
    with django_assert_max_num_queries(12):
        job = queue_job(*WORDS, (f"u{number}@example.org" for number in range(5_000)))
    assert JobRecipients.objects.filter(job=job).count() == 3
    assert len(expanded(job)) == 5_000


def test_each_gets_a_mail_of_their_own(provider):
    """C03: one recipient, no Bcc."""
    queue_job(*WORDS, THREE)
    call_command("process_mail_jobs", verbosity=0)
    dispatch_slice()
    assert sorted(email.recipients() for email in provider.accepted) == [[address] for address in THREE]
    assert not any(email.bcc or email.cc for email in provider.accepted)


def test_each_gets_words_of_their_own(provider):
    """C04"""
    queue_job(
        "For {{ name }}",
        "Dear {{ name }}",
        None,
        ["ann@example.org", ("bob@example.org", {"name": "Bob"}), "u@bücher.example"],
        html_message='Dear {{ name|default:"<i>reader</i>" }}',
        merge_data={"Ann@Example.org": {"name": "Ann & Co"}, "u@bücher.example": {"name": "Uta"}},
    )
    call_command("process_mail_jobs", verbosity=0)
    dispatch_slice()
    sent = {email.to[0]: (email.subject, email.body, email.alternatives[0][0]) for email in provider.accepted}
    assert sent == {
        "ann@example.org": ("For Ann & Co", "Dear Ann & Co", "Dear Ann &amp; Co"),
        "bob@example.org": ("For Bob", "Dear Bob", "Dear Bob"),
        "u@xn--bcher-kva.example": ("For Uta", "Dear Uta", "Dear Uta"),
    }


def test_words_without_merge_data_are_literal(provider):
    queue_job("{{ name }}", "{{ name }} {{ 7 * 7 }}", None, ["ann@example.org"])
    call_command("process_mail_jobs", verbosity=0)
    dispatch_slice()
    assert (provider.accepted[0].subject, provider.accepted[0].body) == ("{{ name }}", "{{ name }} {{ 7 * 7 }}")


def test_a_job_remembers_where_it_came_from(provider, admin_user):
    """C12: subject, text, HTML and sender can be read off the job."""
    job = queue_job(*WORDS, THREE, html_message="<p>", source=admin_user, created_by=admin_user)
    assert (job.subject, job.text, job.html, job.from_email) == (*WORDS[:2], "<p>", WORDS[2])
    assert (job.source, job.created_by, job.status) == (f"auth.user:{admin_user.pk}", admin_user, "queued")
    assert (job.stream, job.priority) == ("bulk", Priority.BULK)


def test_a_job_without_a_sender_shows_the_projects_own(provider, settings):
    settings.DEFAULT_FROM_EMAIL = "shop@example.org"
    assert queue_job(*WORDS[:2], None, THREE).from_email == "shop@example.org"


def test_the_async_twin_does_the_same(provider):
    assert expanded(async_to_sync(aqueue_job)(*WORDS, THREE)) == THREE


def test_the_messages_of_a_job_go_on_its_terms(provider):
    job = queue_job(*WORDS, THREE, stream="transactional", priority="low")
    expanded(job)
    assert set(Message.objects.values_list("stream", "priority", "job")) == {("transactional", Priority.LOW, job.pk)}
