"""This library and containers/storage exclude each other by one lock."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from aimagestore import ImageStore, LockTimeoutError

from .peer import Peer, Running, image_store, running

pytestmark = pytest.mark.peers

GO_WRITERS = 3
SHARE_SECONDS = 4.0
TIMEOUT = 60
"""Seconds after which a test fails instead of waiting longer."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The graph root of the store."""
    return tmp_path / "store"


@pytest.fixture
def lock_file(root: Path) -> Path:
    """The store's lock file."""
    return image_store(root) / "images.lock"


@pytest.fixture
async def store(root: Path, peer: Peer) -> AsyncIterator[ImageStore]:
    """A store with one image, open."""
    peer.ask("create", root, id="image")
    async with ImageStore(image_store(root)) as store:
        yield store
    peer.ask("close", root)


def waiting(lock_file: Path) -> int:
    """Return the number of processes that wait in the kernel for the lock."""
    inode = lock_file.stat().st_ino
    with open("/proc/locks") as locks:
        return sum(f":{inode} " in line and "->" in line for line in locks)


async def until_waiting(lock_file: Path, number: int = 1) -> None:
    """Return when ``number`` processes wait for the lock. Polls: the kernel has no event for it."""
    with anyio.fail_after(TIMEOUT):
        while waiting(lock_file) < number:
            await anyio.sleep(0.002)


async def line_of(process: Running) -> str:
    """Return the next line of a process, without blocking the event loop."""
    return await anyio.to_thread.run_sync(process.read_line)


async def test_containers_storage_waits_while_this_library_holds_the_lock(
    store: ImageStore, program: Path, lock_file: Path
) -> None:
    async with store.transaction():
        pass
    with running(program, "hold", lock_file) as other:
        assert await line_of(other) == "held"
        await anyio.to_thread.run_sync(other.end)
    async with AsyncExitStack() as stack:
        async with store.transaction() as transaction:
            other = stack.enter_context(running(program, "hold", lock_file))
            await until_waiting(lock_file)
            await transaction.set_metadata("image", "text")
            assert waiting(lock_file) == 1
        assert await line_of(other) == "held"
        assert await store.metadata("image") == "text"


async def test_a_change_there_waits_for_a_transaction_here(
    store: ImageStore, peer: Peer, root: Path, lock_file: Path
) -> None:
    def change() -> None:
        peer.ask("add_names", root, ref="image", names=["theirs"])

    async with anyio.create_task_group() as tasks, store.transaction() as transaction:
        tasks.start_soon(anyio.to_thread.run_sync, change)
        await until_waiting(lock_file)
        await transaction.add_names("image", ["ours"])
        assert (await store.get("image")).names == ()
    assert (await store.get("image")).names == ("theirs", "ours")


async def test_this_library_waits_while_containers_storage_holds_the_lock(
    store: ImageStore, program: Path, lock_file: Path
) -> None:
    with running(program, "hold", lock_file) as other:
        assert await line_of(other) == "held"
        done = anyio.Event()

        async def change() -> None:
            await store.set_metadata("image", "text")
            done.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(change)
            await until_waiting(lock_file)
            assert not done.is_set()
            assert await store.metadata("image") == "", "a reader never waits"
            await anyio.to_thread.run_sync(other.end)
        assert await store.metadata("image") == "text"


async def test_a_timeout_names_the_lock_and_its_holder(
    store: ImageStore, program: Path, root: Path, lock_file: Path
) -> None:
    with running(program, "hold", lock_file) as other:
        assert await line_of(other) == "held"
        async with ImageStore(image_store(root), lock_timeout=0.1) as impatient:
            for call in (
                lambda: impatient.set_metadata("image", "text"),
                impatient.touch,
                lambda: impatient.transaction().__aenter__(),
            ):
                started = time.monotonic()
                with anyio.fail_after(TIMEOUT), pytest.raises(LockTimeoutError) as raised:
                    await call()
                assert time.monotonic() - started >= 0.1
                assert raised.value.path == str(lock_file)
                assert raised.value.holder_pid == other.process.pid
                assert raised.value.last_writer_pid
                assert str(lock_file) in str(raised.value)
            await anyio.to_thread.run_sync(other.end)
            await assert_free(program, lock_file)
            assert (await impatient.set_metadata("image", "new")).metadata == "new"


async def assert_free(program: Path, lock_file: Path) -> None:
    """Check that the lock can be acquired at once."""
    with running(program, "hold", lock_file) as next_one:
        with anyio.fail_after(TIMEOUT):
            assert await line_of(next_one) == "held"


async def test_two_stores_of_one_process_exclude_each_other(
    store: ImageStore, root: Path, lock_file: Path
) -> None:
    async with ImageStore(image_store(root), lock_timeout=0.1) as other:
        async with store.transaction() as transaction:
            await transaction.set_metadata("image", "first")
            with pytest.raises(LockTimeoutError) as raised:
                await other.set_metadata("image", "second")
            assert raised.value.path == str(lock_file)
        assert (await other.set_names("image", ["name"])).metadata == "first"


async def test_other_code_that_opens_and_closes_the_file_does_not_lose_the_lock(
    store: ImageStore, program: Path, root: Path, lock_file: Path
) -> None:
    async with AsyncExitStack() as stack:
        async with store.transaction() as transaction:
            # A POSIX record lock of this process would be released by any of these.
            os.close(os.open(lock_file, os.O_RDWR))
            lock_file.read_bytes()
            async with ImageStore(image_store(root)):
                pass
            other = stack.enter_context(running(program, "hold", lock_file))
            await until_waiting(lock_file)
            await transaction.set_metadata("image", "text")
        assert await line_of(other) == "held"
        assert await store.metadata("image") == "text"


@pytest.mark.parametrize("call", ["set_metadata", "transaction", "set_big_data", "touch"])
async def test_a_cancelled_wait_ends_at_once_and_leaves_nothing_held(
    store: ImageStore, program: Path, lock_file: Path, call: str
) -> None:
    async def transact() -> None:
        async with store.transaction() as transaction:
            await transaction.set_metadata("image", "never")

    calls: dict[str, Callable[[], object]] = {
        "set_metadata": lambda: store.set_metadata("image", "never"),
        "transaction": transact,
        "set_big_data": lambda: store.set_big_data("image", "never", b"never"),
        "touch": store.touch,
    }

    async def wait() -> None:
        await calls[call]()  # type: ignore[misc]

    with running(program, "hold", lock_file) as holder:
        assert await line_of(holder) == "held"
        token = lock_file.read_bytes()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await until_waiting(lock_file)
            tasks.cancel_scope.cancel()
        # The lock is still held: the wait has ended without it.
        assert holder.process.poll() is None
        await anyio.to_thread.run_sync(holder.end)
    await assert_free(program, lock_file)
    image = await store.get("image")
    assert (image.metadata, image.big_data_names) == ("", ())
    assert lock_file.read_bytes() == token
    with anyio.fail_after(TIMEOUT):
        await store.set_metadata("image", "after")


async def test_a_store_can_be_closed_while_a_change_waits(
    store: ImageStore, program: Path, root: Path, lock_file: Path
) -> None:
    with running(program, "hold", lock_file) as holder:
        assert await line_of(holder) == "held"
        other = ImageStore(image_store(root))
        await other.__aenter__()
        with pytest.raises(ExceptionGroup) as raised:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(other.set_metadata, "image", "never")
                await until_waiting(lock_file)
                with anyio.fail_after(TIMEOUT):
                    await other.aclose()
        assert [type(error).__name__ for error in raised.value.exceptions] == ["StoreClosedError"]
    await assert_free(program, lock_file)
    assert await store.metadata("image") == ""


async def test_waiting_writers_leave_the_threads_of_others_alone(
    store: ImageStore, program: Path, root: Path, lock_file: Path
) -> None:
    async with AsyncExitStack() as stack:
        more = [ImageStore(image_store(root)) for _ in range(9)]
        stores = [store, *[await stack.enter_async_context(each) for each in more]]
        holder = stack.enter_context(running(program, "hold", lock_file))
        assert await line_of(holder) == "held"
        async with anyio.create_task_group() as tasks:
            for number in range(100):
                writer = stores[number % len(stores)]
                tasks.start_soon(writer.add_names, "image", [f"name-{number}"])
            await until_waiting(lock_file)
            with anyio.fail_after(TIMEOUT):
                async with anyio.create_task_group() as others:
                    for _ in range(100):
                        others.start_soon(anyio.to_thread.run_sync, threading.get_ident)
            assert waiting(lock_file) == 1, "one thread waits for all stores of a process"
            assert (await store.get("image")).names == ()
            await anyio.to_thread.run_sync(holder.end)
        names = (await store.get("image")).names
        assert sorted(names) == sorted(f"name-{number}" for number in range(100))


# A program that asks for the lock again right after its release often gets it before those that the
# kernel wakes. Without a pause, even the shares of equal programs differ by a factor of four.
@pytest.mark.parametrize(("pause", "share"), [(1, 1 / 4), (0, 1 / 12)])
async def test_a_waiting_writer_gets_a_fair_share_beside_programs_that_wait_in_the_kernel(
    store: ImageStore, program: Path, lock_file: Path, pause: int, share: float
) -> None:
    async with AsyncExitStack() as stack:
        others = [
            stack.enter_context(running(program, "contend", lock_file, SHARE_SECONDS, 5, pause))
            for _ in range(GO_WRITERS)
        ]
        for other in others:
            assert await line_of(other) == "ready"
        for other in others:
            other.go_on()
        held = 0
        end = time.monotonic() + SHARE_SECONDS
        while time.monotonic() < end:
            await store.set_metadata("image", str(held))
            held += 1
        theirs = [int(await line_of(other)) for other in others]
    fair = (held + sum(theirs)) / (1 + GO_WRITERS)
    print(f"pause {pause} ms: {held} here, {theirs} there, {held / fair:.2f} of a fair share")
    assert held >= fair * share
