"""A streaming replica of a `Cluster`, which takes its place when told to."""

from __future__ import annotations

import os
import shutil
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

    def __enter__(self) -> Standby:
        try:
            if os.geteuid() == 0:
                shutil.chown(self.folder, "postgres", "postgres")
            source = ("--host=127.0.0.1", f"--port={self._through}", "--username=postgres")
            self.run("pg_basebackup", *source, f"--pgdata={self.data}", "--write-recovery-conf", "--checkpoint=fast")
            _listen_on(self)
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def wait_until_level(self) -> None:
        """Wait until it has all that the primary has written by now."""
        lsn = _ask(self.primary.port, "SELECT pg_current_wal_lsn()")
        wait_until(lambda: _ask(self.port, f"SELECT pg_last_wal_replay_lsn() >= '{lsn}'"), what="the replica")

    def take_over(self) -> None:
        """The primary crashes for good, and this one goes on in its place, with what it has."""
        self.primary.stop("immediate")
        self.stop()
        self.data, self.primary.data = self.primary.data, self.data
        self.folder, self.primary.folder = self.primary.folder, self.folder
        _listen_on(self.primary)
        self.primary.start()
        self.primary.run("pg_ctl", "promote", "--wait", "--silent")


def _listen_on(cluster: Cluster) -> None:
    """Its own port, whatever the data that it runs on were copied with."""
    with (cluster.data / "postgresql.conf").open("a") as conf:
        conf.write(f"port = {cluster.port}\n")


def _ask(port: int, sql: str) -> Any:
    import psycopg

    with psycopg.connect(host="127.0.0.1", port=port, user="postgres", dbname="postgres") as other:
        return other.execute(sql).fetchone()[0]
