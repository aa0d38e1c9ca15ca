"""What a run composes ahead of its senders, and how much large mail it holds in memory at a time."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest
from django.core.mail import EmailMultiAlternatives
from django.core.management import call_command

from mailengine import dispatch_slice, queue_job, queue_mail, queue_message
from mailengine.models import Message
from mailengine.pipeline import compose, composer, stock
from mailengine.pipeline.composer import Composer
from mailengine.pipeline.dispatch import Dispatcher
from mailengine.pipeline.senders import Team
from mailengine.testing import FakeProvider, SMTPServer

from .helpers import queue_many, statuses

pytestmark = pytest.mark.django_db

MAIL = "News", "Read this.", "desk@example.org"


@pytest.fixture
def under_way(configure, monkeypatch):
    """How many bytes of files and further alternatives each handover met that were under way, its own included.

    There are four connections.
    """
    FakeProvider.reset()
    configure(CONNECTIONS=4)
    lock, current, seen = threading.Lock(), [], []
    send = FakeProvider.send_messages

    def slowly(self, emails):
        size = sum(len(content) for email in emails for _name, content, _type in email.attachments)
        size += sum(len(content) for email in emails for content, _type in email.alternatives)
        with lock:
            current.append(size)
            seen.append(sum(current))
        time.sleep(0.2)  # long enough for the next to begin, on a busy machine too
        with lock:
            current.remove(size)
        return send(self, emails)

    monkeypatch.setattr(FakeProvider, "send_messages", slowly)
    return seen


def test_large_mail_is_in_memory_only_so_much_at_a_time(under_way, monkeypatch):
    """F-X13: whichever file it is."""
    monkeypatch.setattr(stock, "BYTES_IN_HAND", 500_000)
    for number in range(6):
        queue_mail(*MAIL, [f"u{number}@example.org"], attachments=[("a.bin", bytes([number]) * 200_000)])

    dispatch_slice()

    assert (statuses(), max(under_way)) == ({"sent": 6}, 400_000)


def test_one_that_is_larger_than_the_room_goes_alone(under_way, monkeypatch):
    monkeypatch.setattr(stock, "BYTES_IN_HAND", 100_000)
    for number in range(3):
        queue_mail(*MAIL, [f"u{number}@example.org"], attachments=[("a.bin", bytes([number]) * 300_000)])

    dispatch_slice()

    assert (statuses(), max(under_way)) == ({"sent": 3}, 300_000)


def test_all_its_words_count(under_way, monkeypatch):
    monkeypatch.setattr(stock, "BYTES_IN_HAND", 500_000)
    for number in range(6):
        email = EmailMultiAlternatives(*MAIL, [f"u{number}@example.org"])
        email.attach_alternative(f"{number}" * 200_000, "text/x-amp-html")
        queue_message(email)

    dispatch_slice()

    assert (statuses(), max(under_way)) == ({"sent": 6}, 400_000)


def test_small_mail_does_not_wait_behind_large_mail(under_way, monkeypatch):
    monkeypatch.setattr(stock, "BYTES_IN_HAND", 100_000)
    for number in range(3):
        queue_mail(*MAIL, [f"u{number}@example.org"], attachments=[("a.bin", bytes([number]) * 300_000)])
    queue_many(3)

    dispatch_slice()

    order = [email.to[0][0] for email in FakeProvider.named("relay").accepted]
    assert statuses() == {"sent": 6}
    assert order[-1] == "u", order


def test_urgent_mail_that_finds_no_memory_lets_go_what_has_it(configure, provider, monkeypatch):
    """With one connection it would wait for the memory, and the others for the connection that is kept for it."""
    configure(CONNECTIONS=1)
    monkeypatch.setattr(stock, "BYTES_IN_HAND", 400_000)
    large = {"attachments": [("a.bin", b"1" * 300_000)]}
    queue_many(1)
    queue_mail(*MAIL, ["large@example.org"], **large)
    turns = []

    def note(_report):
        turns.append(None)
        if [item.message.recipient for item in run.stock if item.is_ready] == ["large@example.org"]:
            queue_mail(*MAIL, ["urgent@example.org"], priority="urgent", idempotency_key="once", **large)

    run = Dispatcher("send_mail", max_time=10, on_progress=note)
    run.run()

    assert statuses() == {"sent": 3}
    assert len(turns) < 1_000


def test_the_words_of_large_mail_are_in_memory_only_so_much_at_a_time(under_way, monkeypatch):
    monkeypatch.setattr(composer, "BYTES_KEPT", 500_000)
    for number in range(12):
        queue_mail(*MAIL, [f"u{number}@example.org"], html_message=f"{number}" + " " * 200_000)
    loaded, alive = weakref.WeakSet(), []
    load = composer.load_words

    def note(content_id):
        gc.collect()
        words = load(content_id)
        loaded.add(words.content)
        alive.append(len(loaded))
        return words

    monkeypatch.setattr(composer, "load_words", note)

    dispatch_slice()

    assert statuses() == {"sent": 12}
    assert max(alive) <= 3  # the last one was loaded before there was room for it


def test_what_has_ended_is_recorded_however_slow_the_storage_is(configure, provider, monkeypatch):
    """Else its lease may end meanwhile, and others send it again."""
    configure(CONNECTIONS=4)
    monkeypatch.setattr(stock, "COMPOSING_SECONDS", 0.05)
    for number in range(12):
        queue_mail(*MAIL, [f"u{number}@example.org"], attachments=[("a.bin", bytes([number]))])
    read = compose.Attachment.read
    accepted, left = [set()], []

    def slowly(self):
        left.append(accepted[-1] - set(Message.objects.filter(status="sent").values_list("recipient", flat=True)))
        accepted.append({email.to[0] for email in provider.accepted})
        time.sleep(0.1)
        return read(self)

    monkeypatch.setattr(compose.Attachment, "read", slowly)

    dispatch_slice()

    assert statuses() == {"sent": 12}
    assert not any(left), left


def test_the_file_of_a_job_is_read_once(under_way, monkeypatch):
    queue_job(*MAIL, [f"u{number}@example.org" for number in range(10)], attachments=[("a.bin", b"1" * 300_000)])
    call_command("process_mail_jobs", verbosity=0)
    reads = []
    read = compose.Attachment.read
    monkeypatch.setattr(compose.Attachment, "read", lambda self: reads.append(self.pk) or read(self))

    dispatch_slice()

    assert statuses() == {"sent": 10}
    assert len(reads) == 1


def test_no_more_is_composed_than_the_senders_need(configure, provider, monkeypatch):
    """So a run that is to stop stops at once, however large its batch."""
    configure(CONNECTIONS=1, BATCH=50)
    queue_many(50)
    stop, composed = threading.Event(), []
    original = Composer.compose

    def note(self, item):
        composed.append(item)
        stop.set()
        original(self, item)

    monkeypatch.setattr(Composer, "compose", note)

    dispatch_slice(stop=stop)

    assert (len(composed), statuses()) == (1, {"queued": 50})


def test_what_was_sent_is_in_memory_no_more(settings, monkeypatch):
    """F-X13: not until Python happens to look for circles, either."""
    sent = []
    usual = Team.send
    monkeypatch.setattr(
        Team, "send", lambda self, call, emails, *args, **kw: (
            sent.extend(map(weakref.ref, emails)), usual(self, call, emails, *args, **kw)
        ),
    )  # fmt: skip
    with SMTPServer() as server:
        settings.MAILERS = {"default": {"BACKEND": "mailengine.backends.EmailBackend"}, "relay": server.mailer()}
        settings.MAILENGINE = {"PROVIDERS": {"relay": {}}, "CONNECTIONS": 2}
        queue_many(20)
        most = []
        gc.disable()
        try:
            Dispatcher(
                "send_mail", on_progress=lambda _report: most.append(sum(ref() is not None for ref in sent))
            ).run()
        finally:
            gc.enable()

    assert (len(sent), statuses()) == (20, {"sent": 20})
    assert max(most) <= 8, most


def test_mail_that_is_deleted_once_it_is_composed_holds_up_nothing(configure, provider, monkeypatch):
    """It is gone, by a cascade of its job, say, and leaves the stock at the next turn."""
    configure(CONNECTIONS=1)
    queue_many(4)
    turns, gone, usual = [], [], Dispatcher._step

    def step(self):
        if not gone and len(self.stock) and next(iter(self.stock)).is_ready:
            gone.append(Message.objects.filter(pk=next(iter(self.stock)).message.pk).delete())
        turns.append(1)
        usual(self)

    monkeypatch.setattr(Dispatcher, "_step", step)
    dispatch_slice()

    assert (len(gone), statuses()) == (1, {"sent": 3})
    assert len(turns) < 30
