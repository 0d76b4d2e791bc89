"""The lock on images.lock that containers/storage uses, and the last-write token in that file.

containers/storage locks the whole file with a POSIX record lock. The locks here are
open-file-description locks. They conflict with the record locks of other processes, but belong to a
descriptor and not to the process: they are not lost when other code of the process closes another
descriptor of the file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Final

from .._core.names import LOCK_FILE
from .._engine.lock import AnyLine, Holder, LockLine
from ..errors import ImageStoreError, StoreCorruptError
from .files import Directory
from .kernel_lock import FLOCK, lock, open_noted, unlock, whole_file

if TYPE_CHECKING:
    from filelock import BaseFileLock

_POLL: Final = 0.01
_UNWRITABLE: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})

RECORD_LOCKS = sys.platform == "linux"
"""Whether the kernel has locks that conflict with podman's and belong to a descriptor."""

# When it was written in nanoseconds, the number of the write, the process, and random bytes.
_TOKEN: Final = struct.Struct("<QQI44s")
_writes = count(1)


def open_lock_file(root: Directory, flags: int = os.O_RDWR | os.O_CREAT) -> int:
    """Open the lock file.

    :raises StoreCorruptError: when it has another name, so that a file elsewhere would be written
    :raises StoreLostError: when the directory was removed, so that no file can be made in it
    """
    try:
        return root.open_file(LOCK_FILE, flags, 0o644, is_shared=False)
    except FileNotFoundError:
        if flags & os.O_CREAT:
            root.check_path()  # raises the better error if the directory was removed
        raise
    except OSError as error:
        if error.errno in _UNWRITABLE and flags & os.O_CREAT:
            advice = f"{error.strerror} (open the store with read_only=True to read it)"
            raise OSError(error.errno, advice, error.filename) from error
        raise


class ExclusiveLock:
    """The writers' lock of one directory; see :class:`aimagestore._engine.lock.LockPrimitive`.

    The process has one for each directory, however many stores it has open there: if the holder is
    stuck, one thread and one descriptor wait.
    """

    def __init__(self, root: Directory) -> None:
        self._root = root
        self._process = os.getpid()
        self._made: BaseFileLock | None = None

    @property
    def _lock(self) -> BaseFileLock:
        # Made when it is first needed: a program that only reads does not import filelock.
        if self._made is None:
            self._made = self._make_lock()
        return self._made

    def _make_lock(self) -> BaseFileLock:
        if RECORD_LOCKS:
            from .record_lock import RecordLock  # noqa: PLC0415 (see above)

            # The file is opened relative to a descriptor, so this path only names the lock.
            path = self._root.path_of(LOCK_FILE)
            open_file = partial(open_lock_file, self._root)
            return RecordLock(path, open_file=open_file)
        from filelock import FileLock  # noqa: PLC0415 (see above)

        # There is no podman to exclude: any lock will do that all stores here use.
        return FileLock(self._root.path_of(LOCK_FILE), thread_local=False)

    def try_acquire(self) -> bool | None:
        return self._acquire(blocking=False)

    def acquire(self) -> bool | None:
        return self._acquire(blocking=True)

    def _acquire(self, *, blocking: bool) -> bool | None:
        try:
            self._lock.acquire(poll_interval=_POLL, blocking=blocking)
        except ImageStoreError:
            raise
        except OSError as error:
            from filelock import Timeout  # noqa: PLC0415 (see above)

            if isinstance(error, Timeout):
                return None
            error.filename = self._root.path_of(LOCK_FILE)
            raise
        return True

    def interrupt(self) -> None:
        pass  # a wait in the kernel cannot be interrupted: the line releases the lock afterwards

    def release(self, held: bool) -> None:
        # A forked child shares the open file: unlocking it there would unlock the parent's.
        if os.getpid() == self._process:
            self._lock.release()

    def describe_holder(self) -> Holder:
        return describe_holder(self._root)


class SharedLock:
    """The readers' lock of one directory, which keeps writers out, as upstream's readers do.

    A hold is the descriptor of the lock file, or -1 where there is no such file.
    """

    def __init__(self, root: Directory) -> None:
        self._root = root
        self._process = os.getpid()

    def try_acquire(self) -> int | None:
        return self._acquire(wait=False)

    def acquire(self) -> int | None:
        return self._acquire(wait=True)

    def _acquire(self, *, wait: bool) -> int | None:
        fd = self._open()
        if fd >= 0 and RECORD_LOCKS and not lock(fd, fcntl.F_RDLCK, wait=wait):
            return None
        return fd

    def _open(self) -> int:
        """Open the lock file; -1 if the store has none that this user can read."""
        try:
            return open_noted(partial(self._root.open_file, LOCK_FILE))
        except (FileNotFoundError, PermissionError, StoreCorruptError):
            return -1

    def interrupt(self) -> None:
        pass

    def release(self, held: int) -> None:
        # A forked child has closed the descriptor, and may have another of that number.
        if held >= 0 and os.getpid() == self._process:
            unlock(held)

    def describe_holder(self) -> Holder:
        return describe_holder(self._root)


_Key = tuple[int, int, bool]

# The lines of this process, each with the directory that it has open. A store joins one under the
# mutex, and leaves it when it is closed.
_lines: dict[_Key, tuple[AnyLine, Directory]] = {}
_lines_mutex = threading.RLock()


def _forget_in_child() -> None:
    """Start afresh in a forked child: otherwise it would share a lock with its parent."""
    global _lines, _lines_mutex  # noqa: PLW0603 (there is one process)
    _lines = {}
    _lines_mutex = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


def exclusive_line(root: Directory) -> AnyLine:
    """Join this process's line for the writers' lock of a directory."""
    return _join(root, ExclusiveLock, "aimagestore lock", is_exclusive=True)


def shared_line(root: Directory) -> AnyLine:
    """Join this process's line for the readers' lock of a directory."""
    return _join(root, SharedLock, "aimagestore shared lock", is_exclusive=False)


def _join(
    root: Directory,
    make: Callable[[Directory], ExclusiveLock | SharedLock],
    name: str,
    *,
    is_exclusive: bool,
) -> AnyLine:
    found = root.stat_self()
    key = (found.st_dev, found.st_ino, is_exclusive)
    with _lines_mutex:
        if key not in _lines:
            own = root.duplicate()
            try:
                _lines[key] = LockLine(make(own), name, partial(_forget, key, own)), own
            except BaseException:
                own.close()
                raise
        line, _ = _lines[key]
        line.join()
        return line


def _forget(key: _Key, root: Directory) -> None:
    with _lines_mutex:
        line, own = _lines.get(key, (None, None))
        # It may be called again when another line has come into this one's place.
        if line is not None and own is root and line.is_unused:
            del _lines[key]
            root.close()


# The last-write token


def write_token(root: Directory) -> None:
    """Write a new last-write token, which tells other programs to load the index again."""
    token = _TOKEN.pack(time.time_ns(), next(_writes), os.getpid(), os.urandom(44))
    # By its name, because others read that file, and closed here: network file systems write when a
    # file is closed. The lock's own descriptor may have lost the name, and is closed too late.
    fd = open_lock_file(root)
    try:
        root.write(LOCK_FILE, fd, [memoryview(token)])
    finally:
        os.close(fd)


def last_writer(root: Directory) -> int | None:
    """Return the process that wrote the last-write token; ``None`` if that is not known."""
    try:
        fd = open_lock_file(root, os.O_RDONLY)
    except (OSError, StoreCorruptError):
        return None
    try:
        token = os.read(fd, _TOKEN.size)
    finally:
        os.close(fd)
    if len(token) < _TOKEN.size:
        return None
    return int(_TOKEN.unpack(token)[2])


# Other programs' changes


def is_change_under_way(root: Directory) -> bool:
    """Return whether another program has saved the index, and may be about to save it again.

    containers/storage creates an image under one hold of its lock, but saves it several times. It
    writes the last-write token before each save. So a process that holds the lock and wrote that
    token has saved the index, under this hold or an earlier one.
    """
    process = foreign_writer(root)
    if process is None:
        return False
    own_number = _number_in_its_namespace(process)
    return own_number is None or own_number == last_writer(root)


def foreign_writer(root: Directory) -> int | None:
    """Return the process of another program that holds the lock for writing.

    The locks of this library belong to descriptors, for which the kernel names no process.

    :returns: 0 for a process of another PID namespace; ``None`` if there is none
    """
    if not RECORD_LOCKS:
        return None
    try:
        fd = root.open_file(LOCK_FILE)
    except (FileNotFoundError, PermissionError, StoreCorruptError):
        return None
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, whole_file(fcntl.F_RDLCK))
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(fd)
    kind, _, _, _, process = struct.unpack(FLOCK, answer)
    return None if kind == fcntl.F_UNLCK or process < 0 else int(process)


def _number_in_its_namespace(process: int) -> int | None:
    """Return a process's ID in its own PID namespace, which is another one in a container."""
    # As bytes: the name of the process is in it, cut off after 15 bytes.
    with suppress(OSError), open(f"/proc/{process}/status", "rb") as file:
        for line in file:
            if line.startswith(b"NSpid:"):
                return int(line.split()[-1])
    return None


# Who holds the lock


def describe_holder(root: Directory) -> Holder:
    """Describe who holds the lock of a directory, as far as the kernel tells."""
    process, writer = _holder(root), last_writer(root)
    description = f"process {process} holds it" if process else "another process holds it"
    if process == 0:
        description = "it is free now"
    elif process == os.getpid():
        description = "this process holds it"
    if writer:
        description += f", process {writer} wrote last"
    return Holder(root.path_of(LOCK_FILE), description, process or None, writer)


def _holder(root: Directory) -> int | None:
    """Return a process that holds the lock: 0 for none, ``None`` if it cannot be found out."""
    if not RECORD_LOCKS:
        return None
    try:
        fd = open_lock_file(root, os.O_RDWR)
    except (OSError, StoreCorruptError):
        return None
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, whole_file(fcntl.F_WRLCK))
        kind, _, _, _, pid = struct.unpack(FLOCK, answer)
        if kind == fcntl.F_UNLCK:
            return 0
        return pid if pid > 0 else _descriptor_holder(os.fstat(fd).st_ino)
    finally:
        os.close(fd)


def _descriptor_holder(inode: int) -> int | None:
    """Find the process that has a descriptor with an open-file-description lock on a file.

    If a forked child shares the descriptor, both have it, and neither is returned.
    """
    lock = re.compile(
        rb"^lock:\t\d+: OFDLCK +\S+ +\S+ -1 [0-9a-f]+:[0-9a-f]+:%d " % inode, re.MULTILINE
    )
    found: set[int] = set()
    for process in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            for fd in os.listdir(f"/proc/{process}/fdinfo"):
                with suppress(OSError), open(f"/proc/{process}/fdinfo/{fd}", "rb") as file:
                    if lock.search(file.read()):
                        found.add(int(process))
    return found.pop() if len(found) == 1 else None
