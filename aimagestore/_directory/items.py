"""Opens and stages the content of big-data items in a directory."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TYPE_CHECKING

from .._core.image import Image
from .._engine.items import require_item
from .._engine.protocol import Steps
from .._engine.workers import WorkerPool
from ..errors import BigDataMissingError
from .files import Directory
from .index_file import IndexFile
from .pending import open_current
from .staged import ClosedFiles, StagedFile
from .stored import StoredFiles

if TYPE_CHECKING:
    from .._core.usage import StoredContent

_HELPERS = 4

# Less is hashed faster than a worker thread is woken.
_INLINE_LIMIT = 16 * 1024


class DirectoryItems:
    """Opens and stages content; see :class:`aimagestore._engine.protocol.Items`.

    :ivar stored: finds content that the store has
    """

    inline_limit = _INLINE_LIMIT

    def __init__(self, root: Directory, index_file: IndexFile) -> None:
        self._root = root
        self._index = index_file
        self._helpers = WorkerPool(_HELPERS, "aimagestore helper")
        self.stored = StoredFiles(root, index_file)
        self._closed = ClosedFiles(root)

    @property
    def helpers(self) -> Executor:
        """Threads for hashing and syncing beside a stream."""
        return self._helpers

    def stage(self) -> StagedFile:
        self._index.check_root()
        return StagedFile(self._root, self._helpers, find=self.stored.find, closed=self._closed)

    def stage_stored(
        self, digest: str, size: int | None, check: Callable[[], object]
    ) -> StagedFile | None:
        self._index.check_root()
        stored = self.stored.find(digest, size, check)
        if stored is None:
            return None
        find = self.stored.find
        content = StagedFile(
            self._root, self._helpers, find=find, stored=stored, closed=self._closed
        )
        content.finish()  # there may be many
        return content

    def open(self, ref: str, key: str) -> tuple[Image, io.FileIO]:
        # The content belongs to a version of the index, not to the values in a record, which may
        # return. A writer places nothing where readers of the present index look, and completes
        # the renames of one commit before it makes the next. So a file is the content of a version
        # if that version was the index before the file was opened, and still is afterwards.
        while True:
            image, version = self._index.read_version(lambda view: view.get(ref))
            require_item(image, key)
            try:
                file = io.FileIO(open_current(self._root, image, key), "rb")
            except FileNotFoundError as error:
                if not self._index.is_still(version):
                    continue
                raise BigDataMissingError(
                    f"the content of item {key!r} of image {image.id} is missing: "
                    f"{error.filename}; check the store",
                    id=image.id,
                    key=key,
                    path=error.filename,
                ) from error
            try:
                self._index.check_replaced(image.id, key, file.fileno())
                if self._index.is_still(version):
                    return image, file
            except BaseException:
                file.close()
                raise
            file.close()

    def is_same(self, one: io.RawIOBase, other: io.RawIOBase) -> bool:
        # Content is never written in place, and no other file gets the inode of an open one.
        return os.path.sameopenfile(one.fileno(), other.fileno())

    def usage(self) -> Steps[StoredContent]:
        from .usage import stored_content  # noqa: PLC0415 (rarely used)

        catalog = self._index.load()
        return (yield from stored_content(self._root, [record.id for record in catalog.records()]))

    def close(self) -> None:
        """End the helpers. All content was discarded."""
        self._helpers.shutdown()
        self._closed.close()
