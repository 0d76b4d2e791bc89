"""The kernel's locks of a whole file, which belong to a descriptor."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from contextlib import suppress
from typing import Final

BUSY: Final = frozenset({errno.EACCES, errno.EAGAIN})
"""The error numbers that say that another descriptor has the lock."""

FLOCK: Final = "hhqqi4x" if struct.calcsize("P") == 8 else "hhqqi"
"""The layout of the kernel's ``struct flock``."""


def whole_file(kind: int) -> bytes:
    """Return the ``struct flock`` of a lock on a whole file.

    :param kind: ``fcntl.F_RDLCK``, ``F_WRLCK`` or ``F_UNLCK``
    """
    return struct.pack(FLOCK, kind, os.SEEK_SET, 0, 0, 0)


def unlock(fd: int) -> None:
    """Release the lock of a descriptor."""
    # Closing releases it as well, but not while a forked child has the descriptor too.
    with suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, whole_file(fcntl.F_UNLCK))
