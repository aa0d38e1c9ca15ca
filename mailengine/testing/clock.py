"""The clock of tests: the database's, moved by hand."""

from __future__ import annotations

from types import TracebackType

from ..clock import set_offset


class Clock:
    """Moves mailengine's time forward, for as long as it is open: `with Clock() as clock: clock.advance(minutes=5)`.

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
