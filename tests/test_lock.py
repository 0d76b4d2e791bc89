"""The lock of a directory: holders, waiting stores, and forked children."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import pytest
from anyio.abc import Process
from filelock import BaseFileLock

from aimagestore import ImageStore, LockTimeoutError
from aimagestore._directory.files import Directory
from aimagestore._directory.lock import describe_holder, exclusive_line

from .support.foreign import locked_by_another_process
from .support.stores import is_locked, is_requested, library_threads, open_files, until

TIMEOUT = 60
STORES = 12

HOLD = """
import sys, anyio
from aimagestore import ImageStore

async def main(path):
    async with ImageStore(path) as store, store.transaction():
        print("held", flush=True)
        sys.stdin.read()

anyio.run(main, sys.argv[1])
"""


@contextmanager
def held_by_another_process(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Have another process hold the lock, as a store of this library does."""
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            yield process
        finally:
            process.kill()


@asynccontextmanager
async def running(code: str, *arguments: object) -> AsyncIterator[Process]:
    """Run code in a process, and kill it at the end of the block."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    async with await anyio.open_process(command, stderr=None) as program:
        try:
            yield program
        finally:
            if program.returncode is None:
                program.kill()


def threads_that_wait() -> int:
    """Return how many threads wait for the lock of a store."""
    return sum(thread.name == "aimagestore lock" for thread in library_threads())


async def test_the_lock_on_disk_is_a_filelock(path: Path) -> None:
    def held() -> int:
        locks = [each for each in gc.get_objects() if isinstance(each, BaseFileLock)]
        return sum(lock.is_locked for lock in locks)

    before = held()
    async with ImageStore(path) as store, store.transaction():
        assert held() == before + 1


async def test_stores_that_are_open_together_wait_in_one_line(path: Path) -> None:
    async with ImageStore(path) as store:
        await store.create("one")
    stores = [ImageStore(path) for _ in range(STORES)]
    names = [f"name-{number}" for number in range(STORES)]
    for store in stores:
        await store.__aenter__()
    async with anyio.create_task_group() as tasks:
        with held_by_another_process(path):
            for store, name in zip(stores, names, strict=True):
                tasks.start_soon(store.add_names, "one", [name])
            await until(lambda: bool(threads_that_wait() and open_files(f"{path}/images.lock")))
            assert threads_that_wait() == 1
            assert len(open_files(f"{path}/images.lock")) == 1
    assert sorted((await stores[0].get("one")).names) == sorted(names)
    for store in stores:
        await store.aclose()
    assert not open_files(str(path))


@pytest.mark.parametrize("stays", [True, False], ids=["stays open", "is closed"])
async def test_calls_of_many_stores_that_time_out_leave_one_thread_and_one_descriptor(
    path: Path, stays: bool
) -> None:
    async with ImageStore(path) as store:
        await store.create("one")
    stores: list[ImageStore] = []
    with held_by_another_process(path):
        for _ in range(STORES):
            store = await ImageStore(path, lock_timeout=0.01).__aenter__()
            stores.append(store)
            with pytest.raises(LockTimeoutError):
                await store.touch()
            with pytest.raises(LockTimeoutError):
                await store.set_metadata("one", "new")
            if not stays:
                await store.aclose()
        assert threads_that_wait() == 1
        assert len(open_files(f"{path}/images.lock")) == 1
        for store in stores:
            await store.aclose()
    await until(lambda: not is_requested())
    # Closed stores have nothing open, also while somebody refers to them.
    assert not open_files(str(path))
    assert not is_locked(path)


async def test_a_store_of_another_process_that_holds_the_lock_is_named(path: Path) -> None:
    async with ImageStore(path, lock_timeout=0.05) as store:
        await store.create("one")
        with held_by_another_process(path) as holder:
            with pytest.raises(LockTimeoutError) as refused:
                await store.touch()
            assert refused.value.holder_pid == holder.pid
            assert f"process {holder.pid} holds it" in str(refused.value)


async def test_a_store_of_this_process_that_holds_the_lock_is_named(path: Path) -> None:
    async with ImageStore(path) as store, ImageStore(path, lock_timeout=0.05) as other:
        async with store.transaction():
            with pytest.raises(LockTimeoutError, match="this process holds it") as refused:
                await other.touch()
        assert refused.value.holder_pid == os.getpid()


async def test_closing_another_descriptor_of_the_lock_file_does_not_release_the_lock(
    store: ImageStore, path: Path
) -> None:
    async with store.transaction():
        os.close(os.open(path / "images.lock", os.O_RDWR))
        assert is_locked(path)


async def test_another_program_that_holds_the_lock_is_named(path: Path) -> None:
    async with ImageStore(path, lock_timeout=0.05) as store:
        await store.create("one")
        with locked_by_another_process(path) as process:
            with pytest.raises(LockTimeoutError) as info:
                await store.set_metadata("one", "x")
            assert info.value.holder_pid == process.pid
            assert info.value.last_writer_pid == os.getpid()
            assert str(process.pid) in str(info.value)
            assert (await store.get("one")).metadata == ""
            with pytest.raises(LockTimeoutError):
                async with store.transaction():
                    pass
        await store.set_metadata("one", "x")


# In a program of its own, because a process that forks should have no other threads.
FORK = """
import gc, os, sys
import anyio
from aimagestore import ImageStore, LockTimeoutError

async def in_child(path, released):
    async with ImageStore(path, lock_timeout=0) as store:
        try:
            await store.touch()
        except LockTimeoutError:
            pass
        else:
            raise AssertionError("the parent holds the lock")
    print("refused", flush=True)
    os.read(released, 1)
    async with ImageStore(path) as store:
        await store.create("child")
    print("created", flush=True)

def run_child(path, released):
    status = 1
    try:
        anyio.run(in_child, path, released, backend=sys.argv[2])
        gc.collect()
        status = 0
    except BaseException:
        import traceback
        traceback.print_exc()
    os._exit(status)

async def main(path):
    released, release = os.pipe()
    async with ImageStore(path) as store:
        async with store.transaction() as tx:
            await tx.create("parent")
            child = os.fork()
            if child == 0:
                os.close(release)
                # The parent's event loop is of no use here: this one begins in a new thread.
                import threading
                thread = threading.Thread(target=run_child, args=(path, released))
                thread.start()
                thread.join()
            other = os.fork()
            if other == 0:
                del store, tx
                gc.collect()
                os._exit(0)
            assert os.waitpid(other, 0)[1] == 0
            print("forked", flush=True)
            await anyio.to_thread.run_sync(sys.stdin.readline)
        os.close(release)
        assert (await anyio.to_thread.run_sync(os.waitpid, child, 0))[1] == 0
        assert await store.exists("child")

anyio.run(main, sys.argv[1], backend=sys.argv[2])
"""


async def test_a_child_that_is_forked_while_the_lock_is_held_neither_has_nor_breaks_it(
    path: Path, anyio_backend_name: str
) -> None:
    async with running(FORK, path, anyio_backend_name) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        seen = b""
        with anyio.fail_after(TIMEOUT):
            while not {b"forked", b"refused"} <= set(seen.split()):
                seen += await program.stdout.receive()
            assert is_locked(path)
            async with ImageStore(path, lock_timeout=0.05) as store:
                with pytest.raises(LockTimeoutError):
                    await store.touch()
            await program.stdin.send(b"\n")
            await program.wait()
    assert program.returncode == 0
    async with ImageStore(path) as store:
        assert [image.id for image in await store.images()] == ["parent", "child"]


def test_a_lock_that_has_become_free_is_described_as_free(path: Path) -> None:
    path.mkdir()
    (path / "images.lock").touch()
    with Directory.at(str(path)) as root:
        holder = describe_holder(root)
    assert holder.process is None
    assert holder.description.startswith("it is free now")


def test_the_end_of_one_line_does_not_forget_the_next_one(path: Path) -> None:
    path.mkdir()
    with Directory.at(str(path)) as root:
        first = exclusive_line(root)
        first.leave()
        second = exclusive_line(root)
        with pytest.MonkeyPatch.context() as patch:
            # As if the last thread of the first line came now, before the second is forgotten.
            patch.setattr(second, "_when_unused", first._when_unused)
            second.leave()
            second.join()
        assert exclusive_line(root) is second
        second.leave()
        second.leave()
    assert not open_files(str(path))


# The child opens another file, which gets the number of the descriptor that the parent locks.
FORK_AND_RELEASE = """
import os, sys
from aimagestore._directory.files import Directory
from aimagestore._directory.lock import SharedLock

shared = SharedLock(Directory.at(sys.argv[1]))
held = shared.acquire()
child = os.fork()
if child == 0:
    other = os.open(sys.argv[1], os.O_RDONLY)
    assert other == held
    shared.release(held)
    os.fstat(other)
    os._exit(0)
sys.exit(os.waitpid(child, 0)[1] != 0)
"""


async def test_a_forked_child_does_not_release_what_it_does_not_hold(path: Path) -> None:
    path.mkdir()
    (path / "images.lock").touch()
    command = [sys.executable, "-c", FORK_AND_RELEASE, str(path)]
    assert (await anyio.run_process(command, check=False)).returncode == 0


FORK_AND_WAIT = r"""
import os, sys
import anyio
from aimagestore import ImageStore

async def main(path):
    async with ImageStore(path) as store:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hold, store)
            await until_waiting(path)
            child = os.fork()
            if child == 0:
                sys.stdin.read()
                os._exit(0)
            os.write(1, b"forked\n")

async def hold(store):
    async with store.transaction():
        os.write(1, b"held\n")
        os.kill(os.getpid(), 9)

async def until_waiting(path):
    inode = os.stat(os.path.join(path, "images.lock")).st_ino
    while True:
        with open("/proc/locks") as locks:
            if any(f":{inode} " in line and "->" in line for line in locks):
                return
        await anyio.sleep(0.001)

anyio.run(main, sys.argv[1])
"""


async def test_a_child_that_is_forked_while_its_parent_waits_does_not_keep_the_lock(
    path: Path,
) -> None:
    async with ImageStore(path) as store:
        await store.create("zero")
    with ExitStack() as holding:
        holding.enter_context(held_by_another_process(path))
        command = [sys.executable, "-c", FORK_AND_WAIT, str(path)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe) as program:
            assert program.stdout is not None
            assert program.stdout.readline() == b"forked\n"
            holding.close()
            assert program.stdout.readline() == b"held\n"
            program.wait()
            # The child is still running, with the descriptors of its parent.
            with anyio.fail_after(TIMEOUT):
                async with ImageStore(path) as store:
                    await store.create("two")
                    assert [image.id for image in await store.images()] == ["zero", "two"]
