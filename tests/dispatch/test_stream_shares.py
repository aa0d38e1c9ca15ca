"""SHARE: bulk mail gets its part while other mail never stops, and urgent mail still never waits for bulk (C21, N4)."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mailengine import Priority
from mailengine.conf import get_settings, problems
from mailengine.models import Message
from mailengine.pipeline.dispatch import Dispatcher
from mailengine.pipeline.shares import StreamShares

from .helpers import queue, queue_many


def mail(stream: str, count: int, priority: int = Priority.NORMAL) -> list:
    message = SimpleNamespace(stream=stream, priority=priority)
    return [SimpleNamespace(message=message, number=number) for number in range(count)]


def shares(settings, **by_stream: float) -> StreamShares:
    streams = {"bulk": {"SHARE": 0}} | {stream: {"SHARE": share} for stream, share in by_stream.items()}
    settings.MAILENGINE = {**settings.MAILENGINE, "STREAMS": streams}
    return StreamShares(get_settings())


def order(shares: StreamShares, items: list) -> str:
    return "".join(item.message.stream[0] for item in shares.in_turn(items))


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.2, "tttttbttttbttttbtttt"), (0.5, "ttbtbtbtbtbtbtbtbtbt"), (0, "t" * 20)],
)
def test_of_mail_that_goes_before_it_each_place_owes_a_stream_its_share(settings, share, expected):
    assert order(shares(settings, bulk=share), mail("transactional", 20) + mail("bulk", 20))[:20] == expected


def test_a_stream_that_is_next_anyway_is_owed_nothing(settings):
    """So the mail that comes in the midst of a bulk run is the next one."""
    owed = shares(settings, bulk=0.5)
    for item in mail("bulk", 100):
        owed.note(item, waiting={"bulk"})
    assert order(owed, mail("transactional", 1) + mail("bulk", 3)) == "tbbb"


@pytest.mark.parametrize("priority", [Priority.URGENT, Priority.HIGH])
def test_urgent_mail_gives_way_to_nobody_however_much_there_is(settings, priority):
    owed = shares(settings, bulk=0.5)
    for item in mail("transactional", 100):
        owed.note(item, waiting={"bulk"})
    assert order(owed, mail("transactional", 9, priority) + mail("bulk", 3)) == "tttttttttbbb"


def test_what_a_stream_is_owed_outlives_a_turn(settings):
    owed = shares(settings, bulk=0.25)
    for item in mail("transactional", 4):
        owed.note(item, waiting={"bulk"})
    assert order(owed, mail("transactional", 2) + mail("bulk", 2)) == "bttb"


def test_a_stream_that_waited_for_long_is_not_served_all_at_once(settings):
    owed = shares(settings, bulk=0.2)
    for item in mail("transactional", 1_000):
        owed.note(item, waiting={"bulk"})
    assert order(owed, mail("transactional", 9) + mail("bulk", 9)).startswith("bbtt")


def test_the_mail_of_each_stream_stays_in_its_order(settings):
    items = mail("transactional", 30) + mail("bulk", 10)
    in_turn = list(shares(settings, bulk=0.3).in_turn(items))
    for stream in ("transactional", "bulk"):
        numbers = [item.number for item in in_turn if item.message.stream == stream]
        assert numbers == sorted(numbers)
    assert len(in_turn) == 40


def test_shares_that_add_up_to_more_than_all_are_a_problem(settings):
    shares(settings, bulk=0.8, transactional=0.3)
    assert "add up to 1.1" in " ".join(problem.text for problem in problems())


@pytest.mark.parametrize("share", [-0.1, 1.5, "much", True])
def test_a_share_is_a_part_of_all(settings, share):
    shares(settings, bulk=share)
    assert "SHARE" in " ".join(problem.text for problem in problems())


@pytest.mark.django_db
def test_bulk_mail_gets_its_share_though_other_mail_never_stops(provider, settings):
    """N4, with less: more mail of the transactional stream comes than is sent."""
    settings.MAILENGINE = {**settings.MAILENGINE, "CONNECTIONS": 4, "STREAMS": {"bulk": {"SHARE": 0.2}}}
    queue_many(60, stream="bulk")
    queue_many(40)
    never_stops = iter(range(10_000))

    def go_on(report) -> None:
        queue_many(8) if next(never_stops) < 40 else None

    Dispatcher("send_mail", limit=200, on_progress=go_on).run()

    sent = Message.objects.filter(status="sent")
    assert sent.count() == 200
    assert 30 <= sent.filter(stream="bulk").count() <= 50  # 0.2 of 200, but for how it begins


@pytest.mark.django_db
def test_urgent_mail_is_the_next_one_while_a_bulk_run_is_under_way(provider, settings):
    """C21"""
    settings.MAILENGINE = {**settings.MAILENGINE, "CONNECTIONS": 1}
    queue_many(40, stream="bulk")
    before: list[int] = []

    def come(report) -> None:
        if not before and len(provider.accepted) >= 10:
            queue("urgent@example.org", priority=Priority.URGENT)
            before.append(len(provider.accepted))

    Dispatcher("send_mail", on_progress=come).run()

    place = [email.to[0] for email in provider.accepted].index("urgent@example.org")
    assert place - before[0] <= 1  # one was in flight already
