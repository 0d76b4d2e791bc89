"""What the files and directories in a store are, as their names and types tell."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import suppress

from .._core.catalog import Catalog
from .._core.image import Image
from .._core.names import big_data_file, is_big_data_file
from ..errors import StoreCorruptError
from .files import Directory
from .pending import NEW_INDEX, is_pending_name, pending_items
from .staged import STAGED_PREFIX

UPSTREAM_TEMPORARY = ".tmp-"
"""The prefix of containers/storage's own temporary files, which it writes under the lock."""

_UPSTREAM_ID = re.compile(r"[0-9a-f]{64}", re.ASCII)


def image_directories(root: Directory) -> Iterator[str]:
    """Iterate over the directories that can only be images', with or without a record.

    As in containers/storage, these are the directories with names of 64 hex digits. Anything else
    may be the user's.
    """
    return (name for name in root.names() if is_image_directory(root, name))


def is_image_directory(root: Directory, name: str) -> bool:
    """Return whether a name is that of a directory that can only be an image's."""
    return _UPSTREAM_ID.fullmatch(name) is not None and root.is_directory(name)


def unlisted_files(root: Directory, image: Image) -> Iterator[str]:
    """Iterate over an image's big-data and temporary files that its record does not list."""
    listed = {big_data_file(key) for key in image.big_data_names}
    # A writer may delete the image meanwhile.
    with suppress(FileNotFoundError), root.open_directory(image.id) as directory:
        for name in directory.names():
            could_be = is_big_data_file(name) or name.startswith(UPSTREAM_TEMPORARY)
            if could_be and name not in listed and directory.is_file(name):
                yield name


def is_dead_temporary(root: Directory, name: str, snapshot: Catalog) -> bool:
    """Return whether a name in the store's directory is a temporary file of a dead writer.

    Staged files may be in a directory.

    Without the lock, a file that is made under the lock may also be a living writer's.
    """
    if name.startswith(STAGED_PREFIX):
        return not _is_in_use(root, name)
    if name == NEW_INDEX or name.startswith(UPSTREAM_TEMPORARY):
        return root.is_file(name)
    return is_pending_name(name) and root.is_file(name) and not pending_items(snapshot, {name})


def _is_in_use(root: Directory, name: str) -> bool:
    """Return whether the writer of a staged file or directory still holds its lock on it.

    If that is not known, it may be in use.
    """
    try:
        fd = root.open_directory(name).fd if root.is_directory(name) else root.open_file(name)
    except (FileNotFoundError, StoreCorruptError):
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
