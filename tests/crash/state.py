"""What a store holds, as one value to compare, and other files in its directory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aimagestore import Image, ImageStore, Transaction
from aimagestore._core.names import big_data_file

ONE, TWO, THREE = "1" * 64, "2" * 64, "3" * 64
NEW = "e" * 64
LAST = "f" * 64
"""IDs as containers/storage makes them: only their directories are collected as garbage."""

USER_DATA = "userdata"
"""A directory that containers/storage keeps beside an image's big data."""


@dataclass(frozen=True)
class Held:
    """One image, and the contents of its items."""

    names: tuple[str, ...]
    history: tuple[str, ...]
    metadata: str
    layer: str
    flags: Mapping[str, Any]
    items: Mapping[str, bytes]
    digests: tuple[str, ...]


State = dict[str, Held]


async def read_state(store: ImageStore) -> State:
    """Return all images of the store with their items, each checked against its record."""
    state: State = {}
    for image in await store.images():
        items = {key: await store.big_data(image.id, key) for key in image.big_data_names}
        for key, data in items.items():
            check_item(image, key, data)
        state[image.id] = held(image, items)
    return state


def held(image: Image, items: Mapping[str, bytes]) -> Held:
    """Return an image and the contents of its items as one value."""
    return Held(
        image.names,
        image.names_history,
        image.metadata,
        image.top_layer,
        dict(image.flags),
        dict(items),
        image.digests,
    )


def check_item(image: Image, key: str, data: bytes) -> None:
    """Check that an item has the size and digest in its record, if they are there."""
    size = image.big_data_sizes.get(key, len(data))
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    assert size == len(data), (image.id, key)
    assert image.big_data_digests.get(key, digest) == digest, (image.id, key)


async def read_again(path: Path, *, read_only: bool = True) -> State:
    """Return the state that a newly opened store reads."""
    async with ImageStore(path, read_only=read_only) as store:
        return await read_state(store)


def files_of(path: Path) -> set[str]:
    """Return the relative paths of all files and directories of a store."""
    start = len(str(path)) + 1
    return {
        os.path.join(directory, name)[start:]
        for directory, below, files in os.walk(path)
        for name in (*below, *files)
    }


Keys = dict[str, Iterable[str]]
"""The keys of the items of each image, by ID."""


async def read_keys(store: ImageStore) -> Keys:
    """Return the keys of a store, without reading the items."""
    return {image.id: image.big_data_names for image in await store.images()}


def keys_of(state: State) -> Keys:
    """Return the keys of a state."""
    return {image_id: image.items for image_id, image in state.items()}


def unknown_files(path: Path, keys: Keys) -> set[str]:
    """Return the files of a store's directory that belong to none of its images."""
    known = {"images.json", "images.lock"}
    for image_id, items in keys.items():
        known.add(image_id)
        known |= {f"{image_id}/{big_data_file(key)}" for key in items}
    files = files_of(path)
    # Other data in an image's directory, which other programs keep there, belongs to the image.
    return files - known - _of_others(files, keys)


def of_others(path: Path, keys: Keys) -> set[str]:
    """Return the files that other programs keep in the directories of images."""
    return _of_others(files_of(path), keys)


def _of_others(files: set[str], keys: Keys) -> set[str]:
    return {
        name
        for name in files
        if name.partition("/")[0] in keys and name.split("/")[1:2] == [USER_DATA]
    }


async def apply_all(transaction: Transaction, names: list[str]) -> None:
    """Make changes of several kinds to a store with the images 1 to 3."""
    await transaction.create(NEW, names=names, big_data={"manifest": b"m", "key": b"k"})
    await transaction.set_big_data(ONE, "manifest", b"newer content")
    await transaction.set_big_data(ONE, "another", b"more")
    await transaction.set_metadata(TWO, "text")
    await transaction.delete(THREE)
