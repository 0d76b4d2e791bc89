"""The lock on images.lock that containers/storage uses, and the last-write token in that file.

Go locks the whole file with a POSIX record lock. An open-file-description lock conflicts with
those of other processes, belongs to a descriptor and not to the process, and is not lost when
other code of the process closes a descriptor of the file.
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
from .kernel_lock import BUSY, FLOCK, unlock, whole_file

if TYPE_CHECKING:
    from filelock import BaseFileLock

_POLL: Final = 0.01
_UNWRITABLE: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})

RECORD_LOCKS = sys.platform == "linux"
"""Whether the kernel has locks that conflict with podman's and belong to a descriptor."""

_MARK: Final = "<QQI44s"
_MARK_BYTES: Final = struct.calcsize(_MARK)
_writes = count(1)


def open_lock_file(root: Directory, flags: int = os.O_RDWR | os.O_CREAT) -> int:
    """Open the lock file.

    :raises StoreCorruptError: when it has another name as well, whose file would be written
    :raises StoreLostError: when the directory was removed, so that no file can be made in it
    """
    try:
        fd = root.open_file(LOCK_FILE, flags, 0o644)
    except FileNotFoundError:
        if flags & os.O_CREAT:
            root.check_path()
        raise
    except OSError as error:
        if error.errno in _UNWRITABLE and flags & os.O_CREAT:
            advice = f"{error.strerror} (open the store with read_only=True to read it)"
            raise OSError(error.errno, advice, error.filename) from error
        raise
    try:
        if root.stat_file(LOCK_FILE, fd).st_nlink > 1:
            raise root.corrupt(LOCK_FILE, "has other names (hard links)")
    except BaseException:
        os.close(fd)
        raise
    return fd


# Descriptors that wait for a lock or hold one. No fork comes between opening one and noting it.
_descriptors: set[int] = set()
_opening = threading.RLock()


def _open_noted(open_file: Callable[[], int]) -> int:
    with _opening:
        fd = open_file()
        _descriptors.add(fd)
        return fd


def _close_noted(fd: int) -> None:
    with _opening:
        _descriptors.discard(fd)
        os.close(fd)


def wait_for_lock(fd: int, kind: int) -> None:
    """Wait in the kernel's line for a lock, exclusive or shared. Closes the descriptor if it fails.

    Polling would starve beside programs that wait here. The wait is not made within
    :meth:`.record_lock.RecordLock.acquire`, where filelock would hold up every fork until its end.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, whole_file(kind))
    except BaseException:
        _close_noted(fd)
        raise


class ExclusiveLock:
    """The writers' lock of one directory; see :class:`aimagestore._engine.lock.LockPrimitive`.

    The process has one for each directory, however many stores it has open there: so one thread
    and one descriptor wait for a lock that is stuck.
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

            # filelock resolves its path, makes the directories above it and keeps locks apart by
            # it. The file is opened relative to the descriptor instead, so the path only names
            # the lock, in a directory that is always there.
            found = self._root.stat_self()
            path = f"/proc/self/fd/{found.st_dev}-{found.st_ino}-{LOCK_FILE}"
            lock = RecordLock(path, thread_local=False)
            lock.open_file = partial(open_lock_file, self._root)
            return lock
        from filelock import FileLock  # noqa: PLC0415 (see above)

        # No podman to exclude: any lock serves that all stores here agree on.
        return FileLock(self._root.path_of(LOCK_FILE), thread_local=False)

    def try_acquire(self) -> bool | None:
        from filelock import Timeout  # noqa: PLC0415 (see above)

        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            return None
        except ImageStoreError:
            raise
        except OSError as error:
            error.filename = self._root.path_of(LOCK_FILE)
            raise
        return True

    def acquire(self) -> bool | None:
        from .record_lock import RecordLock  # noqa: PLC0415 (see above)

        if isinstance(self._lock, RecordLock):
            fd = _open_noted(partial(open_lock_file, self._root))
            wait_for_lock(fd, fcntl.F_WRLCK)
            try:
                self._lock.adopt(fd)
            finally:
                _descriptors.discard(fd)  # from here on it is filelock's, or closed
        else:
            self._lock.acquire(poll_interval=_POLL)
        return True

    def interrupt(self) -> None:
        pass  # a wait in the kernel cannot be interrupted: its thread drops the lock when it has it

    def release(self, held: bool) -> None:
        # A forked child has the same open file: to unlock it there would unlock the parent's.
        if os.getpid() == self._process:
            self._lock.release()

    def describe_holder(self) -> Holder:
        return describe_holder(self._root)


class SharedLock:
    """A readers' lock of one directory, which keeps writers out, as a reader upstream does."""

    def __init__(self, root: Directory) -> None:
        self._root = root

    def try_acquire(self) -> int | None:
        fd = self._open()
        if fd >= 0 and RECORD_LOCKS:
            try:
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, whole_file(fcntl.F_RDLCK))
            except OSError as error:
                _close_noted(fd)
                if error.errno in BUSY:
                    return None
                raise
        return fd

    def acquire(self) -> int | None:
        fd = self._open()
        if fd >= 0 and RECORD_LOCKS:
            wait_for_lock(fd, fcntl.F_RDLCK)
        return fd

    def _open(self) -> int:
        """Open the lock file; -1 where there is none, so that nobody writes."""
        try:
            return _open_noted(partial(self._root.open_file, LOCK_FILE))
        except (OSError, StoreCorruptError):
            return -1

    def interrupt(self) -> None:
        pass

    def release(self, held: int) -> None:
        if held >= 0:
            unlock(held)
            _close_noted(held)

    def describe_holder(self) -> Holder:
        return describe_holder(self._root)


_Key = tuple[int, int, bool]

# The lines of this process. Whoever uses one joins it under the mutex, and leaves it.
_lines: dict[_Key, AnyLine] = {}
_lines_mutex = threading.RLock()


def _forget_in_child() -> None:
    """Begin anew in a forked child, which would share a lock with its parent, and outlive it."""
    global _lines, _lines_mutex  # noqa: PLW0603 (there is one process)
    for fd in _descriptors:
        with suppress(OSError):
            os.close(fd)
    _descriptors.clear()
    _lines = {}
    _lines_mutex = threading.RLock()
    _opening.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_opening.acquire,
        after_in_parent=_opening.release,
        after_in_child=_forget_in_child,
    )


def exclusive_line(root: Directory) -> AnyLine:
    """Join this process's line for the writers' lock of a directory."""
    return _join(root, ExclusiveLock, "aimagestore lock", is_exclusive=True)


def shared_line(root: Directory) -> AnyLine:
    """Join this process's line for a readers' lock of a directory."""
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
        line = _lines.get(key)
        if line is None:
            own = root.duplicate()
            try:
                line = _lines[key] = LockLine(make(own), name, partial(_forget, key, own))
            except BaseException:
                own.close()
                raise
        line.join()
        return line


def _forget(key: _Key, root: Directory) -> None:
    with _lines_mutex:
        line = _lines.get(key)
        if line is not None and line.is_unused:
            del _lines[key]
            root.close()


# The last-write token


def write_token(root: Directory) -> None:
    """Write a new last-write token, by which other programs see that they must load the index."""
    token = struct.pack(_MARK, time.time_ns(), next(_writes), os.getpid(), os.urandom(44))
    fd = open_lock_file(root)
    try:
        root.write(LOCK_FILE, fd, [memoryview(token)])
    finally:
        os.close(fd)


def last_writer(root: Directory) -> int | None:
    """Return the process that wrote the last-write token, if there is one."""
    try:
        fd = open_lock_file(root, os.O_RDONLY)
    except (OSError, StoreCorruptError):
        return None
    try:
        token = os.read(fd, _MARK_BYTES)
    finally:
        os.close(fd)
    if len(token) < _MARK_BYTES:
        return None
    return int(struct.unpack(_MARK, token)[2])


# Other programs' changes


def is_change_under_way(root: Directory) -> bool:
    """Return whether another program has saved the index, and may be about to save it again.

    containers/storage creates an image under one hold of its lock, but saves it several times. It
    writes the last-write token before each save: who holds the lock and wrote that token has saved.
    (It may have done so under an earlier hold: that is not known.)
    """
    process = foreign_writer(root)
    if process is None:
        return False
    own_number = _number_in_its_namespace(process)
    return own_number is None or own_number == last_writer(root)


def foreign_writer(root: Directory) -> int | None:
    """Return the process of another program that holds the lock for writing, 0 if it is hidden.

    The locks of this library belong to descriptors: for those the kernel names no process.
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
    """Return the number that a process has for itself, in a container too."""
    with suppress(OSError), open(f"/proc/{process}/status") as file:
        for line in file:
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    return None


# Who holds the lock


def describe_holder(root: Directory) -> Holder:
    """Say who holds the lock of a directory, as far as the kernel tells."""
    process, writer = _holder(root), last_writer(root)
    description = f"process {process} holds it" if process else "another process holds it"
    if process == os.getpid():
        description = "this process holds it"
    if writer:
        description += f", process {writer} wrote last"
    return Holder(root.path_of(LOCK_FILE), description, process, writer)


def _holder(root: Directory) -> int | None:
    """Return a process that holds the lock; ``None`` where that cannot be found out."""
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
            return None
        return pid if pid > 0 else _descriptor_holder(os.fstat(fd).st_ino)
    finally:
        os.close(fd)


def _descriptor_holder(inode: int) -> int | None:
    """Find the process with an open-file-description lock on a file, as its descriptors show.

    A descriptor that a forked child shares shows the lock in both: then neither is named.
    """
    lock = re.compile(
        rf"^lock:\t\d+: OFDLCK +\S+ +\S+ -1 [0-9a-f]+:[0-9a-f]+:{inode} ", re.MULTILINE
    )
    found: set[int] = set()
    for process in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            for fd in os.listdir(f"/proc/{process}/fdinfo"):
                with suppress(OSError), open(f"/proc/{process}/fdinfo/{fd}") as file:
                    if lock.search(file.read()):
                        found.add(int(process))
    return found.pop() if len(found) == 1 else None
