"""A program: many clients that give each call a few milliseconds, and a ledger of what was kept.

Run as ``python -m tests.support.storm WHERE NAME SECONDS BACKEND CLIENTS SEED``. Each client uses
every kind of call on the shared store, under a random time limit: with asyncio it is
``asyncio.timeout`` and ``wait_for``, which pass through anyio's shields; with trio its own. At the
end the program prints, as JSON, which calls of each client were acknowledged. It fails if anything
is held, open or running that was not before.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.lowlevel

from aimagestore import ImageStore, ImageUnknownError, StoreUnavailableError

SHORTEST = 0.0005
LONGEST = 0.02
LONGEST_ON_A_CLUSTER = 0.5
"""Seconds that a call gets. Beside 31 others, hardly any commit of a cluster takes under 20 ms."""


@dataclass
class Ledger:
    """What the store has acknowledged to a client.

    :ivar created: IDs whose creation was acknowledged, and not deleted since
    :ivar deleted: IDs whose deletion was acknowledged
    :ivar counter: the last number that was acknowledged as its image's metadata
    :ivar tried: the last number that it has tried to set
    """

    client: str
    created: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    counter: int = -1
    tried: int = -1
    calls: int = 0
    timeouts: int = 0


class Client:
    """One client of a store."""

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
        """Create the client's image, without a limit."""
        await self._store.create(self._own, metadata="-1", big_data={"item": b"0" * 1000})

    async def run(self, until: float) -> None:
        """Make calls until a time."""
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
    """Run clients on a store, and return their ledgers."""
    ledgers = [Ledger(f"{name}-{number}") for number in range(clients)]
    async with ImageStore(where) as store:
        tasks = [Client(store, where, ledger, f"{seed} {ledger.client}") for ledger in ledgers]
        for client in tasks:
            await client.begin()
        until = time.monotonic() + seconds
        with anyio.fail_after(seconds + 60):  # a hang fails
            async with anyio.create_task_group() as group:
                for client in tasks:
                    group.start_soon(client.run, until)
            for ledger in ledgers:  # the next calls work
                ledger.tried += 1
                await store.set_metadata(ledger.client, str(ledger.tried))
                ledger.counter = ledger.tried
            async with store.transaction() as tx:
                await tx.exists(name)
    return ledgers


def location_of(where: str) -> Any:
    """Return a directory, or the location of a cluster: its two URLs with a blank between."""
    records, blank, blobs = where.partition(" ")
    if not blank:
        return where
    from aimagestore.cluster import ClusterLocation

    return ClusterLocation(records, blobs)


def main() -> None:
    """Run the program."""
    where, name, seconds, backend, clients, seed = sys.argv[1:]
    options = {"use_uvloop": True} if backend == "uvloop" else {}
    before = _descriptors()

    async def run() -> list[Ledger]:
        ledgers = await storm(location_of(where), name, float(seconds), int(clients), seed)
        gc.collect()
        end = time.monotonic() + 15
        while _left(where):
            assert time.monotonic() < end, _left(where)
            await anyio.sleep(0.01)
        return ledgers

    ledgers = anyio.run(
        run, backend="trio" if backend == "trio" else "asyncio", backend_options=options
    )
    # The process has one client of the object store, which keeps a connection for each request that
    # was under way at the same time.
    objects = urlsplit(os.environ.get("AWS_ENDPOINT_URL", "")).port
    before[f"socket to port {objects}"] += 2 * int(clients)
    end = time.monotonic() + 15
    while (left := _descriptors() - before) and time.monotonic() < end:
        time.sleep(0.05)
    assert not left, f"{left} are open"
    print(json.dumps([asdict(ledger) for ledger in ledgers]))


def _descriptors() -> Counter[str]:
    """Count what is open, except for what event loops use to wake up, which they keep."""
    found: Counter[str] = Counter()
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        if not target.startswith(("anon_inode:", "pipe:")):
            kind, _, inode = target.partition(":[")
            found[f"socket to port {_port(inode[:-1])}" if kind == "socket" else target] += 1
    return found


def _port(inode: str) -> int | None:
    """Return the port that a socket is connected to."""
    for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[9] == inode:
            return int(fields[2].partition(":")[2], 16)
    return None


def _left(where: str) -> list[str]:
    """Return the library's threads and descriptors."""
    found = [t.name for t in threading.enumerate() if t.name.startswith("aimagestore")]
    if found.count("aimagestore watchdog") == 1:
        found.remove("aimagestore watchdog")  # the process has one, for a minute more
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        if target.startswith(where) or "inotify" in target:
            found.append(target)
    return found


if __name__ == "__main__":
    main()
