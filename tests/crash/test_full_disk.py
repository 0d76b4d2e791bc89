"""A file system that is really full: calls that still work, and the errors of others."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from aimagestore import ImageStore, check

from .state import NEW, read_again, read_state

IMAGES = 100
METADATA = "x" * 2000
PAGE = 4096


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB, and 1,000 files."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a file system")
    where = tmp_path / "disk"
    where.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m,nr_inodes=1000", "tmpfs", str(where)]
    mounting = subprocess.run(command, check=False, capture_output=True, text=True)
    if mounting.returncode:
        pytest.skip(f"needs a file system of its own: {mounting.stderr.strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


def fill(disk: Path, *, leave: int) -> Path:
    """Fill the disk, except for ``leave`` bytes, with a file outside the store; return its path."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        with suppress(OSError):
            while True:
                file.write(bytes(PAGE))
        file.truncate(max(0, file.tell() - leave))
    return ballast


async def make(path: Path) -> None:
    async with ImageStore(path) as store, store.transaction() as tx:
        for number in range(IMAGES):
            big_data = {"manifest": bytes(PAGE)} if number == 0 else {}
            await tx.create(f"image{number}", metadata=METADATA, big_data=big_data)


async def test_a_deletion_needs_room_for_the_index_alone(disk: Path) -> None:
    await make(disk / "store")
    size = (disk / "store" / "images.json").stat().st_size
    fill(disk, leave=size + PAGE)
    async with ImageStore(disk / "store") as store:
        before = await read_state(store)
        with pytest.raises(OSError, match="No space left") as refused:
            await store.set_big_data("image1", "layer", bytes(size + 4 * PAGE))
        assert refused.value.errno == errno.ENOSPC
        assert await read_state(store) == before
        for number in range(IMAGES // 2):
            await store.delete(f"image{number}")
        assert not (disk / "store" / "image0").exists()
        await store.set_big_data("image60", "layer", bytes(PAGE))
    assert (await check(disk / "store")).ok


async def test_a_deletion_says_how_much_room_it_needs(disk: Path) -> None:
    await make(disk / "store")
    ballast = fill(disk, leave=0)
    async with ImageStore(disk / "store") as store:
        before = await read_state(store)
        with pytest.raises(OSError, match=r"also a deletion, needs .* [\d,]+ bytes") as refused:
            await store.delete("image0")
        assert refused.value.errno == errno.ENOSPC
        assert str(refused.value.filename).startswith(str(disk / "store"))
        assert await read_state(store) == before == await read_again(disk / "store")
        assert await store.big_data("image0", "manifest") == bytes(PAGE)
        ballast.unlink()
        await store.delete("image0")
    assert (await check(disk / "store")).ok


async def test_a_full_disk_can_be_opened_read_and_collected(disk: Path) -> None:
    await make(disk / "store")
    orphan = disk / "store" / NEW
    orphan.mkdir()
    (orphan / "manifest").write_bytes(bytes(IMAGES * len(METADATA) * 2))
    fill(disk, leave=0)
    async with ImageStore(disk / "store") as store:
        with pytest.raises(OSError, match="collect_garbage"):
            await store.delete("image0")
        report = await store.collect_garbage()
        assert report.bytes == IMAGES * len(METADATA) * 2
        await store.delete("image0")
    assert (await check(disk / "store")).ok


async def test_a_change_says_when_there_are_no_inodes_left(disk: Path) -> None:
    await make(disk / "store")
    files = disk / "files"
    files.mkdir()
    with suppress(OSError):
        for number in range(1000):
            (files / str(number)).touch()
    async with ImageStore(disk / "store") as store:
        before = await read_state(store)
        with pytest.raises(OSError, match="there are no inodes left: free space") as refused:
            await store.delete("image1")
        assert refused.value.errno == errno.ENOSPC
        assert await read_state(store) == before
        (files / "0").unlink()
        await store.delete("image1")
    assert (await check(disk / "store")).ok
