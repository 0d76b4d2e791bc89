"""The writers' lock as a filelock. A module of its own, so that only writers import filelock."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from typing import Any

from filelock import AcquireReturnProxy, BaseFileLock, Timeout

from .kernel_lock import lock, open_noted, unlock


class RecordLock(BaseFileLock):
    """The lock of containers/storage as a filelock, acquired and released by one caller at a time.

    The ``acquire`` and ``release`` of the base class also count nested holds, keep threads apart,
    poll and delay forks. That takes longer than the rest of a small commit, and is done elsewhere:
    a line has one holder at a time, the kernel wakes up who waits, and a forked child closes the
    descriptor. The base class releases the lock if it is forgotten.

    :param path: names the lock
    :param open_file: opens the file for writing, and returns its descriptor
    """

    def __init__(self, path: str, *, open_file: Callable[[], int]) -> None:
        super().__init__(path, thread_local=False)
        self._open_file = open_file

    def acquire(self, *_: Any, blocking: bool | None = None, **__: Any) -> AcquireReturnProxy[Any]:
        """Acquire the lock. There is no timeout, because a wait in the kernel has none.

        :param blocking: ``False`` to try once instead of waiting
        :raises Timeout: when it is not free
        """
        self._lock(wait=blocking is not False)
        if self._context.lock_file_fd is None:
            raise Timeout(self.lock_file)
        return AcquireReturnProxy(lock=self)

    def release(self, force: bool = False) -> None:
        """Release the lock, if it is held."""
        self._release()

    def _acquire(self) -> None:
        self._lock(wait=False)

    def _lock(self, *, wait: bool) -> None:
        fd = open_noted(self._open_file)
        if lock(fd, fcntl.F_WRLCK, wait=wait):
            self._context.lock_file_fd = fd

    def _release(self) -> None:
        fd, self._context.lock_file_fd = self._context.lock_file_fd, None
        if fd is not None:
            unlock(fd)
