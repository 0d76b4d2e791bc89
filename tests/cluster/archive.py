"""A PostgreSQL that archives its write-ahead log, and recovers from it to a point in time."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from uuid import uuid4

from aimagestore.cluster import migrate
from aimagestore.cluster._local.postgres import USER, Postgres
from aimagestore.cluster._local.server import HOST

from ..support.stores import becomes_true
from .servers import Place, Servers

Target = Literal["name", "time", "xid"]
"""The kinds of recovery targets."""

_DATABASE = "store"
_SECONDS = 60


class ArchivingPostgres(Postgres):
    """A server for one test, because a recovery takes all of its databases back in time.

    :ivar place: the place of a store on it
    """

    def __init__(self, servers: Servers, root: Path) -> None:
        postgres = servers.postgres
        super().__init__(root, postgres.programs, password=postgres.password)
        self._archive = root / "archive"
        self._backup = root / "backup"
        self.options |= {
            "fsync": "off",
            "archive_mode": "on",
            "archive_command": f"cp %p {self._archive}/%f",
            "restore_command": f"cp {self._archive}/%f %p",
            "recovery_target_action": "promote",
        }
        self.place = Place(self.url(_DATABASE), servers.local.blobs_url(uuid4().hex))

    def create(self) -> None:
        super().create()
        self._archive.mkdir()
        self._own(self._archive)
        self.start()
        self.create_database(_DATABASE)
        migrate(self.place.records_url)

    def back_up(self) -> None:
        """Make the base backup, from which recoveries begin."""
        self._run(
            "pg_basebackup",
            *("--pgdata", str(self._backup), "--checkpoint", "fast", "--no-sync"),
            *("--host", HOST, "--port", str(self.port), "--username", USER),
        )

    def present(self, target: Target) -> Mapping[str, str]:
        """Return the settings of a recovery to the present moment, or to the last commit (xid)."""
        if target == "name":
            self.execute("SELECT pg_create_restore_point('here')")
            return {"recovery_target_name": "here"}
        if target == "time":
            ((now,),) = self.execute("SELECT clock_timestamp()::text")
            return {"recovery_target_time": now}
        last = "SELECT xmin::text FROM image_commits ORDER BY version DESC LIMIT 1"
        ((number,),) = self.execute(last, (), _DATABASE)
        return {"recovery_target_xid": number}

    def go_back(self, target: Mapping[str, str]) -> None:
        """Recover to a point in time, from the base backup and the archive alone."""
        ((last,),) = self.execute("SELECT pg_walfile_name(pg_switch_wal())")
        archived = "SELECT 1 FROM pg_stat_archiver WHERE last_archived_wal >= %s"
        assert becomes_true(lambda: bool(self.execute(archived, [last])), _SECONDS)
        self.kill()
        shutil.rmtree(self.data)
        self._backup.rename(self.data)
        signal = self.data / "recovery.signal"
        signal.touch()
        self._own(signal)
        self.options |= target
        self.start()
        assert becomes_true(lambda: not self._is_recovering(), _SECONDS)

    def _is_recovering(self) -> bool:
        ((is_recovering,),) = self.execute("SELECT pg_is_in_recovery()")
        return bool(is_recovering)
