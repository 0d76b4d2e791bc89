"""A standby, which serves readers and can take over."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest

from aimagestore import ImageStore

from .ledger import TASKS, Ledger, check_whole, in_thread, killed

if TYPE_CHECKING:
    from aimagestore.cluster._local.postgres import Postgres

    from .servers import Place, Servers


@pytest.fixture
def standby(servers: Servers) -> Iterator[Postgres]:
    """A server that follows the first."""
    standby = servers.postgres.create_standby(servers.local.root / "standby")
    standby.start()
    yield standby
    standby.kill()
    shutil.rmtree(standby.root)


async def test_a_standby_for_reads(servers: Servers, place: Place, standby: Postgres) -> None:
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
    """Let a standby not apply the commits that reach it during the block."""
    await anyio.to_thread.run_sync(standby.execute, "SELECT pg_wal_replay_pause()")
    yield
    await anyio.to_thread.run_sync(standby.execute, "SELECT pg_wal_replay_resume()")


async def test_a_standby_that_is_behind_is_not_taken_for_another_store(
    servers: Servers, place: Place, standby: Postgres
) -> None:
    there = servers.by_way_of(place, standby.port)

    async def count() -> int:
        async with ImageStore(there.location(), read_only=True) as reader:
            return len(await reader.images())

    async def until_known(statement: str) -> None:
        with anyio.fail_after(30):
            while not await in_place(statement):
                await anyio.sleep(0.01)

    def in_place(statement: str) -> Awaitable[list[Any]]:
        return anyio.to_thread.run_sync(standby.execute, statement, (), place.database)

    await until_known("SELECT 1 FROM pg_class WHERE relname = 'image_store'")
    async with behind(standby):
        async with ImageStore(place.location()) as store:
            await store.create()
        assert await count() == 0
    await until_known("SELECT 1 FROM images")
    assert await count() == 1
    async with behind(standby):
        async with ImageStore(place.location()) as store:
            await store.create()
            await store.collect_garbage()
            await store.collect_garbage()
        assert await count() == 1


@pytest.fixture
def synchronous(servers: Servers, standby: Postgres) -> Iterator[Postgres]:
    """The standby, which has every commit before it is acknowledged."""
    postgres = servers.postgres
    postgres.options["synchronous_standby_names"] = "*"
    postgres.stop()
    postgres.start()
    yield standby
    del postgres.options["synchronous_standby_names"]
    postgres.kill()
    postgres.start()


async def test_a_standby_that_takes_over(
    servers: Servers, place: Place, synchronous: Postgres
) -> None:
    """The location names both servers, and the one that can be written to is used."""
    url = servers.postgres.url(place.database)
    both = replace(
        place,
        records_url=url.replace("/store", f",127.0.0.1:{synchronous.port}/store")
        + "?target_session_attrs=read-write",
    )
    async with ImageStore(both.location()) as store:
        ledger = Ledger(store)

        async def fail_over() -> None:
            await ledger.until_acknowledged(TASKS)
            await in_thread(servers.postgres.kill)
            await in_thread(lambda: synchronous.execute("SELECT pg_promote()"))
            await ledger.until_acknowledged(TASKS)

        await ledger.run(fail_over)
    await check_whole(both, ledger)
