"""The servers that all tests share, and places for stores on them."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, LiteralString
from urllib.parse import urlsplit

import psycopg
from anyio.to_thread import run_sync
from psycopg import sql

from aimagestore.cluster import ClusterLocation, migrate
from aimagestore.cluster._local.cluster import LocalCluster
from aimagestore.cluster._local.postgres import Postgres
from aimagestore.cluster._local.seaweedfs import SeaweedFS

from .moto import Moto
from .moto_lacks import USES_MOTO

_TEMPLATE = "template_of_stores"

POSTGRES = os.environ.get("AIMAGESTORE_TEST_POSTGRES")
"""The directory of PostgreSQL's programs, if it is not the PostgreSQL that is found."""

_MEMORY = Path("/dev/shm")
_ENOUGH = 8 << 30
"""Bytes that are free for several servers, each of which takes a few hundred million."""


class PostgresInMemory(Postgres):
    """A PostgreSQL whose data are in memory, because each test's database is 300 files."""

    def __init__(self, root: Path, programs: Path) -> None:
        super().__init__(root, programs)
        self.options["max_wal_size"] = "256MB"
        self._memory: Path | None = None

    def _make_root(self) -> None:
        super()._make_root()
        self._memory = Path(tempfile.mkdtemp(prefix="aimagestore-", dir=_MEMORY))
        self._own(self._memory)
        self.data.symlink_to(self._memory)

    def end(self) -> None:
        super().end()
        if self._memory is not None:
            shutil.rmtree(self._memory, ignore_errors=True)


def make_cluster() -> LocalCluster:
    """Prepare the servers that the environment asks for."""
    local = LocalCluster(Path(POSTGRES) if POSTGRES else None, Moto if USES_MOTO else SeaweedFS)
    if os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _ENOUGH:
        local.postgres = PostgresInMemory(local.postgres.root, local.postgres.programs)
    return local


@dataclass(frozen=True)
class Place:
    """A database and a part of a bucket for one store.

    :ivar records_url: the URL of the database
    :ivar blobs_url: the URL of the bucket and prefix
    """

    records_url: str
    blobs_url: str

    def location(self, **options: Any) -> ClusterLocation:
        """Return the store's location, with these options."""
        return ClusterLocation(self.records_url, self.blobs_url, **options)

    @property
    def database(self) -> str:
        """The database's name."""
        return urlsplit(self.records_url).path.lstrip("/")


class Servers:
    """PostgreSQL and the object store, with databases, settings and standbys for tests."""

    def __init__(self, local: LocalCluster) -> None:
        self.local = local
        self.postgres = local.postgres
        self.objects = local.objects
        self._numbers = itertools.count()
        self._session: psycopg.Connection | None = None
        self.write_through(False)
        self._hash_passwords_once()
        self.postgres.create_database(_TEMPLATE)
        migrate(self.postgres.url(_TEMPLATE))

    def write_through(self, on: bool) -> None:
        """Set whether PostgreSQL waits for the disk.

        If it does not, it can lose commits when the machine loses power, not when it is killed.
        """
        value = "on" if on else "off"
        self.set(fsync=value, full_page_writes=value)

    def set(self, **settings: str | None) -> None:
        """Change settings of PostgreSQL while it runs; ``None`` resets one to its default."""
        for name, value in settings.items():
            change = sql.SQL("ALTER SYSTEM SET {} = {}").format(
                sql.Identifier(name), sql.SQL("DEFAULT") if value is None else sql.Literal(value)
            )
            self.postgres.execute(change)
        loaded = self.postgres.execute("SELECT pg_conf_load_time()")
        self.postgres.execute("SELECT pg_reload_conf()")
        while self.postgres.execute("SELECT pg_conf_load_time()") == loaded:
            time.sleep(0.01)

    def _hash_passwords_once(self) -> None:
        # Checking a password is slow by design, and tests open thousands of sessions. PostgreSQL
        # before 16 does not have this setting.
        change = sql.SQL(
            "SELECT set_config(name, '1', false) FROM pg_settings WHERE name = 'scram_iterations';"
            "ALTER USER CURRENT_USER PASSWORD {}"
        )
        self.postgres.execute(change.format(sql.Literal(self.postgres.password)))

    @contextmanager
    def new_place(self) -> Iterator[Place]:
        """Make a place with tables and without images, for a block."""
        name = f"store{next(self._numbers)}"
        create = "CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy"
        self._administer(create, name, _TEMPLATE)
        try:
            yield Place(self.postgres.url(name), self.local.blobs_url(name))
        finally:
            self._administer("DROP DATABASE {} WITH (FORCE)", name)

    def _administer(self, statement: LiteralString, *names: str) -> None:
        """Execute a statement in one session for all tests, because starting one takes long."""
        command = sql.SQL(statement).format(*map(sql.Identifier, names))
        if self._session is not None:
            try:
                self._session.execute(command)
            except psycopg.OperationalError:  # a test has restarted the server
                self.close()
            else:
                return
        self._session = psycopg.connect(
            self.postgres.url(), password=self.postgres.password, autocommit=True
        )
        self._session.execute(command)

    def close(self) -> None:
        """End that session."""
        if self._session is not None:
            self._session.close()
            self._session = None

    @contextmanager
    def standby(self) -> Iterator[Postgres]:
        """Start a standby that follows PostgreSQL asynchronously, for a block."""
        standby = self.postgres.create_standby(self.local.root / "standby")
        standby.start()
        try:
            yield standby
        finally:
            standby.kill()
            shutil.rmtree(standby.root)

    async def execute(self, place: Place, statement: str, *values: object) -> list[Any]:
        """Execute a statement in a store's database as the superuser, and return its rows."""
        return await run_sync(self.postgres.execute, statement, values, place.database)

    def by_way_of(self, place: Place, port: int, host: str = "127.0.0.1") -> Place:
        """Return the place with another way to its records: a proxy, a pooler or a standby."""
        return Place(self.postgres.url(place.database, port, host), place.blobs_url)

    def on_primary_of(self, place: Place, standby: Postgres) -> Place:
        """Return the place with its records on whichever of both servers accepts changes."""
        url = place.records_url.replace("/store", f",127.0.0.1:{standby.port}/store")
        return replace(place, records_url=f"{url}?target_session_attrs=read-write")
