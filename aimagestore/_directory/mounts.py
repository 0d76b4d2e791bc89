"""What is mounted in a directory, and on what kind of file system it is."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

_LOCAL = frozenset(
    {"bcachefs", "btrfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay"}
    | {"ramfs", "squashfs", "tmpfs", "vfat", "xfs", "zfs"}
)


def mount_of(fd: int) -> str | None:
    """Return the ID of the mount that an open file is on; ``None`` if it is not known."""
    try:
        with open(f"/proc/self/fdinfo/{fd}") as file:
            mount = re.search(r"^mnt_id:\s*(\d+)$", file.read(), re.MULTILINE)
    except OSError:
        return None
    return None if mount is None else mount[1]


def mounts_in(fd: int) -> Iterator[str]:
    """Iterate over the mount points in an open directory, relative to it.

    There are none if it is not known what is mounted.
    """
    try:
        path = os.readlink(f"/proc/self/fd/{fd}").rstrip("/") + "/"
        points = [line.split(" ")[4] for line in _mounts().split("\n") if line]
    except OSError:
        return
    for point in points:
        found = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), point)
        if found.startswith(path):
            yield found.removeprefix(path)


def is_local(fd: int) -> bool:
    """Return whether a stat on the mount of an open file never waits for a network or a process.

    If that is not known it is ``False``, and stats are made in worker threads.
    """
    mount = mount_of(fd)
    try:
        kind = re.search(rf"^{mount} .* - (\S+) ", _mounts(), re.MULTILINE)
    except OSError:
        return False
    return kind is not None and kind[1] in _LOCAL


def _mounts() -> str:
    """Return the table of mounts, whose paths may be any bytes."""
    with open("/proc/self/mountinfo", errors="surrogateescape", newline="\n") as file:
        return file.read()
