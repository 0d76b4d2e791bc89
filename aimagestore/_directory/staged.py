"""Big data on its way into the store."""

from __future__ import annotations

import io
import os
import re
import secrets
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from contextlib import ExitStack, contextmanager, suppress

from .._core.content import Buffer
from .._engine.digesting import Digester
from .._engine.failure import copied
from ..errors import ImageStoreError
from .files import PRIVATE_FILE, Directory

STAGED_PREFIX = ".stage-"
"""Files that are staged under a name. Their writer holds a lock on them."""

SYNC_BYTES = 64 * 1024 * 1024
"""Bytes after which the disk begins to write what it would otherwise get all at the end."""


_STAGED_NAME = re.compile(rf"{re.escape(STAGED_PREFIX)}[0-9a-f]{{32}}")


def staged_name() -> str:
    """Return a name that nothing else has, for a staged file or directory."""
    return f"{STAGED_PREFIX}{secrets.token_hex(16)}"


def remove_dead(directory: Directory) -> None:
    """Remove staged files and directories of this user whose writers were killed.

    A living writer holds a lock on each of its own.
    """
    for name in filter(_STAGED_NAME.fullmatch, directory.names()):
        with suppress(OSError, ImageStoreError):
            _remove_if_dead(directory, name)


def _remove_if_dead(directory: Directory, name: str) -> None:
    found = directory.stat(name)
    if found is None or found.st_uid != os.geteuid():
        return
    is_directory = stat.S_ISDIR(found.st_mode)
    with ExitStack() as opened:
        if is_directory:
            fd = opened.enter_context(directory.open_directory(name)).fd
        else:
            fd = directory.open_file(name)
            opened.callback(os.close, fd)
        if not directory.lock_file(name, fd, wait=False) or not directory.has(name, fd):
            return
        if is_directory:
            directory.remove_tree(name)
        else:
            directory.unlink(name)


class _Sink(io.BufferedIOBase):
    """Writes to a descriptor; what it writes is hashed and synced beside that."""

    def __init__(
        self, content: StagedFile, directory: Directory, helpers: Executor, *, digests: bool
    ) -> None:
        self._content = content
        self._directory = directory
        self._helpers = helpers
        self._digests = digests
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
            if self._digests:
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

    :param digests: whether what is written is hashed
    """

    def __init__(
        self,
        directory: Directory,
        helpers: Executor,
        mode: int = PRIVATE_FILE,
        *,
        digests: bool = True,
    ) -> None:
        self._directory = directory
        # Held while the descriptor is used; whoever releases it last closes the descriptor.
        self._mutex = threading.Lock()
        self._is_discarded = False
        self._is_published = False
        self._loss: Exception | None = None
        self._name = ""
        fd = directory.open_unnamed(mode)
        while fd is None:
            self._name = staged_name()
            fd = directory.open_file(self._name, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
            try:
                directory.lock_file(self._name, fd)
            except OSError:
                os.close(fd)
                with suppress(OSError):
                    directory.unlink(self._name)
                raise
            if not directory.has(self._name, fd):
                os.close(fd)  # taken for a dead writer's before it was locked
                fd = None
        self._fd = fd
        self._sink = _Sink(self, directory, helpers, digests=digests)

    @contextmanager
    def _in_use(self) -> Iterator[int]:
        try:
            with self._mutex:
                if self._loss is not None:
                    raise copied(self._loss)
                if self._is_discarded:
                    raise ValueError("this staged data was discarded: stage it again")
                yield self._fd
        finally:
            self._close_if_discarded()

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

    def replace(self, directory: Directory, name: str, mode: int | None = None) -> None:
        """Give the file, durable by now, its name in one step, in place of whatever has it.

        :param mode: its permissions; ``None`` for those it was made with
        """
        self.finish()
        with self._in_use() as fd:
            if mode is not None:
                self._directory.set_mode(self._name, fd, mode)
            if not self._name:
                beside = staged_name()
                self._directory.lock_file(beside, fd)
                self._directory.name_file(fd, beside)
                self._name = beside
            self._directory.rename(self._name, name, directory)
            self._name = ""
            self._is_published = True

    def withdraw(self, directory: Directory, name: str) -> None:
        """Undo :meth:`publish`: the data is staged again, under a name of its own."""
        with self._in_use() as fd:
            staged = staged_name()
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
        self._close_if_discarded()

    def _close_if_discarded(self) -> None:
        # Whoever uses it meanwhile does this when it is released.
        if self._is_discarded and self._mutex.acquire(blocking=False):
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
