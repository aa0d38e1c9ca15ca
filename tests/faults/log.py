"""What the sinks took: one line for each mail, on the disk before its sender hears a yes."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Copy:
    """One mail that a sink took."""

    message_id: str
    provider: str
    recipients: tuple[str, ...]
    connection: int = 0


class Log:
    """The file that all sinks of a run write to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file = path.open("ab", buffering=0)

    def append(self, copy: Copy) -> None:
        """Write it down for good: a yes is said only after this."""
        with self._lock:
            self._file.write(json.dumps(asdict(copy)).encode() + b"\n")
            os.fsync(self._file.fileno())

    def copies(self) -> list[Copy]:
        """All of them, read back from the disk."""
        return list(parse(self.path.read_text().splitlines()))

    def close(self) -> None:
        self._file.close()


def parse(lines: Iterable[str]) -> Iterable[Copy]:
    for line in lines:
        fields = json.loads(line)
        yield Copy(**{**fields, "recipients": tuple(fields["recipients"])})
