"""Grants, batches, staged content, descriptors and threads have one owner, whatever races."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from aimagestore import ImageStore, LockTimeoutError, StagedItem, StoreClosedError, check
from aimagestore._async import core
from aimagestore._async.store import core_of
from aimagestore._core.draft import Draft
from aimagestore._directory.commit import DirectoryWriter
from aimagestore._directory.files import Directory
from aimagestore._engine.lock import Grant, LockLine

from ..support.foreign import locked_by_another_process
from ..support.gates import Gate, close_at
from ..support.interruptions import ASYNCIO, Interruption, by_scope
from ..support.stores import is_locked, is_requested, library_threads, locked, open_files, until


@pytest.fixture
def slow_commit(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Stop each commit before it begins, with the lock held."""
    gate = Gate()
    real = DirectoryWriter.commit

    def commit(self: DirectoryWriter, grant: Any, mutations: Any) -> Any:
        gate()
        return real(self, grant, mutations)

    monkeypatch.setattr(DirectoryWriter, "commit", commit)
    yield gate
    gate.open()


# Closing


async def test_a_second_aclose_returns_when_the_store_is_closed(
    path: Path, slow_commit: Gate
) -> None:
    store = await ImageStore(path).__aenter__()
    returned: list[str] = []

    async def create() -> None:
        await store.create("one")
        returned.append("create")

    async def close() -> None:
        await store.aclose()
        assert b'"one"' in (path / "images.json").read_bytes()
        returned.append("aclose")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(create)
        await until(slow_commit.reached.is_set)
        tasks.start_soon(close)
        tasks.start_soon(close)
        await anyio.wait_all_tasks_blocked()
        assert returned == []
        slow_commit.open()
    assert sorted(returned) == ["aclose", "aclose", "create"]
    assert not open_files(f"{path}")


async def test_a_grant_that_comes_as_the_store_closes_is_released_or_used_under_the_lock(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await ImageStore(path).__aenter__()
    await store.create("one")
    seen: list[bool] = []
    real = DirectoryWriter.commit

    def commit(self: DirectoryWriter, grant: Any, mutations: Any) -> Any:
        seen.append(is_locked(path))
        return real(self, grant, mutations)

    monkeypatch.setattr(DirectoryWriter, "commit", commit)
    outcomes: list[str] = []

    async def create() -> None:
        try:
            await store.create("two")
            outcomes.append("created")
        except StoreClosedError:
            outcomes.append("closed")

    async def transact() -> None:
        try:
            async with store.transaction() as tx:
                await tx.create("three")
            outcomes.append("created")
        except StoreClosedError:
            outcomes.append("closed")

    async with anyio.create_task_group() as tasks:
        with locked(path):
            tasks.start_soon(create)
            tasks.start_soon(transact)
            await until(is_requested)
        # The lock is free now. The thread of the line acquires it while this blocks the loop.
        time.sleep(0.05)
        await store.aclose()
    assert len(outcomes) == 2
    assert all(seen)
    assert not is_locked(path)
    async with ImageStore(path) as again:
        assert await again.exists("two") or "closed" in outcomes


async def test_calls_that_wait_for_the_lock_are_refused_when_the_store_closes(path: Path) -> None:
    store = await ImageStore(path).__aenter__()
    await store.create("one")
    refused: list[str] = []

    async def refuse(name: str, call: Callable[[], Any]) -> None:
        with pytest.raises(StoreClosedError):
            await call()
        refused.append(name)

    async def transact() -> None:
        async with store.transaction():
            pass

    with locked(path):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(refuse, "create", lambda: store.create("two"))
            tasks.start_soon(refuse, "touch", store.touch)
            tasks.start_soon(refuse, "transaction", transact)
            tasks.start_soon(refuse, "collect_garbage", store.collect_garbage)
            await until(is_requested)
            await anyio.wait_all_tasks_blocked()
            await store.aclose()
    assert sorted(refused) == ["collect_garbage", "create", "touch", "transaction"]
    await until(lambda: not is_requested())
    assert not is_locked(path)


async def test_an_open_transaction_is_completed_before_the_store_closes(path: Path) -> None:
    store = await ImageStore(path).__aenter__()
    entered, leave = anyio.Event(), anyio.Event()

    async def transact() -> None:
        async with store.transaction() as tx:
            await tx.create("one")
            entered.set()
            await leave.wait()
            await tx.create("two")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(transact)
        await entered.wait()
        with anyio.move_on_after(0.02) as scope:
            await store.aclose()
        assert scope.cancelled_caught  # closing goes on without this call
        with pytest.raises(StoreClosedError):
            await store.get("one")
        leave.set()
    await store.aclose()
    assert not open_files(f"{path}")
    async with ImageStore(path) as again:
        assert [image.id for image in await again.images()] == ["one", "two"]


async def test_closing_a_store_closes_what_it_has_open(path: Path) -> None:
    store = await ImageStore(path).__aenter__()
    await store.create("one", big_data={"key": b"content"})
    async with (
        store.open_big_data("one", "key") as reader,
        store.stage(b"data") as staged,
        store.watch() as events,
    ):
        await store.aclose()
        assert not open_files(f"{path}")
        with pytest.raises(StoreClosedError):
            await reader.read()
        with pytest.raises(StoreClosedError):
            await staged.write(b"more")
        with pytest.raises(StoreClosedError):
            await anext(events)


async def test_a_task_that_waits_for_a_change_is_refused_when_the_store_closes(path: Path) -> None:
    store = await ImageStore(path).__aenter__()
    ended = anyio.Event()

    async def watch() -> None:
        with pytest.raises(StoreClosedError):
            async with store.watch() as events:
                await anext(events)
        ended.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        await anyio.wait_all_tasks_blocked()
        await anyio.sleep(0.02)
        await store.aclose()
        with anyio.fail_after(10):
            await ended.wait()


# Transactions that are left in unusual ways


async def test_a_transaction_may_be_left_by_another_task(path: Path) -> None:
    async with ImageStore(path, lock_timeout=10) as store:
        block = store.transaction()
        tx = await block.__aenter__()
        await tx.create("one")

        async def leave() -> None:
            await block.__aexit__(None, None, None)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leave)
        assert await store.exists("one")
        await store.create("two")


async def test_a_transaction_in_a_generator_that_is_collected_is_discarded(path: Path) -> None:
    async with ImageStore(path, lock_timeout=10) as store:

        async def generate() -> AsyncIterator[int]:
            async with store.transaction() as tx:
                await tx.create("one")
                yield 1

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # trio warns of generators that are dropped
            async for _ in generate():
                break
            gc.collect()
            await until(lambda: not is_locked(path))
        assert not await store.exists("one")
        await store.create("one")


async def test_a_transaction_that_is_never_left_is_discarded_when_it_is_collected(
    path: Path,
) -> None:
    async with ImageStore(path, lock_timeout=10) as store:
        block = store.transaction()
        tx = await block.__aenter__()
        await tx.create("one")
        assert is_locked(path)
        del block
        gc.collect()
        await until(lambda: not is_locked(path))
        await store.create("two")
        assert not await store.exists("one")


async def test_a_cancelled_transaction_is_completed_when_its_commit_has_begun(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    real = DirectoryWriter.publish
    held: list[bool] = []

    def publish(self: DirectoryWriter, grant: Any, draft: Any) -> None:
        gate()
        held.append(is_locked(path))
        real(self, grant, draft)

    async with ImageStore(path) as store:
        await store.create("one")
        monkeypatch.setattr(DirectoryWriter, "publish", publish)

        async def transact(scope: anyio.CancelScope) -> None:
            with scope:
                async with store.transaction() as tx:
                    await tx.set_metadata("one", "new")

        async with anyio.create_task_group() as tasks:
            scope = anyio.CancelScope()
            tasks.start_soon(transact, scope)
            await until(gate.reached.is_set)
            scope.cancel()
            await anyio.wait_all_tasks_blocked()
            gate.open()
        assert held == [True]
        assert await store.metadata("one") == "new"


async def test_calls_that_are_interrupted_give_their_turn_to_stage_to_others(
    path: Path, anyio_backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "_STAGED_AT_ONCE", 2)
    ways = [by_scope] if anyio_backend_name == "trio" else list(ASYNCIO.values())
    interrupted: list[bool] = []
    async with ImageStore(path) as store:
        await store.create("one")

        async def interrupt(way: Interruption, key: str, step: int) -> None:
            data = key.encode() * 10_000

            def call() -> Awaitable[object]:
                # Data of this size takes a turn only if something about it is checked.
                return store.set_big_data("one", key, data, expected_size=len(data))

            interrupted.append(await way(call, step))

        with anyio.fail_after(20):  # otherwise the calls wait for a turn for ever
            async with anyio.create_task_group() as tasks:
                for step in range(1, 9):
                    for number, way in enumerate(ways):
                        tasks.start_soon(interrupt, way, f"key{number}-{step}", step)
        assert any(interrupted)
        assert core_of(store)._staging.value == 2
        await store.set_big_data("one", "key", bytes(100_000), expected_size=100_000)


# Calls that are cancelled as they are granted the lock


async def test_a_call_that_is_cancelled_as_it_is_granted_the_lock_leaves_it_free(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    granted: list[Callable[[], object]] = []
    real = LockLine.request

    def request(self: Any, notify: Callable[[], object]) -> Any:
        # The task would learn of the grant too late: it is cancelled before.
        return real(self, lambda: granted.append(notify))

    async with ImageStore(path) as store:
        await store.create("one")
        monkeypatch.setattr(LockLine, "request", request)

        async def transact() -> None:
            async with store.transaction():
                raise AssertionError("it was cancelled before")

        for call in (transact, store.touch):
            granted.clear()
            async with anyio.create_task_group() as tasks:
                with locked(path):
                    tasks.start_soon(call)
                    await until(is_requested)
                await until(lambda: bool(granted))
                assert is_locked(path)
                tasks.cancel_scope.cancel()
            assert not is_locked(path)
            granted[0]()
        monkeypatch.setattr(LockLine, "request", real)
        await store.set_metadata("one", "works")


async def test_a_change_that_is_cancelled_as_the_lock_is_granted_is_not_committed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    granted = threading.Event()
    real = Grant.__init__

    def init(self: Any, line: Any, held: Any) -> None:
        real(self, line, held)
        if threading.current_thread().name == "aimagestore lock":
            granted.set()

    monkeypatch.setattr(Grant, "__init__", init)
    async with ImageStore(path, lock_timeout=30) as store:
        await store.create("one")
        async with anyio.create_task_group() as tasks:
            with locked(path):
                tasks.start_soon(store.create, "two")
                await until(is_requested)
            assert granted.wait(20)  # the loop does not run meanwhile
            tasks.cancel_scope.cancel()
        await until(lambda: not is_locked(path))
        await store.create("three")
        async with ImageStore(path, read_only=True) as other:
            assert await other.images() == await store.images()


# Stuck holders


async def test_one_thread_and_one_descriptor_wait_however_many_calls_time_out(path: Path) -> None:
    async with ImageStore(path) as store:
        await store.create("one")
    with locked_by_another_process(path) as holder:
        for _ in range(20):
            async with ImageStore(path, lock_timeout=0.01) as store:
                with pytest.raises(LockTimeoutError):
                    await store.set_metadata("one", "new")
                with pytest.raises(LockTimeoutError):
                    async with store.transaction():
                        pass
        waiting = [t for t in library_threads() if t.name == "aimagestore lock"]
        assert len(waiting) == 1
        assert len(open_files(f"{path}/images.lock")) == 1
        holder.kill()
        await until(lambda: not is_requested())
    assert not open_files(f"{path}")
    async with ImageStore(path, lock_timeout=10) as store:
        await store.set_metadata("one", "new")


async def test_a_zero_lock_timeout_tries_once(path: Path) -> None:
    async with ImageStore(path, lock_timeout=0) as store:
        await store.create("one")
        await store.touch()
        with locked(path):
            with pytest.raises(LockTimeoutError):
                await store.create("two")
            with pytest.raises(LockTimeoutError):
                await store.touch()
            assert not is_requested()
        async with store.transaction() as tx:
            await tx.create("two")


EXIT = """
import sys
import anyio
from aimagestore import ImageStore, check

async def main(path, call):
    async with ImageStore(path) as store:
        await store.exists("one")
        print("ready", flush=True)
        sys.stdin.readline()
        with anyio.move_on_after(0.05):
            if call == "check":
                await check(path)
            elif call == "transaction":
                async with store.transaction():
                    pass
            else:
                await store.create("two")

anyio.run(main, sys.argv[1], sys.argv[2], backend=sys.argv[3])
"""


@pytest.mark.damage
@pytest.mark.parametrize("call", ["check", "transaction", "create"])
async def test_a_program_ends_at_once_while_another_has_the_lock(
    path: Path, call: str, anyio_backend_name: str
) -> None:
    async with ImageStore(path) as store:
        await store.create("one", big_data={"key": b"content"})
    os.unlink(path / "one" / "key")  # so that the check waits for the lock
    command = [sys.executable, "-c", EXIT, str(path), call, anyio_backend_name]
    async with await anyio.open_process(command, stderr=None) as program:
        assert program.stdout is not None
        assert program.stdin is not None
        await program.stdout.receive()
        with locked_by_another_process(path) as holder:
            await program.stdin.send(b"\n")
            with anyio.fail_after(20):
                assert await program.wait() == 0
            assert holder.poll() is None


# Forks


async def test_a_fork_during_a_wait_for_the_lock_does_not_block_others(path: Path) -> None:
    async with ImageStore(path, lock_timeout=0.05) as store:
        await store.create("one")
        with locked_by_another_process(path):
            with pytest.raises(LockTimeoutError):
                await store.create("two")
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(writing)
                os.read(reading, 1)  # until the parent closes its end, or ends
                os._exit(0)
            os.close(reading)
        try:
            await until(lambda: not is_requested())
            assert not is_locked(path)
        finally:
            os.close(writing)
            os.waitpid(child, 0)


FORK_AND_DIE = """
import os, sys
import anyio
from aimagestore import ImageStore

async def main(path):
    async with ImageStore(path) as store:
        async with store.transaction() as tx:
            await tx.create("lost")
            child = os.fork()
            if child == 0:
                sys.stdin.read()
                os._exit(0)
            print("held", flush=True)
            os.kill(os.getpid(), 9)

anyio.run(main, sys.argv[1])
"""


async def test_a_forked_child_does_not_keep_the_lock_of_a_dead_parent(path: Path) -> None:
    async with ImageStore(path) as store:
        await store.create("one")
    command = [sys.executable, "-c", FORK_AND_DIE, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"held\n"
        program.wait()
        await until(lambda: not is_locked(path))
        async with ImageStore(path, lock_timeout=10) as store:
            await store.set_metadata("one", "new")


# Work that tasks leave to threads


async def test_content_that_is_discarded_while_a_thread_writes_it_is_closed_by_that_thread(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    real = Directory.write

    def write(self: Directory, name: str, fd: int, pieces: Any) -> None:
        if not name:
            gate()
        real(self, name, fd, pieces)

    async with ImageStore(path) as store:
        before = open_files(f"{path}")
        monkeypatch.setattr(Directory, "write", write)
        left: list[StagedItem] = []

        async def stage(scope: anyio.CancelScope) -> None:
            with scope:
                async with store.stage() as staged:
                    left.append(staged)
                    await staged.write(b"content")

        async with anyio.create_task_group() as tasks:
            scope = anyio.CancelScope()
            tasks.start_soon(stage, scope)
            await until(gate.reached.is_set)
            scope.cancel()
            gate.open()
        await until(lambda: len(open_files(f"{path}")) == len(before))
        with pytest.raises(ValueError, match="used once"):
            await left[0].write(b"more")


@pytest.mark.parametrize(
    "anyio_backend", [pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio")]
)
async def test_a_coroutine_that_is_closed_leaves_its_commit_to_the_store(
    path: Path, slow_commit: Gate, anyio_backend: Any
) -> None:
    async with ImageStore(path) as store:
        await close_at(store.create("one"), slow_commit)
        slow_commit.open()
        await until(lambda: not is_locked(path))
        assert await store.exists("one")
    assert (await check(path)).ok


async def test_a_change_of_a_transaction_that_was_cancelled_before_it_was_decided_is_not_made(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    prefetch = Draft.prefetch

    def gated(self: Draft, refs: Iterable[str], names: Iterable[str]) -> None:
        gate()
        prefetch(self, refs, names)

    monkeypatch.setattr(Draft, "prefetch", gated)
    async with store.transaction() as tx:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tx.create, "one")
            await until(gate.reached.is_set)
            tasks.cancel_scope.cancel()
        gate.open()  # the thread comes back from there after the call has ended
        await tx.create("two")
        assert [image.id for image in await tx.images()] == ["two"]
    assert [image.id for image in await store.images()] == ["two"]
