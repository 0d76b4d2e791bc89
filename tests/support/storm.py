"""A program that runs many clients whose calls time out after milliseconds.

Run as ``python -m tests.support.storm WHERE NAME SECONDS BACKEND CLIENTS SEED``. The clients share
a store. Each makes calls of all kinds under random time limits: on asyncio by ``asyncio.timeout``
and ``wait_for``, which anyio's shields do not stop, and on trio by its own. At the end the program
prints a JSON list with the ledger of each client. It fails if it has descriptors, threads or locks
that it did not have before.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import anyio
import anyio.lowlevel

from aimagestore import ImageStore, ImageUnknownError, StoreUnavailableError

from .connections import descriptors_by_name, discard_clients
from .stores import library_threads, open_files

SHORTEST = 0.0005
LONGEST = 0.02
LONGEST_ON_A_CLUSTER = 0.5
"""Seconds that a call gets. Beside 31 others, hardly any commit of a cluster takes under 20 ms."""


@dataclass
class Ledger:
    """The changes that the store has acknowledged to a client.

    :ivar client: the client's name, and the ID of its own image
    :ivar created: IDs of images that it has created and has not tried to delete
    :ivar deleted: IDs of images that it has deleted
    :ivar counter: the last number that it has set as the metadata of its image
    :ivar tried: the last number that it has tried to set
    :ivar calls: the number of its calls
    :ivar timeouts: the number of those that were not acknowledged
    """

    client: str
    created: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    counter: int = -1
    tried: int = -1
    calls: int = 0
    timeouts: int = 0


class Client:
    """A client of a store, which counts in the metadata of its own image."""

    def __init__(self, store: ImageStore, where: Any, ledger: Ledger, seed: str) -> None:
        self._store = store
        self._where = where
        self._ledger = ledger
        self._random = random.Random(seed)
        self._number = 0
        self._longest = LONGEST if isinstance(where, str) else LONGEST_ON_A_CLUSTER
        self._calls: list[Callable[[], Awaitable[None]]] = [
            self._count,
            self._count,
            self._count_in_transaction,
            self._create,
            self._create_staged,
            self._delete,
            self._read,
            self._stream,
            self._set_big_data,
            self._iterate,
            self._watch,
            self._reopen,
            self._hold,
        ]

    @property
    def _own(self) -> str:
        return self._ledger.client

    async def begin(self) -> None:
        """Create the client's image, without a time limit."""
        await self._store.create(self._own, metadata="-1", big_data={"item": b"0" * 1000})

    async def run(self, until: float) -> None:
        """Make calls until a time of the monotonic clock."""
        while time.monotonic() < until:
            call = self._random.choice(self._calls)
            limit = self._random.uniform(SHORTEST, self._longest)
            self._ledger.calls += 1
            try:
                await self._limited(call, limit)
            except (TimeoutError, ImageUnknownError):
                self._ledger.timeouts += 1
            except StoreUnavailableError as error:
                if not error.may_have_happened:
                    raise
                self._ledger.timeouts += 1
            await anyio.lowlevel.checkpoint()

    async def _limited(self, call: Callable[[], Awaitable[None]], limit: float) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            with anyio.fail_after(limit):
                await call()
            return
        if self._random.random() < 0.5:
            async with asyncio.timeout(limit):
                await call()
        else:
            await asyncio.wait_for(_coroutine(call), limit)

    async def _count(self) -> None:
        self._ledger.tried += 1
        number = self._ledger.tried
        await self._store.set_metadata(self._own, str(number))
        self._ledger.counter = number

    async def _count_in_transaction(self) -> None:
        self._ledger.tried += 1
        number = self._ledger.tried
        async with self._store.transaction() as tx:
            assert int(await tx.metadata(self._own)) < number, "a change was applied twice, or late"
            await tx.set_metadata(self._own, str(number))
        self._ledger.counter = number

    def _new_id(self) -> str:
        self._number += 1
        return f"{self._own}-{self._number}"

    async def _create(self) -> None:
        image_id = self._new_id()
        await self._store.create(image_id, big_data={"key": image_id.encode()})
        self._ledger.created.append(image_id)

    async def _create_staged(self) -> None:
        image_id = self._new_id()
        async with self._store.stage(image_id.encode()) as staged:
            await self._store.create(image_id, big_data={"key": staged})
            self._ledger.created.append(image_id)

    async def _delete(self) -> None:
        if len(self._ledger.created) < 3:
            return
        image_id = self._ledger.created.pop(0)
        await self._store.delete(image_id)
        self._ledger.deleted.append(image_id)

    async def _read(self) -> None:
        assert int((await self._store.get(self._own)).metadata) >= self._ledger.counter
        for image_id in self._ledger.created[-1:]:
            assert await self._store.big_data(image_id, "key") == image_id.encode()

    async def _stream(self) -> None:
        async with self._store.open_big_data(self._own, "item", verify=True) as reader:
            async for _ in reader:
                pass

    async def _set_big_data(self) -> None:
        data = [self._random.randbytes(1000) for _ in range(self._random.randint(1, 20))]
        await self._store.set_big_data(self._own, "item", iter(data))

    async def _iterate(self) -> None:
        async for _ in self._store.iter_images(page_size=10):
            break

    async def _watch(self) -> None:
        async with self._store.watch() as events:
            await anext(events)

    async def _reopen(self) -> None:
        async with ImageStore(self._where) as other:
            await other.set_flag(self._own, "flag", self._number)

    async def _hold(self) -> None:
        async with self._store.transaction() as tx:
            await tx.exists(self._own)
            await anyio.sleep(self._random.uniform(0, 0.002))


async def _coroutine(call: Callable[[], Awaitable[None]]) -> None:
    await call()


async def storm(where: Any, name: str, seconds: float, clients: int, seed: str) -> list[Ledger]:
    """Run clients on a store, and return their ledgers.

    :param name: what the names of these clients begin with
    :param seconds: how long they make calls
    """
    ledgers = [Ledger(f"{name}-{number}") for number in range(clients)]
    async with ImageStore(where) as store:
        tasks = [Client(store, where, ledger, f"{seed} {ledger.client}") for ledger in ledgers]
        for client in tasks:
            await client.begin()
        until = time.monotonic() + seconds
        with anyio.fail_after(seconds + 60):  # otherwise a call hangs
            async with anyio.create_task_group() as group:
                for client in tasks:
                    group.start_soon(client.run, until)
            # The store still works.
            for ledger in ledgers:
                ledger.tried += 1
                await store.set_metadata(ledger.client, str(ledger.tried))
                ledger.counter = ledger.tried
            async with store.transaction() as tx:
                await tx.exists(name)
    return ledgers


def location_of(where: str) -> Any:
    """Return the directory, or the location of the cluster whose URLs are joined by a blank."""
    records, blank, blobs = where.partition(" ")
    if not blank:
        return where
    from aimagestore.cluster import ClusterLocation

    return ClusterLocation(records, blobs)


def main() -> None:
    """Run the program."""
    where, name, seconds, backend, clients, seed = sys.argv[1:]
    options = {"use_uvloop": True} if backend == "uvloop" else {}
    before = descriptors_by_name()

    async def run() -> list[Ledger]:
        ledgers = await storm(location_of(where), name, float(seconds), int(clients), seed)
        gc.collect()
        end = time.monotonic() + 15
        while left := open_files(where, "inotify") | library_threads():
            assert time.monotonic() < end, left
            await anyio.sleep(0.01)
        return ledgers

    ledgers = anyio.run(
        run, backend="trio" if backend == "trio" else "asyncio", backend_options=options
    )
    discard_clients()
    end = time.monotonic() + 15
    while (left := descriptors_by_name() - before) and time.monotonic() < end:
        time.sleep(0.05)
    assert not left, f"{left} are open"
    print(json.dumps([asdict(ledger) for ledger in ledgers]))


if __name__ == "__main__":
    main()
