"""Files that are pending: committed or not, as the index says, and not yet where they belong.

An item that gets other content, and the index, are two files. The new content waits beside the
index under a name that is derived from what the *next* record says of it, until the index is
renamed. A reader looks for that name first; the next commit renames what is pending.

An image may take the place of a deleted one with the same ID, whose directory holds more than the
new record lists. A mark beside the index, whose name only the next record leads to, says that the
rest is to be removed when the index is renamed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator
from contextlib import suppress

from .._core.image import Image
from .._core.names import INDEX_FILE, big_data_file, is_key
from .._core.record import Record
from .._core.view import View
from .files import Directory

NEW_PREFIX = ".new-"
"""Files that will be renamed. They are made and renamed under the lock only."""

NEW_INDEX = NEW_PREFIX + INDEX_FILE
"""The next index, until the commit that writes it is done."""

_PENDING = re.compile(rf"{re.escape(NEW_PREFIX)}[0-9a-f]{{32}}-[0-9a-f]{{32}}")


def _image_part(image_id: str) -> str:
    return hashlib.sha256(image_id.encode()).hexdigest()[:32]


def pending_name(image: Image, key: str) -> str:
    """Return the name under which the content that a record describes is pending.

    It depends on the recorded digest, whatever that is the digest of, not on the content.
    """
    described = f"{key}\0{image.big_data_digests.get(key, '')}"
    item = hashlib.sha256(described.encode()).hexdigest()[:32]
    return f"{NEW_PREFIX}{_image_part(image.id)}-{item}"


def pending_items(view: View, names: Collection[str]) -> list[tuple[str, str, str]]:
    """Return those of the names that content of an item is pending under, with image and key."""
    parts = {name.removeprefix(NEW_PREFIX).partition("-")[0] for name in names}
    return [
        (name, record.id, key)
        for record in view.records()
        if names and _image_part(record.id) in parts
        for key in record.image.big_data_names
        if is_key(key) and (name := pending_name(record.image, key)) in names
    ]


def mark_name(record: Record) -> str:
    """Return the name of the mark that an earlier image's files may be in an image's directory."""
    return f"{NEW_PREFIX}{_image_part(record.id)}-{hashlib.sha256(record.raw).hexdigest()[:32]}"


def marked_images(view: View, names: Collection[str]) -> Iterator[Image]:
    """Iterate over the images that one of the names is the mark of."""
    if not names:
        return
    parts = {name.removeprefix(NEW_PREFIX).partition("-")[0] for name in names}
    for record in view.records():
        if _image_part(record.id) in parts and mark_name(record) in names:
            yield record.image


def is_pending_name(name: str) -> bool:
    """Return whether content of an item may be pending, or an image marked, under this name."""
    return _PENDING.fullmatch(name) is not None


def open_current(root: Directory, image: Image, key: str) -> int:
    """Open the content that a record describes, pending or not, and return the descriptor.

    Only right while the record is that of the last commit.

    :raises FileNotFoundError: when there is none
    """
    with suppress(FileNotFoundError):
        return root.open_file(pending_name(image, key))
    with root.open_directory(image.id) as directory:
        return directory.open_file(big_data_file(key))


def put_in_place(root: Directory, name: str, image_id: str, key: str) -> None:
    """Rename pending content over the item's old file, durably. The index says so already."""
    if root.make_directory(image_id):
        root.sync()
    with root.open_directory(image_id) as directory:
        root.rename(name, big_data_file(key), directory)
        # Two names of one file, which have the same content, both stay after a rename.
        root.unlink(name)
        directory.sync()


def remove_unlisted(root: Directory, image: Image) -> None:
    """Remove everything from an image's directory but the items that its record lists."""
    listed = {big_data_file(key) for key in image.big_data_names if is_key(key)}
    with suppress(FileNotFoundError), root.open_directory(image.id) as directory:
        for name in directory.names():
            if name in listed:
                continue
            if directory.is_directory(name):
                directory.remove_tree(name)
            else:
                directory.unlink(name)
