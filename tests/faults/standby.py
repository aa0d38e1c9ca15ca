"""A streaming replica of a `Cluster`, which takes its place when told to."""

from __future__ import annotations

from typing import Any

from .postgres import Cluster
from .sinks import wait_until


class Standby(Cluster):
    """A replica of `primary`, fed through a port that may be a proxy's, up within the `with` block.

    After `take_over()` it is `primary` that runs on the replica's data, on its old port, as behind an address that
    moves; this object holds the remains.
    """

    def __init__(self, primary: Cluster, *, through: int) -> None:
        super().__init__()
        self.primary = primary
        self._through = through

    def make_data(self) -> None:
        source = ("--host=127.0.0.1", f"--port={self._through}", "--username=postgres")
        self.call("pg_basebackup", *source, f"--pgdata={self.data}", "--write-recovery-conf", "--checkpoint=fast")

    def wait_until_level(self) -> None:
        """Wait until it has all that the primary has written by now."""
        lsn = _ask(self.primary.port, "SELECT pg_current_wal_lsn()")
        wait_until(lambda: _ask(self.port, f"SELECT pg_last_wal_replay_lsn() >= '{lsn}'"), what="the replica")

    def take_over(self) -> None:
        """The primary is gone for good; this one goes on in its place, with what it has."""
        self.stop()
        self.data, self.primary.data = self.primary.data, self.data
        self.folder, self.primary.folder = self.primary.folder, self.folder
        self.primary.start()
        self.primary.call("pg_ctl", "promote", "--wait", "--silent")


def _ask(port: int, sql: str) -> Any:
    import psycopg

    with psycopg.connect(host="127.0.0.1", port=port, user="postgres", dbname="postgres") as other:
        return other.execute(sql).fetchone()[0]
