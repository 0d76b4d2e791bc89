"""Completes what a crash left between a commit and its last renames."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from .._core.record import Record
from .._format.block_catalog import BlockCatalog
from ..errors import StoreCorruptError
from .files import Directory
from .index_file import IndexFile
from .pending import (
    NEW_INDEX,
    is_pending_name,
    mark_name,
    marked_images,
    pending_items,
    pending_name,
    put_in_place,
    remove_unlisted,
)

logger = logging.getLogger("aimagestore")

_RECORDS_MAX = 100
"""The records of another program's commit whose pending files are looked for by name."""


class Recovery:
    """Completes the last commit of a directory.

    :ivar is_needed: whether a writer may have died or failed between its commit and its last
        renames: true at first, and after another program's commit that has pending files
    """

    def __init__(self, root: Directory) -> None:
        self._root = root
        self.is_needed = True
        self._index: IndexFile

    def attach(self, index_file: IndexFile) -> None:
        """Set the index, which has to be durable before anything is removed."""
        self._index = index_file

    def note_load(self, previous: BlockCatalog, loaded: BlockCatalog) -> None:
        """Note that another program's commit was loaded."""
        self.is_needed = self.is_needed or self._is_pending(_changed(previous, loaded))

    def _is_pending(self, records: Iterator[Record]) -> bool:
        """Return whether a file is pending for one of these records.

        If there are many, it may be. The files of a commit are there before its index is.
        """
        for number, record in enumerate(records):
            image = record.image
            items = (pending_name(image, key) for key in image.big_data_names)
            try:
                if number == _RECORDS_MAX or any(map(self._root.stat, (mark_name(record), *items))):
                    return True
            except OSError:
                return True
        return False

    def pending(self) -> Iterator[str]:
        """Iterate over the names of files that a commit has not renamed yet."""
        names = self._root.names()
        return (name for name in names if name == NEW_INDEX or is_pending_name(name))

    def recover(self, catalog: BlockCatalog, *, always: bool = False) -> None:
        """Complete what is pending in the last commit, and remove the rest. The lock is held.

        Errors are logged: the next commit tries again.

        :param always: look for pending files even if nothing suggests that there are any
        """
        if not (self.is_needed or always):
            return
        names = set(self.pending())
        try:
            if names:
                self._index.make_durable()
            for name, image_id, key in pending_items(catalog, names):
                names.remove(name)
                put_in_place(self._root, name, image_id, key)
                logger.info("completed a commit of a dead writer: %r of %s", key, image_id)
            for image in marked_images(catalog, names):
                remove_unlisted(self._root, image)
                logger.info("removed what image %s had before a dead writer's commit", image.id)
            for name in names:
                self._root.unlink(name)
                logger.info("removed a file of a dead writer: %s", self._root.path_of(name))
        except (OSError, StoreCorruptError) as error:
            logger.warning("could not complete what a crash left: %s", error)
        else:
            self.is_needed = False


def _changed(before: BlockCatalog, after: BlockCatalog) -> Iterator[Record]:
    """Iterate over the records that are new or changed."""
    for record in after.records_not_in(before):
        old = before.record_of(record.id)
        if old is None or bytes(old.raw) != bytes(record.raw):
            yield record
