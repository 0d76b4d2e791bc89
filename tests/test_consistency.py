"""Readers between the steps of writers, and stores whose directory is moved or removed."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import anyio.to_thread
import pytest

from aimagestore import ImageStore, ImageUnknownError, StoreLostError, copy_images
from aimagestore._core.image import Image
from aimagestore._core.mutations import Mutation
from aimagestore._directory import items
from aimagestore._directory.commit import DirectoryWriter
from aimagestore._directory.files import Directory

from .support.blocking import commit, create, delete, replace
from .support.faults import die
from .support.layouts import digest_of
from .support.stores import edit_index, tree

Opening = Callable[[Directory, Image, str], int]


@pytest.fixture
async def old(store: ImageStore) -> ImageStore:
    """A store whose image ``a`` has an item ``k`` with ``old`` in it."""
    await store.create("a", big_data={"k": b"old"})
    return store


def interleave(monkeypatch: pytest.MonkeyPatch, opening: Callable[[Opening], Opening]) -> None:
    """Wrap the function that opens an item, for one call."""
    real: Opening = vars(items)["open_current"]

    def once(root: Directory, image: Image, key: str) -> int:
        monkeypatch.setattr(items, "open_current", real)
        return opening(real)(root, image, key)

    monkeypatch.setattr(items, "open_current", once)


ROUND_TRIPS: dict[str, tuple[list[Mutation], list[Mutation]]] = {
    "replaced": ([replace("a", "k", b"other!")], [replace("a", "k", b"old")]),
    "created anew": (
        [delete("a"), create("a", "k", b"other!")],
        [delete("a"), create("a", "k", b"old")],
    ),
}


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("way", ROUND_TRIPS)
async def test_an_item_that_changes_and_changes_back_while_it_is_opened_is_read_as_recorded(
    old: ImageStore, path: Path, monkeypatch: pytest.MonkeyPatch, way: str, verify: bool
) -> None:
    there, back = ROUND_TRIPS[way]

    def opening(real: Opening) -> Opening:
        def open_between(root: Directory, image: Image, key: str) -> int:
            commit(path, *there)
            fd = real(root, image, key)
            commit(path, *back)
            return fd

        return open_between

    interleave(monkeypatch, opening)
    async with old.open_big_data("a", "k", verify=verify) as reader:
        data = await reader.read()
    assert (data, reader.digest, reader.size) == (b"old", digest_of(b"old"), 3)
    interleave(monkeypatch, opening)
    assert await old.big_data("a", "k") == b"old"


async def test_content_of_a_commit_that_never_happens_is_never_read(
    old: ImageStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opening(real: Opening) -> Opening:
        def open_between(root: Directory, image: Image, key: str) -> int:
            commit(path, delete("a"))
            opened: list[int | Exception] = []

            def fail(_: DirectoryWriter, *__: object) -> None:
                # The content is placed, and the index is not written.
                try:
                    opened.append(real(root, image, key))
                except FileNotFoundError as error:
                    opened.append(error)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
                patch.setattr(DirectoryWriter, "_switch", fail)
                commit(path, create("a", "k", b"never committed"))
            (found,) = opened
            if isinstance(found, Exception):
                raise found
            return found

        return open_between

    interleave(monkeypatch, opening)
    with pytest.raises(ImageUnknownError):
        async with old.open_big_data("a", "k"):
            pass


async def test_a_copy_whose_process_dies_after_the_commit_is_completed_whatever_its_digests(
    path: Path, tmp_path: Path
) -> None:
    # A digest that containers/storage has recorded need not be the SHA-256 of the file.
    before, after = b'{"schemaVersion":2,"v":"old"}', b'{"schemaVersion":2,"v":"new"}'
    digest = "sha512:" + hashlib.sha512(after).hexdigest()
    source = tmp_path / "source"
    async with ImageStore(source) as there:
        await there.create("x", big_data={"manifest": after})
    edit_index(source, lambda records: records[0]["big-data-digests"].update(manifest=digest))
    async with ImageStore(path) as store:
        await store.create("x", big_data={"manifest": before})
    await die(
        """
import anyio, os, sys
from aimagestore import ImageStore, copy_images
from aimagestore._directory import placement
placement.Placement.finish = lambda self: os.kill(os.getpid(), 9)
async def main():
    async with ImageStore(sys.argv[1], read_only=True) as a, ImageStore(sys.argv[2]) as b:
        await copy_images(a, b)
anyio.run(main)
""",
        source,
        path,
    )
    async with ImageStore(path, read_only=True) as reader:
        assert (await reader.get("x")).big_data_digests == {"manifest": digest}
        assert await reader.big_data("x", "manifest") == after
    async with ImageStore(path) as store:
        await store.set_metadata("x", "{}")
        async with store.open_big_data("x", "manifest", verify=True) as item:
            assert await item.read() == after
        async with ImageStore(source, read_only=True) as there:
            assert (await copy_images(there, store)).images == 1  # the metadata
    assert sorted(os.listdir(path)) == ["images.json", "images.lock", "x"]


# Stores that go away

CALLS: dict[str, Callable[[ImageStore], Awaitable[object]]] = {
    "get": lambda s: s.get("a"),
    "lookup": lambda s: s.lookup("a"),
    "exists": lambda s: s.exists("a"),
    "images": lambda s: s.images(),
    "iter_images": lambda s: anext(aiter(s.iter_images())),
    "snapshot": lambda s: s.snapshot(),
    "big_data": lambda s: s.big_data("a", "k"),
    "big_data_size": lambda s: s.big_data_size("a", "k"),
    "open_big_data": lambda s: s.open_big_data("a", "k").__aenter__(),
    "refresh": lambda s: s.refresh(),
    "modified": lambda s: s.modified(),
    "touched_since": lambda s: s.touched_since(datetime.now(UTC)),
    "watch": lambda s: s.watch().__aenter__(),
    "create": lambda s: s.create("mine"),
    "set_metadata": lambda s: s.set_metadata("a", "text"),
    "set_big_data": lambda s: s.set_big_data("a", "k", b"mine"),
    "stage": lambda s: s.stage(b"mine").__aenter__(),
    "delete": lambda s: s.delete("a"),
    "wipe": lambda s: s.wipe(),
    "transaction": lambda s: s.transaction().__aenter__(),
    "touch": lambda s: s.touch(),
    "collect_garbage": lambda s: s.collect_garbage(),
}


def remove(path: Path) -> None:
    """Remove the store's directory, as ``podman system reset`` does."""
    shutil.rmtree(path)


def replace_directory(path: Path) -> None:
    """Remove the store's directory, and make a new store there."""
    shutil.rmtree(path)
    commit(path, create("new", "k", b"of another store"))


def move(path: Path) -> None:
    """Move the store's directory away."""
    path.rename(path.with_name("store-moved"))


def move_and_replace(path: Path) -> None:
    """Move the store's directory away, and make a new store where it was."""
    move(path)
    commit(path, create("new", "k", b"of another store"))


@pytest.mark.damage
@pytest.mark.parametrize("fate", [remove, replace_directory, move, move_and_replace])
async def test_a_store_whose_directory_was_moved_or_removed_raises_and_writes_nothing(
    old: ImageStore, path: Path, fate: Callable[[Path], None]
) -> None:
    await anyio.to_thread.run_sync(fate, path)
    before = tree(path.parent)
    for name, call in CALLS.items():
        with pytest.raises(StoreLostError) as caught:
            raise AssertionError(f"{name} returned {await call(old)}")
        assert str(path) in str(caught.value), name
        assert caught.value.path == str(path), name
        assert isinstance(caught.value, FileNotFoundError)
    assert tree(path.parent) == before


@pytest.mark.damage
async def test_a_store_works_again_when_its_directory_is_back(old: ImageStore, path: Path) -> None:
    move(path)
    with pytest.raises(StoreLostError):
        await old.get("a")
    path.with_name("store-moved").rename(path)
    assert await old.big_data("a", "k") == b"old"
    await old.create("b")


@pytest.mark.damage
async def test_a_transaction_whose_directory_is_moved_away_commits_nothing(
    old: ImageStore, path: Path
) -> None:
    with pytest.raises(StoreLostError):
        async with old.transaction() as tx:
            await tx.create("b", big_data={"k": b"mine"})
            await anyio.to_thread.run_sync(move_and_replace, path)
    assert sorted(os.listdir(path)) == ["images.json", "images.lock", "new"]
    assert "b" not in os.listdir(path.with_name("store-moved"))
