"""The kernel's locks of a whole file, which belong to a descriptor.

A forked child would share such a lock. So it closes all descriptors that wait for one or hold one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

_BUSY: Final = frozenset({errno.EACCES, errno.EAGAIN})
"""The error numbers that say that another descriptor has the lock."""

FLOCK: Final = "hhqqi4x" if struct.calcsize("P") == 8 else "hhqqi"
"""The layout of the kernel's ``struct flock``."""

# Descriptors that wait for a lock or hold one. The mutex keeps forks from coming between opening
# a descriptor and noting it.
_descriptors: set[int] = set()
_opening = threading.RLock()


def _close_in_child() -> None:
    for fd in _descriptors:
        with suppress(OSError):
            os.close(fd)
    _descriptors.clear()
    _opening.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_opening.acquire,
        after_in_parent=_opening.release,
        after_in_child=_close_in_child,
    )


def open_noted(open_file: Callable[[], int]) -> int:
    """Open a file that is going to be locked, and return its descriptor."""
    with _opening:
        fd = open_file()
        _descriptors.add(fd)
        return fd


def close_noted(fd: int) -> None:
    """Close a descriptor of :func:`open_noted`."""
    with _opening:
        _descriptors.discard(fd)
        os.close(fd)


def whole_file(kind: int) -> bytes:
    """Return the ``struct flock`` of a lock on a whole file.

    :param kind: ``fcntl.F_RDLCK``, ``F_WRLCK`` or ``F_UNLCK``
    """
    return struct.pack(FLOCK, kind, os.SEEK_SET, 0, 0, 0)


def lock(fd: int, kind: int, *, wait: bool) -> bool:
    """Lock the file of a descriptor of :func:`open_noted`, which is closed if that fails.

    :param kind: ``fcntl.F_RDLCK`` or ``F_WRLCK``
    :param wait: whether to wait, in the kernel: beside programs that do, polling would starve
    :returns: ``False`` if another has it locked
    """
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, whole_file(kind))
    except BaseException as error:
        close_noted(fd)
        if isinstance(error, OSError) and error.errno in _BUSY and not wait:
            return False
        raise
    return True


def unlock(fd: int) -> None:
    """Release the lock of a descriptor, and close it."""
    # Closing releases it as well, but not while a forked child has the descriptor too.
    with suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, whole_file(fcntl.F_UNLCK))
    with suppress(OSError):  # it is closed even then, and nothing was written by it
        close_noted(fd)
