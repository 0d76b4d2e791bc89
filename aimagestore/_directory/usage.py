"""Measures the space that the images of a directory take on disk."""

from __future__ import annotations

import stat
from collections.abc import Iterable

from .._core.usage import StoredContent
from .._engine.protocol import Steps
from .files import Directory

_BLOCK = 512
"""The unit of ``st_blocks``, whatever the file system's blocks are."""

_INODE_BITS = 64


def stored_content(root: Directory, image_ids: Iterable[str]) -> Steps[StoredContent]:
    """Measure every file of a store, as ``du`` does. A step is one image, or one other entry.

    Files that others create or remove meanwhile may count or not. Mounts do not count.
    """
    images: dict[str, dict[int, int]] = {image_id: {} for image_id in image_ids}
    sizes: dict[int, int] = {}
    # How many names of each file have not been found in the store so far.
    elsewhere: dict[int, int] = {}
    names = [".", *root.names()]
    for done, name in enumerate(names, 1):
        for found in [root.stat_self()] if name == "." else root.walk(name):
            piece = (found.st_dev << _INODE_BITS) + found.st_ino
            sizes[piece] = found.st_blocks * _BLOCK
            if not stat.S_ISDIR(found.st_mode):
                elsewhere[piece] = elsewhere.get(piece, found.st_nlink) - 1
            if name in images:
                images[name][piece] = sizes[piece]
        yield done, len(names)
    outside = frozenset(piece for piece, names_left in elsewhere.items() if names_left > 0)
    return StoredContent(images, sum(sizes.values()), outside)
