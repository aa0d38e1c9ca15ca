"""The fixture `mail_queue`, which pytest finds by itself where mailengine is installed. It needs pytest-django."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .mail_queue import MailQueue


@pytest.fixture
def mail_queue(request: pytest.FixtureRequest) -> Iterator[MailQueue]:
    """The project's mail queue, with providers that fail on demand and a clock that stands still.

    It takes the database as the fixture `db` does: nothing that is queued outlives the test.
    """
    try:
        request.getfixturevalue("db")
        settings = request.getfixturevalue("settings")
    except pytest.FixtureLookupError:
        pytest.fail("The fixture mail_queue needs pytest-django: pip install pytest-django", pytrace=False)
    # Only here: when pytest loads this module, Django has no settings yet.
    from .mail_queue import MailQueue

    with MailQueue(settings=settings) as queue:
        yield queue
