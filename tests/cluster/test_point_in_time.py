"""A database that is recovered to a point in time while stores are open and busy."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

import anyio
import pytest
from anyio.to_thread import run_sync

from aimagestore import ImageStore, StoreIdentityError, StoreUnavailableError

for package in ("psycopg", "obstore"):
    pytest.importorskip(package, reason="needs the clients: pip install 'aimagestore[cluster]'")

from .archive import ArchivingPostgres, Target
from .drills import (
    DrillLedger,
    adopted,
    assert_nothing_is_lost,
    assert_refused,
    fill,
    until_collected,
)
from .ledger import TASKS

if TYPE_CHECKING:
    from .servers import Servers

SOON = timedelta(seconds=2)
LATER = timedelta(hours=1)


@pytest.fixture
def archiving(servers: Servers) -> Iterator[ArchivingPostgres]:
    """A PostgreSQL of its own that archives its write-ahead log."""
    postgres = ArchivingPostgres(servers, servers.local.root / "archiving")
    try:
        postgres.create()
        yield postgres
    finally:
        postgres.kill()
        shutil.rmtree(postgres.root)


async def assert_every_call_is_refused(store: ImageStore) -> None:
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: store.get("old"),
        lambda: store.big_data("old", "manifest"),
        store.images,
        store.refresh,
        store.collect_garbage,
        lambda: fill(store, "new"),
        lambda: store.transaction().__aenter__(),
        lambda: store.watch().__aenter__(),
    ]
    for call in calls:
        with pytest.raises(StoreIdentityError, match=r"went back in time|was restored"):
            await call()


@pytest.mark.parametrize(
    "target",
    [
        "time",
        pytest.param("name", marks=pytest.mark.thorough),
        pytest.param("xid", marks=pytest.mark.thorough),
    ],
)
async def test_busy_stores_notice_a_recovery_to_a_point_in_time(
    archiving: ArchivingPostgres, target: Target
) -> None:
    place = archiving.place
    location = place.location(grace_period=SOON)
    async with ImageStore(location) as store, ImageStore(location) as idle:
        await fill(store, "old")
        await run_sync(archiving.back_up)
        await fill(store, "archived")
        assert await idle.big_data("archived", "manifest") == b"archived"
        async with store.watch() as changes:
            ledger = DrillLedger(store)
            async with ledger.busy():
                await ledger.until_acknowledged(TASKS)
                kept = set(ledger.acknowledged)
                present = await run_sync(archiving.present, target)
                await store.delete("old")
                await ledger.until_acknowledged(TASKS)
                await run_sync(archiving.go_back, present)
                await ledger.until_refused(TASKS)
            assert all("went back in time" in str(error) for error in ledger.refused)
            await assert_every_call_is_refused(store)
            with anyio.fail_after(20), pytest.raises(StoreIdentityError, match="back in time"):
                while True:
                    await anext(changes)
        # It has seen no commit that was lost.
        assert await idle.big_data("old", "manifest") == b"old"
        await fill(idle, "new")
        await anyio.sleep(SOON.total_seconds() + 1)
        assert (await idle.collect_garbage()).findings == ()
    async with ImageStore(location) as store:
        names = {name for image in await store.images() for name in image.names}
        assert kept <= names < ledger.acknowledged
        await assert_nothing_is_lost(place)
        await until_collected(store)
        for name in ("old", "archived", "new"):
            assert await store.big_data(name, "manifest") == name.encode()
    await assert_nothing_is_lost(place)


async def test_a_recovery_to_a_time_before_a_collection_is_refused_until_it_is_adopted(
    archiving: ArchivingPostgres,
) -> None:
    place = archiving.place
    async with (
        ImageStore(place.location(grace_period=LATER)) as store,
        ImageStore(place.location()) as collector,
    ):
        await fill(store, "old")
        await run_sync(archiving.back_up)
        ledger = DrillLedger(store)
        collections = 0

        async def collect() -> None:
            nonlocal collections
            while True:
                with suppress(StoreUnavailableError):
                    assert (await collector.collect_garbage()).findings == ()
                    collections += 1

        async def until_collected() -> None:
            enough = collections + 2
            while collections < enough:
                await anyio.sleep(0.01)

        with pytest.raises(ExceptionGroup) as caught:
            async with ledger.busy(), anyio.create_task_group() as tasks:
                tasks.start_soon(collect)
                await ledger.until_acknowledged(TASKS)
                present = await run_sync(archiving.present, "name")
                await store.delete("old")
                await ledger.until_acknowledged(TASKS)
                await until_collected()
                await run_sync(archiving.go_back, present)
                await ledger.until_refused(TASKS)
                await anyio.sleep_forever()
        assert caught.value.split(StoreIdentityError)[1] is None
        await assert_every_call_is_refused(store)
        with pytest.raises(StoreIdentityError, match="was restored"):
            await collector.collect_garbage()
    await assert_refused(place, "a garbage collection that the database does not know")
    await adopted(place)
    await assert_nothing_is_lost(place)
    async with ImageStore(place.location()) as store:
        assert (await store.collect_garbage()).findings == ()
        assert await store.big_data("old", "manifest") == b"old"
        await fill(store, "new")
    await assert_nothing_is_lost(place)
