"""The clocks of tests: the database's, moved by hand."""

from __future__ import annotations

from datetime import datetime, timedelta
from types import TracebackType

from django.db import router

from ..clock import read_now, set_offset, stop_at, stopped_at


class Clock:
    """Moves mailengine's time, which goes on by itself as well: `with Clock() as clock: clock.advance(minutes=5)`.

    Everything that asks for the time asks the database, plus this offset; nothing has to wait.
    """

    def __init__(self) -> None:
        self.offset_seconds = 0.0

    def __enter__(self) -> Clock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.offset_seconds = 0.0
        set_offset(0.0)

    def advance(self, *, seconds: float = 0, minutes: float = 0, hours: float = 0, days: float = 0) -> None:
        """Let so much time pass."""
        self.offset_seconds += seconds + 60 * minutes + 3_600 * hours + 86_400 * days
        set_offset(self.offset_seconds)


class FrozenClock:
    """Stops mailengine's time at the instant it is entered; from then on it moves by `advance()` alone.

    So the same test sees the same instants on a slow machine and on a fast one. It is mailengine's time in this
    process: Python's own clock, which `django.utils.timezone.now()` asks, goes on.
    """

    def __init__(self) -> None:
        self._before: datetime | None = None

    def __enter__(self) -> FrozenClock:
        from ..models import Message

        self._before = stopped_at()
        stop_at(read_now(router.db_for_write(Message)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stop_at(self._before)

    @property
    def now(self) -> datetime:
        """The instant at which it stands."""
        instant = stopped_at()
        if instant is None:
            raise RuntimeError("This FrozenClock does not stand still: use it as `with FrozenClock() as clock:`.")
        return instant

    def advance(self, *, seconds: float = 0, minutes: float = 0, hours: float = 0, days: float = 0) -> None:
        """Let so much time pass, at once."""
        stop_at(self.now + timedelta(seconds=seconds, minutes=minutes, hours=hours, days=days))
