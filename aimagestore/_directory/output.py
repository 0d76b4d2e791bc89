"""Where a caller wants data written: a file by its path, a pipe, a device, an open file; blocking.

The one writer of files outside of stores. Archives and single items go through it.
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
"""After which a call that waits for a reader checks whether it was given up."""

# Not a secret of a store's: the umask decides who may read it.
_MODE = 0o666


class Output(Protocol):
    """Takes bytes. Whoever opened it closes it."""

    def write(self, data: bytes) -> None:
        """Append data, all of it."""
        ...

    def finish(self) -> None:
        """Get everything written. A new file is durable then, and still has no name."""
        ...

    def commit(self) -> None:
        """Give a new file its name, in place of what has it. Never waits for a reader."""
        ...

    def stop(self) -> bool:
        """Give up a call that waits for a reader. Called in another thread than that call.

        :returns: whether the call ends soon; otherwise it must be left to its thread
        """
        ...

    def close(self) -> None:
        """Release it, and remove a new file unless it was committed."""
        ...


class _NewFile:
    """A file that replaces what has its name when it is complete, and keeps the permissions.

    A link stays, and what it leads to is replaced.
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

    A write to a pipe, which may wait for its reader for ever, is made when there is room for it.
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
        # A terminal that is stopped may have room for some of a write, and wait with the rest.
        self._ends_soon = not os.isatty(fd)
        if not stat.S_ISREG(mode):
            self._room = select.poll()
            self._room.register(fd, select.POLLOUT)

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:  # one without a buffer may take less than it is given
            piece = rest
            if self._room is not None:
                self._wait_for(self._room)
                piece = rest[: select.PIPE_BUF]
            self._check_wanted()
            taken: object = self._file.write(piece)
            if not isinstance(taken, int) or not 0 <= taken <= len(piece):
                raise TypeError(
                    "write() of the file to write to must return the number of bytes written, "
                    f"not {taken!r}"
                )
            if self._room is not None:
                self._file.flush()  # a full buffer would be written without a look at the room
            rest = rest[taken:]

    def _wait_for(self, room: select.poll) -> None:
        while not room.poll(_STOP_MILLISECONDS):
            self._check_wanted()

    def _check_wanted(self) -> None:
        if self._is_stopped:
            raise ValueError("this write was given up")

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
        fd = _open_special(path, check)
        os.set_blocking(fd, True)
        self._opened = open(fd, "wb", buffering=0)  # noqa: SIM115 (closed by close)
        self._last_use = LastUse()
        super().__init__(self._opened)

    def write(self, data: bytes) -> None:
        with self._last_use.in_use(self._opened.close):
            super().write(data)

    def close(self) -> None:
        self._last_use.end(self._opened.close)


def _open_special(path: str, check: Callable[[], object]) -> int:
    """Open a pipe or a device for writing; a pipe when a program reads from it."""
    while True:
        check()  # right before it is opened: its reader would take the end of this for the data's
        try:
            return os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError as error:
            if error.errno != errno.ENXIO or not stat.S_ISFIFO(os.stat(path).st_mode):
                raise
        time.sleep(_STOP_MILLISECONDS / 1000)


def open_output(file: str | BinaryIO, helpers: Executor, check: Callable[[], object]) -> Output:
    """Begin to write to a path, or to a file that is open already.

    What is at the path stays until all is written. A pipe or a device is written to as it is.

    :param helpers: threads for work beside the writing
    :param check: called now and then while this waits for a pipe's reader; what it raises ends that
    """
    if not isinstance(file, str):
        return _OpenFile(file)
    return _SpecialFile(file, check) if _is_special(file) else _NewFile(file, helpers)


def _is_special(path: str) -> bool:
    """Return whether a path leads to something that is neither a file nor a directory."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
