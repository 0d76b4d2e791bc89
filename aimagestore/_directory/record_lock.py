"""The writers' lock as a filelock. A module of its own, which only those import who write."""

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
            # Not by _close_noted: a fork may hold its mutex, and wait for filelock's releases.
            os.close(fd)

    def adopt(self, fd: int) -> None:
        """Be locked by a descriptor that has the lock already."""
        self._granted = fd
        try:
            self.acquire(blocking=False)
        except BaseException:
            if self._granted is not None:
                self._granted = None
                unlock(fd)
                os.close(fd)
            raise
