"""Directories in memory, and file systems on loop devices."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SIZE = "320M"
MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-F"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
}


@contextmanager
def directory_in_memory() -> Iterator[Path]:
    """Make a directory on tmpfs for a block, or on disk where there is no tmpfs."""
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="aimagestore-", dir=parent) as directory:
        yield Path(directory)


@contextmanager
def mounted_disk(kind: str, scratch: Path) -> Iterator[Path]:
    """Mount a new file system of this kind for a block, or skip the test where that fails."""
    if os.geteuid() != 0:
        pytest.skip("mounting takes root")
    make = MAKE[kind]
    if shutil.which(make[0]) is None:
        pytest.skip(f"there is no {make[0]}")
    image, where = scratch / f"{kind}.img", scratch / kind
    where.mkdir()
    try:
        _run("truncate", "-s", SIZE, image)
        _run(*make, image)
        _run("mount", "-o", "loop", image, where)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"cannot mount {kind}: {error.stderr}")
    try:
        yield where
    finally:
        unmount(where)
        image.unlink()


def unmount(where: Path) -> None:
    """Unmount a file system.

    It is busy as long as a loop device has a file on it, which the kernel may release a moment
    after its file system was unmounted: another process may have had that in its mount namespace.
    """
    end = time.monotonic() + 20
    while True:
        try:
            return _run("umount", where)
        except subprocess.CalledProcessError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
