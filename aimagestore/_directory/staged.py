"""Big data on its way into the store."""

from __future__ import annotations

import io
import os
import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress

from .._core.content import Buffer
from .._engine.digesting import Digester
from .._engine.failure import copied
from .files import PRIVATE_FILE, Directory

STAGED_PREFIX = ".stage-"
"""Files that are staged under a name. Their writer holds a lock on them."""

SYNC_BYTES = 64 * 1024 * 1024
"""Bytes after which the disk begins to write what it would otherwise get all at the end."""


class _Sink(io.BufferedIOBase):
    """Writes to a descriptor; what it writes is hashed and synced beside that."""

    def __init__(self, content: StagedFile, directory: Directory, helpers: Executor) -> None:
        self._content = content
        self._directory = directory
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
        with self._content._in_use() as fd:
            self.is_durable = False
            self.digester.add(piece)
            try:
                self._directory.write("", fd, [piece])
                self.size += len(piece)
                self._sync_early(fd, len(piece))
            except OSError:
                self.is_broken = True  # some of it may be in the file
                raise
            finally:
                if not isinstance(data, bytes):
                    self.flush()  # the caller may change it from here on
        return len(piece)

    def _sync_early(self, fd: int, size: int) -> None:
        self._unsynced += size
        if self._unsynced >= SYNC_BYTES and (self._syncing is None or self._syncing.done()):
            self.finish_sync()
            self._unsynced = 0
            with suppress(RuntimeError):  # the store is closing: it is synced at the end only
                self._syncing = self._helpers.submit(self._directory.sync_file, "", fd)

    def finish_sync(self) -> None:
        """Return when no sync is under way.

        :raises OSError: when it failed, which the kernel reports but once
        """
        syncing, self._syncing = self._syncing, None
        if syncing is not None:
            syncing.result()

    def flush(self) -> None:
        """Return when everything that was written is hashed."""
        self.digester.finish()


class StagedFile:
    """A file without a name, or, on file systems without those, one whose lock shows its use.

    It may be used and discarded from several threads: a task that was cancelled leaves its thread
    in a write, and a commit may be publishing it. Discarding then leaves the descriptor to that
    thread, so that it is never closed, and its number never reused, under another's hands.
    """

    def __init__(self, directory: Directory, helpers: Executor, mode: int = PRIVATE_FILE) -> None:
        self._directory = directory
        # Held while the descriptor is used; whoever releases it last closes the descriptor.
        self._mutex = threading.Lock()
        self._is_discarded = False
        self._is_published = False
        self._loss: Exception | None = None
        self._name = ""
        fd = directory.open_unnamed(mode)
        if fd is None:
            self._name = f"{STAGED_PREFIX}{secrets.token_hex(16)}"
            fd = directory.open_file(self._name, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
            try:
                directory.lock_file(self._name, fd)
            except OSError:
                os.close(fd)
                with suppress(OSError):
                    directory.unlink(self._name)
                raise
        self._fd = fd
        self._sink = _Sink(self, directory, helpers)

    @contextmanager
    def _in_use(self) -> Iterator[int]:
        with self._mutex:
            if self._loss is not None:
                raise copied(self._loss)
            if self._is_discarded:
                raise ValueError("this staged data was discarded: stage it again")
            try:
                yield self._fd
            finally:
                if self._is_discarded:
                    self._close()

    @property
    def sink(self) -> io.BufferedIOBase:
        """Where its bytes are written."""
        return self._sink

    @property
    def size(self) -> int:
        """The number of bytes written."""
        return self._sink.size

    @property
    def digest(self) -> str:
        """The digest of what was written."""
        self._sink.flush()
        return self._sink.digester.digest

    @property
    def is_open(self) -> bool:
        """Whether it was neither published nor discarded."""
        return not self._is_discarded and not self._is_published

    def finish(self) -> None:
        """Make what was written durable.

        :raises ValueError: when a write has failed before
        """
        with self._in_use() as fd:
            if self._sink.is_broken:
                raise ValueError("a write to this staged data has failed: stage it again")
            self._sink.flush()
            if not self._sink.is_durable:
                self._sink.finish_sync()
                self._directory.sync_file("", fd)
                self._sink.is_durable = True

    def interrupt(self) -> None:
        """Do nothing: the kernel ends a write to a file by itself."""

    def read(self) -> bytes:
        """Return what was written."""
        with self._in_use() as fd:
            pieces = []
            position = 0
            while piece := self._directory.read_at(self._name, fd, 1 << 20, position):
                pieces.append(piece)
                position += len(piece)
            return b"".join(pieces)

    def publish(self, directory: Directory, name: str) -> None:
        """Give the file its name, in place of whatever has it."""
        with self._in_use() as fd:
            if self._name:
                self._directory.rename(self._name, name, directory)
                self._name = ""
            else:
                directory.name_file(fd, name)
            self._is_published = True

    def withdraw(self, directory: Directory, name: str) -> None:
        """Undo :meth:`publish`: the data is staged again, under a name of its own."""
        with self._in_use() as fd:
            staged = f"{STAGED_PREFIX}{secrets.token_hex(16)}"
            directory.lock_file(name, fd)
            directory.rename(name, staged, self._directory)
            self._name = staged
            self._is_published = False

    def lose(self, error: Exception) -> None:
        """Close the file, which could not be withdrawn: whoever uses the data raises the error."""
        self._loss = error
        self.discard()

    def discard(self) -> None:
        """Close the file; it is gone then, unless it was published. Idempotent.

        One whose name cannot be removed is garbage from then on: nobody holds its lock.
        """
        self._is_discarded = True
        if self._mutex.acquire(blocking=False):
            try:
                self._close()
            finally:
                self._mutex.release()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        name, self._name = self._name, ""
        if fd >= 0:
            with suppress(OSError):
                self._sink.finish_sync()
            if name:
                with suppress(OSError):
                    self._directory.unlink(name)
            os.close(fd)
