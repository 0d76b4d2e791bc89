"""Every coroutine and context manager of a store, interrupted at every step, in every way."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from aimagestore._directory import files

from ..support import interruptions
from ..support.loops import ASYNCIO_LOOPS, OPTIONS
from ..support.stores import DirectoryStore
from ..support.sweep import CHANGES, OPERATIONS, READS, Sweep, fill


@pytest.fixture(scope="module")
def where() -> Iterator[DirectoryStore]:
    """A store to be restored, in memory where that is possible."""
    parent = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="aimagestore-", dir=parent) as directory:
        where = DirectoryStore(Path(directory))
        anyio.run(fill, where)
        yield where


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_a_cancelled_scope_leaves_nothing_behind(
    where: DirectoryStore, operation: str
) -> None:
    await Sweep(where, operation).run(interruptions.by_scope)


NATIVE = {name: each for name, each in interruptions.ASYNCIO.items() if name != "scope"}


@pytest.mark.parametrize("anyio_backend", ASYNCIO_LOOPS)
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_an_interruption_by_asyncio_leaves_nothing_behind(
    where: DirectoryStore, operation: str, anyio_backend: Any
) -> None:
    # A call that only reads has no state to keep right: one way stands for all.
    ways = (
        NATIVE
        if anyio_backend == OPTIONS["asyncio"] and operation not in READS
        else ["task_cancel"]
    )
    for way in ways:
        await Sweep(where, operation).run(NATIVE[way])


def ways_on(backend: object) -> list[str]:
    """Return some ways to interrupt: what differs between them is tried by the tests above."""
    if backend == OPTIONS["asyncio"]:
        return ["scope", "task_cancel", "two_cancels"]
    return ["task_cancel"] if backend == OPTIONS["uvloop"] else ["scope"]


@pytest.mark.parametrize("operation", CHANGES)
async def test_an_interruption_while_another_program_has_the_lock_leaves_nothing_behind(
    where: DirectoryStore, operation: str, anyio_backend: Any
) -> None:
    for way in ways_on(anyio_backend):
        sweep = Sweep(where, operation, is_held=True)
        await sweep.run(interruptions.ASYNCIO[way])


@pytest.mark.parametrize("operation", CHANGES)
async def test_an_interruption_while_the_disk_is_slow_leaves_nothing_behind(
    where: DirectoryStore,
    operation: str,
    anyio_backend: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = files.Directory.sync_file

    def sync_slowly(self: files.Directory, name: str, fd: int) -> None:
        time.sleep(0.005)  # the disk
        real(self, name, fd)

    monkeypatch.setattr(files.Directory, "sync_file", sync_slowly)
    for way in ways_on(anyio_backend):
        await Sweep(where, operation).run(interruptions.ASYNCIO[way])


@pytest.mark.parametrize("operation", OPERATIONS)
def test_ctrl_c_leaves_nothing_behind(where: DirectoryStore, operation: str) -> None:
    before = signal.getsignal(signal.SIGINT)
    sweep = Sweep(where, operation)
    # Each in a loop of its own: the second Ctrl-C in one would be a KeyboardInterrupt at once.
    for step in range(1, 300):
        if not asyncio.run(sweep.at(step, interruptions.by_ctrl_c)):
            break
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_interruption_of_eager_tasks_leaves_nothing_behind(
    where: DirectoryStore, operation: str
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]
        for way in ("scope", "task_cancel", "sibling"):
            await Sweep(where, operation).run(interruptions.ASYNCIO[way])

    asyncio.run(main())
