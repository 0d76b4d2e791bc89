"""Which file systems answer at once."""

from __future__ import annotations

import re

_LOCAL = frozenset(
    {"bcachefs", "btrfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay"}
    | {"ramfs", "squashfs", "tmpfs", "vfat", "xfs", "zfs"}
)


def is_local(fd: int) -> bool:
    """Whether a stat of an open file never waits for a network or another process.

    Where that cannot be found out the answer is no, and the stat goes to a thread.
    """
    try:
        with open(f"/proc/self/fdinfo/{fd}") as file:
            mount = re.search(r"^mnt_id:\s*(\d+)$", file.read(), re.MULTILINE)
        with open("/proc/self/mountinfo") as file:
            mounts = file.read()
    except OSError:
        return False
    if mount is None:
        return False
    kind = re.search(rf"^{mount[1]} .* - (\S+) ", mounts, re.MULTILINE)
    return kind is not None and kind[1] in _LOCAL
