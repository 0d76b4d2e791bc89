"""Keeps what a repair takes out of a store."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress

from .._core.names import INDEX_FILE
from .files import Directory

_STEM_BYTES = 200
"""Bytes of the old name that the new name begins with: a file name has 255 at most."""


class Aside:
    """Keeps the previous index, and the directories of images that a repair takes out.

    :ivar index: the name under which the previous index is kept
    """

    def __init__(self, root: Directory) -> None:
        self.index = unused_name(root, INDEX_FILE)
        self._root = root
        self._present: os.stat_result | None = None
        self._is_kept = False
        self._moved: list[tuple[str, str]] = []

    def keep(self, image_ids: Iterable[str]) -> None:
        """Keep the present index, and rename the directories of images that will have no record.

        Garbage collection would remove these under their own names.
        """
        self._present = self._root.stat(INDEX_FILE)
        if self._present is not None:
            self._root.keep_beside(INDEX_FILE, self.index)
        self._is_kept = True
        for image_id in image_ids:
            if self._root.is_directory(image_id):
                name = unused_name(self._root, image_id)
                self._root.rename(image_id, name)
                self._moved.append((image_id, name))
        self._root.sync()

    def undo(self) -> None:
        """Undo :meth:`keep` after a failed repair, unless the index has been replaced by then."""
        if not self._is_kept:
            return
        with suppress(OSError):
            if not _is_same(self._present, self._root.stat(INDEX_FILE)):
                return  # the repair may have happened
            self._root.unlink(self.index)
            for image_id, name in self._moved:
                self._root.rename(name, image_id)


def _is_same(one: os.stat_result | None, other: os.stat_result | None) -> bool:
    """Return whether two statuses are of one file, or both of none."""
    if one is None or other is None:
        return one is other
    return os.path.samestat(one, other)


def unused_name(root: Directory, name: str) -> str:
    """Return an unused name for what is kept of a file, such as ``images.json.old-1``."""
    present = set(root.names())
    stem = name.encode()[:_STEM_BYTES].decode(errors="ignore")
    candidates = (f"{stem}.old-{number}" for number in range(1, len(present) + 2))
    return next(candidate for candidate in candidates if candidate not in present)
