"""Reading during a change of another program, which saves it in several steps."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from aimagestore import Image, ImageStore, LockTimeoutError, StoreClosedError, Watch, check
from aimagestore._directory import lock
from aimagestore._directory.files import Directory
from aimagestore._directory.lock import SharedLock

from .support.faults import Faults
from .support.foreign import ForeignWriter, foreign_writer
from .support.layouts import digest_of
from .support.stores import is_requested, locked, until_not_requested, until_requested

OLD, NEW = b"old", b"new"


def record(data: bytes | None = None, **fields: Any) -> dict[str, Any]:
    """Return the record of image ``a``, with an item if there is data for it."""
    items = {}
    if data is not None:
        items = {
            "big-data-names": ["k"],
            "big-data-sizes": {"k": len(data)},
            "big-data-digests": {"k": digest_of(data)},
        }
    return {"id": "a", **items, "created": "2024-01-01T00:00:00Z", **fields}


@pytest.fixture
async def old(store: ImageStore) -> ImageStore:
    """A store whose image ``a`` has an item ``k`` with ``old`` in it."""
    await store.create("a", big_data={"k": OLD})
    return store


@pytest.fixture
def writer(old: ImageStore, path: Path) -> Iterator[ForeignWriter]:
    """Another program, which holds the lock and completes a change that a test leaves open."""
    with foreign_writer(path) as writer:
        yield writer
        if not writer.is_over:
            writer.save(record(OLD))


async def verified(store: ImageStore) -> bytes:
    """Read the item."""
    async with store.open_big_data("a", "k", verify=True) as reader:
        return await reader.read()


async def watched(store: ImageStore) -> int:
    """Begin a watch, and return the number of images."""
    async with store.watch():
        return len(await store.images())


READS: dict[str, Callable[[ImageStore], Awaitable[object]]] = {
    "get": lambda store: store.get("a"),
    "images": lambda store: store.images(),
    "snapshot": lambda store: store.snapshot(),
    "refresh": lambda store: store.refresh(),
    "big_data": lambda store: store.big_data("a", "k"),
    "open_big_data": verified,
    "watch": watched,
}


@pytest.mark.parametrize("read", READS)
async def test_a_read_waits_for_the_end_of_a_change(
    old: ImageStore, writer: ForeignWriter, read: str
) -> None:
    done = anyio.Event()

    async def reading() -> None:
        await READS[read](old)
        done.set()

    writer.save(record())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reading)
        await until_requested()
        writer.place("a", "k", NEW)
        writer.save(record(NEW))
        assert not done.is_set()
        writer.release()
    assert await old.big_data("a", "k") == NEW


async def test_iterating_waits_for_the_end_of_a_change(
    old: ImageStore, writer: ForeignWriter
) -> None:
    seen: list[Image] = []

    async def iterate() -> None:
        seen.extend([image async for image in old.iter_images()])

    writer.save(record())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(iterate)
        await until_requested()
        writer.save(record(OLD, metadata="whole"))
        writer.release()
    assert [image.metadata for image in seen] == ["whole"]


@pytest.mark.parametrize("is_set_back", [False, True])
async def test_content_that_was_replaced_before_its_record_is_waited_for(
    old: ImageStore,
    writer: ForeignWriter,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_set_back: bool,
) -> None:
    content = b""

    async def reading() -> None:
        nonlocal content
        content = await verified(old)

    writer.place("a", "k", NEW)
    if is_set_back:  # the clock, between the last commit and this change
        now = time.time_ns() - 3600 * 10**9
        monkeypatch.setattr(time, "time_ns", lambda: now)
        os.utime(path / "a" / "k", ns=(now, now))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reading)
        await until_requested()
        # The record is whole all the time.
        assert (await old.get("a")).big_data_sizes == {"k": 3}
        writer.save(record(NEW))
        writer.release()
    assert content == NEW


async def test_a_check_waits_for_the_end_of_a_change(
    old: ImageStore, path: Path, writer: ForeignWriter
) -> None:
    reports = []

    async def checking() -> None:
        reports.append(await check(path))

    writer.save(record(), record(id="b"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(checking)
        await until_requested()
        writer.save(record(OLD))
        writer.release()
    assert [(r.images, r.items, r.findings) for r in reports] == [(1, 1, ())]


async def test_reads_do_not_wait_for_a_writer_that_has_changed_nothing(
    old: ImageStore, path: Path, writer: ForeignWriter
) -> None:
    async with ImageStore(path) as fresh:
        for store in (old, fresh):
            assert await verified(store) == OLD
            assert len(await store.snapshot()) == 1
    assert not is_requested()


async def test_a_store_opens_in_the_middle_of_a_change_and_its_first_read_waits(
    old: ImageStore, path: Path, writer: ForeignWriter
) -> None:
    writer.save(record())
    async with ImageStore(path) as store, anyio.create_task_group() as tasks:
        tasks.start_soon(store.get, "a")
        await until_requested()
        writer.save(record(OLD, metadata="whole"))
        writer.release()
    async with ImageStore(path) as store:
        assert (await store.set_flag("a", "f", 1)).metadata == "whole"


async def test_a_cancelled_wait_ends_at_once(old: ImageStore, writer: ForeignWriter) -> None:
    writer.save(record())
    with anyio.fail_after(20):
        for _ in range(40):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(old.get, "a")
                await until_requested()
                tasks.cancel_scope.cancel()
    waiting = [t for t in threading.enumerate() if t.name == "aimagestore shared lock"]
    assert len(waiting) == 1, "a writer that is stuck costs one thread"
    writer.save(record(OLD, metadata="whole"))
    writer.release()
    await until_not_requested()
    assert (await old.get("a")).metadata == "whole"


@pytest.mark.parametrize("timeout", [0, 0.2])
async def test_a_wait_ends_with_the_lock_timeout(
    old: ImageStore, path: Path, writer: ForeignWriter, timeout: float
) -> None:
    writer.save(record())
    async with ImageStore(path, lock_timeout=timeout) as store:
        for read in ("get", "snapshot", "open_big_data"):
            with anyio.fail_after(20), pytest.raises(LockTimeoutError) as raised:
                await READS[read](store)
            assert raised.value.holder_pid == writer.process
            assert raised.value.path == str(path / "images.lock")


async def test_closing_ends_a_wait(old: ImageStore, path: Path, writer: ForeignWriter) -> None:
    writer.save(record())
    ends: list[type[BaseException]] = []

    async def reading(store: ImageStore) -> None:
        with pytest.raises(StoreClosedError) as raised:
            await store.get("a")
        ends.append(raised.type)

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks, ImageStore(path) as store:
            tasks.start_soon(reading, store)
            await until_requested()
    assert ends


async def test_nobody_waits_for_a_writer_of_this_library_that_comes_next(
    old: ImageStore, path: Path, writer: ForeignWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The writer gets the lock before the reader, although that one has waited for longer.
    never = threading.Event()

    def acquire(self: SharedLock) -> int | None:
        never.wait()
        return None

    monkeypatch.setattr(lock.SharedLock, "acquire", acquire)
    done = anyio.Event()

    async def reading() -> None:
        await old.get("a")
        done.set()

    writer.save(record())
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reading)
            await until_requested()
            writer.save(record(OLD, metadata="whole"))
            writer.release()
            with locked(path), anyio.fail_after(20):
                await done.wait()
    finally:
        never.set()


async def test_a_writer_in_another_process_namespace_is_recognized(
    old: ImageStore, path: Path
) -> None:
    with foreign_writer(path, own_namespace=True) as writer:
        assert len(await old.images()) == 1
        writer.save(record(), record(id="b"))
        async with ImageStore(path, read_only=True, lock_timeout=0) as store:
            with pytest.raises(LockTimeoutError):
                await store.images()
        writer.save(record(OLD))


async def test_a_watch_yields_changes_that_precede_an_unfinished_one(
    old: ImageStore, path: Path
) -> None:
    async with old.watch() as changes:
        await old.set_metadata("a", "ours")
        with foreign_writer(path) as writer:
            writer.save(record(), record(id="b"))
            with anyio.fail_after(20):
                event = await anext(changes)
            assert event.image is not None
            assert event.image.metadata == "ours"
            writer.save(record(OLD, metadata="theirs"))
        with anyio.fail_after(20):
            event = await anext(changes)
        assert (event.id, event.kind) == ("a", "changed")
        assert event.image is not None
        assert event.image.metadata == "theirs"


async def test_a_watch_can_end_while_its_task_waits_for_the_end_of_a_change(
    old: ImageStore, writer: ForeignWriter
) -> None:
    ends: list[type[BaseException]] = []

    async def watching(changes: Watch) -> None:
        with pytest.raises(StoreClosedError) as raised:
            await anext(changes)
        ends.append(raised.type)

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks, old.watch() as changes:
            writer.save(record())
            tasks.start_soon(watching, changes)
            await until_requested()
    assert ends


def test_a_process_whose_name_is_cut_off_within_a_character_is_identified() -> None:
    name = Path("/proc/self/comm")
    before = name.read_bytes().rstrip(b"\n")
    name.write_bytes(b"n" * 14 + "é".encode())
    try:
        assert lock._number_in_its_namespace(os.getpid()) == os.getpid()
    finally:
        name.write_bytes(before)


def test_a_lock_file_that_cannot_be_opened_raises_the_error(path: Path, faults: Faults) -> None:
    path.mkdir()
    (path / "images.lock").touch()
    with (
        Directory.at(str(path)) as directory,
        faults.fail_call("open", errno.EMFILE, lambda *_, **__: True),
        pytest.raises(OSError, match="Too many open files"),
    ):
        SharedLock(directory).acquire()
