"""Big data on its way into the store."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import secrets
from contextlib import suppress

from .._core.digest import CANONICAL, digest_of
from .files import Directory

STAGED_PREFIX = ".stage-"
"""Files staged where a file cannot do without a name. Their writer holds a lock on them."""

Buffer = bytes | bytearray | memoryview


class _Sink(io.BufferedIOBase):
    """Writes to a descriptor and digests what it writes, in one go."""

    def __init__(self, directory: Directory, fd: int) -> None:
        self._directory = directory
        self._fd = fd
        self.size = 0
        self.is_broken = False
        self.hash = hashlib.new(CANONICAL)

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer) -> int:  # type: ignore[override]
        piece = memoryview(data).cast("B")
        try:
            self._directory.write("", self._fd, [piece])
        except OSError:
            self.is_broken = True  # some of it may be in the file
            raise
        self.hash.update(piece)
        self.size += len(piece)
        return len(piece)


class StagedFile:
    """A file without a name, or, on file systems without those, with one that shows its use."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._name = ""
        fd = directory.open_unnamed()
        if fd is None:
            self._name = f"{STAGED_PREFIX}{secrets.token_hex(16)}"
            fd = directory.open_file(self._name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
            except OSError as error:
                os.close(fd)
                with suppress(OSError):
                    directory.unlink(self._name)
                error.filename = directory.path_of(self._name)
                raise
        self._fd = fd
        self._is_durable = False
        self._sink = _Sink(directory, fd)

    @property
    def sink(self) -> io.BufferedIOBase:
        """Where its bytes are written to."""
        return self._sink

    @property
    def size(self) -> int:
        """What was written, in bytes."""
        return self._sink.size

    @property
    def digest(self) -> str:
        """The digest of what was written."""
        return digest_of(self._sink.hash)

    @property
    def is_open(self) -> bool:
        """Whether it is neither published nor let go of."""
        return self._fd >= 0

    def finish(self) -> None:
        """Make what was written durable.

        :raises ValueError: when a write has failed before
        """
        if self._sink.is_broken:
            raise ValueError("a write to this staged data has failed: stage it again")
        if not self._is_durable:
            self._directory.sync_file("", self._fd)
            self._is_durable = True

    def publish(self, directory: Directory, name: str) -> None:
        """Put the file where it belongs, in place of whatever is there."""
        if self._name:
            self._directory.rename(self._name, name, directory)
            self._name = ""
        else:
            directory.name_file(self._fd, name)

    def discard(self) -> None:
        """Close the file; it is gone then, unless it was published.

        One whose name cannot be removed is garbage from then on: nobody holds its lock.
        """
        fd, self._fd = self._fd, -1
        name, self._name = self._name, ""
        if fd >= 0:
            if name:
                with suppress(OSError):
                    self._directory.unlink(name)
            os.close(fd)
