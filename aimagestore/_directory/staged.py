"""Big data on its way into the store."""

from __future__ import annotations

import fcntl
import io
import os
import secrets
from concurrent.futures import Executor, Future
from contextlib import suppress

from .._engine.digesting import Digester
from .files import PRIVATE_FILE, Directory

STAGED_PREFIX = ".stage-"
"""Files staged where a file cannot do without a name. Their writer holds a lock on them."""

Buffer = bytes | bytearray | memoryview


SYNC_BYTES = 64 * 1024 * 1024
"""After so many bytes the disk begins to write what it would else be given at the end."""


class _Sink(io.BufferedIOBase):
    """Writes to a descriptor; what it writes is digested and synced beside that."""

    def __init__(self, directory: Directory, fd: int, helpers: Executor) -> None:
        self._directory = directory
        self._fd = fd
        self._helpers = helpers
        self._unsynced = 0
        self._syncing: Future[None] | None = None
        self.size = 0
        self.is_broken = False
        self.is_durable = False
        self.digester = Digester(helpers)

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer) -> int:  # type: ignore[override]
        piece = memoryview(data).cast("B")
        self.is_durable = False
        self.digester.add(piece)
        try:
            self._directory.write("", self._fd, [piece])
            self.size += len(piece)
            self._sync_early(len(piece))
        except OSError:
            self.is_broken = True  # some of it may be in the file
            raise
        finally:
            if not isinstance(data, bytes):
                self.flush()  # the caller may change it from here on
        return len(piece)

    def _sync_early(self, size: int) -> None:
        self._unsynced += size
        if self._unsynced >= SYNC_BYTES and (self._syncing is None or self._syncing.done()):
            self.settle_sync()
            self._unsynced = 0
            with suppress(RuntimeError):  # the store was closed: it is synced at the end only
                self._syncing = self._helpers.submit(self._directory.sync_file, "", self._fd)

    def settle_sync(self) -> None:
        """Return when no sync is under way.

        :raises OSError: when it failed, which the kernel says but once
        """
        syncing, self._syncing = self._syncing, None
        if syncing is not None:
            syncing.result()

    def flush(self) -> None:
        """Return when everything that was written is digested."""
        self.digester.settle()


class StagedFile:
    """A file without a name, or, on file systems without those, with one that shows its use."""

    def __init__(self, directory: Directory, helpers: Executor, mode: int = PRIVATE_FILE) -> None:
        self._directory = directory
        self._name = ""
        fd = directory.open_unnamed(mode)
        if fd is None:
            self._name = f"{STAGED_PREFIX}{secrets.token_hex(16)}"
            fd = directory.open_file(self._name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
            except OSError as error:
                os.close(fd)
                with suppress(OSError):
                    directory.unlink(self._name)
                error.filename = directory.path_of(self._name)
                raise
        self._fd = fd
        self._sink = _Sink(directory, fd, helpers)

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
        self._sink.flush()
        return self._sink.digester.digest

    @property
    def is_open(self) -> bool:
        """Whether it is neither published nor let go of."""
        return self._fd >= 0

    def finish(self) -> None:
        """Make what was written so far durable.

        :raises ValueError: when a write has failed before
        """
        if self._sink.is_broken:
            raise ValueError("a write to this staged data has failed: stage it again")
        self._sink.flush()
        if not self._sink.is_durable:
            self._sink.settle_sync()
            self._directory.sync_file("", self._fd)
            self._sink.is_durable = True

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
            with suppress(OSError):
                self._sink.settle_sync()
            if name:
                with suppress(OSError):
                    self._directory.unlink(name)
            os.close(fd)
