"""File systems that tests put a store on."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_MIB = 1024 * 1024
# The least that the tools accept. The files are sparse.
_SIZES = {"ext4": 64 * _MIB, "xfs": 320 * _MIB, "btrfs": 128 * _MIB}


def _do(*command: object) -> None:
    parts = [str(part) for part in command]
    result = subprocess.run(parts, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        pytest.skip(f"needs a file system of its own: {parts}: {result.stderr.strip()}")


def _unmount(path: Path) -> None:
    subprocess.run(["umount", str(path)], check=True)


def require_mounts(*tools: str) -> None:
    """Skip the test if nothing can be mounted here, or a tool is missing."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a file system")
    for tool in ("mount", "umount", *tools):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")


@contextmanager
def file_system(kind: str, directory: Path) -> Iterator[Path]:
    """Mount a new file system in the directory for the block, and yield its mount point."""
    mount_point = directory / "mnt"
    mount_point.mkdir()
    if kind == "tmpfs":
        require_mounts()
        _do("mount", "-t", "tmpfs", "tmpfs", mount_point)
    else:
        require_mounts(f"mkfs.{kind}")
        image = directory / "image"
        with image.open("wb") as file:
            file.truncate(_SIZES[kind])
        _do(f"mkfs.{kind}", "-q", image)
        _do("mount", "-o", "loop", image, mount_point)
    try:
        yield mount_point
    finally:
        _unmount(mount_point)


@contextmanager
def read_only_bind(source: Path, mount_point: Path) -> Iterator[Path]:
    """Mount a directory a second time, read-only, for the block."""
    require_mounts()
    mount_point.mkdir()
    _do("mount", "--bind", source, mount_point)
    try:
        _do("mount", "-o", "remount,bind,ro", mount_point)
        yield mount_point
    finally:
        _unmount(mount_point)


@contextmanager
def read_only_again(mount_point: Path) -> Iterator[Path]:
    """Make a mounted file system read-only for the block."""
    _do("mount", "-o", "remount,ro", mount_point)
    try:
        yield mount_point
    finally:
        _do("mount", "-o", "remount,rw", mount_point)
