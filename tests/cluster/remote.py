"""A process that uses a cluster's store on a machine that loses its network."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable

import anyio
import anyio.to_thread

from aimagestore import ImageStore, StoreUnavailableError
from aimagestore.cluster import ClusterLocation


async def main(records_url: str, blobs_url: str, way: str) -> None:
    """Use the store, and print as JSON which calls were unavailable and which images it has.

    :param way: ``calls`` or ``transaction``
    """
    async with ImageStore(ClusterLocation(records_url, blobs_url)) as store:
        failed = await (in_calls if way == "calls" else in_a_transaction)(store)
        await say(failed)
        await store.create("after")
        print(json.dumps([image.id for image in await store.images()]), flush=True)


async def in_calls(store: ImageStore) -> dict[str, bool]:
    await store.create("before")
    await say("open")
    failed: dict[str, bool] = {}

    async def call(name: str, awaitable: Awaitable[object]) -> None:
        failed[name] = await is_unavailable(awaitable)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call, "get", store.get("before"))
        tasks.start_soon(call, "create", store.create("lost"))
    return failed


async def in_a_transaction(store: ImageStore) -> dict[str, bool]:
    return {"transaction": await is_unavailable(transact(store))}


async def transact(store: ImageStore) -> None:
    async with store.transaction() as transaction:
        await transaction.create("lost")
        await say("in a transaction")


async def is_unavailable(call: Awaitable[object]) -> bool:
    try:
        await call
    except StoreUnavailableError:
        return True
    return False


async def say(message: object) -> None:
    """Print a message as JSON, and wait for a line of input."""
    print(json.dumps(message), flush=True)
    await anyio.to_thread.run_sync(sys.stdin.readline)


if __name__ == "__main__":
    _, backend, records_url, blobs_url, way = sys.argv
    anyio.run(main, records_url, blobs_url, way, backend=backend)
