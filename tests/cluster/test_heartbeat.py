"""The event loop never waits for a server, however slow or silent it is.

No test here depends on how fast the machine is. A server's answer comes after four more beats of
the loop, so a wait for it on the loop would never end. What the loop computes is measured in
processor time, and compared with the time of a part of the same work.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import pytest

from aimagestore import ImageStore

from ..support.heartbeat import Heartbeat, never_waits
from ..support.stores import library_threads, until
from .ledger import fails, frozen

if TYPE_CHECKING:
    from .proxy import Proxy
    from .servers import Place, Servers

MIB = 1024 * 1024
TIMES = 50
DEADLINE = 2.0


class SlowServers:
    """Servers each of whose answers comes after four beats: 20 ms on a loop that never waits.

    :ivar place: a store's place, by way of them
    """

    def __init__(self, place: Place, proxies: tuple[Proxy, ...]) -> None:
        self.place = place
        self._proxies = proxies

    @asynccontextmanager
    async def answering(self) -> AsyncIterator[Heartbeat]:
        """Check during a block that the loop never stops."""
        heart = Heartbeat()
        async with heart.beating():
            with ExitStack() as stack:
                for proxy in self._proxies:
                    stack.enter_context(proxy.answering_after(heart.let_beat))
                yield heart
        assert not heart.has_stopped
        assert heart.longest_work < hash_in_one_go() / 4


@pytest.fixture
async def slow(
    servers: Servers, place: Place, to_postgres: Proxy, to_objects: Proxy
) -> AsyncIterator[SlowServers]:
    """The servers, slowed down."""
    yield SlowServers(servers.by_way_of(place, to_postgres.port), (to_postgres, to_objects))
    # Threads still remove objects after a store was closed, and need the proxies until then.
    await until(lambda: not library_threads())


def hash_in_one_go() -> float:
    """Return the processor time that hashing 64 MiB takes, in seconds."""
    data = bytes(64 * MIB)
    start = time.thread_time()
    hashlib.sha256(data).digest()
    return time.thread_time() - start


async def test_a_transaction_never_waits_on_the_loop(slow: SlowServers) -> None:
    async with (
        ImageStore(slow.place.location()) as store,
        slow.answering() as heart,
        store.transaction() as tx,
    ):
        before = heart.answers
        for number in range(TIMES):
            await tx.create(f"image{number}", names=[f"name{number}"])
            assert (await tx.get(f"name{number}")).id == f"image{number}"
            assert not await tx.exists(f"other{number}")
        assert heart.answers - before >= 2 * TIMES


async def test_no_call_waits_on_the_loop(slow: SlowServers) -> None:
    async with slow.answering(), ImageStore(slow.place.location()) as store:
        async with store.watch() as changes:
            image = await store.create(names=["name"], big_data={"manifest": b"{}"})
            assert (await anext(changes)).image == image
        assert await store.get("name") == image
        assert await store.by_digest(image.digest) == [image]
        assert [image async for image in store.iter_images()] == await store.images() == [image]
        assert list(await store.snapshot()) == [image]
        await store.add_names(image.id, ["other"])
        await store.set_big_data("name", "manifest", b"[]")
        assert await store.big_data("other", "manifest") == b"[]"
        async with store.open_big_data("other", "manifest", verify=True) as reader:
            assert await reader.read() == b"[]"
        assert not await store.modified()
        assert not await store.refresh()
        await store.touch()
        await store.delete("other")
        await store.collect_garbage()


async def test_large_data_in_memory_never_stops_the_loop(slow: SlowServers) -> None:
    data = bytes(64 * MIB)
    async with ImageStore(slow.place.location()) as store, slow.answering():
        await store.create("one", big_data={"layer": data})
        async with store.transaction() as tx:
            await tx.set_big_data("one", "layer", data)


async def test_calls_wait_for_frozen_servers_beside_the_loop(
    servers: Servers, place: Place
) -> None:
    data = bytes(16 * MIB)
    async with ImageStore(place.location(deadline=DEADLINE)) as store:
        await store.create("one", big_data={"layer": data})

        async def ask() -> None:
            with frozen(servers.postgres, servers.objects):
                async with anyio.create_task_group() as tasks:
                    for call in (
                        lambda: store.get("one"),
                        lambda: store.create("two"),
                        lambda: store.create("three", big_data={"layer": data}),
                        lambda: store.big_data("one", "layer"),
                    ):
                        tasks.start_soon(fails, servers, call)

        assert await never_waits(ask, DEADLINE / 4)
