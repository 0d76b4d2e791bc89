"""Races, closings and failures that attacks on the library have found, one test each."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from aimagestore import ImageStore, LockTimeoutError, StoreClosedError, Transaction
from aimagestore._async.committer import GroupCommitter
from aimagestore._async.store import core_of
from aimagestore._async.threads import Call
from aimagestore._core.draft import Draft
from aimagestore._directory.commit import DirectoryWriter
from aimagestore._directory.engine import DirectoryEngine
from aimagestore._directory.feed import DirectoryFeed
from aimagestore._directory.files import Directory
from aimagestore._directory.index_file import IndexFile
from aimagestore._directory.items import DirectoryItems
from aimagestore._directory.lock import ExclusiveLock
from aimagestore._directory.staged import _Sink
from aimagestore._engine.lock import LockLine
from aimagestore._engine.workers import WorkerPool

from ..support.gates import Gate
from ..support.stores import (
    becomes_true,
    descriptors,
    is_locked,
    is_requested,
    locked,
    open_files,
    until,
    until_requested,
)


def _no_more_threads(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


# Watches


async def test_a_change_that_a_cancelled_iteration_was_reading_reaches_the_next_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    real = DirectoryFeed.poll
    polls = 0

    def poll(self: DirectoryFeed) -> Any:
        nonlocal polls
        polls += 1
        is_first = polls == 1
        changes = real(self)
        if is_first:
            gate()
        return changes

    async with ImageStore(path) as store, store.watch() as events:
        await store.create("one")
        monkeypatch.setattr(DirectoryFeed, "poll", poll)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anext, events)
            await until(gate.reached.is_set)
            tasks.cancel_scope.cancel()
        await store.create("two")
        async with anyio.create_task_group() as tasks:
            found = []

            async def collect() -> None:
                found.extend([(await anext(events)).id, (await anext(events)).id])

            tasks.start_soon(collect)
            await anyio.sleep(0.05)
            gate.open()
            with anyio.fail_after(10):
                await until(lambda: len(found) == 2)
    assert found == ["one", "two"]


# The group committer


async def test_a_change_that_is_queued_as_another_is_withdrawn_is_committed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trying, deciding = Gate(), Gate()
    real_try = LockLine.try_acquire

    def try_acquire(self: LockLine[Any]) -> Any:
        grant = real_try(self)
        if threading.current_thread().name == "aimagestore worker":
            trying()
        return grant

    def pausing(real: Any) -> Any:
        def pause(self: GroupCommitter, *args: Any) -> Any:
            if threading.current_thread().name == "aimagestore worker":
                deciding()
            return real(self, *args)

        return pause

    async with ImageStore(path) as store:
        with locked(path):
            monkeypatch.setattr(LockLine, "try_acquire", try_acquire)
            for name in ("_fail_open_batch", "_deactivate_or_commit"):
                monkeypatch.setattr(GroupCommitter, name, pausing(getattr(GroupCommitter, name)))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(store.create, "one")
                await until(trying.reached.is_set)
                tasks.cancel_scope.cancel()
            trying.open()
            await until(deciding.reached.is_set)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.create, "two")
            await anyio.sleep(0.02)
            deciding.open()
        assert [image.id for image in await store.images()] == ["two"]


async def test_a_change_without_a_lock_timeout_is_not_failed_by_a_try_before_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trying = Gate()
    real_try = LockLine.try_acquire

    def try_acquire(self: LockLine[Any]) -> Any:
        grant = real_try(self)
        trying()
        return grant

    async with ImageStore(path, lock_timeout=0) as store:

        async def fail() -> None:
            with pytest.raises(LockTimeoutError):
                await store.create("one")

        async with anyio.create_task_group() as tasks:
            with locked(path):
                monkeypatch.setattr(LockLine, "try_acquire", try_acquire)
                tasks.start_soon(fail)
                await until(trying.reached.is_set)
            tasks.start_soon(store.create, "two")
            await anyio.sleep(0.02)
            trying.open()
        assert [image.id for image in await store.images()] == ["two"]


async def test_an_error_that_cannot_be_copied_reaches_every_change_of_its_batch(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TwoArgumentsError(Exception):
        def __init__(self, first: str, second: str) -> None:
            super().__init__(first + second)

    def commit(*_: Any) -> Any:
        raise TwoArgumentsError("no", "thing")

    async with ImageStore(path) as store:
        failed = []

        async def fail(image_id: str) -> None:
            with pytest.raises(TwoArgumentsError, match="nothing"):
                await store.create(image_id)
            failed.append(image_id)

        with monkeypatch.context() as patch:
            patch.setattr(DirectoryWriter, "commit", commit)
            with anyio.move_on_after(5):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(fail, "one")
                    tasks.start_soon(fail, "two")
        assert sorted(failed) == ["one", "two"]
        await store.create("three")


# Transactions that several tasks use


@pytest.fixture
def slow_read(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Stop each thread that reads an item."""
    gate = Gate()
    real = DirectoryItems.open

    def open_slowly(self: DirectoryItems, ref: str, key: str) -> Any:
        gate()
        return real(self, ref, key)

    monkeypatch.setattr(DirectoryItems, "open", open_slowly)
    yield gate
    gate.open()


async def test_a_transaction_does_not_block_the_event_loop_while_another_task_reads_an_item(
    path: Path, slow_read: Gate
) -> None:
    async with ImageStore(path) as store:
        await store.create("one", big_data={"key": b"content"})
        async with store.transaction() as transaction, anyio.create_task_group() as tasks:
            tasks.start_soon(transaction.big_data, "one", "key")
            await until(slow_read.reached.is_set)
            tasks.start_soon(transaction.set_metadata, "one", "new")
            await anyio.sleep(0.02)
            slow_read.open()
        assert await store.metadata("one") == "new"


async def test_a_transaction_shows_other_tasks_no_half_of_a_change(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    real = Draft._replace

    def replace(self: Draft, image_id: str, new: Any) -> None:
        real(self, image_id, new)
        if not gate.reached.is_set():
            gate()

    async with ImageStore(path) as store:
        await store.create("one")
        await store.create("two")
        monkeypatch.setattr(Draft, "_replace", replace)
        async with store.transaction() as transaction, anyio.create_task_group() as tasks:
            found = []

            async def look() -> None:
                found.extend([await transaction.exists("one"), await transaction.exists("two")])

            tasks.start_soon(transaction.wipe)
            await until(gate.reached.is_set)
            tasks.start_soon(look)
            await anyio.sleep(0.02)
            gate.open()
        assert found == [False, False]


async def test_a_change_that_reaches_a_transaction_after_its_end_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    real = Call.run

    def run(self: Call[Any]) -> None:
        if not gate.reached.is_set():
            gate()
        real(self)

    async with ImageStore(path) as store:

        async def create(transaction: Transaction) -> None:
            with pytest.raises(StoreClosedError, match="transaction is over"):
                await transaction.create("late")

        async with anyio.create_task_group() as tasks:
            async with store.transaction() as transaction:
                monkeypatch.setattr(Call, "run", run)
                tasks.start_soon(create, transaction)
                await until(gate.reached.is_set)
            gate.open()
        assert await store.images() == []


@pytest.mark.parametrize(("owner", "name"), [(DirectoryItems, "stage"), (_Sink, "append")])
async def test_content_that_is_written_as_its_transaction_ends_is_refused_and_released(
    path: Path, owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    real = getattr(owner, name)

    def stop(*args: Any) -> Any:
        result = real(*args)
        gate()
        return result

    async with ImageStore(path) as store:
        await store.create("one")
        before = descriptors(f"{path}")

        async def write(transaction: Transaction) -> None:
            with pytest.raises(StoreClosedError, match="transaction is over"):
                await transaction.set_big_data("one", "key", b"content" * 2**20)

        async with anyio.create_task_group() as tasks:
            async with store.transaction() as transaction:
                monkeypatch.setattr(owner, name, stop)
                tasks.start_soon(write, transaction)
                await until(gate.reached.is_set)
            gate.open()
        await until(lambda: descriptors(f"{path}") == before)


async def test_staged_data_can_be_used_again_if_its_transaction_is_discarded_meanwhile(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    real = Draft.apply

    def apply(self: Draft, plan: Any) -> None:
        real(self, plan)
        gate()

    async with ImageStore(path) as store, store.stage(b"content") as staged:
        async with anyio.create_task_group() as tasks:
            with pytest.raises(LookupError):
                async with store.transaction() as transaction:
                    monkeypatch.setattr(Draft, "apply", apply)
                    data = {"key": staged}
                    tasks.start_soon(partial(transaction.create, "one", big_data=data))
                    await until(gate.reached.is_set)
                    raise LookupError
            gate.open()
        await store.create("two", big_data={"key": staged})
        assert [image.id for image in await store.images()] == ["two"]


async def test_a_cancelled_change_of_a_transaction_is_made_at_once_or_never(
    path: Path, slow_read: Gate
) -> None:
    async with ImageStore(path) as store:
        await store.create("one", big_data={"key": b"content"})
        async with store.transaction() as transaction, anyio.create_task_group() as tasks:
            tasks.start_soon(transaction.big_data, "one", "key")
            await until(slow_read.reached.is_set)
            decided = []

            async def create(scope: anyio.CancelScope) -> None:
                with scope:
                    await transaction.create("two")
                decided.append(await transaction.exists("two"))

            async def let_go_on() -> None:
                await anyio.sleep(0.05)
                slow_read.open()

            scope = anyio.CancelScope()
            tasks.start_soon(create, scope)
            await anyio.sleep(0.02)
            tasks.start_soon(let_go_on)
            scope.cancel()
            await until(lambda: bool(decided))
            await anyio.sleep(0.1)
            assert decided == [await transaction.exists("two")]


# Closing


async def test_a_transaction_that_is_entered_while_its_store_closes_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    real = DirectoryEngine.close
    closed = 0

    def close(self: DirectoryEngine) -> None:
        nonlocal closed
        closed += 1
        gate()
        real(self)

    async with ImageStore(path) as store, anyio.create_task_group() as tasks:
        blocks = [store.transaction(), store.transaction()]
        monkeypatch.setattr(DirectoryEngine, "close", close)
        tasks.start_soon(store.aclose)
        await until(gate.reached.is_set)
        with pytest.raises(StoreClosedError):
            await blocks[0].__aenter__()
        gate.open()
        await store.aclose()
        with pytest.raises(StoreClosedError):
            await blocks[1].__aenter__()
    assert closed == 1


async def test_a_call_whose_source_goes_on_after_its_store_was_closed_is_refused(
    path: Path,
) -> None:
    go_on = anyio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"1" * 2**20
        await go_on.wait()
        yield b"2" * 2**20

    async with ImageStore(path) as store, anyio.create_task_group() as tasks:
        await store.create("one")

        async def write() -> None:
            with pytest.raises(StoreClosedError):
                await store.set_big_data("one", "key", pieces())

        tasks.start_soon(write)
        await anyio.sleep(0.05)
        await store.aclose()
        assert not open_files(f"{path}")
        go_on.set()


async def test_content_that_a_closed_store_cannot_own_is_discarded(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    real = DirectoryItems.stage

    def stage(self: DirectoryItems) -> Any:
        content = real(self)
        gate()
        return content

    async with ImageStore(path) as store, anyio.create_task_group() as tasks:
        monkeypatch.setattr(DirectoryItems, "stage", stage)

        async def write() -> None:
            with pytest.raises(StoreClosedError):
                async with store.stage(b"content"):
                    pass

        tasks.start_soon(write)
        await until(gate.reached.is_set)
        tasks.start_soon(store.aclose)
        await anyio.sleep(0.02)
        gate.open()
        time.sleep(0.2)  # meanwhile threads close the store, and the task does not run
    await until(lambda: not open_files(f"{path}"))


async def test_a_watch_that_begins_while_its_store_closes_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    real = IndexFile.watch

    def watch(self: IndexFile) -> Any:
        gate()
        return real(self)

    monkeypatch.setattr(IndexFile, "watch", watch)
    async with ImageStore(path) as store, anyio.create_task_group() as tasks:
        ended = anyio.Event()

        async def iterate() -> None:
            async with store.watch() as events:
                with anyio.fail_after(5), pytest.raises(StoreClosedError):
                    await anext(events)
            ended.set()

        async with store.transaction():  # keeps the store from closing
            tasks.start_soon(iterate)
            await until(gate.reached.is_set)
            core_of(store)._begin_closing()
            gate.open()
            await ended.wait()


# Ctrl-C between two instructions, as the second one under asyncio.run


@pytest.mark.parametrize("is_begun", [False, True])
async def test_ctrl_c_while_a_call_is_begun_leaves_nothing_behind(
    path: Path, monkeypatch: pytest.MonkeyPatch, is_begun: bool
) -> None:
    spawn = WorkerPool.spawn

    def interrupted(self: WorkerPool, *arguments: Any) -> None:
        monkeypatch.undo()
        if is_begun:
            spawn(self, *arguments)
        raise KeyboardInterrupt

    store = await ImageStore(path).__aenter__()
    monkeypatch.setattr(WorkerPool, "spawn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        await store.touch()
    with anyio.fail_after(20):
        await store.touch()  # nothing holds the lock
    await until(lambda: not core_of(store).threads._activities)  # else closing never ends
    await store.aclose()


async def test_ctrl_c_while_a_commit_is_begun_leaves_later_changes_to_be_committed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Callable[[], object]] = []

    def interrupted(function: Callable[[], object]) -> None:
        monkeypatch.undo()
        begun.append(function)
        raise KeyboardInterrupt

    store = await ImageStore(path).__aenter__()
    monkeypatch.setattr(core_of(store).threads.loop, "call_soon", interrupted)
    with pytest.raises(KeyboardInterrupt):
        await store.create("one")
    with anyio.fail_after(20):
        await store.create("two")
    begun[0]()  # as the loop does if it came so far before Ctrl-C
    await until(lambda: not core_of(store).threads._activities)  # else closing never ends
    await store.aclose()


# Threads that cannot be started


async def test_a_pool_that_gets_no_more_threads_uses_those_that_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = WorkerPool(2, "pool")
    gate = Gate()
    done: list[int] = []
    try:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", _no_more_threads)
            with pytest.raises(RuntimeError, match="new thread"):
                pool.submit(done.append, 1)
        pool.submit(gate)
        await until(gate.reached.is_set)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", _no_more_threads)
            pool.submit(done.append, 2)
        pool.submit(done.append, 3)
        await until(lambda: 3 in done)
    finally:
        gate.open()
        pool.shutdown()
    await until(lambda: 2 in done)
    assert sorted(done) == [2, 3]


async def test_a_lock_whose_thread_cannot_be_started_fails_its_requests_and_works_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = threading.Thread.start

    def start(self: threading.Thread) -> None:
        if self.name == "aimagestore lock":
            _no_more_threads(self)
        real(self)

    async with ImageStore(path) as store:
        with locked(path), monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            with anyio.fail_after(5):
                with pytest.raises(RuntimeError, match="new thread"):
                    await store.create("one")
                with pytest.raises(RuntimeError, match="new thread"):
                    async with store.transaction():
                        pass
        await store.create("two")
        assert [image.id for image in await store.images()] == ["two"]


async def test_each_task_that_waits_for_the_lock_has_an_error_of_its_own(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    errors: list[BaseException] = []

    def fail(_: ExclusiveLock) -> bool:
        gate()
        raise OSError(errno.ENOLCK, "no locks available")

    async def enter(store: ImageStore) -> None:
        with pytest.raises(OSError, match="no locks") as caught:
            await store.transaction().__aenter__()
        errors.append(caught.value)

    async with ImageStore(path) as store:
        monkeypatch.setattr(ExclusiveLock, "try_acquire", lambda _: None)
        monkeypatch.setattr(ExclusiveLock, "acquire", fail)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(enter, store)
            tasks.start_soon(enter, store)
            await until(lambda: len(core_of(store).engine.lock._line) == 2)
            gate.open()
    assert len(errors) == 2
    assert errors[0] is not errors[1]


# Staged data


async def test_staged_data_that_is_being_written_cannot_be_used(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    real = Directory.write

    def write(self: Directory, name: str, fd: int, pieces: Any) -> None:
        if not name:
            gate()
        real(self, name, fd, pieces)

    async with ImageStore(path) as store, store.stage(b"first") as staged:
        digest = staged.digest
        with monkeypatch.context() as patch:
            patch.setattr(Directory, "write", write)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(staged.write, b"second" * 2**20)
                await until(gate.reached.is_set)
                assert staged.digest == digest
                with pytest.raises(ValueError, match="being written"):
                    await store.create("one", big_data={"key": staged})
                gate.open()
        assert staged.digest != digest
        await store.create("one", big_data={"key": staged})


# Event loops in unusual places


@pytest.mark.parametrize("name", ["touch", "transaction"])
def test_a_lock_that_is_granted_after_its_loop_was_closed_is_released(
    path: Path, name: str
) -> None:
    loop = asyncio.new_event_loop()

    async def wait() -> None:
        async with ImageStore(path) as store:
            if name == "touch":
                await store.touch()
            await store.transaction().__aenter__()

    path.mkdir()
    with locked(path):
        task = loop.create_task(wait())
        loop.run_until_complete(until_requested())
        loop.close()
    assert becomes_true(lambda: not is_requested())  # it is granted
    assert becomes_true(lambda: not is_locked(path))
    task.get_coro().close()
    assert becomes_true(lambda: not open_files(f"{path}"))


def test_a_loop_that_runs_while_a_generator_is_closed_closes_its_store(path: Path) -> None:
    left_open: list[set[str]] = []

    async def use() -> None:
        async with ImageStore(path) as store, store.transaction() as transaction:
            await transaction.create("one")
        left_open.append(open_files(f"{path}"))

    def generator() -> Iterator[None]:
        try:
            yield
        finally:
            asyncio.run(use())

    steps = generator()
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert left_open == [set()]
