"""Urgent mail first, and a run that ends where it was told to."""

from __future__ import annotations

import time
from datetime import timedelta
from threading import Event

import pytest
from django.utils import timezone

from mailengine import Priority, dispatch_slice, queue_job
from mailengine.models import Attempt, Message, MessageJob
from mailengine.outcomes import Kind, Outcome
from mailengine.pipeline.dispatch import Dispatcher
from mailengine.testing import FakeProvider

from .helpers import queue, queue_many, send, statuses

pytestmark = pytest.mark.django_db


def addresses(provider) -> list[str]:
    return [email.to[0] for email in provider.accepted]


def test_mail_goes_by_priority_then_due_time_then_age(provider, settings):
    settings.MAILENGINE = {**settings.MAILENGINE, "CONNECTIONS": 1}
    queue("bulk@example.org", stream="bulk")
    queue("normal@example.org")
    queue("urgent@example.org", priority=Priority.URGENT)
    queue("second@example.org")

    send()

    assert addresses(provider) == [f"{name}@example.org" for name in ("urgent", "normal", "second", "bulk")]


def in_doubt(message: Message) -> Message:
    """The message, which may have gone a while ago; the window of its doubt is over."""
    long_ago = timezone.now() - timedelta(minutes=5)
    Message.objects.filter(pk=message.pk).update(
        status="uncertain", uncertain_count=1, provider="relay", available_at=long_ago
    )
    message.attempts.create(
        number=1, provider="relay", begun_at=long_ago, ended_at=long_ago, outcome="uncertain", code="timeout"
    )
    return message


def test_uncertain_mail_goes_in_its_turn_like_any_other(provider, settings):
    """However long the queue is behind it, and before what is less urgent."""
    settings.MAILENGINE = {**settings.MAILENGINE, "CONNECTIONS": 1}
    queue_many(3, stream="bulk")
    queue("normal@example.org")
    in_doubt(queue("urgent@example.org", priority=Priority.URGENT))
    in_doubt(queue("old@example.org"))

    send(limit=4)

    assert addresses(provider)[:3] == ["urgent@example.org", "old@example.org", "normal@example.org"]
    assert statuses() == {"sent": 4, "queued": 2}


def test_a_claim_given_back_leaves_each_message_in_its_own_state(provider, settings):
    queue()
    in_doubt(queue())
    stop = Event()
    settings.MAILENGINE = {**settings.MAILENGINE, "CONNECTIONS": 1}

    Dispatcher("send_mail", stop=stop, on_progress=lambda report: stop.set()).run()

    assert statuses() == {"queued": 1, "uncertain": 1}


def test_urgent_mail_whose_doubt_is_over_overtakes_what_was_claimed_before(provider, settings):
    settings.MAILENGINE = {**settings.MAILENGINE, "CONNECTIONS": 1}
    queue_many(40, stream="bulk")
    came_due = []

    def watch(report):
        if report.outcomes["sent"] >= 5 and not came_due:
            came_due.append(provider.calls)
            in_doubt(queue("reset@example.org", priority=Priority.HIGH))

    Dispatcher("send_mail", on_progress=watch).run()

    # One mail may be in flight already when it comes due.
    assert addresses(provider).index("reset@example.org") <= came_due[0] + 1
    assert statuses() == {"sent": 41}


def test_mail_queued_while_bulk_is_sent_is_the_next_one_handed_over(provider, settings, monkeypatch):
    """C21: an urgent message overtakes what was claimed before it."""
    settings.MAILENGINE = {**settings.MAILENGINE, "CONNECTIONS": 1}
    queue_many(40, stream="bulk")
    send_one = FakeProvider.send_messages

    def queue_urgent_mail_at_the_tenth(self, emails):
        if provider.calls == 9:
            arrived.set()
        return send_one(self, emails)

    arrived, queued = Event(), []
    monkeypatch.setattr(FakeProvider, "send_messages", queue_urgent_mail_at_the_tenth)

    def watch(report):
        if arrived.is_set() and not queued:
            queued.append(provider.calls)
            queue("reset@example.org", priority=Priority.HIGH)

    Dispatcher("send_mail", on_progress=watch).run()

    # One mail may be in flight already when the urgent one is committed.
    assert addresses(provider).index("reset@example.org") <= queued[0] + 1
    assert statuses() == {"sent": 41}


def test_bulk_claimed_with_urgent_mail_waits_for_what_was_claimed_before(provider, settings, monkeypatch):
    settings.MAILENGINE = {**settings.MAILENGINE, "CONNECTIONS": 2, "CLAIM_BATCH": 4}
    queue_many(4)
    for number in range(8):
        queue(f"bulk{number}@example.org", stream="bulk")
    send_one = FakeProvider.send_messages
    second, queued = Event(), Event()

    def wait_at_the_second(self, emails):
        if provider.calls == 1:
            second.set()
            queued.wait(5)
        return send_one(self, emails)

    monkeypatch.setattr(FakeProvider, "send_messages", wait_at_the_second)

    def watch(report):
        if second.is_set() and not queued.is_set():
            for number in range(4):
                queue(f"urgent{number}@example.org", priority=Priority.URGENT)
            queued.set()

    Dispatcher("send_mail", on_progress=watch).run()

    begun = Attempt.objects.values_list("begun_at", flat=True)
    last_of_others = begun.exclude(message__stream="bulk").latest("begun_at")
    assert last_of_others <= begun.filter(message__stream="bulk").earliest("begun_at"), addresses(provider)
    assert statuses() == {"sent": 16}


def test_limit_sends_so_many_and_leaves_the_rest_in_order(provider):
    """C09."""
    mails = queue_many(30)

    send(limit=12)

    assert list(Message.objects.filter(status="queued").order_by("id")) == mails[12:]
    assert len(provider.accepted) == 12


def test_a_stopped_run_gives_back_what_it_had_not_begun(provider):
    """P24 in process: nothing new starts, nothing is left leased."""
    queue_many(50)
    stop = Event()
    Dispatcher("send_mail", stop=stop, on_progress=lambda report: stop.set()).run()

    assert "sending" not in statuses()
    assert sum(statuses().values()) == 50
    assert set(Message.objects.values_list("claim_count", flat=True)) == {0}


def test_a_slice_with_no_time_does_nothing(provider):
    queue()
    report = dispatch_slice(max_time=0)
    assert (report.outcomes, report.stopped, statuses()) == ({}, "max_time", {"queued": 1})


def test_only_the_named_streams_are_sent(provider):
    queue("a@example.org", stream="bulk"), queue("b@example.org")
    send(stream=["transactional"])
    assert addresses(provider) == ["b@example.org"]


def test_mail_of_a_stream_that_the_settings_no_longer_have_still_goes(configure, provider):
    configure(STREAMS={"digest": {}})
    queue(stream="digest")
    configure()

    send()

    assert statuses() == {"sent": 1}


def test_streams_use_the_providers_they_name(configure):
    FakeProvider.reset()
    configure({"fast": {}, "cheap": {}}, STREAMS={"bulk": {"PROVIDERS": ["cheap"]}})
    queue("a@example.org", stream="bulk"), queue("b@example.org")

    send()

    assert addresses(FakeProvider.named("cheap")) == ["a@example.org"]
    assert addresses(FakeProvider.named("fast")) == ["b@example.org"]


def test_mail_of_another_stream_does_not_wait_for_a_slow_provider(configure, handed_over):
    """However much there is for that one."""
    streams = {"slow": {"PROVIDERS": ["a"]}, "fast": {"PROVIDERS": ["b"]}}
    configure({"a": {}, "b": {}}, PROVIDERS={"a": {"CONNECTIONS": 1}, "b": {}}, STREAMS=streams)
    queue_many(40, stream="slow")
    queue_many(40, stream="fast")
    handovers = handed_over(lambda alias, _email: time.sleep(0.1 * (alias == "a")) or Outcome(Kind.ACCEPTED))
    stop = Event()

    def stop_when_through(_report):
        if [alias for alias, *_ in handovers].count("b") == 40:
            stop.set()

    Dispatcher("send_mail", stop=stop, on_progress=stop_when_through).run()

    assert [alias for alias, *_ in handovers].count("a") < 24  # of 40, claimed by sixteen


def test_bulk_waits_when_its_only_provider_is_down_and_other_mail_goes_on(configure):
    FakeProvider.reset()
    configure({"fast": {}, "cheap": {"fails_every": 1}}, STREAMS={"bulk": {"PROVIDERS": ["cheap"]}})
    queue_many(20, stream="bulk")
    mail = queue("b@example.org")

    with pytest.raises(SystemExit):
        send()

    mail.refresh_from_db()
    assert mail.status == "sent"
    assert statuses() == {"queued": 20, "sent": 1}


def test_a_provider_has_no_more_connections_than_it_may(configure, settings):
    FakeProvider.reset()
    configure({"slow": {}}, CONNECTIONS=8)
    settings.MAILENGINE["PROVIDERS"] = {"slow": {"CONNECTIONS": 2}, "spare": {}}
    settings.MAILERS["spare"] = {"BACKEND": "mailengine.testing.FakeProvider"}
    queue_many(30)
    most = []
    dispatcher = Dispatcher("send_mail")
    dispatcher.on_progress = lambda report: most.append(dispatcher.team.in_flight["slow"])

    dispatcher.run()

    assert max(most) == 2
    assert FakeProvider.named("spare").calls == 0


class TestJobs:
    def queue_job(self, count=20) -> MessageJob:
        job = queue_job("News", "Read this.", "desk@example.org", [f"u{n}@example.org" for n in range(count)])
        send("process_mail_jobs")
        return job

    def test_a_job_is_done_with_its_last_message(self, provider):
        job = self.queue_job()
        send(limit=19)
        job.refresh_from_db()
        assert job.status == "sending"

        send()

        job.refresh_from_db()
        assert (job.status, len(provider.accepted)) == ("done", 20)
        assert job.finished_at is not None

    def test_a_job_with_deferred_mail_is_not_done(self, configure, provider, clock):
        configure({"relay": {"script": ["deferred"]}})
        job = self.queue_job(2)
        send()
        job.refresh_from_db()
        assert job.status == "sending"

        clock.advance(minutes=2)
        send("retry_deferred")

        job.refresh_from_db()
        assert job.status == "done"

    def test_nothing_of_a_paused_job_is_sent_until_it_is_resumed(self, provider):
        job = self.queue_job()
        MessageJob.objects.filter(pk=job.pk).pause()

        send(), send()
        assert provider.calls == 0
        MessageJob.objects.filter(pk=job.pk).resume()
        send("process_mail_jobs"), send()

        assert len(provider.accepted) == 20
        job.refresh_from_db()
        assert job.status == "done"

    def test_nothing_of_a_cancelled_job_is_sent(self, provider):
        job = self.queue_job()
        send(limit=5)
        MessageJob.objects.filter(pk=job.pk).cancel()

        send()

        assert statuses() == {"sent": 5, "cancelled": 15}
        assert set(Message.objects.filter(status="cancelled").values_list("reason", flat=True)) == {
            "cancelled: with its job"
        }


def test_urgent_mail_that_comes_while_the_last_handover_is_slow_does_not_wait_for_it(configure, handed_over):
    configure(CONNECTIONS=2)
    queue("quick@example.org")
    queue("slow@example.org")
    is_under_way, is_through = Event(), Event()

    def slowly(alias, email):
        if email.to == ["slow@example.org"]:
            is_under_way.set()
            is_through.wait(20)
        elif email.to == ["urgent@example.org"]:
            is_through.set()
        return Outcome(Kind.ACCEPTED)

    def queue_another(report):
        if is_under_way.is_set() and Message.objects.count() == 2:
            queue("urgent@example.org", priority=Priority.URGENT)

    handed_over(slowly)
    report = Dispatcher("send_mail", on_progress=queue_another).run()

    assert statuses() == {"sent": 3}
    assert report.seconds < 20
