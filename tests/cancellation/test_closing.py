"""Coroutines, generators and opening stores that are closed from outside, and forks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from aimagestore import ImageStore, StoreClosedError, check, repair
from aimagestore._directory import kernel_lock, lock
from aimagestore._directory.commit import DirectoryWriter
from aimagestore._directory.files import Directory
from aimagestore._directory.location import DirectoryLocation

from ..support.gates import Gate, close_at
from ..support.loops import EVERY_LOOP
from ..support.stores import descriptors, is_locked, open_files, until

UNUSED = "0" * 64
"""An ID of which there is a directory and no record."""

asyncio_only = pytest.mark.parametrize("anyio_backend", EVERY_LOOP[:1])


@asyncio_only
@pytest.mark.damage
@pytest.mark.parametrize("operation", ["collect_garbage", "touch", "repair"])
async def test_a_coroutine_that_is_closed_keeps_the_lock_until_its_thread_is_done(
    path: Path, operation: str, monkeypatch: pytest.MonkeyPatch, anyio_backend: Any
) -> None:
    gate = Gate()

    def stopping(real: Any) -> Any:
        def stop(*args: Any, **kwargs: Any) -> Any:
            gate()
            return real(*args, **kwargs)

        return stop

    async with ImageStore(path) as store:
        await store.create("one", big_data={"manifest": b"text"})
        (path / UNUSED).mkdir()
        (path / UNUSED / "manifest").write_bytes(b"{}")
        report = await check(path)
        assert not report.ok
        calls: dict[str, Any] = {
            "collect_garbage": store.collect_garbage,
            "touch": store.touch,
            "repair": lambda: repair(path, report),
        }
        writes = [(Directory, "unlink"), (Directory, "rename"), (lock, "write_token")]
        with monkeypatch.context() as patch:
            if operation == "touch":
                patch.setattr(DirectoryWriter, "touch", stopping(DirectoryWriter.touch))
            else:
                for owner, name in writes:
                    patch.setattr(owner, name, stopping(getattr(owner, name)))
            await close_at(calls[operation](), gate)
            # Time enough to release the lock too early.
            await anyio.sleep(0.05)
            assert is_locked(path)
            gate.open()
            await until(lambda: not is_locked(path))
        await store.create("two")


async def test_a_store_that_is_closed_while_it_opens_is_closed_when_aclose_returns(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    real = DirectoryLocation.open

    def open_slowly(self: DirectoryLocation, *, read_only: bool) -> Any:
        gate()
        return real(self, read_only=read_only)

    monkeypatch.setattr(DirectoryLocation, "open", open_slowly)
    store = ImageStore(path)
    refused: list[bool] = []

    async def enter() -> None:
        with pytest.raises(StoreClosedError):
            await store.__aenter__()
        refused.append(True)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(enter)
        await until(gate.reached.is_set)
        with anyio.move_on_after(0.01) as scope:
            await store.aclose()
        assert scope.cancelled_caught, "aclose waits for the opening, and can be cancelled"
        tasks.start_soon(store.aclose)
        await anyio.sleep(0.01)
        gate.open()
    assert refused
    assert not open_files(str(path))
    with pytest.raises(StoreClosedError):
        await store.get("one")


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[ImageStore]:
    """An application's own block around a store."""
    async with ImageStore(path) as store:
        yield store


@pytest.mark.parametrize("is_wrapped", [False, True])
async def test_a_generator_that_is_closed_has_closed_its_store_when_aclose_returns(
    path: Path, is_wrapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Directory.close

    def close_slowly(self: Directory) -> None:
        time.sleep(0.05)
        real(self)

    monkeypatch.setattr(Directory, "close", close_slowly)

    async def generate() -> AsyncIterator[str]:
        async with opened(path) if is_wrapped else ImageStore(path) as store:
            yield (await store.create("one")).id

    ids: Any = generate()
    assert await anext(ids) == "one"
    await ids.aclose()
    assert not open_files(str(path))


BLOCKS: dict[str, Callable[[ImageStore], AbstractAsyncContextManager[Any]]] = {
    "open_big_data": lambda store: store.open_big_data("one", "key"),
    "stage": lambda store: store.stage(b"data"),
    "transaction": lambda store: store.transaction(),
    "watch": lambda store: store.watch(),
}


@pytest.mark.parametrize("name", BLOCKS)
async def test_a_block_that_is_left_in_another_loop_raises_and_leaves_nothing_open(
    path: Path, name: str
) -> None:
    async with ImageStore(path) as store:
        await store.create("one", big_data={"key": b"data"})
        before = descriptors(f"{path}")
        block = BLOCKS[name](store)
        entered = await block.__aenter__()
        if name == "transaction":
            await entered.create("two")

        async def leave() -> None:
            with pytest.raises(RuntimeError, match="another event loop"):
                await block.__aexit__(None, None, None)

        # In a thread, so that the store's own loop can go on and close it.
        await anyio.to_thread.run_sync(anyio.run, leave)
        await until(lambda: descriptors(f"{path}") == before)
        assert not is_locked(path)
        assert not await store.exists("two")


# In a program of its own, because a process that forks should have no other threads.
LEAVE_IN_A_CHILD = """
import os, sys
import anyio
from aimagestore import ImageStore, StoreClosedError

async def main(path, name):
    async with ImageStore(path) as store:
        await store.create("one", big_data={"key": b"data"})
        blocks = {
            "open_big_data": lambda: store.open_big_data("one", "key"),
            "stage": lambda: store.stage(b"data"),
            "transaction": lambda: store.transaction(),
            "watch": lambda: store.watch(),
        }
        child = 0
        try:
            async with blocks[name]() as entered:
                if name == "transaction":
                    await entered.create("two")
                child = os.fork()
                if child:
                    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
                    assert not await store.exists("two")
        except StoreClosedError as error:
            # Only of a transaction is the end refused: nothing was committed.
            os._exit(7 if name == "transaction" and "fork" in str(error) else 1)
        finally:
            if not child:
                os._exit(1 if name == "transaction" else 7)
        assert await store.exists("two") == (name == "transaction")

anyio.run(main, sys.argv[1], sys.argv[2], backend=sys.argv[3])
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_forked_child_leaves_the_blocks_of_its_parent_to_it(
    path: Path, name: str, backend: str
) -> None:
    command = [sys.executable, "-c", LEAVE_IN_A_CHILD, str(path), name, backend]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 0, ended.stderr


def lock_file_is_open_in_a_child(path: Path) -> bool:
    """Fork, and return whether the child has the lock file open, and so keeps the lock."""
    child = os.fork()
    if not child:
        os._exit(int(bool(open_files(str(path / "images.lock")))))
    return bool(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


@pytest.fixture
def root(path: Path) -> Iterator[Directory]:
    """The directory of a store, as the locks use it."""
    path.mkdir()
    (path / "images.lock").touch()
    directory = Directory.at(str(path))
    yield directory
    directory.close()


def test_a_fork_waits_until_a_lock_file_is_opened_and_noted(path: Path) -> None:
    gate = Gate()
    opened: list[int] = []

    def open_file() -> int:
        fd = os.open(path / "images.lock", os.O_RDWR)
        gate()
        return fd

    opener = threading.Thread(target=lambda: opened.append(kernel_lock.open_noted(open_file)))
    path.mkdir()
    (path / "images.lock").touch()
    opener.start()
    assert gate.reached.wait(10)
    threading.Timer(0.05, gate.open).start()
    assert not lock_file_is_open_in_a_child(path)
    opener.join()
    kernel_lock.close_noted(opened[0])


@pytest.mark.parametrize("is_waiting", [False, True])
def test_a_child_does_not_keep_a_readers_lock(
    path: Path, root: Directory, is_waiting: bool
) -> None:
    shared = lock.SharedLock(root)
    held = shared.acquire() if is_waiting else shared.try_acquire()
    assert held is not None
    assert not lock_file_is_open_in_a_child(path)
    shared.release(held)


async def test_a_child_that_is_forked_while_the_lock_is_released_does_not_keep_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    real = kernel_lock.unlock

    def unlock_slowly(fd: int) -> None:
        gate()
        real(fd)

    async with ImageStore(path) as store:
        monkeypatch.setattr("aimagestore._directory.record_lock.unlock", unlock_slowly)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.touch)
            await until(gate.reached.is_set)
            assert not lock_file_is_open_in_a_child(path)
            gate.open()
        await store.create("one")
