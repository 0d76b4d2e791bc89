"""What a repair takes out of a store: it stays beside the rest."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress

from .._core.names import INDEX_FILE
from .files import Directory

_LONGEST = 200


class Aside:
    """What a repair takes out of a store, kept beside the rest.

    :ivar index: the name of the index as it was
    """

    def __init__(self, root: Directory) -> None:
        self.index = unused_name(root, INDEX_FILE)
        self._root = root
        self._is_kept = False
        self._moved: list[tuple[str, str]] = []

    def keep(self, image_ids: Iterable[str]) -> None:
        """Keep the index as it is, and the directories of images that will have no record.

        Under their own names these would be removed.
        """
        self._root.keep_beside(INDEX_FILE, self.index)
        self._is_kept = True
        for image_id in image_ids:
            if self._root.is_directory(image_id):
                name = unused_name(self._root, image_id)
                self._root.rename(image_id, name)
                self._moved.append((image_id, name))
        self._root.sync()

    def undo(self) -> None:
        """Undo all of it, because the repair has failed; not if it may have happened."""
        with suppress(OSError):
            now = self._root.stat(INDEX_FILE)
            if self._is_kept and now is None:
                self._root.rename(self.index, INDEX_FILE)  # a file can have but one name here
            elif self._is_kept:
                kept = self._root.stat(self.index)
                if kept is None or now is None or not os.path.samestat(kept, now):
                    return
                self._root.unlink(self.index)
            for image_id, name in self._moved:
                self._root.rename(name, image_id)


def unused_name(root: Directory, name: str) -> str:
    """Return a name for what is kept of something with this name, which may be very long."""
    present = set(root.names())
    start = name.encode()[:_LONGEST].decode(errors="ignore")
    return next(n for i in range(1, len(present) + 2) if (n := f"{start}.old-{i}") not in present)
