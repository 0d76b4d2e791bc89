"""What is mounted where."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

_LOCAL = frozenset(
    {"bcachefs", "btrfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay"}
    | {"ramfs", "squashfs", "tmpfs", "vfat", "xfs", "zfs"}
)


def mount_of(fd: int) -> str | None:
    """Return the number of the mount that an open file is on; ``None`` where nothing says so."""
    try:
        with open(f"/proc/self/fdinfo/{fd}") as file:
            mount = re.search(r"^mnt_id:\s*(\d+)$", file.read(), re.MULTILINE)
    except OSError:
        return None
    return None if mount is None else mount[1]


def mounts_in(fd: int) -> Iterator[str]:
    """Iterate over the paths of what is mounted in an open directory, relative to it.

    None where nothing says so.
    """
    try:
        path = os.readlink(f"/proc/self/fd/{fd}").rstrip("/") + "/"
        with open("/proc/self/mountinfo", errors="surrogateescape") as file:
            points = [line.split(" ")[4] for line in file]
    except OSError:
        return
    for point in points:
        found = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), point)
        if found.startswith(path):
            yield found.removeprefix(path)


def is_local(fd: int) -> bool:
    """Return whether a stat on this mount never waits for a network or another process.

    Where that cannot be found out the answer is no, and the stat is made in a worker thread.
    """
    mount = mount_of(fd)
    try:
        with open("/proc/self/mountinfo") as file:
            mounts = file.read()
    except OSError:
        return False
    kind = re.search(rf"^{mount} .* - (\S+) ", mounts, re.MULTILINE)
    return kind is not None and kind[1] in _LOCAL
