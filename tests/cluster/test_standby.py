"""A standby serves readers, and takes over when the primary fails."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import anyio
import pytest
from anyio.to_thread import run_sync

from aimagestore import ImageStore, StoreUnavailableError

from .ledger import TASKS, Ledger, check_whole, killed

if TYPE_CHECKING:
    from aimagestore.cluster._local.postgres import Postgres

    from .servers import Place, Servers


@pytest.fixture
def standby(servers: Servers) -> Iterator[Postgres]:
    """A server that follows the first."""
    with servers.standby() as standby:
        yield standby


async def test_a_standby_serves_readers(servers: Servers, place: Place, standby: Postgres) -> None:
    there = servers.by_way_of(place, standby.port)
    async with (
        ImageStore(place.location()) as store,
        ImageStore(there.location(), read_only=True) as reader,
    ):
        image = await store.create(names=["name"], big_data={"manifest": b"m"})
        with anyio.fail_after(10):
            while not await reader.exists("name"):
                await anyio.sleep(0.01)
        assert await reader.get("name") == image
        assert await reader.big_data("name", "manifest") == b"m"
        async with killed(servers.postgres):
            assert await reader.get("name") == image
        await store.set_metadata("name", "later")
        with anyio.fail_after(30):
            while await reader.metadata("name") != "later":
                await anyio.sleep(0.01)


@asynccontextmanager
async def behind(standby: Postgres) -> AsyncIterator[None]:
    """Keep a standby from applying the commits that it receives during the block."""
    await run_sync(standby.execute, "SELECT pg_wal_replay_pause()")
    yield
    await run_sync(standby.execute, "SELECT pg_wal_replay_resume()")


async def test_a_standby_that_is_behind_is_not_taken_for_another_store(
    servers: Servers, place: Place, standby: Postgres
) -> None:
    there = servers.by_way_of(place, standby.port)

    async def count() -> int:
        async with ImageStore(there.location(), read_only=True) as reader:
            return len(await reader.images())

    async def until_followed(statement: str) -> None:
        """Return when a statement has a result on the standby."""
        with anyio.fail_after(30):
            while not await run_sync(standby.execute, statement, (), place.database):
                await anyio.sleep(0.01)

    await until_followed("SELECT 1 FROM pg_class WHERE relname = 'image_store'")
    async with behind(standby):
        async with ImageStore(place.location()) as store:
            await store.create()
        assert await count() == 0
    await until_followed("SELECT 1 FROM images")
    assert await count() == 1
    async with behind(standby):
        async with ImageStore(place.location()) as store:
            await store.create()
            await store.collect_garbage()
            await store.collect_garbage()
        assert await count() == 1


@pytest.fixture
def synchronous(servers: Servers, standby: Postgres) -> Iterator[Postgres]:
    """The standby, without which the primary acknowledges no commit."""
    postgres = servers.postgres
    postgres.options["synchronous_standby_names"] = "*"
    postgres.stop()
    postgres.start()
    yield standby
    del postgres.options["synchronous_standby_names"]
    postgres.kill()
    postgres.start()


async def test_nothing_is_lost_when_a_standby_takes_over(
    servers: Servers, place: Place, synchronous: Postgres
) -> None:
    """The location names both servers. The store uses the one that accepts changes."""
    both = servers.on_primary_of(place, synchronous)
    async with ImageStore(both.location()) as store:
        ledger = Ledger(store)

        async def fail_over() -> None:
            await ledger.until_acknowledged(TASKS)
            await run_sync(servers.postgres.kill)
            await run_sync(synchronous.execute, "SELECT pg_promote()")
            await ledger.until_acknowledged(TASKS)

        await ledger.run(fail_over)
    await check_whole(both, ledger)


async def test_a_commit_that_no_standby_has_is_not_acknowledged(
    servers: Servers, place: Place
) -> None:
    """The wait for the standby ends with the session, and the commit is on the primary."""
    waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    async with ImageStore(place.location(deadline=2.0)) as store:

        async def create() -> None:
            with pytest.raises(StoreUnavailableError, match="may have happened") as caught:
                await store.create("one")
            assert caught.value.may_have_happened

        await run_sync(partial(servers.set, synchronous_standby_names="missing"))
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(create)
                with anyio.fail_after(60):
                    while not (found := await servers.execute(place, waiting)):
                        await anyio.sleep(0.01)
                await servers.execute(place, "SELECT pg_terminate_backend(%s)", *found[0])
        finally:
            with anyio.CancelScope(shield=True):
                await run_sync(partial(servers.set, synchronous_standby_names=None))
        assert await store.exists("one")
