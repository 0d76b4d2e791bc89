"""Writes data where a caller wants it: to a path, a pipe, a device or an open file. Blocking.

Nothing else writes files outside of stores. Archives and single items go through it.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import BinaryIO, Protocol

from .._engine.closing import LastUse
from .files import Directory
from .staged import StagedFile, remove_dead

_STOP_MILLISECONDS = 50
"""The time after which a call that waits for a reader checks again whether it is still wanted."""

# Unlike a store's files, this one is not private: the umask decides who may read it.
_MODE = 0o666


class Output(Protocol):
    """Takes bytes. Whoever opened it closes it."""

    def write(self, data: bytes) -> None:
        """Append all of the data."""
        ...

    def finish(self) -> None:
        """Write what is buffered. A new file is durable then, but has no name yet."""
        ...

    def commit(self) -> None:
        """Give a new file its name, in place of a file that has it. Never waits for a reader."""
        ...

    def stop(self) -> bool:
        """Make a call that waits for a reader in another thread fail.

        :returns: whether that call ends soon; otherwise it must be left to its thread
        """
        ...

    def close(self) -> None:
        """Release it, and remove a new file unless it was committed."""
        ...


class _NewFile:
    """A new file that replaces an old one when it is complete, and has its permissions.

    If the path is a link, the file that it leads to is replaced.
    """

    def __init__(self, path: str, helpers: Executor) -> None:
        target = os.path.realpath(path)
        self._mode: int | None = None
        try:
            found = os.stat(target)
        except FileNotFoundError:
            pass
        else:
            if stat.S_ISDIR(found.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
            self._mode = stat.S_IMODE(found.st_mode)
        parent, self._name = os.path.split(target)
        self._parent = Directory.at(parent)
        try:
            remove_dead(self._parent)
            self._staged = StagedFile(self._parent, helpers, _MODE, digests=False)
        except BaseException:
            self._parent.close()
            raise

    def write(self, data: bytes) -> None:
        self._staged.sink.write(data)

    def finish(self) -> None:
        self._staged.finish()

    def commit(self) -> None:
        self._staged.replace(self._parent, self._name, self._mode)
        self._parent.sync()

    def stop(self) -> bool:
        return True  # the kernel ends a write to a file by itself

    def close(self) -> None:
        self._staged.discard()
        self._parent.close()


class _OpenFile:
    """A file that the caller opened and will close.

    A pipe's reader may never read: so the pipe is written to only when there is room in it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._is_stopped = False
        self._room: select.poll | None = None
        try:
            fd = file.fileno()
            mode = os.fstat(fd).st_mode
        except (AttributeError, OSError):  # some file-like objects have none
            self._ends_soon = False
            return
        # A stopped terminal may have room for a part of a write, and then wait.
        self._ends_soon = not os.isatty(fd)
        if not stat.S_ISREG(mode):
            self._room = select.poll()
            self._room.register(fd, select.POLLOUT)

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:  # an unbuffered file may take less than it is given
            piece = rest
            if self._room is not None:
                self._wait_for(self._room)
                piece = rest[: select.PIPE_BUF]
            self._check_wanted()
            taken: object = self._file.write(piece)
            if not isinstance(taken, int) or not 0 <= taken <= len(piece):
                raise TypeError(
                    "the file's write() must return the number of bytes that it has written, "
                    f"not {taken!r}"
                )
            if self._room is not None:
                self._file.flush()  # a full buffer would be written without waiting for room
            rest = rest[taken:]

    def _wait_for(self, room: select.poll) -> None:
        while not room.poll(_STOP_MILLISECONDS):
            self._check_wanted()

    def _check_wanted(self) -> None:
        if self._is_stopped:
            raise ValueError("this write was cancelled")

    def finish(self) -> None:
        self._file.flush()

    def commit(self) -> None:
        pass

    def stop(self) -> bool:
        self._is_stopped = True
        return self._ends_soon

    def close(self) -> None:
        pass


class _SpecialFile(_OpenFile):
    """A pipe or a device at a path, written to as it is."""

    def __init__(self, path: str, check: Callable[[], object]) -> None:
        self._path = path
        fd = _open_special(path, check)
        os.set_blocking(fd, True)
        self._opened = open(fd, "wb", buffering=0)  # noqa: SIM115 (closed by close)
        self._last_use = LastUse()
        super().__init__(self._opened)

    def write(self, data: bytes) -> None:
        with self._last_use.in_use(self._opened.close):
            try:
                super().write(data)
            except OSError as error:
                error.filename = self._path
                raise

    def close(self) -> None:
        self._last_use.end(self._opened.close)


def _open_special(path: str, check: Callable[[], object]) -> int:
    """Open a pipe or a device for writing; wait until a program has opened the pipe to read it."""
    while True:
        # Right before it is opened: a reader would take its closing for the end of the data.
        check()
        try:
            return os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError as error:
            if error.errno != errno.ENXIO or not stat.S_ISFIFO(os.stat(path).st_mode):
                raise
        time.sleep(_STOP_MILLISECONDS / 1000)


def open_output(file: str | BinaryIO, helpers: Executor, check: Callable[[], object]) -> Output:
    """Begin to write to a path, or to a file that is open already.

    A file at the path stays until all is written. A pipe or a device is written to directly.

    :param helpers: threads for work beside the writing
    :param check: called now and then while this waits for a pipe's reader; ends that by raising
    :raises IsADirectoryError: when the path is a directory
    """
    if not isinstance(file, str):
        return _OpenFile(file)
    return _SpecialFile(file, check) if is_special(file) else _NewFile(file, helpers)


def is_special(path: str) -> bool:
    """Return whether a path leads to something that is neither a file nor a directory."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
