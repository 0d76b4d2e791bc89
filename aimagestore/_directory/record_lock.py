"""The writers' lock as a filelock. A module of its own, so that only writers import filelock.

filelock holds the lock on disk by the project's design, although a bare lock of the kernel would be
faster: it also closes the lock's descriptor in forked children.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable

from filelock import BaseFileLock

from .kernel_lock import BUSY, unlock, whole_file


class RecordLock(BaseFileLock):
    """The exclusive lock as a filelock, to be used with ``thread_local=False``.

    :ivar open_file: opens images.lock for writing
    """

    open_file: Callable[[], int]
    # A descriptor that has the lock already, while :meth:`adopt` acquires it.
    _granted: int | None = None

    def _acquire(self) -> None:
        fd, self._granted = self._granted, None
        if fd is None:
            fd = self.open_file()
            try:
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, whole_file(fcntl.F_WRLCK))
            except OSError as error:
                os.close(fd)
                if error.errno in BUSY:
                    return
                raise
        self._context.lock_file_fd = fd

    def _release(self) -> None:
        fd, self._context.lock_file_fd = self._context.lock_file_fd, None
        if fd is not None:
            unlock(fd)
            # Not by _close_noted: a fork may hold its mutex while it waits for filelock's release.
            os.close(fd)

    def adopt(self, fd: int) -> None:
        """Acquire the lock by a descriptor that has it already; it is closed if that fails."""
        self._granted = fd
        try:
            self.acquire(blocking=False)
        except BaseException:
            if self._granted is not None:
                self._granted = None
                unlock(fd)
                os.close(fd)
            raise
