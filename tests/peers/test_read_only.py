"""Stores that are opened read-only or cannot be written are read, and nothing in them changes."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from aimagestore import DigestUnknownError, ImageStore, StoreReadOnlyError

from .mounts import file_system, read_only_again, read_only_bind
from .peer import Peer, image_store, running

pytestmark = pytest.mark.peers

NOBODY = 65534
ITEMS = {"manifest": b"{}", "sha256:config": b'{"config":1}', "plain": b"", "large": bytes(3 << 20)}


def fill(peer: Peer, root: Path) -> None:
    """Make a store with containers/storage, and remove the recorded digest of one item."""
    for number in range(3):
        names = [f"localhost/image:{number}"]
        peer.ask("create", root, id=f"image{number}", names=names, big_data=ITEMS, metadata="text")
    peer.ask("close", root)
    index = image_store(root) / "images.json"
    digest = b'"plain":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",'
    assert index.read_bytes().count(digest) == 3
    index.write_bytes(index.read_bytes().replace(digest, b"", 1))


def everything(directory: Path) -> dict[str, object]:
    """Return all that a writer could change: names, modes, owners, times and content."""
    found: dict[str, object] = {}
    for path in sorted([directory, *directory.rglob("*")]):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else None
        found[str(path.relative_to(directory))] = (
            *(status.st_ino, status.st_mode, status.st_uid, status.st_nlink),
            *(status.st_mtime_ns, status.st_ctime_ns, content),
        )
    return found


async def read_everything(path: Path) -> None:
    """Open a store read-only, make every call that reads, and check that changes are refused."""
    async with ImageStore(path, read_only=True) as store:
        assert store.read_only
        images = await store.images()
        assert [image.id for image in images] == ["image0", "image1", "image2"]
        for image in images:
            assert await store.get(image.names[0]) == image
            assert await store.lookup(image.id) == image.id
            assert await store.metadata(image.id) == "text"
            assert image in await store.by_digest(image.digest)
            assert await store.big_data_names(image.id) == list(ITEMS)
            for key, data in ITEMS.items():
                assert await store.big_data(image.id, key) == data
                assert await store.big_data_size(image.id, key) == len(data)
                # A digest that is not recorded is computed.
                assert (await store.big_data_digest(image.id, key)).startswith("sha256:")
                if key in image.big_data_digests:
                    async with store.open_big_data(image.id, key, verify=True) as reader:
                        assert b"".join([chunk async for chunk in reader]) == data
        with pytest.raises(DigestUnknownError):
            async with store.open_big_data("image0", "plain", verify=True):
                pass
        assert len(await store.snapshot()) == 3
        assert not await store.modified()
        assert not await store.refresh()
        await store.touched_since(datetime.now(UTC))
        for write in (
            store.create,
            lambda: store.set_metadata("image0", "new"),
            lambda: store.set_big_data("image0", "new", b"new"),
            lambda: store.delete("image0"),
            store.wipe,
            store.touch,
            lambda: store.transaction().__aenter__(),
            lambda: store.stage().__aenter__(),
        ):
            with pytest.raises(StoreReadOnlyError):
                await write()


@pytest.fixture
async def root(peer: Peer, short_path: Path) -> AsyncIterator[Path]:
    """A store that the test must not change."""
    short_path.chmod(0o755)
    root = short_path / "store"
    fill(peer, root)
    before = everything(image_store(root))
    yield root
    assert everything(image_store(root)) == before


async def test_a_store_is_read(root: Path) -> None:
    await read_everything(image_store(root))


async def test_a_store_on_a_read_only_bind_mount_is_read(root: Path, short_path: Path) -> None:
    with read_only_bind(image_store(root), short_path / "bind") as path:
        with pytest.raises(OSError, match="Read-only file system"):
            (path / "file").touch()
        await read_everything(path)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
async def test_a_store_on_a_read_only_file_system_is_read(
    peer: Peer, short_path: Path, kind: str
) -> None:
    with file_system(kind, short_path) as mount_point:
        fill(peer, mount_point)
        path = image_store(mount_point)
        with read_only_again(mount_point):
            before = everything(path)
            await read_everything(path)
            assert everything(path) == before


@pytest.mark.parametrize("has_lock", [True, False])
async def test_a_store_of_another_user_is_read(
    peer: Peer, short_path: Path, has_lock: bool
) -> None:
    short_path.chmod(0o755)
    root = short_path / "store"
    fill(peer, root)
    for path in [root, *root.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    if not has_lock:
        (image_store(root) / "images.lock").unlink()
    before = everything(image_store(root))
    with unprivileged():
        with pytest.raises(PermissionError):
            (image_store(root) / "file").touch()
        await read_everything(image_store(root))
    assert everything(image_store(root)) == before


@contextmanager
def unprivileged() -> Iterator[None]:
    """Have the rights of an unprivileged user in every thread, for the block."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


async def test_a_store_whose_owner_may_not_write_it_is_read(peer: Peer, short_path: Path) -> None:
    short_path.chmod(0o755)
    root = short_path / "store"
    fill(peer, root)
    for path in sorted([root, *root.rglob("*")], reverse=True):
        path.chmod(0o500 if path.is_dir() else 0o400)
        shutil.chown(path, NOBODY)
    before = everything(image_store(root))
    with unprivileged():
        await read_everything(image_store(root))
    assert everything(image_store(root)) == before


async def test_a_store_without_a_lock_file_is_read(root: Path, short_path: Path) -> None:
    copy = short_path / "copy"
    shutil.copytree(image_store(root), copy)
    (copy / "images.lock").unlink()
    before = everything(copy)
    await read_everything(copy)
    assert everything(copy) == before


async def test_changes_of_the_owner_are_seen_through_a_read_only_mount(
    peer: Peer, short_path: Path
) -> None:
    root = short_path / "store"
    fill(peer, root)
    with read_only_bind(image_store(root), short_path / "bind") as path:
        async with ImageStore(path, read_only=True) as store:
            for number in range(20):
                peer.ask("set_metadata", root, ref="image1", metadata=f"{number:02}")
                assert await store.metadata("image1") == f"{number:02}"
            peer.ask("delete", root, ref="image1")
            assert not await store.exists("image1")
    peer.ask("close", root)


async def test_a_store_whose_lock_is_held_is_read(
    peer: Peer, program: Path, short_path: Path
) -> None:
    root = short_path / "store"
    fill(peer, root)
    with running(program, "hold", image_store(root) / "images.lock") as holder:
        assert holder.read_line() == "held"
        before = everything(image_store(root))
        await read_everything(image_store(root))
        assert everything(image_store(root)) == before
