"""Finds content that a store has already by its digest, verifies it, and gives it more names.

Items of equal content are hard links to one file. Nothing writes to a file that has the name of an
item: this library and containers/storage replace items by renaming, and remove them by unlinking.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from .._core.digest import CANONICAL, digest_of
from .._engine.items import CHUNK
from .._engine.protocol import ChangeUnderWayError
from .._format.block_catalog import BlockCatalog
from ..errors import ImageStoreError
from .files import PRIVATE_FILE, Directory, is_crowded
from .pending import open_current

if TYPE_CHECKING:
    from .index_file import IndexFile

# More than one candidate is needed only if the first is damaged, or another user's.
_CANDIDATES_MAX: Final = 8

_VERIFIED_MAX: Final = 4096

_CHECK_SECONDS: Final = 0.05


def link_to(directory: Directory, fd: int, name: str) -> bool:
    """Give an open file one more name; a file that has it loses it.

    :returns: ``False`` if that is impossible: the caller makes a copy
    """
    try:
        directory.name_file(fd, name)
    except OSError:
        # There are many reasons. One that affects a copy as well will be raised there.
        return False
    return True


class _Known(NamedTuple):
    """A version of a file, and the digest of its content.

    :ivar modified: when it was modified, in nanoseconds
    :ivar changed: its time of change, in nanoseconds
    :ivar links: the number of its names
    """

    digest: str
    size: int
    modified: int
    changed: int
    links: int

    @classmethod
    def of(cls, digest: str, found: os.stat_result) -> _Known:
        return cls(digest, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_nlink)

    def is_of(self, found: os.stat_result) -> bool:
        """Return whether a file with this status still has this content.

        Adding or removing a name updates the time of change, but leaves the content as it is.
        """
        return (
            found.st_size == self.size
            and found.st_mtime_ns == self.modified
            and (found.st_ctime_ns == self.changed or found.st_nlink != self.links)
        )


class VerifiedFiles:
    """The files of this process's stores whose digests are known: each is read only once."""

    def __init__(self) -> None:
        self._mutex = threading.Condition()
        self._known: OrderedDict[tuple[int, int], _Known] = OrderedDict()
        # The number of known files with each digest.
        self._digests: Counter[str] = Counter()
        self._being_read: set[tuple[int, int]] = set()

    def forget_all(self) -> None:
        """Forget all files. In a forked child, no thread goes on that was reading one."""
        self._mutex = threading.Condition()
        self._known = OrderedDict()
        self._digests = Counter()
        self._being_read = set()

    def add(self, digest: str, found: os.stat_result) -> None:
        """Note the digest of a file in its present version."""
        file = found.st_dev, found.st_ino
        with self._mutex:
            self._forget(file)
            self._known[file] = _Known.of(digest, found)
            self._digests[digest] += 1
            if len(self._known) > _VERIFIED_MAX:
                self._forget(next(iter(self._known)))

    def _forget(self, file: tuple[int, int]) -> None:
        if (known := self._known.pop(file, None)) is not None:
            self._digests[known.digest] -= 1
            if not self._digests[known.digest]:
                del self._digests[known.digest]

    def has(self, digest: str) -> bool:
        """Return whether a file with this digest is known."""
        with self._mutex:
            return digest in self._digests

    def known(self, found: os.stat_result) -> str | None:
        """Return the digest of a file; ``None`` if that of its present version is not known."""
        with self._mutex:
            known = self._known.get((found.st_dev, found.st_ino))
        if known is None or not known.is_of(found):
            return None
        self.add(known.digest, found)
        return known.digest

    def digest(self, directory: Directory, fd: int, check: Callable[[], object]) -> str | None:
        """Return the digest of an open file; read the file if that is not known.

        :param check: called now and then; what it raises ends this
        :returns: ``None`` if the file was changed meanwhile
        """
        found = directory.stat_file("", fd)
        file = found.st_dev, found.st_ino
        with self._mutex:
            while file in self._being_read:
                check()
                self._mutex.wait(_CHECK_SECONDS)
            if (known := self.known(found)) is not None:
                return known
            self._being_read.add(file)
        try:
            return self._read(directory, fd, check)
        finally:
            with self._mutex:
                self._being_read.discard(file)
                self._mutex.notify_all()

    def _read(self, directory: Directory, fd: int, check: Callable[[], object]) -> str | None:
        before = directory.stat_file("", fd)
        state = hashlib.new(CANONICAL)
        position = 0
        while piece := directory.read_at("", fd, CHUNK, position):
            check()
            state.update(piece)
            position += len(piece)
        # Its writer may not have made it durable.
        directory.sync_file("", fd)
        after = directory.stat_file("", fd)
        digest = digest_of(state)
        if position != after.st_size or not _Known.of(digest, before).is_of(after):
            return None
        self.add(digest, after)
        return digest


verified_files = VerifiedFiles()
"""The verified files of all stores of this process."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=verified_files.forget_all)


class StoredFile:
    """A file on the store's file system, whose content was verified. Its owner closes it.

    :ivar digest: its digest
    :ivar size: its length in bytes
    """

    def __init__(self, directory: Directory, fd: int, digest: str, found: os.stat_result) -> None:
        self.digest = digest
        self.size = found.st_size
        self._directory = directory
        # The name by which it is opened for each use, instead of having a descriptor.
        self._name = ""
        self._fd = fd
        self._known = _Known.of(digest, found)

    @property
    def is_crowded(self) -> bool:
        """Whether its descriptor should be given up, because the process has many."""
        return is_crowded(self._fd)

    def give_up_descriptor(self, directory: Directory, name: str) -> bool:
        """Give it this name, and open it by that from now on; ``False`` if that is impossible."""
        if not self.link_to(directory, name):
            return False
        fd, self._fd = self._fd, -1
        self._directory, self._name = directory, name
        os.close(fd)
        return True

    @contextmanager
    def _open(self) -> Iterator[int]:
        if self._fd >= 0:
            yield self._fd
            return
        fd = self._directory.open_file(self._name)
        try:
            yield fd
        finally:
            os.close(fd)

    def link_to(self, directory: Directory, name: str) -> bool:
        """Give it one more name, as :func:`link_to` does; ``False`` also if it was changed."""
        with self._open() as fd:
            found = directory.stat_file(name, fd)
            if not self._known.is_of(found) or not link_to(directory, fd, name):
                return False
            with suppress(OSError):
                found = directory.stat_file(name, fd)
                self._known = _Known.of(self.digest, found)
                verified_files.add(self.digest, found)
        return True

    def read_at(self, size: int, position: int) -> bytes:
        """Return up to ``size`` bytes from a position on; none at its end."""
        with self._open() as fd:
            return self._directory.read_at("", fd, size, position)

    def close(self) -> None:
        """Close it. Idempotent."""
        fd, self._fd = self._fd, -1
        name, self._name = self._name, ""
        if fd >= 0:
            os.close(fd)
        if name:
            with suppress(OSError):
                self._directory.unlink(name)


class StoredFiles:
    """Finds files of a store by the digest of their content."""

    def __init__(self, root: Directory, index_file: IndexFile) -> None:
        self._root = root
        self._index = index_file

    def find(self, digest: str, size: int | None, check: Callable[[], object]) -> StoredFile | None:
        """Find an item by its digest, and verify its content.

        :param digest: a SHA-256 digest
        :param size: its length in bytes; ``None`` for any
        :param check: called now and then while a file is read; what it raises ends that
        :returns: ``None`` if there is none, or if it cannot be read
        """
        try:
            try:
                catalog = self._index.load()
            except ChangeUnderWayError:
                catalog = self._index.catalog
        except (OSError, ImageStoreError, ChangeUnderWayError):
            return None
        return self.find_in(catalog, digest, size, check)

    def find_verified(self, catalog: BlockCatalog, digest: str, size: int) -> StoredFile | None:
        """Find an item by its digest, if its content was verified before. Reads no file."""
        return self.find_in(catalog, digest, size, None) if verified_files.has(digest) else None

    def find_in(
        self,
        catalog: BlockCatalog,
        digest: str,
        size: int | None,
        check: Callable[[], object] | None,
    ) -> StoredFile | None:
        """Find an item of a catalog, as :meth:`find` does.

        :param check: ``None`` to read no file
        """
        items = catalog.items_with_digest(digest, size)
        for record, key in islice(items, _CANDIDATES_MAX):
            try:
                fd = open_current(self._root, record.image, key)
            except (OSError, ImageStoreError):
                continue
            try:
                stored = self._verified(fd, digest, size, check)
            except OSError:
                stored = None
            except BaseException:
                os.close(fd)
                raise
            if stored is not None:
                return stored
            os.close(fd)
        return None

    def _verified(
        self,
        fd: int,
        digest: str,
        size: int | None,
        check: Callable[[], object] | None,
    ) -> StoredFile | None:
        found = self._root.stat_file("", fd)
        if not _is_private(found) or (size is not None and found.st_size != size):
            return None
        actual = (
            verified_files.known(found)
            if check is None
            else verified_files.digest(self._root, fd, check)
        )
        if actual != digest:
            return None
        return StoredFile(self._root, fd, digest, found)


def _is_private(found: os.stat_result) -> bool:
    """Return whether a file has the owner and permissions of a new one: its links share them."""
    return stat.S_IMODE(found.st_mode) == PRIVATE_FILE and found.st_uid == os.geteuid()
