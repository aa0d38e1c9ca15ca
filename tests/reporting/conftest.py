from __future__ import annotations

import pytest

from mailengine.clock import read_now
from mailengine.models import Attempt, ProviderState
from mailengine.reporting.providers import picture
from mailengine.testing import FakeProvider
from tests.models.helpers import make_messages


@pytest.fixture(autouse=True)
def _fresh():
    FakeProvider.reset()
    yield
    FakeProvider.reset()


@pytest.fixture
def providers(configure):
    """Providers by their entries in MAILENGINE, and what their rows say: `providers(a={"RATE": "5/day"})`."""

    def providers(_settings=None, /, **policies):
        configure({alias: {} for alias in policies}, **{"PROVIDERS": policies, **(_settings or {})})

    return providers


@pytest.fixture
def row(db):
    """Sets fields of a provider's row."""

    def row(alias, **fields):
        ProviderState.objects.update_or_create(alias=alias, defaults=fields)

    return row


@pytest.fixture
def look(db):
    """The picture as it is now."""
    return lambda: picture(now=read_now("default"))


@pytest.fixture
def hand_over(db):
    """Enter handovers in the ledger that began so long ago."""
    (message,) = make_messages(1)
    numbers = iter(range(1, 100_000))

    def hand_over(provider, outcome="accepted", *, count=1, at):
        Attempt.objects.bulk_create(
            Attempt(
                message=message,
                number=next(numbers),
                provider=provider,
                outcome=outcome,
                begun_at=at,
                ended_at=at if outcome else None,
            )
            for _ in range(count)
        )

    return hand_over
