"""What operators do to a store: dumps, restored databases, copied buckets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import psycopg
import pytest
from anyio.to_thread import run_sync

from aimagestore import FindingKind, ImageStore, StoreIdentityError, check
from aimagestore.cluster import adopt

from .ledger import Ledger

if TYPE_CHECKING:
    from .servers import Place, Servers

MARKER = "aimagestore.json"

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
    """The content of a database's tables at one moment, which can be restored."""

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
        """Take the database back in time, in one step and while it is used."""
        with psycopg.connect(self._place.records_url) as connection:
            connection.execute(f"TRUNCATE {', '.join(_TABLES)}".encode())
            for name, rows in self._tables.items():
                with connection.cursor().copy(f"COPY {name} FROM STDIN".encode()) as copy:
                    copy.write(rows)


async def take_dump(place: Place) -> Dump:
    return await run_sync(Dump, place)


@contextmanager
def restored_elsewhere(servers: Servers, place: Place) -> Iterator[Place]:
    """Restore a dump of a place's database, which may be in use, as another database."""
    postgres = servers.postgres
    file = str(postgres.root / "dump")
    postgres._run("pg_dump", "--format=custom", "--file", file, place.records_url)
    name = f"{place.database}_restored"
    postgres.create_database(name)
    postgres._run("pg_restore", "--dbname", postgres.url(name), file)
    yield replace(place, records_url=postgres.url(name))
    postgres.drop_database(name)


class Bucket:
    """A prefix of the bucket, as an operator sees it."""

    def __init__(self, servers: Servers, place: Place) -> None:
        self._client = servers.objects.bucket(place.blobs_url.rpartition("/")[2])

    def read(self) -> dict[str, bytes]:
        """Return all objects, with the marker."""
        paths = [found["path"] for page in self._client.list() for found in page]
        return {path: bytes(self._client.get(path).bytes()) for path in paths}

    def write(self, objects: dict[str, bytes]) -> None:
        """Make the prefix hold these objects and no others."""
        for path in self.read().keys() - objects.keys():
            self._client.delete(path)
        for path, data in objects.items():
            self._client.put(path, data)


class DrillLedger(Ledger):
    """A ledger whose tasks end when they learn that the store is another one.

    :ivar refused: the errors that ended them
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
        """Change the store from some tasks during the block."""
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


def adopted(place: Place) -> Awaitable[object]:
    return run_sync(adopt, place.records_url, place.blobs_url)


async def refuses(place: Place, problem: str, *, reads: bool = False) -> None:
    """Check that the place is refused by all that would open it, or by all but a reader."""

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
    for name in names:
        await store.create(name, big_data={"manifest": name.encode()})


async def assert_nothing_is_lost(place: Place, *missing: str) -> None:
    """Check that every item that a record refers to is there and whole.

    :param missing: the keys of items that are not
    """
    report = await check(place.location())
    damaged = [f for f in report.findings if f.kind != FindingKind.TEMPORARY_STALE]
    assert [(f.kind, f.key) for f in damaged] == [(FindingKind.ITEM_MISSING, k) for k in missing]
