"""images.json of an open store: how it is read, kept up to date and replaced."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from .._core.events import changes_between
from .._core.image import Image
from .._core.names import INDEX_FILE, LOCK_FILE, big_data_file
from .._core.view import View
from .._engine.protocol import ChangeUnderWayError
from .._format import index
from .._format.block_catalog import EMPTY, BlockCatalog
from .._format.blocks import BLOCK_BYTES
from .._format.scan import NO_SCAN, IndexNeededError, Scan
from ..errors import DuplicateImageNamesError, ImageStoreError
from .contents import image_directories
from .feed import DirectoryFeed, open_inotify
from .files import Directory
from .lock import foreign_writer, is_change_under_way

T = TypeVar("T")

_LARGE = 4 * BLOCK_BYTES
"""Bytes from which on an index is parsed only after a few lookups in its file."""


class _Version(msgspec.Struct, frozen=True, eq=False):
    """A commit that was loaded, and the file that it was loaded from.

    The file stays open, so no other file gets its inode. The store's index is this commit for as
    long as its path leads to this inode with this time of change.

    :ivar fd: the open file; -1 if the store had no index
    :ivar is_array: whether the file holds an array, and is not missing or blank
    :ivar scan: answers the first lookups in a large index; the catalog is empty until then
    """

    catalog: BlockCatalog
    fd: int
    device: int = 0
    inode: int = 0
    changed: int = 0
    is_array: bool = False
    scan: Scan | None = None

    @classmethod
    def of(
        cls,
        catalog: BlockCatalog,
        fd: int,
        found: os.stat_result,
        *,
        is_array: bool = True,
        scan: Scan | None = None,
    ) -> _Version:
        return cls(catalog, fd, found.st_dev, found.st_ino, found.st_ctime_ns, is_array, scan)

    def is_file(self, found: os.stat_result) -> bool:
        """Return whether this is the status of the file that was loaded."""
        return (
            found.st_ino == self.inode
            and found.st_ctime_ns == self.changed
            and found.st_dev == self.device
        )


class IndexFile:
    """The index of an open store; see :class:`aimagestore._engine.protocol.Reader`.

    :param root: the store's directory
    :param is_local: whether a stat never waits for a network
    :param on_load: called with the catalogs before and after, when another program's commit is
        loaded
    :ivar is_durable: whether the index that was loaded is known to survive a power cut
    """

    def __init__(
        self,
        root: Directory,
        *,
        read_only: bool,
        is_local: bool,
        on_load: Callable[[BlockCatalog, BlockCatalog], object],
    ) -> None:
        self._root = root
        self._read_only = read_only
        self._path = root.path_of(INDEX_FILE)
        self._encoded_path = os.fsencode(self._path)
        self.keeps_catalog = is_local
        self._on_load = on_load
        self._version = _Version(EMPTY, -1)
        # Held while one version replaces another, so that all threads see them in one order.
        self._mutex = threading.Lock()
        self._feeds: list[DirectoryFeed] = []
        self.is_durable = False

    # Reading

    @property
    def catalog(self) -> BlockCatalog:
        """The commit that was loaded last."""
        with self._mutex:
            return self._indexed()

    @property
    def needs_save(self) -> bool:
        """Whether the catalog resolves a name conflict that is still in images.json."""
        return self._version.catalog.needs_save

    @property
    def is_array(self) -> bool:
        """Whether the index that was loaded last is a file with an array in it."""
        return self._version.is_array

    def current(self) -> BlockCatalog | None:
        version = self._version
        if version.scan is not None or not self.keeps_catalog:
            return None
        try:
            found = os.stat(self._encoded_path)
        except OSError:
            return None
        # What is_file() compares, without a call.
        is_current = (
            found.st_ino == version.inode
            and found.st_ctime_ns == version.changed
            and found.st_dev == version.device
        )
        return version.catalog if is_current else None

    def _is_current(self) -> bool:
        """Return whether the index is the file that was loaded last."""
        version = self._version
        found = self._root.stat(INDEX_FILE)
        if found is None or version.fd < 0:
            return found is None and version.fd < 0
        return version.is_file(found)

    def is_still(self, version: object) -> bool:
        """Return whether a version is still the last commit of any program."""
        with self._mutex:
            return self._version is version and self._is_current()

    def check_replaced(self, image_id: str, key: str, fd: int) -> None:
        """Check that no other program is replacing an item that was opened.

        containers/storage puts the content in place before it saves the index.

        :raises ChangeUnderWayError: when one may be replacing it
        """
        try:
            found = os.fstat(fd)
        except OSError as error:
            error.filename = os.path.join(self._root.path_of(image_id), big_data_file(key))
            raise
        # The index that was loaded is newer than all of its content, unless the clock was set back.
        changed = self._version.changed
        is_newer = found.st_mtime_ns >= changed or time.time_ns() < changed
        if is_newer and self.keeps_catalog and foreign_writer(self._root) is not None:
            raise ChangeUnderWayError

    def load(self) -> BlockCatalog:
        """Return the last commit.

        :raises ChangeUnderWayError: when that is half of another program's change
        """
        self.check_root()
        with self._mutex:
            self._load_if_outdated()
            return self._indexed()

    def open(self) -> None:
        """Read the last commit, without parsing it if it is large.

        :raises ChangeUnderWayError: when it is half of another program's change
        """
        self.check_root()
        with self._mutex:
            self._load_if_outdated()

    def read(self, look: Callable[[View], T]) -> T:
        return self.read_version(look)[0]

    def read_version(self, look: Callable[[View], T]) -> tuple[T, object]:
        """Call ``look`` with a view of the last commit; return its result, and the version.

        :raises ChangeUnderWayError: when that is half of another program's change
        """
        self.check_root()
        with self._mutex:
            self._load_if_outdated()
            version = self._version
            # A duplicate, because another thread may load a newer version while the file is read.
            fd = -1 if version.scan is None else self._root.duplicate_file(INDEX_FILE, version.fd)
        if version.scan is not None:
            with suppress(IndexNeededError):
                return self._look_in_file(version.scan, fd, look), version
        del version  # with its scan, whose memory the catalog uses
        with self._mutex:
            self._load_if_outdated()
            catalog, version = self._indexed(), self._version
        return look(catalog), version

    def _look_in_file(self, scan: Scan, fd: int, look: Callable[[View], T]) -> T:
        """Call ``look`` with a view of a file that was scanned, and close the file.

        :raises IndexNeededError: when the scan cannot answer
        """

        def read_at(size: int, position: int) -> bytes:
            try:
                return self._root.read_at(INDEX_FILE, fd, size, position)
            except OSError as error:  # a network file system may have lost the file
                raise IndexNeededError from error

        try:
            return look(scan.reading(read_at))
        finally:
            os.close(fd)

    def snapshot(self) -> BlockCatalog:
        return self.load()

    def pages(self, size: int) -> Iterator[list[Image]]:
        return self._pages(self.load(), size)

    def _pages(self, catalog: BlockCatalog, size: int) -> Iterator[list[Image]]:
        page: list[Image] = []
        for record in catalog.records():
            page.append(record.listed_image())
            if len(page) == size:
                yield page
                page = []
        if page:
            yield page

    def refresh(self) -> bool:
        is_modified = self.modified()
        self.load()
        return is_modified

    def modified(self) -> bool:
        self.check_root()
        return not self._is_current()

    def touched_since(self, when: datetime) -> bool:
        self.check_root()
        mark = self._root.stat(LOCK_FILE) or self._root.stat(INDEX_FILE)
        return mark is not None and mark.st_mtime > when.timestamp()

    def check_root(self) -> None:
        """Check that the store's path still leads to the directory that was opened.

        :raises StoreLostError: when it does not
        """
        self._root.check_path()

    def _load_if_outdated(self) -> None:
        # A missing index may have been lost: loading looks for image directories beside it.
        if self._version.fd < 0 or not self._is_current():
            self._load()

    def _indexed(self) -> BlockCatalog:
        """Return the catalog of the version that was loaded; parse it if that was not needed yet.

        The mutex is held.
        """
        version = self._version
        if version.scan is not None:
            # Without the scan, so that the catalog uses its memory.
            text = version.scan.text
            version = self._version = replace(version, scan=NO_SCAN)
            try:
                catalog, _ = self._parse(self._text(version.fd, text), EMPTY)
            except OSError:  # a network file system may have lost the file
                self._load()
            else:
                self._version = replace(version, catalog=catalog, scan=None)
        return self._version.catalog

    def _load(self) -> None:
        previous = self._version
        fd = self._open_index()
        if fd is None:
            self._adopt(_Version(EMPTY, -1))
            return
        try:
            found = self._root.stat_file(INDEX_FILE, fd)
            # Once another program has changed the store, only what changes is parsed each time. A
            # feed needs a catalog to compare with the next one.
            scan = None
            if previous.fd < 0 and not self._feeds and found.st_size >= _LARGE:
                scan = Scan.of(self._text(fd))
            if scan is not None:
                catalog, is_array = EMPTY, True
            else:
                catalog, is_array = self._parse(self._text(fd), previous.catalog)
                self._on_load(previous.catalog, catalog)
        except BaseException:
            os.close(fd)
            raise
        self.is_durable = False
        self._adopt(_Version.of(catalog, fd, found, is_array=is_array, scan=scan))

    def _parse(self, text: index.Text, previous: BlockCatalog) -> tuple[BlockCatalog, bool]:
        """Parse an index; return its catalog, and whether it is an array and not blank.

        :param previous: the catalog before it
        """
        try:
            parsed = index.parse(text, previous)
        except index.MalformedIndexError as error:
            raise self._root.corrupt(
                INDEX_FILE, f"is damaged at byte {error.offset}: {error}: repair the store"
            ) from error
        if parsed is None and (image_id := next(image_directories(self._root), None)):
            raise self._lost_index("is blank", image_id)
        catalog = previous.with_blocks(*(parsed or ({}, ())))
        if catalog.needs_save and self._read_only:
            raise DuplicateImageNamesError(
                f"{self._path} has two images of one name: open the store for writing once to "
                "resolve that",
                path=self._path,
            )
        return catalog, parsed is not None

    def _text(self, fd: int, known: index.Text | None = None) -> index.Text:
        """Return the text of an index from its beginning on.

        :param known: the same text, which was read before, if it is kept
        """
        os.lseek(fd, 0, os.SEEK_SET)
        if known is not None:
            known.rewind()
            return known
        size = self._root.stat_file(INDEX_FILE, fd).st_size
        return index.Text(partial(self._root.read_into, INDEX_FILE, fd), size)

    def _open_index(self) -> int | None:
        """Open the index; ``None`` when the store has none yet.

        :raises StoreCorruptError: when it is missing beside image directories
        :raises ChangeUnderWayError: when it is half of another program's change
        """
        while True:
            try:
                return open_index(self._root, is_local=self.keeps_catalog)
            except FileNotFoundError:
                image_id = next(image_directories(self._root), None)
            if image_id is None:
                return None
            # If the image was created just now, there is an index by now.
            if self._root.stat(INDEX_FILE) is None:
                raise self._lost_index("is missing", image_id)

    def _lost_index(self, problem: str, image_id: str) -> ImageStoreError:
        return self._root.corrupt(
            INDEX_FILE,
            f"{problem}, but there are directories of images, such as {image_id}: repair the store",
        )

    def _adopt(self, version: _Version) -> None:
        previous, self._version = self._version, version
        if previous.fd >= 0:
            os.close(previous.fd)
        if self._feeds and version.catalog is not previous.catalog:
            changes = changes_between(previous.catalog, version.catalog)
            for feed in self._feeds:
                feed.add(changes)
        # A large catalog is freed block by block: at once, it would block every other thread.
        blocks = list(previous.catalog.blocks.values())
        del previous
        while blocks:
            blocks.pop()

    # Replacing

    def switch(self, name: str, fd: int, catalog: BlockCatalog) -> None:
        """Commit: rename a file over the index, and take its catalog as the last commit.

        :param fd: the open file, which this object owns from here on; closed on failure
        """
        with self._mutex:
            try:
                self._root.rename(name, INDEX_FILE)
            except BaseException:
                os.close(fd)
                raise
            self.is_durable = False
            try:
                version = _Version.of(catalog, fd, self._root.stat_file(INDEX_FILE, fd))
            except OSError:
                # This version counts as outdated, and the next read loads the index.
                version = _Version(catalog, fd, is_array=True)
            self._adopt(version)

    def make_durable(self) -> None:
        """Make sure that the index that was loaded survives a power cut.

        Its writer may have died between its rename and its sync. Until this is done, nothing that
        the previous index needs may be removed.
        """
        if not self.is_durable:
            self._root.sync()
            self.is_durable = True

    # Watching

    def watch(self) -> DirectoryFeed:
        inotify = open_inotify(self._root)
        try:
            self.check_root()
            with self._mutex:
                self._load_if_outdated()
                self._indexed()  # events are differences between catalogs
                feed = DirectoryFeed(inotify, self)
                self._feeds.append(feed)
        except BaseException:
            if inotify is not None:
                inotify.close()
            raise
        return feed

    def forget(self, feed: DirectoryFeed) -> None:
        """Stop adding changes to a feed."""
        with self._mutex, suppress(ValueError):
            self._feeds.remove(feed)

    def close(self) -> None:
        """Release what was loaded."""
        with self._mutex:
            self._feeds.clear()
            self._adopt(_Version(EMPTY, -1))


def open_index(root: Directory, *, is_local: bool) -> int:
    """Open the index of a store.

    :param is_local: whether the kernel knows who holds the lock
    :raises FileNotFoundError: when there is none
    :raises ChangeUnderWayError: when it is half of another program's change
    """
    while True:
        fd = root.open_file(INDEX_FILE)
        try:
            if is_local and is_change_under_way(root):
                raise ChangeUnderWayError
            # None was under way while this file was the index, if it still is.
            opened, found = root.stat_file(INDEX_FILE, fd), root.stat(INDEX_FILE)
            if found is not None and os.path.samestat(opened, found):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
