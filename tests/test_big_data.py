"""Big data in a directory: the names of files, syncs, verification and measuring."""

from __future__ import annotations

import errno
import os
import threading
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aimagestore import (
    DigestMismatchError,
    ImageStore,
)
from aimagestore._core.digest import canonical_digest
from aimagestore._directory import staged as staged_files
from aimagestore._directory.files import Directory
from aimagestore._directory.items import DirectoryItems

from .support.sources import CONTENT, DIGEST, chunks


@pytest.fixture
async def image(store: ImageStore) -> str:
    """An image without any item."""
    return (await store.create("image")).id


async def test_files_have_upstreams_names_and_modes(
    store: ImageStore, image: str, path: Path
) -> None:
    names = {"plain.1": "plain.1", "Key": "=S2V5", "manifest-1": "=bWFuaWZlc3QtMQ==", "keY": "keY"}
    for key in names:
        await store.set_big_data(image, key, b"x")
    assert sorted(p.name for p in (path / image).iterdir()) == sorted(names.values())
    assert (path / image).stat().st_mode & 0o777 == 0o700
    assert {p.stat().st_mode & 0o777 for p in (path / image).iterdir()} == {0o600}


async def test_writing_the_same_content_repairs_an_altered_file(
    store: ImageStore, image: str, path: Path
) -> None:
    await store.set_big_data(image, "key", b"right")
    before = (path / "images.json").stat().st_ino
    (path / image / "key").write_bytes(b"wrong")
    await store.set_big_data(image, "key", b"right")
    assert await store.big_data(image, "key") == b"right"
    assert (path / "images.json").stat().st_ino == before


@pytest.mark.damage
async def test_an_altered_file_is_noticed_at_the_end_of_a_verified_read(
    store: ImageStore, image: str, path: Path
) -> None:
    await store.set_big_data(image, "key", CONTENT)
    async with store.open_big_data(image, "key", verify=True) as reader:
        assert b"".join([chunk async for chunk in reader]) == CONTENT
        with pytest.raises(ValueError, match="verif"):
            await reader.seek(0)
    (path / image / "key").write_bytes(b"x" + CONTENT[1:])
    for size in [-1, len(CONTENT), len(CONTENT) - 1, 1000]:
        async with store.open_big_data(image, "key", verify=True) as reader:
            with pytest.raises(DigestMismatchError) as info:
                while await reader.read(size):
                    pass
            assert info.value.expected == DIGEST


@pytest.mark.damage
async def test_an_error_about_a_missing_file_has_its_path(
    store: ImageStore, image: str, path: Path
) -> None:
    await store.set_big_data(image, "key", b"data")
    (path / image / "key").unlink()
    with pytest.raises(FileNotFoundError) as info:
        await store.big_data(image, "key")
    assert info.value.filename == str(path / image / "key")


async def test_little_data_is_written_by_the_commit_and_more_is_staged_before(
    store: ImageStore, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DirectoryItems, "stage", None)
    little: dict[str, bytes | bytearray] = {"a": b"", "b": bytearray(b"x" * (16 * 1024 - 1))}
    created = await store.create(big_data=little)
    assert created.big_data_sizes == {"a": 0, "b": 16 * 1024 - 1}
    await store.set_big_data(image, "key", b"little")
    with pytest.raises(TypeError):
        await store.set_big_data(image, "key", b"x" * 16 * 1024)
    monkeypatch.undo()
    assert [await store.big_data(created.id, key) for key in little] == [*little.values()]
    await store.set_big_data(image, "key", b"x" * 16 * 1024)
    assert await store.big_data_size(image, "key") == 16 * 1024


@pytest.mark.parametrize("in_transaction", [False, True])
async def test_the_event_loop_hashes_little_however_many_items_a_call_has(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch, *, in_transaction: bool
) -> None:
    hashed = 0
    loop_thread = threading.get_ident()

    def digest(data: bytes) -> str:
        nonlocal hashed
        if threading.get_ident() == loop_thread:
            hashed += len(data)
        return canonical_digest(data)

    monkeypatch.setattr("aimagestore._core.content.canonical_digest", digest)
    many = {f"key{number}": b"%04d" % number * 256 for number in range(300)}
    if in_transaction:
        async with store.transaction() as transaction:
            created = await transaction.create(big_data=many)
    else:
        created = await store.create(big_data=many)
    assert 0 < hashed <= 128 * 1024
    assert await store.big_data(created.id, "key299") == many["key299"]


async def test_pieces_that_cannot_change_are_not_copied(store: ImageStore, image: str) -> None:
    piece = bytes(1024 * 1024)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield piece

    await store.set_big_data(image, "first", pieces())
    tracemalloc.start()
    try:
        await store.set_big_data(image, "key", pieces())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < len(piece) / 2


async def test_staged_data_is_synced_before_its_block_begins(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real_sync = Directory.sync_file

    def sync(self: Directory, name: str, fd: int) -> None:
        real_sync(self, name, fd)
        if not name:
            synced.append(os.fstat(fd).st_size)

    monkeypatch.setattr(Directory, "sync_file", sync)
    async with store.stage(b"content") as staged, store.stage(b"content") as longer:
        assert synced == [7, 7]
        await longer.write(b", and more")
        assert longer.size == 17
        await store.create("one", big_data={"key": staged})
        assert synced == [7, 7]
        await store.create("two", big_data={"key": longer})
        assert synced == [7, 7, 17]
    assert await store.big_data("two", "key") == b"content, and more"


async def test_a_long_item_is_synced_while_it_is_written(
    store: ImageStore, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staged_files, "SYNC_BYTES", len(CONTENT) // 3)
    synced: list[str] = []
    sync_data = Directory.sync_data

    def record(directory: Directory, name: str, fd: int) -> None:
        synced.append(threading.current_thread().name)
        sync_data(directory, name, fd)

    monkeypatch.setattr(Directory, "sync_data", record)
    await store.set_big_data(image, "key", chunks())
    assert any(name.startswith("aimagestore helper") for name in synced)
    assert await store.big_data(image, "key") == CONTENT


async def test_a_sync_that_fails_during_a_write_fails_the_call(
    store: ImageStore, image: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The kernel reports a failed write once: the sync at the end would succeed.
    monkeypatch.setattr(staged_files, "SYNC_BYTES", len(CONTENT) // 3)
    failures = [OSError(errno.EIO, os.strerror(errno.EIO))]

    def fail_once(directory: Directory, name: str, fd: int) -> None:
        if failures:
            raise failures.pop()

    with monkeypatch.context() as failing:
        failing.setattr(Directory, "sync_data", fail_once)
        with pytest.raises(OSError, match="Input/output error"):
            await store.set_big_data(image, "key", chunks())
    assert await store.big_data_names(image) == []
    assert not list((path / image).glob("*"))


async def test_measuring_an_item_reports_progress(path: Path) -> None:
    (path / "one").mkdir(parents=True)
    (path / "one" / "item").write_bytes(CONTENT)
    (path / "images.json").write_bytes(
        b'[{"id":"one","big-data-names":["item"],"created":"2020-01-01T00:00:00Z"}]'
    )
    async with ImageStore(path, read_only=True) as store:
        for method in (store.big_data_size, store.big_data_digest):
            reported: list[tuple[int, int | None]] = []
            await method("one", "item", progress=lambda *figures, to=reported: to.append(figures))
            assert reported == sorted(reported)
            assert reported[-1] == (len(CONTENT), len(CONTENT))
