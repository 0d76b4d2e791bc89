"""The lock on images.lock that containers/storage knows, and the last-write token in that file.

Go locks the whole file with a POSIX record lock. An open-file-description lock excludes those of
other processes all the same, and is also exclusive between two stores of one process, and is not
lost when other code of the process closes a descriptor of the file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from typing import Final

from filelock import BaseFileLock, FileLock, Timeout

from ..errors import StoreCorruptError
from .files import Directory

_BUSY: Final = frozenset({errno.EACCES, errno.EAGAIN})
_FLOCK: Final = "hhqqi4x" if struct.calcsize("P") == 8 else "hhqqi"
_POLL: Final = 0.01

RECORD_LOCKS = sys.platform == "linux"
"""Whether the kernel has locks that exclude podman's and belong to a descriptor."""

_MARK: Final = "<QQI44s"
_MARK_BYTES: Final = struct.calcsize(_MARK)
_writes = count(1)


def _whole_file(kind: int) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, 0, 0, 0)


class RecordLock(BaseFileLock):
    """The lock, as filelock's own locks are used, ``thread_local=False``.

    :ivar open_file: opens images.lock for writing
    """

    open_file: Callable[[], int]
    _granted: int | None = None

    def _acquire(self) -> None:
        fd, self._granted = self._granted, None
        if fd is None:
            fd = self.open_file()
            try:
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _whole_file(fcntl.F_WRLCK))
            except OSError as error:
                os.close(fd)
                if error.errno in _BUSY:
                    return
                raise
        self._context.lock_file_fd = fd

    def _release(self) -> None:
        fd, self._context.lock_file_fd = self._context.lock_file_fd, None
        if fd is not None:
            # Closing releases it as well, but not while a forked child has the descriptor too.
            with suppress(OSError):
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _whole_file(fcntl.F_UNLCK))
            os.close(fd)

    def adopt(self, fd: int) -> None:
        """Be locked by a descriptor that has got the lock already."""
        self._granted = fd
        self.acquire(blocking=False)

    def wait(self) -> int:
        """Wait in the kernel's line, and return the descriptor that has got the lock.

        Asking again and again instead would starve beside programs that wait here. The wait is
        not made within ``acquire``, where filelock would hold up every fork until its end.
        """
        fd = self.open_file()
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, _whole_file(fcntl.F_WRLCK))
        except OSError:
            os.close(fd)
            raise
        return fd

    def holder(self) -> int | None:
        """The process that holds the lock, where the kernel names one."""
        fd = self.open_file()
        try:
            answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _whole_file(fcntl.F_WRLCK))
        finally:
            os.close(fd)
        kind, _, _, _, pid = struct.unpack(_FLOCK, answer)
        return pid if kind != fcntl.F_UNLCK and pid > 0 else None


@contextmanager
def shared(directory: Directory, name: str) -> Iterator[None]:
    """Keep writers out for a while, as a reader upstream does.

    Waits in the kernel's line for a writer that is at it. Without a lock file nobody writes.
    """
    try:
        fd = directory.open_file(name)
    except (OSError, StoreCorruptError):
        yield
        return
    try:
        if RECORD_LOCKS:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, _whole_file(fcntl.F_RDLCK))
        yield
    finally:
        os.close(fd)


class StoreLock:
    """The store's lock as its engine uses it: tried at once, or waited for in a line."""

    def __init__(self, directory: Directory, name: str) -> None:
        self._directory = directory
        self._name = name
        self._lock = self._make_lock()
        self._mutex = threading.Lock()
        self._claims: list[Claim] = []
        self._is_waiting = False

    def _make_lock(self) -> BaseFileLock:
        if RECORD_LOCKS:
            # By way of the open directory: filelock makes the directories of its path, which
            # after a renaming would come to be somewhere else.
            path = f"/proc/self/fd/{self._directory.fd}/{self._name}"
            lock = RecordLock(path, thread_local=False)
            lock.open_file = self.open_file
            return lock
        # No podman to exclude: any lock serves that all stores here agree upon.
        return FileLock(self._directory.path_of(self._name), thread_local=False)

    def open_file(self, flags: int = os.O_RDWR | os.O_CREAT) -> int:
        """Open the lock file.

        :raises StoreCorruptError: when it has another name as well: that file would be written
        """
        fd = self._directory.open_file(self._name, flags, 0o644)
        try:
            if self._directory.stat_file(self._name, fd).st_nlink > 1:
                raise self._directory.corrupt(self._name, "has more than one link")
        except BaseException:
            os.close(fd)
            raise
        return fd

    def try_acquire(self) -> bool:
        """Take the lock if it is free."""
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            return False
        except OSError as error:
            error.filename = self._directory.path_of(self._name)
            raise
        return True

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()

    def claim(self) -> Claim:
        """Stand in line. One thread waits for all claims, and outlives those that are given up.

        A wait in the kernel cannot be interrupted: a thread that nobody waits for any more
        drops the lock as soon as it has it.
        """
        claim = Claim(self._mutex, self._claims)
        with self._mutex:
            self._claims.append(claim)
            if not self._is_waiting:
                self._is_waiting = True
                # A daemon: the interpreter's exit must not wait for a lock.
                threading.Thread(target=self._wait, name="aimagestore lock", daemon=True).start()
        return claim

    def _wait(self) -> None:
        fd: int | None = None
        error: Exception | None = None
        try:
            if isinstance(self._lock, RecordLock):
                fd = self._lock.wait()
            else:
                self._lock.acquire(poll_interval=_POLL, cancel_check=lambda: not self._claims)
        except OSError as failure:
            failure.filename = self._directory.path_of(self._name)
            error = failure
        except Exception as failure:  # noqa: BLE001 (whoever waits raises it)
            error = failure
        with self._mutex:
            self._is_waiting = False
            if error is None and not self._claims:
                self._drop(fd)
            elif error is None and isinstance(self._lock, RecordLock) and fd is not None:
                self._lock.adopt(fd)
            for claim in self._claims[:1] if error is None else self._claims[:]:
                self._claims.remove(claim)
                claim.settle(error)

    def _drop(self, fd: int | None) -> None:
        """Drop a lock that nobody wants any more; the store may be closed by now."""
        if fd is not None:
            os.close(fd)
        else:
            self._lock.release()

    def holder(self) -> int | None:
        """The process that holds the lock, where the kernel names one."""
        return self._lock.holder() if isinstance(self._lock, RecordLock) else None

    def write_token(self) -> None:
        """Leave a new last-write token, by which other programs see that they must load anew."""
        token = struct.pack(_MARK, time.time_ns(), next(_writes), os.getpid(), os.urandom(44))
        fd = self.open_file()
        try:
            self._directory.write(self._name, fd, [memoryview(token)])
        finally:
            os.close(fd)

    def last_writer(self) -> int | None:
        """The process that wrote the last-write token, if there is one."""
        try:
            fd = self.open_file(os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            token = os.read(fd, _MARK_BYTES)
        finally:
            os.close(fd)
        if len(token) < _MARK_BYTES:
            return None
        return int(struct.unpack(_MARK, token)[2])


class Claim:
    """A place in the line for the lock."""

    def __init__(self, mutex: threading.Lock, line: list[Claim]) -> None:
        self._mutex = mutex
        self._line = line
        self._settled = threading.Event()
        self._is_granted = False
        self._error: Exception | None = None

    def settle(self, error: Exception | None) -> None:
        """Grant the lock, or say why it cannot be had. The mutex is held."""
        self._is_granted = error is None
        self._error = error
        self._settled.set()

    def wait(self) -> bool:
        """Return whether the lock is held for this claim now; it is not if it was given up."""
        self._settled.wait()
        if self._error is not None:
            raise self._error
        return self._is_granted

    def give_up(self) -> bool:
        """Leave the line; ``True`` when the lock was held already and must be released."""
        with self._mutex:
            if self in self._line:
                self._line.remove(self)
            granted, self._is_granted = self._is_granted, False
            self._settled.set()
            return granted
