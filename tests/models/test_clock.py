"""One clock for all hosts: the database's, in UTC, whatever the zones of server, session and project are."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from django.db import connection

from mailengine.clock import DatabaseNow, db_now, read_now
from mailengine.models import Message

from .helpers import make_message

pytestmark = pytest.mark.django_db


@pytest.fixture
def _session_in_tokyo():
    """The database's session in another zone than UTC, by the means that each has."""
    if connection.vendor == "sqlite":
        pytest.skip("a session of SQLite has no zone")
    _set_zone("Asia/Tokyo", offset="+09:00")
    yield
    _set_zone("UTC", offset="+00:00")


def _set_zone(name: str, *, offset: str) -> None:
    if connection.vendor == "mysql":
        with connection.cursor() as cursor:
            cursor.execute("SET time_zone = %s", [offset])
    else:
        connection.settings_dict["TIME_ZONE"] = name if name != "UTC" else None
        for cached in ("timezone", "timezone_name"):
            connection.__dict__.pop(cached, None)
        connection.ensure_timezone()


def seconds_off(instant: datetime) -> float:
    assert instant.tzinfo is not None
    return abs((datetime.now(timezone.utc) - instant).total_seconds())


def test_it_is_this_instant():
    assert seconds_off(read_now("default")) < 5


@pytest.mark.usefixtures("_session_in_tokyo")
def test_the_session_zone_does_not_matter():
    """F-L08"""
    message = make_message(available_at=db_now(3_600))
    stored = Message.objects.annotate(now=db_now()).get()
    assert seconds_off(read_now("default")) < 5
    assert seconds_off(stored.now) < 5
    assert seconds_off(stored.available_at - timedelta(hours=1)) < 5
    assert message not in Message.objects.due()


def test_the_projects_zone_does_not_matter(settings):
    """F-L08: due times are instants; a change of TIME_ZONE moves none."""
    due_at = datetime(2030, 3, 31, 1, 30, tzinfo=timezone.utc)  # in Berlin, the hour that is left out
    make_message(available_at=due_at)
    settings.TIME_ZONE = "Europe/Berlin"
    assert Message.objects.get().available_at == due_at
    assert seconds_off(read_now("default")) < 5


def test_an_instant_read_is_due_at_once_and_one_ahead_is_not():
    make_message(recipient="now", available_at=read_now("default"))
    make_message(recipient="soon", available_at=read_now("default") + timedelta(seconds=30))
    assert [message.recipient for message in Message.objects.due()] == ["now"]


def test_due_since_tells_how_long_mail_has_waited(clock):
    make_message(available_at=db_now())
    clock.advance(minutes=5)
    assert Message.objects.due(since_seconds=240).exists()
    assert not Message.objects.due(since_seconds=360).exists()


@pytest.mark.parametrize("step", [{"seconds": 0.5}, {"minutes": 5}, {"days": 400}, {"hours": -2}])
def test_the_clock_of_tests_moves_everything(clock, step):
    before = read_now("default")
    clock.advance(**step)
    moved = read_now("default") - before
    assert abs((moved - timedelta(**step)).total_seconds()) < 0.4
    make_message(available_at=db_now())
    assert abs((Message.objects.get().available_at - read_now("default")).total_seconds()) < 0.4


def test_another_database_is_refused_by_name():
    class Oracle:
        vendor = "oracle"

    with pytest.raises(NotImplementedError, match=r"oracle.*SQLite, PostgreSQL, MySQL"):
        DatabaseNow().as_sql(None, Oracle())
