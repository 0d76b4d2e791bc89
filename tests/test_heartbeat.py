"""The event loop never waits: a heartbeat goes on whatever a store is asked to do.

No test here asserts a time. The longest gap of the heartbeat is compared with how long the same
work takes in one go on this machine: work that ran on the loop would make a gap of that length.
"""

from __future__ import annotations

import hashlib
import time

import pytest

from aimagestore import ImageStore

from .support.heartbeat import never_waits

SIZE = 256 * 1024 * 1024


def one_go(data: bytes) -> float:
    """Return how long it takes to hash the data, in seconds."""
    start = time.perf_counter()
    hashlib.sha256(data).digest()
    return time.perf_counter() - start


@pytest.mark.parametrize("kind", [bytes, bytearray])
async def test_large_data_in_memory_never_stops_the_loop(
    store: ImageStore, kind: type[bytes | bytearray]
) -> None:
    data = kind(SIZE)

    async def take_it_all() -> None:
        await store.create("one")
        await store.create("two", big_data={"layer": data})
        await store.set_big_data("one", "layer", data)
        async with store.transaction() as tx:
            await tx.set_big_data("one", "other", data)
            await tx.create("three", big_data={"layer": data})
        await store.wipe()

    assert await never_waits(take_it_all, one_go(bytes(data)))
