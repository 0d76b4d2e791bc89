"""The object store or the network to it fails: each item has its old or its new content."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import anyio
import pytest
from anyio.to_thread import run_sync

from aimagestore import ImageStore, StoreUnavailableError

from ..support.stores import library_threads, until
from . import moto_lacks
from .drills import Bucket
from .ledger import TASKS, Ledger, check_whole, fails, killed

if TYPE_CHECKING:
    from .proxy import Proxy
    from .servers import Place, Servers


@moto_lacks.durability
async def test_nothing_is_lost_when_the_object_store_restarts(
    servers: Servers, place: Place
) -> None:
    async with ImageStore(place.location()) as store:
        ledger = Ledger(store)

        async def restart() -> None:
            for _ in range(2):
                await ledger.until_acknowledged(TASKS)
                await run_sync(servers.objects.kill)
                await run_sync(servers.objects.start)
            await ledger.until_acknowledged(TASKS)

        await ledger.run(restart)
    await check_whole(place, ledger)


@moto_lacks.durability
async def test_only_calls_that_need_a_stopped_object_store_fail(
    servers: Servers, place: Place
) -> None:
    async with ImageStore(place.location()) as store:
        await store.create("one", big_data={"layer": b"old" * 100_000})
        before = await store.get("one")
        async with killed(servers.objects), anyio.create_task_group() as tasks:
            new = b"new" * 100_000
            tasks.start_soon(fails, servers, lambda: store.set_big_data("one", "layer", new))
            tasks.start_soon(fails, servers, lambda: store.big_data("one", "layer"))
            assert await store.get("one") == before
        assert await store.big_data("one", "layer") == b"old" * 100_000
        await store.set_big_data("one", "layer", b"new" * 100_000)
        assert await store.big_data("one", "layer") == b"new" * 100_000


async def chunks(count: int) -> AsyncIterator[bytes]:
    for number in range(count):
        yield bytes([number % 256]) * 1_000_000


async def test_an_upload_continues_after_its_connections_are_cut(
    place: Place, to_objects: Proxy
) -> None:
    """The part that failed is sent again."""
    async with ImageStore(place.location()) as store:
        image = await store.create("one")
        to_objects.cut_after(20_000_000)
        image = await store.set_big_data("one", "layer", chunks(40))
        assert image.big_data_sizes["layer"] == 40_000_000
        async with store.open_big_data("one", "layer", verify=True) as reader:
            assert len(await reader.read()) == 40_000_000


async def test_a_download_continues_after_its_connections_are_cut(
    place: Place, to_objects: Proxy
) -> None:
    async with ImageStore(place.location()) as store:
        await store.create("one")
        await store.set_big_data("one", "layer", chunks(40))
        async with store.open_big_data("one", "layer", verify=True) as reader:
            data = await reader.read(1_000_000)
            to_objects.cut()
            data += await reader.read()
        assert data == b"".join([chunk async for chunk in chunks(40)])


async def test_an_object_that_could_not_be_removed_is_named_in_the_log(
    servers: Servers,
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_: object) -> None:
        raise StoreUnavailableError("the object store is unavailable")

    async with ImageStore(place.location()) as store:
        monkeypatch.setattr("aimagestore.cluster._blobs.Blobs.delete", refuse)
        async with store.stage(b"content"):
            names = await run_sync(Bucket(servers, place).read)
        (name,) = (name for name in names if not name.startswith("aimagestore"))
    await until(lambda: f"{place.blobs_url}/{name} is left to collect_garbage" in caplog.text)


async def test_an_upload_to_an_object_store_that_stays_unavailable_changes_nothing(
    place: Place, to_objects: Proxy
) -> None:
    async with ImageStore(place.location()) as store:
        before = await store.create("one", big_data={"layer": b"old" * 100_000})
        with ExitStack() as stack:

            async def cut_chunks() -> AsyncIterator[bytes]:
                for number in range(40):
                    if number == 20:
                        stack.enter_context(to_objects.refusing())
                    yield bytes([number]) * 1_000_000

            with pytest.raises(StoreUnavailableError):
                await store.set_big_data("one", "layer", cut_chunks())
        assert await store.get("one") == before
        assert await store.big_data("one", "layer") == b"old" * 100_000
    # A thread still removes the parts that were sent, and needs the proxy until it has.
    await until(lambda: not library_threads())
