"""Every coroutine and context manager of a store, interrupted at every step, in every way.

A usual run interrupts each step on asyncio by ``Task.cancel`` and by a scope, and on trio by a
scope. The other ways take turns, one at each step, and so do all ways while the lock is held or the
disk is slow. On uvloop only every third step is interrupted. A thorough run tries each way at each
step.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from aimagestore._directory import files

from ..support import interruptions
from ..support.disks import directory_in_memory
from ..support.loops import ASYNCIO_LOOPS, EXTENTS, OPTIONS
from ..support.stores import DirectoryStore
from ..support.sweep import CHANGES, OPERATIONS, READS, Sweep, fill


@pytest.fixture(scope="module")
def where() -> Iterator[DirectoryStore]:
    """A store that is restored before each step."""
    with directory_in_memory() as directory:
        where = DirectoryStore(directory)
        anyio.run(fill, where)
        yield where


each_extent = pytest.mark.parametrize("whole", EXTENTS)


@each_extent
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_a_cancelled_scope_leaves_nothing_behind(
    where: DirectoryStore, operation: str, whole: bool, anyio_backend: Any
) -> None:
    is_uvloop = anyio_backend == OPTIONS["uvloop"]
    every = 3 if is_uvloop and not whole else 1
    await Sweep(where, operation).run(interruptions.by_scope, every=every)


NATIVE = {name: each for name, each in interruptions.ASYNCIO.items() if name != "scope"}


@each_extent
@pytest.mark.parametrize("anyio_backend", ASYNCIO_LOOPS)
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_an_interruption_by_asyncio_leaves_nothing_behind(
    where: DirectoryStore, operation: str, whole: bool, anyio_backend: Any
) -> None:
    sweep = Sweep(where, operation)
    if anyio_backend == OPTIONS["uvloop"] and not whole:
        await sweep.run(NATIVE["task_cancel"], every=3)
        return
    await sweep.run(NATIVE["task_cancel"])
    # A call that only reads has no state to keep right: one way stands for all.
    if operation not in READS or whole:
        others = [each for name, each in NATIVE.items() if name != "task_cancel"]
        await sweep.run_ways(others, whole=whole)


@each_extent
@pytest.mark.parametrize("operation", CHANGES)
async def test_an_interruption_while_another_program_has_the_lock_leaves_nothing_behind(
    where: DirectoryStore, operation: str, whole: bool, anyio_backend: Any
) -> None:
    await Sweep(where, operation, is_held=True).run_on(anyio_backend, whole=whole)


@each_extent
@pytest.mark.parametrize("operation", CHANGES)
async def test_an_interruption_while_the_disk_is_slow_leaves_nothing_behind(
    where: DirectoryStore,
    operation: str,
    whole: bool,
    anyio_backend: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = files.Directory.sync_file

    def sync_slowly(self: files.Directory, name: str, fd: int) -> None:
        time.sleep(0.005)  # the disk
        real(self, name, fd)

    monkeypatch.setattr(files.Directory, "sync_file", sync_slowly)
    await Sweep(where, operation).run_on(anyio_backend, whole=whole)


@each_extent
@pytest.mark.parametrize("operation", OPERATIONS)
def test_ctrl_c_leaves_nothing_behind(where: DirectoryStore, operation: str, whole: bool) -> None:
    before = signal.getsignal(signal.SIGINT)
    sweep = Sweep(where, operation)
    # Each in a loop of its own: the second Ctrl-C in one would be a KeyboardInterrupt at once.
    for step in range(1, 300, 1 if whole else 3):
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
