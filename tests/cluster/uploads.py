"""A process that uploads many items at once, and prints how much memory that took."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import anyio

from aimagestore import ImageStore
from aimagestore.cluster import ClusterLocation

STREAMS = 32
SIZE = 9 * 1024 * 1024
"""More than one part of an upload."""
_PIECE = 64 * 1024


def peak() -> int:
    """Return the peak of this process's memory, in bytes."""
    text = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", text)[1]) * 1024  # type: ignore[index]


async def pieces(seed: int, size: int) -> AsyncIterator[bytes]:
    """Yield random bytes, which are the same for the same seed."""
    source = random.Random(seed)
    for _ in range(size // _PIECE):
        yield source.randbytes(_PIECE)


async def in_tasks(stores: list[ImageStore], size: int) -> None:
    """Upload each item in a task of its own."""

    async def upload(number: int) -> None:
        store = stores[number % len(stores)]
        image = await store.create(big_data={"layer": pieces(number, size)})
        assert image.size == size

    async with anyio.create_task_group() as tasks:
        for number in range(STREAMS):
            tasks.start_soon(upload, number)


async def in_turn(stores: list[ImageStore], size: int) -> None:
    """Upload all items in one task, one piece of each in turn."""
    sources = [pieces(number, size) for number in range(STREAMS)]
    async with AsyncExitStack() as stack:
        items = [
            await stack.enter_async_context(stores[number % len(stores)].stage())
            for number in range(STREAMS)
        ]
        for _ in range(size // _PIECE):
            for item, source in zip(items, sources, strict=True):
                await item.write(await anext(source))
        for number, item in enumerate(items):
            await stores[number % len(stores)].create(big_data={"layer": item})


async def main(*arguments: str) -> None:
    """Upload small items, then large ones, and print the growth of the peak of memory in bytes."""
    records_url, blobs_url, way, count = arguments
    # A slow machine must not fail: what is measured is memory.
    location = ClusterLocation(records_url, blobs_url, deadline=60.0)
    upload = in_tasks if way == "tasks" else in_turn
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(ImageStore(location)) for _ in range(int(count))]
        await upload(stores, _PIECE)
        before = peak()
        await upload(stores, SIZE)
        print(peak() - before)


if __name__ == "__main__":
    _, backend, *arguments = sys.argv
    anyio.run(main, *arguments, backend=backend)
