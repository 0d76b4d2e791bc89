"""Where an item's file is before a commit, and where it belongs after it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress

from .._core.catalog import Catalog
from .._core.content import Content, InlineContent
from .._core.names import INDEX_FILE, big_data_file, is_key
from ..errors import StoreCorruptError
from .files import Directory
from .staged import StagedFile

NEW_PREFIX = ".new-"
"""Files that wait to be renamed into place. They are made and renamed under the lock only."""

NEW_INDEX = NEW_PREFIX + INDEX_FILE
"""The next index, until the commit that writes it is done."""

_WAITING = re.compile(rf"{re.escape(NEW_PREFIX)}[0-9a-f]{{32}}-[0-9a-f]{{32}}")


class Placement:
    """The files of one commit: where they are before it, and where they belong after it."""

    def __init__(self, root: Directory, base: Catalog, stage: Callable[[], StagedFile]) -> None:
        self._root = root
        self._base = base
        self._stage = stage
        self._staged: list[StagedFile] = []
        self._waiting: list[tuple[str, str, str]] = []
        self._placed: list[tuple[str, str]] = []
        self._made: list[str] = []

    def place(self, files: Mapping[tuple[str, str], Content]) -> None:
        """Put the files where readers of the next index find them, and those of this one don't."""
        images: dict[str, list[tuple[str, StagedFile]]] = {}
        for (image_id, key), content in files.items():
            staged = self._file_of(content)
            staged.finish()
            record = self._base.record_of(image_id)
            if record is not None and key in record.image.big_data_names:
                name = waiting_name(image_id, key, staged.digest)
                self._placed.append(("", name))
                staged.publish(self._root, name)
                self._waiting.append((name, image_id, key))
            else:
                images.setdefault(image_id, []).append((key, staged))
        for image_id, items in images.items():
            if self._root.make_directory(image_id):
                self._made.append(image_id)
            with self._root.open_directory(image_id) as directory:
                for key, staged in items:
                    self._placed.append((image_id, big_data_file(key)))
                    staged.publish(directory, big_data_file(key))
                directory.sync()
        if self._made or self._waiting:
            self._root.sync()

    def _file_of(self, content: Content) -> StagedFile:
        if isinstance(content, InlineContent):
            staged = self._stage()
            self._staged.append(staged)
            staged.sink.write(content.data)
        else:
            assert isinstance(content, StagedFile)
            staged = content
            self._staged.append(staged)
        return staged

    def release(self) -> None:
        """Close the files: they are in place, or lost."""
        for staged in self._staged:
            staged.discard()

    def undo(self) -> bool:
        """Remove what was put in place, and say whether all of it could be removed."""
        is_undone = True
        for image_id, name in self._placed:
            try:
                if image_id:
                    with self._root.open_directory(image_id) as directory:
                        directory.unlink(name)
                else:
                    self._root.unlink(name)
            except (OSError, StoreCorruptError):
                is_undone = False
        for image_id in self._made:
            with suppress(OSError):
                self._root.remove_directory(image_id)
        return is_undone

    def finish(self) -> None:
        """Rename what replaces an item over the item's old file."""
        for name, image_id, key in self._waiting:
            put_in_place(self._root, name, image_id, key)


def put_in_place(root: Directory, name: str, image_id: str, key: str) -> None:
    """Rename an item's new file over its old one, durably. The index says so already."""
    if root.make_directory(image_id):
        root.sync()
    with root.open_directory(image_id) as directory:
        root.rename(name, big_data_file(key), directory)
        directory.sync()


def _place_of(image_id: str) -> str:
    return hashlib.sha256(image_id.encode()).hexdigest()[:32]


def waiting_name(image_id: str, key: str, digest: str) -> str:
    """Where an item's new content waits, until the commit that replaces it is done."""
    item = hashlib.sha256(f"{key}\0{digest}".encode()).hexdigest()[:32]
    return f"{NEW_PREFIX}{_place_of(image_id)}-{item}"


def waiting_items(snapshot: Catalog, names: Collection[str]) -> list[tuple[str, str, str]]:
    """Of the files with these names those that an item waits for, with its image and key."""
    places = {name.removeprefix(NEW_PREFIX).partition("-")[0] for name in names}
    return [
        (name, record.id, key)
        for record in snapshot.records()
        if names and _place_of(record.id) in places
        for key, digest in record.image.big_data_digests.items()
        if (name := waiting_name(record.id, key, digest)) in names
        and key in record.image.big_data_names
        and is_key(key)
    ]


def is_waiting_name(name: str) -> bool:
    """Whether an item's new content may wait under this name."""
    return _WAITING.fullmatch(name) is not None
