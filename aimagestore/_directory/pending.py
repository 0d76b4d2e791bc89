"""Pending files: they belong to a commit, but do not have their final names yet.

When an item gets other content, two files have to change at once: the item's and the index. So the
new content waits beside the index, under a name that is derived from the *next* record, until the
index is renamed. From then on readers find it under that name, which they try first. Then it is
renamed over the old file, by the next writer if its own was killed.

An image may take the place of a deleted one with the same ID, whose directory holds more than the
new record lists. A mark beside the index says that the rest is to be removed once the index is
renamed. Its name is derived from the next record as well, so a mark of a commit that did not happen
means nothing.
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
"""The prefix of pending files, of marks and of the next index. All are made under the lock."""

NEW_INDEX = NEW_PREFIX + INDEX_FILE
"""The next index, until the commit that writes it is done."""

_PENDING = re.compile(rf"{re.escape(NEW_PREFIX)}[0-9a-f]{{32}}-[0-9a-f]{{32}}")


def _image_part(image_id: str) -> str:
    return hashlib.sha256(image_id.encode()).hexdigest()[:32]


def _records_of(view: View, names: Collection[str]) -> Iterator[Record]:
    """Iterate over the records whose images the names belong to."""
    parts = {name.removeprefix(NEW_PREFIX).partition("-")[0] for name in names}
    if parts:
        yield from (record for record in view.records() if _image_part(record.id) in parts)


def pending_name(image: Image, key: str) -> str:
    """Return the name under which the content that a record describes is pending.

    It is derived from the recorded digest, which need not be that of the content. Without one, the
    rest of the record tells the next version of the item from the present one. What podman may
    change before the content is renamed, such as names, has no part in it.
    """
    digest = image.big_data_digests.get(key)
    if not digest:
        created = "" if image.created is None else image.created.isoformat()
        digest = f"{created} {image.big_data_sizes.get(key)} {image.top_layer} {image.metadata}"
    described = f"{key}\0{digest}"
    item = hashlib.sha256(described.encode()).hexdigest()[:32]
    return f"{NEW_PREFIX}{_image_part(image.id)}-{item}"


def pending_items(view: View, names: Collection[str]) -> list[tuple[str, str, str]]:
    """Return name, image ID and key for each of the names under which an item is pending."""
    return [
        (name, record.id, key)
        for record in _records_of(view, names)
        for key in dict.fromkeys(record.image.big_data_names)
        if is_key(key) and (name := pending_name(record.image, key)) in names
    ]


def mark_name(record: Record) -> str:
    """Return the name of the mark that an image's directory may hold files of an earlier image."""
    return f"{NEW_PREFIX}{_image_part(record.id)}-{hashlib.sha256(record.raw).hexdigest()[:32]}"


def marked_images(view: View, names: Collection[str]) -> Iterator[Image]:
    """Iterate over the images whose marks are among the names."""
    for record in _records_of(view, names):
        if mark_name(record) in names:
            yield record.image


def is_pending_name(name: str) -> bool:
    """Return whether this may be the name of a pending item or of a mark."""
    return _PENDING.fullmatch(name) is not None


def open_current(root: Directory, image: Image, key: str) -> int:
    """Open the content that a record describes, pending or not, and return the descriptor.

    This is the record's content only if the record is that of the last commit.

    :raises FileNotFoundError: when there is none
    :raises StoreCorruptError: when something else is in its place
    """
    with suppress(FileNotFoundError):
        return root.open_file(pending_name(image, key))
    with root.open_directory(image.id) as directory:
        return directory.open_file(big_data_file(key))


def put_in_place(root: Directory, name: str, image_id: str, key: str) -> None:
    """Rename pending content over the item's old file, durably. Its commit has happened."""
    if root.make_directory(image_id):
        root.sync()
    with root.open_directory(image_id) as directory:
        root.rename(name, big_data_file(key), directory)
        # If both are names of one file, which items of equal content share, a rename keeps both.
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
