"""What lies in a store's directory, told by names and kinds."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress

from .._core.catalog import Catalog
from .._core.image import Image
from .._core.names import big_data_file, is_big_data_file, is_id
from ..errors import StoreCorruptError
from .files import Directory
from .placement import NEW_INDEX, is_waiting_name, waiting_items
from .staged import STAGED_PREFIX

UPSTREAM_TEMPORARY = ".tmp-"
"""How containers/storage calls its own temporaries, which it writes under the lock."""


def image_directories(root: Directory) -> Iterator[str]:
    """The directories that are images', whether a record belongs to them or not."""
    return (name for name in root.names() if is_id(name) and is_image_directory(root, name))


def is_image_directory(root: Directory, name: str) -> bool:
    """Whether there is nothing in it but what an image's directory holds."""
    if not root.is_directory(name):
        return False
    try:
        directory = root.open_directory(name)
    except FileNotFoundError:  # a writer has deleted it meanwhile
        return False
    with directory:
        return all(
            (is_big_data_file(n) or n.startswith(UPSTREAM_TEMPORARY)) and directory.is_file(n)
            for n in directory.names()
        )


def unlisted_files(root: Directory, image: Image) -> Iterator[str]:
    """Files in an image's directory that could be items or temporaries, and are none of its."""
    listed = {big_data_file(key) for key in image.big_data_names}
    # A writer may delete the image meanwhile.
    with suppress(FileNotFoundError), root.open_directory(image.id) as directory:
        for name in directory.names():
            could_be = is_big_data_file(name) or name.startswith(UPSTREAM_TEMPORARY)
            if could_be and name not in listed and directory.is_file(name):
                yield name


def is_dead_temporary(root: Directory, name: str, snapshot: Catalog) -> bool:
    """Whether a file in the store's root is a temporary of a writer that is gone.

    Those that are made under the lock belong to a living one until the lock is held.
    """
    if name.startswith(STAGED_PREFIX):
        return root.is_file(name) and not _is_in_use(root, name)
    if name == NEW_INDEX or name.startswith(UPSTREAM_TEMPORARY):
        return root.is_file(name)
    return is_waiting_name(name) and root.is_file(name) and not waiting_items(snapshot, {name})


def _is_in_use(root: Directory, name: str) -> bool:
    """Whether its writer still holds its lock on a staged file."""
    try:
        fd = root.open_file(name)
    except (FileNotFoundError, StoreCorruptError):
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
