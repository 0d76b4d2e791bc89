"""What is mounted in a directory, and on what kind of file system it is."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

_LOCAL = frozenset(
    {"bcachefs", "btrfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay"}
    | {"ramfs", "squashfs", "tmpfs", "vfat", "xfs", "zfs"}
)


def mount_of(fd: int) -> str | None:
    """Return the ID of the mount that an open file is on; ``None`` if the kernel does not tell.

    :raises OSError: when there are not enough resources to find out
    """
    try:
        with open(f"/proc/self/fdinfo/{fd}") as file:
            mount = re.search(r"^mnt_id:\s*(\d+)$", file.read(), re.MULTILINE)
    except OSError as error:
        _check_enough(error)
        return None
    return None if mount is None else mount[1]


def mounts_in(fd: int) -> Iterator[str]:
    """Iterate over the mount points in an open directory, relative to it.

    There are none if the kernel does not tell what is mounted.

    :raises OSError: when there are not enough resources to find out
    """
    try:
        path = os.readlink(f"/proc/self/fd/{fd}").rstrip("/") + "/"
        points = [line.split(" ")[4] for line in _mounts().split("\n") if line]
    except OSError as error:
        _check_enough(error)
        return
    for point in points:
        found = point
        if "\\" in found:
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
    except OSError as error:
        _check_enough(error)
        return False
    return kind is not None and kind[1] in _LOCAL


def _check_enough(error: OSError) -> None:
    """Raise an error that says nothing about mounts.

    Taking it for an answer would remove what is mounted in an image's directory.
    """
    if error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOMEM}:
        raise error


def _mounts() -> str:
    """Return the table of mounts, whose paths may be any bytes."""
    with open("/proc/self/mountinfo", errors="surrogateescape", newline="\n") as file:
        return file.read()
