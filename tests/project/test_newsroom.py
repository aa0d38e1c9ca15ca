"""The demonstration newsroom: whom it writes to, and what its mail looks like."""

import pytest
from django.core.management import call_command
from django.db import IntegrityError, transaction

from mailengine import queue_job
from mailengine.pipeline.audience import Size, find_audience
from project.newsroom.models import Article, Issue, Subscriber

pytestmark = pytest.mark.django_db


def test_subscribers_are_pairs_in_the_order_they_joined_without_those_who_left():
    Subscriber.objects.create(email="zoe@example.org", name="Zoe")
    Subscriber.objects.create(email="gone@example.org", is_active=False)
    Subscriber.objects.create(email="ann@example.org")

    audience = find_audience("subscribers")

    assert list(audience.entries()) == [("zoe@example.org", {"name": "Zoe"}), ("ann@example.org", {"name": ""})]
    assert audience.size() == Size(2)


def test_one_address_subscribes_once_however_it_is_spelt():
    Subscriber.objects.create(email="Ann@Example.org")

    assert Subscriber.objects.get(email="ANN@example.ORG").email == "ann@example.org"
    with pytest.raises(IntegrityError), transaction.atomic():
        Subscriber.objects.create(email="ann@example.org")


@pytest.fixture
def issue():
    issue = Issue.objects.create(title="Fish & Chips <1>", intro="What's in it & more")
    Article.objects.create(issue=issue, headline="Tea > coffee", body="First line.\n\nSecond line with {{ braces }}.")
    return issue


@pytest.mark.parametrize("kind", ["issue", "article"])
def test_an_update_greets_each_reader_and_shows_the_words_as_they_were_written(kind, issue, provider):
    subject = {"issue": "Fish & Chips <1>", "article": "Tea > coffee"}[kind]
    context = {"object": issue if kind == "issue" else issue.articles.get()}
    Subscriber.objects.create(email="ann@example.org", name="Ann <3")
    Subscriber.objects.create(email="bob@example.org")

    queue_job("", "", None, "subscribers", template=f"mailengine/newsroom/{kind}/update", context=context)
    call_command("process_mail_jobs", verbosity=0)
    call_command("send_mail", verbosity=0)

    mails = {mail.to[0]: mail for mail in provider.accepted}
    ann, bob = mails["ann@example.org"], mails["bob@example.org"]
    html = ann.alternatives[0][0]
    assert ann.subject == subject
    assert ann.body.startswith("Hello Ann <3,\n")
    assert bob.body.startswith("Hello reader,\n")
    assert "TEA > COFFEE" in ann.body
    assert "Hello Ann &lt;3," in html
    assert "Tea &gt; coffee" in html
