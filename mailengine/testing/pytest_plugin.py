"""The fixture `mail_queue`, which pytest finds by itself where mailengine is installed. It needs pytest-django."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .mail_queue import MailQueue

if find_spec("pytest_django"):

    @pytest.fixture
    def mail_queue(db: None, settings: Any) -> Iterator[MailQueue]:
        """The project's mail queue, with providers that fail on demand and a clock that stands still.

        It takes the database as the fixture `db` does: nothing that is queued outlives the test.
        """
        # Only here: when pytest loads this module, Django has no settings yet.
        from .mail_queue import MailQueue

        with MailQueue(settings=settings) as queue:
            yield queue

else:

    @pytest.fixture
    def mail_queue() -> None:
        """The project's mail queue: it needs pytest-django."""
        pytest.fail("The fixture mail_queue needs pytest-django: pip install pytest-django", pytrace=False)
