"""The group committer over a directory: one commit for many changes, and forked children."""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from aimagestore import (
    ImageStore,
    StoreClosedError,
    StoreCorruptError,
    Transaction,
)
from aimagestore._core.draft import Draft
from aimagestore._core.record import Record

from .support.gates import Gate
from .support.stores import is_locked


async def test_changes_that_are_pending_together_are_committed_together(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = 0
    real_rename = os.rename

    def rename(source: str, target: str, **options: int) -> None:
        nonlocal commits
        commits += target == "images.json"
        real_rename(source, target, **options)

    monkeypatch.setattr(os, "rename", rename)
    async with anyio.create_task_group() as tasks:
        for i in range(100):
            tasks.start_soon(store.create, f"id{i:02}")
    assert len(await store.images()) == 100
    # Those that come while the first commit is under way make the second; 100 would be one each.
    assert 1 <= commits <= 3


async def test_a_change_of_an_image_whose_directory_is_a_file_fails_alone(
    store: ImageStore, path: Path
) -> None:
    await store.create("good")
    await store.create("bad")
    (path / "bad").write_bytes(b"a file")

    async def fail() -> None:
        with pytest.raises(StoreCorruptError):
            await store.set_big_data("bad", "key", b"data")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fail)
        tasks.start_soon(store.set_big_data, "good", "key", b"data")
        tasks.start_soon(store.set_metadata, "good", "text")
    assert await store.metadata("good") == "text"
    assert await store.big_data("good", "key") == b"data"
    assert (path / "bad").read_bytes() == b"a file"


async def test_a_file_in_the_place_of_a_new_images_directory_fails_only_its_creation(
    store: ImageStore, path: Path
) -> None:
    (path / "bad").write_bytes(b"a file")
    async with store.transaction() as tx:
        await tx.create("good")
        with pytest.raises(StoreCorruptError):
            await tx.create("bad", big_data={"key": b"data"})
    assert [image.id for image in await store.images()] == ["good"]
    assert (path / "bad").read_bytes() == b"a file"
    (path / "bad").unlink()


async def test_the_token_of_a_commit_is_in_the_lock_file_that_others_open(
    store: ImageStore, path: Path
) -> None:
    async with store.transaction() as tx:
        await tx.create("one")
        (path / "images.lock").unlink()
        (path / "images.lock").touch()
    assert (path / "images.lock").stat().st_size == 64


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds descriptors in /proc")
async def test_a_token_that_is_not_written_when_its_file_is_closed_undoes_the_commit(
    store: ImageStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.create("one")
    real_close = os.close

    def close(fd: int) -> None:
        is_lock_file = os.readlink(f"/proc/self/fd/{fd}").endswith("/images.lock")
        real_close(fd)
        if is_lock_file:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", close)
        with pytest.raises(OSError, match="quota"):
            await store.create("two")
        with pytest.raises(OSError, match="quota"):
            async with store.transaction() as tx:
                await tx.create("three")
    assert [image.id for image in await store.images()] == ["one"]
    await store.create("two")


@pytest.mark.parametrize("name", ["get", "lookup", "exists", "big_data_names"])
async def test_a_read_in_a_transaction_waits_for_a_change_that_a_thread_is_making(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    gate = Gate()
    append = Draft._append

    def stop_halfway(draft: Draft, record: Record) -> None:
        append(draft, record)
        gate()

    monkeypatch.setattr(Draft, "_append", stop_halfway)
    found: list[object] = []

    async def read(tx: Transaction) -> None:
        found.append(await getattr(tx, name)("n"))

    async with store.transaction() as tx, anyio.create_task_group() as tasks:
        tasks.start_soon(partial(tx.create, "new", names=["n"]))
        await anyio.to_thread.run_sync(gate.reached.wait)
        tasks.start_soon(read, tx)
        await anyio.wait_all_tasks_blocked()
        is_waiting = not found
        gate.open()
    assert is_waiting
    assert found


async def test_a_transaction_locks_no_other_store(store: ImageStore, path: Path) -> None:
    async with ImageStore(path.with_name("store2")) as other, store.transaction() as tx:
        await other.create("there")
        await tx.create("here")
    assert await store.exists("here")


# Forked children


async def test_a_forked_child_cannot_use_the_store_and_does_not_keep_the_lock(
    store: ImageStore, path: Path
) -> None:
    await store.create("one")
    to_child = os.pipe()
    to_parent = os.pipe()
    async with store.transaction() as tx:
        await tx.create("two")
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
    """Use a store in a child that inherited it, and wait for the end of the parent's test."""
    try:
        store.get("one").send(None)
    except StoreClosedError as error:
        os.write(answers, type(error).__name__.encode())
    except BaseException as error:
        os.write(answers, repr(error).encode())
    return 0 if os.read(commands, 100) == b"end" else 1
