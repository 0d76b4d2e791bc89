"""The commit pipeline: many tasks, one commit; transactions; locks; closing."""

from __future__ import annotations

import copy
import fcntl
import os
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from aimagestore import (
    DuplicateIDError,
    ImageStore,
    ImageUnknownError,
    LockTimeoutError,
    StoreClosedError,
    StoreCorruptError,
    Transaction,
)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the store's lock, as another store of this process would."""
    fd = os.open(path / "images.lock", os.O_RDWR | os.O_CREAT)
    try:
        lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
        yield
    finally:
        os.close(fd)


def is_locked(path: Path) -> bool:
    try:
        with locked(path):
            return False
    except BlockingIOError:
        return True


async def until_waiting() -> None:
    """Return when a thread waits for a store's lock."""
    while not any(thread.name == "aimagestore lock" for thread in threading.enumerate()):
        await anyio.sleep(0.001)


async def until_no_thread_waits() -> None:
    while any(thread.name == "aimagestore lock" for thread in threading.enumerate()):
        await anyio.sleep(0.001)


async def test_changes_that_wait_together_are_committed_together(
    store: ImageStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inodes = set()
    real_rename = os.rename

    def rename(*args: object, **kwargs: object) -> None:
        real_rename(*args, **kwargs)  # type: ignore[arg-type]
        inodes.add((path / "images.json").stat().st_ino)

    monkeypatch.setattr(os, "rename", rename)
    async with anyio.create_task_group() as tasks:
        for i in range(100):
            tasks.start_soon(store.create, f"id{i:02}")
    assert len(await store.images()) == 100
    assert len(inodes) <= 3


async def test_each_gets_its_own_result_or_error(store: ImageStore) -> None:
    await store.create("one")
    results: dict[int, object] = {}

    async def change(i: int) -> None:
        try:
            if i % 3 == 0:
                results[i] = await store.create("one")
            elif i % 3 == 1:
                results[i] = await store.set_metadata("nobody", "x")
            else:
                results[i] = await store.set_flag("one", f"flag{i}", i)
        except (DuplicateIDError, ImageUnknownError) as error:
            results[i] = error

    async with anyio.create_task_group() as tasks:
        for i in range(30):
            tasks.start_soon(change, i)
    assert [type(results[i]) for i in range(30)] == [
        DuplicateIDError,
        ImageUnknownError,
        type(await store.get("one")),
    ] * 10
    assert len({id(result) for result in results.values()}) == 30
    assert (await store.get("one")).flags == {f"flag{i}": i for i in range(2, 30, 3)}


async def test_one_that_meets_a_bad_directory_fails_alone(store: ImageStore, path: Path) -> None:
    await store.create("good")
    await store.create("bad")
    (path / "bad").write_bytes(b"a file")
    failed: list[BaseException] = []

    async def spoil() -> None:
        try:
            await store.set_big_data("bad", "key", b"data")
        except StoreCorruptError as error:
            failed.append(error)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(spoil)
        tasks.start_soon(store.set_big_data, "good", "key", b"data")
        tasks.start_soon(store.set_metadata, "good", "text")
    assert len(failed) == 1
    assert await store.big_data("good", "key") == b"data"
    assert (path / "bad").read_bytes() == b"a file"


async def test_a_changes_result_is_the_image_as_that_change_left_it(store: ImageStore) -> None:
    await store.create("one")
    results = []

    async def change(text: str) -> None:
        results.append((text, (await store.set_metadata("one", text)).metadata))

    async with anyio.create_task_group() as tasks:
        for i in range(20):
            tasks.start_soon(change, str(i))
    assert len(results) == 20
    assert all(text == metadata for text, metadata in results)


async def test_delete_and_create_again_at_once(store: ImageStore, path: Path) -> None:
    await store.create("one", names=["a"], big_data={"old": b"old", "both": b"old"})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.delete, "one")
        tasks.start_soon(lambda: store.create("one", big_data={"new": b"new", "both": b"new"}))
    assert await store.big_data("one", "new") == await store.big_data("one", "both") == b"new"
    assert sorted(os.listdir(path / "one")) == ["both", "new"]


# Transactions


async def test_a_transaction_is_saved_once_and_whole(store: ImageStore, path: Path) -> None:
    await store.create("old", names=["a", "b"])
    before = (path / "images.json").read_bytes()
    async with store.transaction() as tx:
        tx.create("new", names=["c"], big_data={"manifest": b"{}"})
        tx.set_names("new", ["a"])
        tx.add_names("new", ["d"])
        tx.remove_names("old", ["b"])
        tx.set_metadata("new", "text")
        tx.set_flag("new", "one", 1)
        tx.set_flag("new", "two", 2)
        tx.clear_flag("new", "one")
        tx.set_big_data("old", "key", b"data")
        assert tx.lookup("d") == tx.get("a").id == "new"
        assert tx.exists("new")
        assert [image.id for image in tx.images()] == ["old", "new"]
        assert [image.id for image in tx.by_digest(tx.get("new").digest)] == ["new"]
        assert await store.exists("b")
        assert not await store.exists("new")
        assert (path / "images.json").read_bytes() == before
    image = await store.get("new")
    assert (image.names, image.metadata, image.flags) == (("d", "a"), "text", {"two": 2})
    assert (await store.get("old")).names == ()
    assert await store.big_data("old", "key") == b"data"
    assert await store.big_data("new", "manifest") == b"{}"
    with pytest.raises(StoreClosedError):
        tx.get("new")


async def test_an_exception_undoes_a_transaction(store: ImageStore, path: Path) -> None:
    await store.create("old")
    before = (path / "images.json").read_bytes()
    with pytest.raises(ZeroDivisionError):
        async with store.transaction() as tx:
            tx.delete("old")
            tx.create("new", big_data={"key": b"data"})
            raise ZeroDivisionError
    assert (path / "images.json").read_bytes() == before
    assert sorted(os.listdir(path)) == ["images.json", "images.lock"]
    assert not is_locked(path)
    await store.set_metadata("old", "x")


async def test_an_error_caught_inside_changes_nothing(store: ImageStore) -> None:
    async with store.transaction() as tx:
        tx.create("one", names=["a"])
        with pytest.raises(DuplicateIDError):
            tx.create("one")
        with pytest.raises(ImageUnknownError):
            tx.set_names("nobody", ["a"])
        with pytest.raises(TypeError):
            tx.set_big_data("one", "key", "text")
    assert (await store.get("a")).id == "one"


async def test_changes_inside_a_transaction_do_not_deadlock(store: ImageStore) -> None:
    async def child() -> None:
        with pytest.raises(RuntimeError, match="transaction"):
            await store.create()

    async with store.transaction():
        with pytest.raises(RuntimeError, match="transaction"):
            await store.wipe()
        with pytest.raises(RuntimeError, match="transaction"):
            async with store.transaction():
                pass
        with pytest.raises(RuntimeError, match="transaction"):
            await store.aclose()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(child)
    await store.create()


async def test_a_child_that_outlives_the_transaction_may_change_the_store(
    store: ImageStore,
) -> None:
    over = anyio.Event()

    async def child() -> None:
        await over.wait()
        await store.create("child")

    async with anyio.create_task_group() as tasks:
        async with store.transaction() as tx:
            tasks.start_soon(child)
            tx.create("parent")
        over.set()
    assert [image.id for image in await store.images()] == ["parent", "child"]


async def test_another_stores_transaction_is_no_obstacle(store: ImageStore, path: Path) -> None:
    async with ImageStore(path.with_name("store2")) as other, store.transaction() as tx:
        await other.create("there")
        tx.create("here")
    assert await store.exists("here")


async def test_a_transaction_takes_staged_data(store: ImageStore) -> None:
    async with store.stage(b"data") as staged:
        with pytest.raises(ZeroDivisionError):
            async with store.transaction() as tx:
                tx.create("one", big_data={"key": staged})
                raise ZeroDivisionError
        async with store.transaction() as tx:
            tx.create("two", big_data={"key": staged})
    assert await store.big_data("two", "key") == b"data"
    assert not await store.exists("one")


async def test_a_transaction_clears_what_a_new_images_directory_holds(
    store: ImageStore, path: Path
) -> None:
    (path / "one").mkdir()
    (path / "one" / "stale").write_bytes(b"stale")
    async with store.transaction() as tx:
        tx.create("one", big_data={"key": b"data"})
    assert os.listdir(path / "one") == ["key"]


async def test_transactions_and_changes_of_many_tasks(store: ImageStore) -> None:
    await store.create("one", flags={"n": 0})

    async def count(tx: Transaction) -> None:
        tx.set_flag("one", "n", tx.get("one").flags["n"] + 1)

    async def add() -> None:
        for _ in range(5):
            async with store.transaction() as tx:
                await count(tx)

    async with anyio.create_task_group() as tasks:
        for i in range(5):
            tasks.start_soon(add)
            tasks.start_soon(store.set_flag, "one", f"other{i}", i)
    assert (await store.get("one")).flags == {"n": 25} | {f"other{i}": i for i in range(5)}


# The lock


async def test_two_stores_of_one_process_exclude_each_other(store: ImageStore, path: Path) -> None:
    async with ImageStore(path, lock_timeout=0.05) as other:
        async with store.transaction():
            with pytest.raises(LockTimeoutError) as info:
                await other.create()
            assert is_locked(path)
        assert info.value.path is not None
        assert info.value.path.endswith("images.lock")
        assert isinstance(info.value, TimeoutError)
        assert str(os.getpid()) not in str(info.value) or info.value.last_writer_pid == os.getpid()
        await other.create()
    assert not is_locked(path)


async def test_other_codes_descriptors_do_not_release_the_lock(
    store: ImageStore, path: Path
) -> None:
    async with store.transaction():
        os.close(os.open(path / "images.lock", os.O_RDWR))
        assert is_locked(path)


async def test_a_posix_lock_of_another_process_is_named(path: Path) -> None:
    async with ImageStore(path, lock_timeout=0.05) as store:
        await store.create("one")
        code = (
            "import fcntl, sys; f = open(sys.argv[1], 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX);"
            "print('held', flush=True); sys.stdin.read()"
        )
        process = await anyio.open_process([sys.executable, "-c", code, str(path / "images.lock")])
        async with process:
            assert process.stdout is not None
            await process.stdout.receive()
            with pytest.raises(LockTimeoutError) as info:
                await store.set_metadata("one", "x")
            assert info.value.holder_pid == process.pid
            assert info.value.last_writer_pid == os.getpid()
            assert str(process.pid) in str(info.value)
            assert (await store.get("one")).metadata == ""
            with pytest.raises(LockTimeoutError):
                async with store.transaction():
                    pass
            assert process.stdin is not None
            await process.stdin.aclose()
        await store.set_metadata("one", "x")


async def test_a_wait_that_is_cancelled_leaves_nothing_held(store: ImageStore, path: Path) -> None:
    with locked(path):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.create, "one")
            await until_waiting()
            tasks.cancel_scope.cancel()
    await until_no_thread_waits()
    assert not is_locked(path)
    assert not await store.exists("one")
    await store.create("two")


async def test_a_leader_that_gives_up_hands_over(store: ImageStore, path: Path) -> None:
    scopes: dict[str, anyio.CancelScope] = {}
    done: list[str] = []

    async def create(image_id: str) -> None:
        with anyio.CancelScope() as scope:
            scopes[image_id] = scope
            await store.create(image_id)
            done.append(image_id)

    async with anyio.create_task_group() as tasks:
        with locked(path):
            for i in range(5):
                tasks.start_soon(create, f"id{i}")
            await until_waiting()
            for image_id in ("id0", "id1", "id3"):
                scopes[image_id].cancel()
            await anyio.lowlevel.checkpoint()
    assert sorted(done) == ["id2", "id4"]
    assert sorted(image.id for image in await store.images()) == ["id2", "id4"]


async def test_each_waiters_time_is_its_own(path: Path) -> None:
    async with ImageStore(path) as patient, ImageStore(path, lock_timeout=0.05) as hasty:
        timeouts = []

        async def change(i: int) -> None:
            try:
                await hasty.create(f"hasty{i}")
            except LockTimeoutError as error:
                timeouts.append(error)

        async with anyio.create_task_group() as tasks:
            with locked(path):
                tasks.start_soon(patient.create, "patient")
                async with anyio.create_task_group() as hurried:
                    for i in range(3):
                        hurried.start_soon(change, i)
        await until_no_thread_waits()
        assert len(timeouts) == 3
        assert [image.id for image in await patient.images()] == ["patient"]


async def test_waiting_writers_leave_the_applications_threads_alone(
    store: ImageStore, path: Path
) -> None:
    async with anyio.create_task_group() as tasks:
        with locked(path):
            for i in range(100):
                tasks.start_soon(store.create, f"id{i}")
            await until_waiting()
            with anyio.fail_after(5):
                async with anyio.create_task_group() as others:
                    for _ in range(40):
                        others.start_soon(anyio.to_thread.run_sync, os.getpid)
            assert len(await store.images()) == 0
    assert len(await store.images()) == 100


async def test_a_lock_file_with_two_links_is_refused(path: Path, tmp_path: Path) -> None:
    path.mkdir()
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious" * 10)
    os.link(outside, path / "images.lock")
    with pytest.raises(StoreCorruptError, match="link"):
        async with ImageStore(path):
            pass
    assert outside.read_bytes() == b"precious" * 10


# Closing


async def test_closing_turns_away_who_waits(path: Path) -> None:
    refused = []

    async def create(store: ImageStore) -> None:
        try:
            await store.create()
        except StoreClosedError as error:
            refused.append(error)

    store = ImageStore(path)
    async with store:
        with locked(path):
            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(create, store)
                await until_waiting()
                await store.aclose()
    assert len(refused) == 5
    await until_no_thread_waits()
    assert not is_locked(path)


async def test_closing_finishes_what_is_under_way(path: Path) -> None:
    store = ImageStore(path)
    async with store, anyio.create_task_group() as tasks:
        in_transaction = anyio.Event()
        go_on = anyio.Event()

        async def transact() -> None:
            async with store.transaction() as tx:
                tx.create("one")
                in_transaction.set()
                await go_on.wait()

        tasks.start_soon(transact)
        await in_transaction.wait()
        tasks.start_soon(store.aclose)
        await anyio.wait_all_tasks_blocked()
        go_on.set()
    async with ImageStore(path) as again:
        assert await again.exists("one")


async def test_a_reader_outlives_its_store(path: Path) -> None:
    store = ImageStore(path)
    async with store:
        await store.create("one", big_data={"key": b"data"})
        async with store.open_big_data("one", "key") as reader:
            await store.aclose()
            assert await reader.read() == b"data"


def test_another_event_loop_is_refused(path: Path) -> None:
    store = ImageStore(path)

    async def first() -> None:
        await store.__aenter__()
        await store.create("one")

    async def second() -> None:
        with pytest.raises(RuntimeError, match="event loop"):
            await store.set_metadata("one", "x")

    async def last() -> None:
        store._loop = anyio.lowlevel.current_token()
        await store.aclose()

    for function in (first, second, last):
        anyio.run(function)


async def test_a_forked_child_is_refused(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.create("one")
    monkeypatch.setattr("aimagestore._async.store._process", 77)
    with pytest.raises(StoreClosedError, match="fork"):
        await store.get("one")
    await copy.copy(store).aclose()
    monkeypatch.undo()
    assert await store.exists("one")


async def test_a_forked_child_shares_neither_store_nor_lock(store: ImageStore, path: Path) -> None:
    await store.create("one")
    to_child = os.pipe()
    to_parent = os.pipe()
    async with store.transaction() as tx:
        tx.create("two")
        child = os.fork()
        if child == 0:
            os._exit(_use_inherited(store, to_child[0], to_parent[1]))
        assert await anyio.to_thread.run_sync(os.read, to_parent[0], 100) == b"StoreClosedError"
    assert not is_locked(path)
    await store.create("three")
    os.write(to_child[1], b"end")
    assert (await anyio.to_thread.run_sync(os.waitpid, child, 0))[1] == 0
    for fd in (*to_child, *to_parent):
        os.close(fd)
    assert [image.id for image in await store.images()] == ["one", "two", "three"]


def _use_inherited(store: ImageStore, commands: int, answers: int) -> int:
    """Use a store in a child that inherited it, and live on for a while."""
    try:
        store.get("one").send(None)
    except StoreClosedError as error:
        os.write(answers, type(error).__name__.encode())
    except BaseException as error:
        os.write(answers, repr(error).encode())
    return 0 if os.read(commands, 100) == b"end" else 1
