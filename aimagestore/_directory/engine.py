"""Opens a store in a directory, and connects its parts."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterable

from .._core.draft import Draft
from .._core.names import INDEX_FILE
from .._engine.protocol import ChangeUnderWayError
from .beside import PodmanFiles
from .commit import DirectoryWriter
from .files import Directory, make_directories
from .index_file import IndexFile
from .items import DirectoryItems
from .lock import exclusive_line, open_lock_file, shared_line
from .mounts import is_local
from .recovery import Recovery

logger = logging.getLogger("aimagestore")


class DirectoryEngine:
    """The parts of an open directory; see :class:`aimagestore._engine.protocol.Engine`.

    - ``reader``: loads the index, and tells whether it is still the last commit;
    - ``lock``: this process's line for the lock of the directory;
    - ``read_lock``: this process's line for the readers' lock;
    - ``writer``: the commit protocol;
    - ``items``: opens and stages content;
    - ``podman``: what podman keeps beside the directory;
    - ``recovery``: what the writer calls before it commits.
    """

    def __init__(
        self, root: Directory, *, read_only: bool, container_stores: Iterable[str] = ()
    ) -> None:
        self.name = root.path
        self.podman = PodmanFiles(root.path, container_stores)
        self.layer_store = self.podman.layer_store
        self._root = root
        self.recovery = Recovery(root)
        self.reader = IndexFile(
            root, read_only=read_only, is_local=is_local(root.fd), on_load=self.recovery.note_load
        )
        self.recovery.attach(self.reader)
        self.items = DirectoryItems(root, self.reader)
        self.writer = DirectoryWriter(root, self.reader, self.recovery, self.items, self.podman)
        self.lock = exclusive_line(root)
        try:
            self.read_lock = shared_line(root)
        except BaseException:
            self.lock.leave()
            raise

    @classmethod
    def opened(
        cls, path: str, *, read_only: bool, container_stores: Iterable[str] = ()
    ) -> DirectoryEngine:
        """Open a directory; unless ``read_only``, create it and complete what a crash left."""
        if not read_only and not os.path.lexists(os.path.join(path, INDEX_FILE)):
            make_directories(path)
        root = Directory.at(path)
        try:
            engine = cls(root, read_only=read_only, container_stores=container_stores)
        except BaseException:
            root.close()
            raise
        try:
            if not read_only:
                os.close(open_lock_file(engine._root))
            engine._load(read_only=read_only)
        except BaseException:
            engine.close()
            raise
        return engine

    def _load(self, *, read_only: bool) -> None:
        try:
            self.reader.open()
        except ChangeUnderWayError:
            return  # the first read waits until it is complete, and the first commit recovers
        if not read_only:
            self._recover()

    def _recover(self) -> None:
        """Complete what a crash left, if the lock is free; otherwise the next commit does."""
        self.recovery.is_needed = any(self.recovery.pending())
        if not (self.recovery.is_needed or self.reader.needs_save):
            return
        grant = self.lock.try_acquire()
        if grant is None:
            return
        try:
            self.writer.commit(grant, [])
        except OSError as error:
            logger.warning("could not complete what a crash left: %s", error)
        finally:
            grant.release()

    def open_item(self, draft: Draft, image_id: str, key: str) -> io.RawIOBase:
        return self.items.open(image_id, key)[1]

    def close(self) -> None:
        self.items.close()
        self.podman.close()
        self.reader.close()
        self.lock.leave()
        self.read_lock.leave()
        self._root.close()
