"""The event loop never waits: a heartbeat continues while a store works.

No test here asserts a time. The longest gap of the heartbeat is compared with how long the same
work takes in one go on this machine: work that ran on the loop would make a gap of that length.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from aimagestore import ImageStore

from .support.heartbeat import never_waits
from .support.loops import pairs

SIZE = 256 * 1024 * 1024


def one_go(data: bytes) -> float:
    """Return how long it takes to hash the data, in seconds."""
    start = time.perf_counter()
    hashlib.sha256(data).digest()
    return time.perf_counter() - start


Data = bytes | bytearray


async def create(store: ImageStore, data: Data) -> None:
    await store.create("one", big_data={"layer": data})


async def set_big_data(store: ImageStore, data: Data) -> None:
    await store.create("one")
    await store.set_big_data("one", "layer", data)


async def create_in_transaction(store: ImageStore, data: Data) -> None:
    async with store.transaction() as tx:
        await tx.create("one", big_data={"layer": data})


async def set_big_data_in_transaction(store: ImageStore, data: Data) -> None:
    await store.create("one")
    async with store.transaction() as tx:
        await tx.set_big_data("one", "layer", data)


CALLS = [create, set_big_data, create_in_transaction, set_big_data_in_transaction]


@pytest.mark.parametrize(
    ("call", "kind"),
    pairs(
        {call.__name__: call for call in CALLS},
        {kind.__name__: kind for kind in (bytes, bytearray)},
    ),
)
async def test_large_data_in_memory_never_stops_the_loop(
    store: ImageStore, call: Callable[[ImageStore, Data], Awaitable[None]], kind: type[Data]
) -> None:
    data = kind(SIZE)

    async def take_it_all() -> None:
        await call(store, data)
        await store.wipe()

    assert await never_waits(take_it_all, one_go(bytes(data)))


async def test_a_large_index_is_scanned_and_parsed_without_stopping_the_loop(path: Path) -> None:
    """A call in C that took in all IDs and names would keep the interpreter lock for its time."""
    records = [
        {
            "id": hashlib.sha256(b"%d" % number).hexdigest(),
            "names": [f"localhost/{number}:1"],
            "created": "2024-05-01T08:15:00Z",
        }
        for number in range(100_000)
    ]
    path.mkdir(exist_ok=True)
    (path / "images.json").write_text(json.dumps(records, separators=(",", ":")))
    hashes = [hash(text) for record in records for text in (record["id"], *record["names"])]
    start = time.perf_counter()
    hashes.sort()
    in_one_go = time.perf_counter() - start

    async def open_and_look() -> None:
        async with ImageStore(path, read_only=True) as store:
            assert await store.exists("localhost/7:1")
            assert len(await store.snapshot()) == len(records)

    assert await never_waits(open_and_look, in_one_go)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_nothing_is_imported_in_the_event_loop(backend: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.support.imports", backend, str(tmp_path)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "\n"
