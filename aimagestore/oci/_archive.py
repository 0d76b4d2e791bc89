"""A tar file that an image is exported into; blocking."""

from __future__ import annotations

import errno
import io
import os
import select
import stat
from concurrent.futures import Executor
from tarfile import PAX_FORMAT, TarInfo
from typing import BinaryIO, Protocol

from .._core.digest import CANONICAL
from .._directory.files import Directory
from .._directory.staged import StagedFile
from .._engine.digesting import Digester
from .._engine.protocol import StagedContent
from ._documents import INDEX_FILE, LAYOUT_FILE, MARKER, Descriptor, blob_path
from ._foreign import MANIFEST_FILE
from ._index import with_entry
from ._layout import LayoutFile
from ._tar import BLOCK
from ._target import EXPORTED_FILE, Target, replace_file

_STOP_MILLISECONDS = 50
"""After which a write that waits for its reader looks whether it was given up."""


class _Output(Protocol):
    """Takes the bytes of an archive."""

    def write(self, data: bytes) -> None:
        """Append data."""
        ...

    def finish(self) -> None:
        """Put the archive, which is complete, in place."""
        ...

    def stop(self) -> None:
        """Give up a write that waits for a reader. Called in another thread than the write."""
        ...

    def close(self) -> None:
        """Release it."""
        ...


class _NewFile:
    """A file that replaces what has its name when it is complete. A link stays one."""

    def __init__(self, path: str, helpers: Executor) -> None:
        parent, self._name = os.path.split(os.path.realpath(path))
        self._parent = Directory.at(parent)
        try:
            self._staged = StagedFile(self._parent, helpers, EXPORTED_FILE)
        except BaseException:
            self._parent.close()
            raise

    def write(self, data: bytes) -> None:
        self._staged.sink.write(data)

    def finish(self) -> None:
        replace_file(self._parent, self._name, self._staged)
        self._parent.sync()

    def stop(self) -> None:
        pass

    def close(self) -> None:
        self._staged.discard()
        self._parent.close()


class _OpenedFile:
    """A file that the caller opened and will close.

    A write to a pipe, which may wait for its reader for ever, is made when there is room for it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._is_stopped = False
        self._room: select.poll | None = None
        fd = _pipe_of(file)
        if fd is not None:
            self._room = select.poll()
            self._room.register(fd, select.POLLOUT)

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:  # one without a buffer may take less than it is given
            piece = rest
            if self._room is not None:
                self._wait_for(self._room)
                piece = rest[: select.PIPE_BUF]
            taken: object = self._file.write(piece)
            if not isinstance(taken, int) or not 0 <= taken <= len(piece):
                raise TypeError(
                    "write() of the file to export into must return the number of bytes written, "
                    f"not {taken!r}"
                )
            if self._room is not None:
                self._file.flush()  # a full buffer would be written without a look at the room
            rest = rest[taken:]

    def _wait_for(self, room: select.poll) -> None:
        is_ready = False
        while not is_ready:
            if self._is_stopped:
                raise ValueError("the export was given up")
            is_ready = bool(room.poll(_STOP_MILLISECONDS))

    def finish(self) -> None:
        self._file.flush()

    def stop(self) -> None:
        self._is_stopped = True

    def close(self) -> None:
        pass


def _pipe_of(file: BinaryIO) -> int | None:
    """Return the descriptor of a pipe, a socket or a device; ``None`` for anything else."""
    try:
        fd = file.fileno()
        mode = os.fstat(fd).st_mode
    except (AttributeError, OSError):  # some file-like objects have none
        return None
    return None if stat.S_ISREG(mode) else fd


class _OpenedPath(_OpenedFile):
    """A pipe or a device, written to as it is.

    :raises OSError: when no program reads from the pipe; this does not wait for one
    """

    def __init__(self, path: str) -> None:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            advice = "no program reads from this pipe: start the reader first"
            raise OSError(error.errno, advice, path) from error
        os.set_blocking(fd, True)
        self._opened = open(fd, "wb", buffering=0)  # noqa: SIM115 (closed by close)
        super().__init__(self._opened)

    def close(self) -> None:
        self._opened.close()


class _Entry(io.BufferedIOBase):
    """A blob that is being written into an archive, and the sink for it."""

    def __init__(self, output: _Output, path: str, size: int, helpers: Executor) -> None:
        self._output = output
        self._digester = Digester(helpers, CANONICAL)
        self.size = 0
        self.is_open = True
        output.write(_header(path, size))

    @property
    def sink(self) -> io.BufferedIOBase:
        return self

    @property
    def digest(self) -> str:
        self._digester.finish()
        return self._digester.digest

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._digester.add(data)
        self._output.write(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        self._digester.finish()

    def finish(self) -> None:
        self._output.write(bytes(-self.size % BLOCK))
        self.is_open = False

    def interrupt(self) -> None:
        """Give up a write that waits for a reader."""
        self._output.stop()

    def discard(self) -> None:
        self.is_open = False


class ArchiveTarget:
    """A new tar file. No file in it has a time or an owner, so equal images give equal archives.

    :param docker: the ``manifest.json`` that makes it an archive for ``docker load`` as well
    """

    def __init__(self, output: _Output, helpers: Executor, docker: bytes | None) -> None:
        self._output = output
        self._helpers = helpers
        self._docker = docker

    def find(self, digest: str, size: int) -> LayoutFile | None:
        return None

    def begin(self, digest: str, size: int) -> StagedContent:
        return _Entry(self._output, blob_path(digest), size, self._helpers)

    def complete(self, entry: Descriptor) -> None:
        files = {LAYOUT_FILE: MARKER, INDEX_FILE: with_entry(None, entry, "")}
        if self._docker is not None:
            files[MANIFEST_FILE] = self._docker
        for path, data in files.items():
            self._output.write(_header(path, len(data)) + data + bytes(-len(data) % BLOCK))
        self._output.write(bytes(2 * BLOCK))

    def commit(self, entry: Descriptor) -> None:
        self._output.finish()

    def stop(self) -> None:
        self._output.stop()

    def close(self) -> None:
        self._output.close()


def _header(path: str, size: int) -> bytes:
    info = TarInfo(path)
    info.size = size
    return info.tobuf(PAX_FORMAT)


def open_archive(path: str | BinaryIO, helpers: Executor, docker: bytes | None) -> Target:
    """Begin a tar file at a path, or write one to a file that is open already.

    :param docker: the ``manifest.json`` for Docker
    """
    output: _Output
    if not isinstance(path, str):
        output = _OpenedFile(path)
    elif _is_special(path):
        output = _OpenedPath(path)
    else:
        output = _NewFile(path, helpers)
    return ArchiveTarget(output, helpers, docker)


def _is_special(path: str) -> bool:
    """Return whether a path leads to something that is neither a file nor a directory."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
