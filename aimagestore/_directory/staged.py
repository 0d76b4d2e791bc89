"""Big data on its way into the store."""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future
from contextlib import ExitStack, contextmanager, suppress
from typing import Protocol, TypeAlias, TypeVar

from .._core.content import Buffer
from .._engine.closing import LastUse
from .._engine.digesting import Digester
from .._engine.failure import copied
from .._engine.items import CHUNK
from ..errors import ImageStoreError
from .files import PRIVATE_DIRECTORY, PRIVATE_FILE, Directory, is_crowded
from .stored import StoredFile, link_to, verified_files

Find: TypeAlias = Callable[[str, int, Callable[[], object]], StoredFile | None]
"""Finds content that a store has; see :meth:`StoredFiles.find`."""

STAGED_PREFIX = ".stage-"
"""The prefix of what is staged under a name, file or directory. Its writer has it locked."""

SYNC_BYTES = 32 * 1024 * 1024
"""Bytes after which a sync is begun, so that not everything is left to the one at the end."""

_STAGED_NAME = re.compile(rf"{re.escape(STAGED_PREFIX)}[0-9a-f]{{32}}")


def staged_name() -> str:
    """Return a unique name for a staged file or directory."""
    return f"{STAGED_PREFIX}{os.urandom(16).hex()}"


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


D = TypeVar("D", bound=Directory)


def make_staging_directory(parent: D, mode: int = PRIVATE_DIRECTORY) -> tuple[str, D]:
    """Make a directory for staged files, and return its name and the directory.

    It is locked as long as it is open, so that nobody removes it as a dead writer's.
    """
    while True:
        name = staged_name()
        parent.make_directory(name, mode)
        # Before it is locked, another writer may remove it.
        with suppress(FileNotFoundError), ExitStack() as opened:
            opened.callback(_remove_empty, parent, name)
            directory = parent.open_directory(name)
            opened.push(directory)
            parent.lock_file(name, directory.fd)
            if parent.has(name, directory.fd):
                opened.pop_all()
                return name, directory


def _remove_empty(parent: Directory, name: str) -> None:
    with suppress(OSError):
        parent.remove_directory(name)


def create_file(directory: Directory, mode: int = PRIVATE_FILE) -> tuple[int, str]:
    """Create a file without a name, and return its descriptor and ``""``.

    On file systems that have no such files, it has a staged name and is locked.
    """
    fd = directory.open_unnamed(mode)
    if fd is not None:
        return fd, ""
    while True:
        name = staged_name()
        fd = directory.open_file(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        try:
            directory.lock_file(name, fd)
            is_ours = directory.has(name, fd)
        except OSError:
            os.close(fd)
            with suppress(OSError):
                directory.unlink(name)
            raise
        if is_ours:
            return fd, name
        os.close(fd)  # removed as a dead writer's before it was locked


class NewFile:
    """Little content in a new file, written by a commit. Used by one thread at a time.

    :ivar is_crowded: whether the process has many files open with this one
    """

    def __init__(self, directory: Directory, data: bytes, digest: str) -> None:
        self._directory = directory
        self._digest = digest
        self._is_durable = False
        self._fd, self._name = create_file(directory)
        self.is_crowded = is_crowded(self._fd)
        try:
            directory.write(self._name, self._fd, [memoryview(data)])
            directory.begin_sync(self._fd, len(data))
        except BaseException:
            self.close()
            raise

    def sync(self) -> None:
        """Make the content durable. Idempotent."""
        if not self._is_durable:
            self._directory.sync_file(self._name, self._fd)
            self._is_durable = True

    def publish(self, directory: Directory, name: str) -> None:
        """Give the file its name; a file that has it loses it."""
        if self._name:
            self._directory.rename(self._name, name, directory)
            self._name = ""
        else:
            directory.name_file(self._fd, name)
        with suppress(OSError):
            verified_files.add(self._digest, directory.stat_file(name, self._fd))

    def link_to(self, directory: Directory, name: str) -> bool:
        """Give it one more name; return ``False`` if that is impossible."""
        return link_to(directory, self._fd, name)

    def close(self) -> None:
        """Close the file, which removes it unless it was published. Idempotent."""
        fd, self._fd = self._fd, -1
        name, self._name = self._name, ""
        if name:
            with suppress(OSError):
                self._directory.unlink(name)
        if fd >= 0:
            os.close(fd)


class Linkable(Protocol):
    """Content whose file can get more names."""

    def link_to(self, directory: Directory, name: str) -> bool:
        """Give it one more name; return ``False`` if that is impossible."""
        ...


class ClosedFiles:
    """Staged files that have a name instead of a descriptor, so that a store can have many.

    Their directory is made when it is needed first.
    """

    def __init__(self, root: Directory) -> None:
        self._root = root
        self._mutex = threading.Lock()
        self._directory: tuple[str, Directory] | None = None

    def take(self, file: StoredFile) -> bool:
        """Have a file give up its descriptor; return ``False`` if that is impossible."""
        try:
            with self._mutex:
                if self._directory is None:
                    self._directory = make_staging_directory(self._root)
            return file.give_up_descriptor(self._directory[1], staged_name())
        except (OSError, ImageStoreError):
            return False  # it stays open

    def close(self) -> None:
        """Remove the directory. All files in it were closed."""
        with self._mutex:
            made, self._directory = self._directory, None
        if made is not None:
            name, directory = made
            _remove_empty(self._root, name)
            directory.close()


class _Sink(io.BufferedIOBase):
    """Writes to a staged file; helper threads hash and sync what was written."""

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
        # Whether the store was searched for what was written.
        self.is_searched = False
        self._digester = Digester(helpers)
        # The size at which the digest was computed last, and that digest.
        self._digest = -1, ""

    @property
    def digest(self) -> str:
        """The digest of what was written."""
        size = self.size
        if self._digest[0] != size:
            self.flush()
            self._digest = size, self._digester.digest
        return self._digest[1]

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer) -> int:  # type: ignore[override]
        piece = memoryview(data).cast("B")
        with self._content._in_use():
            fd = self._content.begin_write()
            try:
                self.append(fd, piece)
            finally:
                if not isinstance(data, bytes):
                    self.flush()  # the caller may change the buffer from here on
        return len(piece)

    def append(self, fd: int, piece: bytes | memoryview) -> None:
        """Append a piece. Called while the file is in use."""
        view = memoryview(piece)
        self.is_durable = self.is_searched = False
        if self._digests:
            self._digester.add(view)
        try:
            self._directory.write("", fd, [view])
            self.size += len(view)
            self._sync_early(fd, len(view))
        except OSError:
            self.is_broken = True  # some of it may be in the file
            raise

    def _sync_early(self, fd: int, size: int) -> None:
        self._unsynced += size
        if self._unsynced >= SYNC_BYTES and (self._syncing is None or self._syncing.done()):
            self.finish_sync()
            self._unsynced = 0
            with suppress(RuntimeError):  # the store is closing: the sync at the end is enough
                self._syncing = self._helpers.submit(self._directory.sync_data, "", fd)

    def finish_sync(self) -> None:
        """Return when no sync is under way.

        :raises OSError: when it failed, which the kernel reports only once
        """
        syncing, self._syncing = self._syncing, None
        if syncing is not None:
            syncing.result()

    def flush(self) -> None:
        """Return when everything that was written is hashed."""
        self._digester.finish()


class StagedFile:
    """Content in a file without a name; see :class:`aimagestore._engine.protocol.StagedContent`.

    On file systems that have no such files, the file has a name, and the lock on it tells that it
    is in use.

    If the store has the content already, its file gets one more name, and the staged file is not
    used. There is no staged file if the digest was known before anything was written.

    It may be used and discarded from several threads: a task that was cancelled leaves its thread
    in a write, and a commit may be publishing it. Discarding then leaves the descriptor to that
    thread.

    :param mode: the permissions of the file
    :param digests: whether what is written is hashed
    :param find: finds content that the store has by its digest and size
    :param stored: the content, if the store is known to have it
    :param closed: takes content that is finished, if the process has many files open
    """

    def __init__(
        self,
        directory: Directory,
        helpers: Executor,
        mode: int = PRIVATE_FILE,
        *,
        digests: bool = True,
        find: Find | None = None,
        stored: StoredFile | None = None,
        closed: ClosedFiles | None = None,
    ) -> None:
        self._directory = directory
        self._helpers = helpers
        self._digests = digests
        self._closed = closed
        self._mode = mode
        self._find = find
        self._stored = stored
        self._last_use = LastUse()
        self._is_published = False
        self._is_linked = False
        self._is_interrupted = False
        self._loss: Exception | None = None
        self._name = ""
        self._fd = -1
        self._sink = self._new_sink()
        if stored is None:
            self._create()

    def _new_sink(self) -> _Sink:
        return _Sink(self, self._directory, self._helpers, digests=self._digests)

    def _create(self) -> None:
        self._fd, self._name = create_file(self._directory, self._mode)

    @contextmanager
    def _in_use(self) -> Iterator[int]:
        with self._last_use.in_use(self._close):
            if self._loss is not None:
                raise copied(self._loss)
            if self._last_use.is_over:
                raise ValueError("this staged data was discarded: stage it again")
            yield self._fd

    def begin_write(self) -> int:
        """Return the descriptor to write to. Called while the file is in use.

        Content of the store is copied first.
        """
        fd = self._own()
        stored, self._stored = self._stored, None
        if stored is not None:
            stored.close()
        return fd

    def _own(self) -> int:
        """Return the descriptor of the staged file; make it, as a copy, if there is none yet."""
        stored = self._stored
        if self._fd < 0 and stored is not None:
            self._create()
            while piece := stored.read_at(CHUNK, self._sink.size):
                self._sink.append(self._fd, piece)
            if self._sink.digest != stored.digest:
                self._sink.is_broken = True
                raise OSError(errno.EIO, "the content was altered while it was staged")
        return self._fd

    @property
    def sink(self) -> io.BufferedIOBase:
        """Where its bytes are written."""
        return self._sink

    @property
    def size(self) -> int:
        """The number of bytes written."""
        stored = self._stored
        return self._sink.size if stored is None else stored.size

    @property
    def digest(self) -> str:
        """The digest of what was written."""
        stored = self._stored
        return self._sink.digest if stored is None else stored.digest

    @property
    def is_open(self) -> bool:
        """Whether it was neither published nor discarded."""
        return not self._last_use.is_over and not self._is_published

    @property
    def is_stored(self) -> bool:
        """Whether it is content that the store has already."""
        return self._stored is not None

    @property
    def is_crowded(self) -> bool:
        """Whether the process has many files open with this one."""
        return is_crowded(self._fd)

    @property
    def is_finished(self) -> bool:
        """Whether :meth:`finish` has nothing to do."""
        return self._stored is not None or self._sink.is_durable

    def finish(self) -> None:
        """Make what was written durable, or find it in the store.

        :raises ValueError: when an earlier write has failed
        """
        with self._in_use():
            self._search()
            if self._stored is None:
                self._sync()
            if self._closed is not None:
                self._give_up_descriptor(self._closed)

    def _give_up_descriptor(self, closed: ClosedFiles) -> None:
        """Close the file if the process has many open. From then on it is like one of the store."""
        stored = self._stored
        if stored is None:
            if not is_crowded(self._fd):
                return
            found = self._directory.stat_file("", self._fd)
            stored = StoredFile(self._directory, self._fd, self.digest, found)
            if closed.take(stored):
                self._stored, self._fd = stored, -1
                self._close_file()
                self._sink = self._new_sink()
        elif stored.is_crowded and closed.take(stored):
            self._close_file()
            self._sink = self._new_sink()

    def search(self) -> None:
        """Find what was written in the store: the part of :meth:`finish` before the sync."""
        with self._in_use():
            self._search()

    def _search(self) -> None:
        sink = self._sink
        if sink.is_broken:
            raise ValueError("a write to this staged data has failed: stage it again")
        sink.flush()
        if self._find is None or self._stored is not None or sink.is_durable or sink.is_searched:
            return
        with suppress(CancelledError):  # interrupted: what was written is used
            self._stored = self._find(self.digest, self.size, self._check_uninterrupted)
        self._is_interrupted = False
        sink.is_searched = True

    def _check_uninterrupted(self) -> None:
        if self._is_interrupted:
            raise CancelledError

    def _sync(self) -> None:
        if self._sink.is_durable:
            return
        try:
            self._sink.finish_sync()
            self._directory.sync_file("", self._fd)
        except OSError:
            # The kernel reports an error once: another sync would succeed, although data is lost.
            self._sink.is_broken = True
            raise
        self._sink.is_durable = True

    def use(self, stored: StoredFile) -> None:
        """Use content of the store instead of what was written; this takes over the file.

        :param stored: has the same size and digest
        """
        try:
            with self._in_use():
                self._stored = stored
        except BaseException:
            stored.close()
            raise

    def interrupt(self) -> None:
        # This ends a read of the store's content. The kernel ends a write to a file by itself.
        self._is_interrupted = True

    def read(self) -> bytes:
        """Return what was written."""
        with self._in_use() as fd:
            pieces = []
            position = 0
            while piece := self._read_at(fd, position):
                pieces.append(piece)
                position += len(piece)
            return b"".join(pieces)

    def _read_at(self, fd: int, position: int) -> bytes:
        if self._stored is not None:
            return self._stored.read_at(CHUNK, position)
        return self._directory.read_at(self._name, fd, CHUNK, position)

    def publish(self, directory: Directory, name: str, like: Linkable | None = None) -> None:
        """Give the name to the file, or to another of equal content; a file that has it loses it.

        :param like: has the same content, and was published
        """
        with self._in_use():
            self._is_linked = (
                self._stored.link_to(directory, name)
                if self._stored is not None
                else like is not None and like.link_to(directory, name)
            )
            if not self._is_linked:
                self._publish(directory, name)
            self._is_published = True

    def replace(self, directory: Directory, name: str, mode: int | None = None) -> None:
        """Make the file durable, and rename it over a file in one step.

        :param mode: its permissions; ``None`` for those that it was made with
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

    def _publish(self, directory: Directory, name: str) -> None:
        fd = self._own()
        self._sync()
        if self._name:
            self._directory.rename(self._name, name, directory)
            self._name = ""
        else:
            directory.name_file(fd, name)
        if self._find is not None:
            with suppress(OSError):
                verified_files.add(self.digest, directory.stat_file(name, fd))

    def link_to(self, directory: Directory, name: str) -> bool:
        """Give what was published one more name; return ``False`` if that is impossible."""
        with self._in_use() as fd:
            if self._is_linked and self._stored is not None:
                return self._stored.link_to(directory, name)
            return link_to(directory, fd, name)

    def withdraw(self, directory: Directory, name: str) -> None:
        """Undo :meth:`publish`: the data is staged again, under another name."""
        with self._in_use() as fd:
            if self._is_linked:
                directory.unlink(name)
            else:
                staged = staged_name()
                directory.lock_file(name, fd)
                directory.rename(name, staged, self._directory)
                self._name = staged
            self._is_published = self._is_linked = False

    def lose(self, error: Exception) -> None:
        """Close the file, which could not be withdrawn: later uses raise the error."""
        self._loss = error
        self.discard()

    def discard(self) -> None:
        """Close the file, which removes it unless it was published. Idempotent.

        If its name cannot be removed, it is garbage from then on: nobody holds its lock.
        """
        self._last_use.end(self._close)

    def _close(self) -> None:
        if self._stored is not None:
            self._stored.close()
        self._close_file()

    def _close_file(self) -> None:
        """Close the file that was written to, if it is open, and remove its name."""
        fd, self._fd = self._fd, -1
        name, self._name = self._name, ""
        if fd >= 0:
            with suppress(OSError):
                self._sink.finish_sync()
        if name:
            with suppress(OSError):
                self._directory.unlink(name)
        if fd >= 0:
            os.close(fd)
