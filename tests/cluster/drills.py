"""Drills of operators: dumps, restored databases, copied buckets, adoptions and collections."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import psycopg
import pytest
from anyio.to_thread import run_sync

from aimagestore import FindingKind, ImageStore, Report, StoreIdentityError, check
from aimagestore.cluster import adopt, set_grace_period

from .ledger import Ledger

if TYPE_CHECKING:
    from .servers import Place, Servers

MARKER = "aimagestore.json"
"""The name of the object that marks a prefix as a store's."""

NO_GRACE = timedelta(microseconds=1)
"""A grace period that is over at once."""

_TABLES = (
    "image_store",
    "images",
    "image_names",
    "image_digests",
    "image_items",
    "image_commits",
    "image_changes",
)


class Dump:
    """The content of a database's tables at the time when this is made."""

    def __init__(self, place: Place) -> None:
        self._place = place
        with psycopg.connect(place.records_url) as connection:
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            self._tables = {name: self._read(connection, name) for name in _TABLES}

    @staticmethod
    def _read(connection: psycopg.Connection, name: str) -> bytes:
        with connection.cursor().copy(f"COPY {name} TO STDOUT".encode()) as copy:
            return b"".join(copy)

    def restore(self) -> None:
        """Restore the content in one transaction. The database may be in use."""
        with psycopg.connect(self._place.records_url) as connection:
            connection.execute(f"TRUNCATE {', '.join(_TABLES)}".encode())
            for name, rows in self._tables.items():
                with connection.cursor().copy(f"COPY {name} FROM STDIN".encode()) as copy:
                    copy.write(rows)


@contextmanager
def restored_elsewhere(servers: Servers, place: Place) -> Iterator[Place]:
    """Restore a dump of a place's database as another database, for a block.

    The database may be in use.
    """
    postgres = servers.postgres
    file = str(postgres.root / "dump")
    postgres._run("pg_dump", "--format=custom", "--file", file, place.records_url)
    name = f"{place.database}_restored"
    postgres.create_database(name)
    postgres._run("pg_restore", "--dbname", postgres.url(name), file)
    try:
        yield replace(place, records_url=postgres.url(name))
    finally:
        postgres.drop_database(name)


class Bucket:
    """The objects below a place's prefix of the bucket."""

    def __init__(self, servers: Servers, place: Place) -> None:
        self._client = servers.objects.bucket(place.blobs_url.rpartition("/")[2])

    def read(self) -> dict[str, bytes]:
        """Return all objects by name, the marker among them."""
        paths = [found["path"] for page in self._client.list() for found in page]
        return {path: bytes(self._client.get(path).bytes()) for path in paths}

    def write(self, objects: dict[str, bytes]) -> None:
        """Make the prefix hold these objects and no others."""
        for path in self.read().keys() - objects.keys():
            self._client.delete(path)
        for path, data in objects.items():
            self._client.put(path, data)


class DrillLedger(Ledger):
    """A ledger whose tasks end when they find out that the store is another one.

    :ivar refused: the errors that ended tasks
    """

    def __init__(self, store: ImageStore) -> None:
        super().__init__(store)
        self.refused: list[StoreIdentityError] = []

    async def _work(self) -> None:
        try:
            await super()._work()
        except StoreIdentityError as error:
            self.refused.append(error)

    @asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        """Change the store from several tasks during the block."""
        ended = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.run, ended.wait)
            try:
                yield
            finally:
                ended.set()

    async def until_refused(self, number: int) -> None:
        """Wait until a number of tasks have ended."""
        with anyio.fail_after(60):
            while len(self.refused) < number:
                await anyio.sleep(0.01)


async def adopted(place: Place) -> None:
    """Adopt the place's bucket for its database."""
    await run_sync(adopt, place.records_url, place.blobs_url)


async def shorten_grace_period(place: Place) -> None:
    """Set the store's grace period to :data:`NO_GRACE`."""
    await run_sync(set_grace_period, place.records_url, NO_GRACE)


async def until_collected(store: ImageStore) -> Report:
    """Collect garbage until some is found, and return that report.

    The object store records times in whole seconds, so objects may seem too young at first.
    """
    with anyio.fail_after(20):
        while not (report := await store.collect_garbage()).findings:
            await anyio.sleep(0.1)
    return report


async def assert_refused(place: Place, problem: str, *, reads: bool = False) -> None:
    """Check that the place can't be opened or checked, for this reason.

    :param reads: whether it can be checked, and opened to be read, nevertheless
    """

    async def opened(**options: Any) -> None:
        async with ImageStore(place.location(), **options):
            pass

    calls: list[Callable[[], Awaitable[object]]] = [opened]
    if not reads:
        calls += [partial(opened, read_only=True), partial(check, place.location())]
    for call in calls:
        with pytest.raises(StoreIdentityError, match=problem) as caught:
            await call()
        assert "aimagestore cluster adopt" in str(caught.value)


async def fill(store: ImageStore, *names: str) -> None:
    """Create images with these IDs, whose manifests are their IDs."""
    for name in names:
        await store.create(name, big_data={"manifest": name.encode()})


async def assert_nothing_is_lost(place: Place, *missing: str) -> None:
    """Check that every item of a record is whole.

    :param missing: the keys of items that are missing nevertheless
    """
    report = await check(place.location())
    damaged = [f for f in report.findings if f.kind != FindingKind.TEMPORARY_STALE]
    assert [(f.kind, f.key) for f in damaged] == [(FindingKind.ITEM_MISSING, k) for k in missing]
