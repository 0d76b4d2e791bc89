"""What a store holds, as one value to compare, and what else lies in its directory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aimagestore import Image, ImageStore, Transaction
from aimagestore._core.names import big_data_file

NIGHTLY = bool(os.environ.get("AIMAGESTORE_NIGHTLY"))
"""Whether to take hours instead of seconds."""


@dataclass(frozen=True)
class Held:
    """One image, and its items' content."""

    names: tuple[str, ...]
    history: tuple[str, ...]
    metadata: str
    layer: str
    flags: Mapping[str, Any]
    items: Mapping[str, bytes]
    digests: tuple[str, ...]


State = dict[str, Held]


async def read_state(store: ImageStore) -> State:
    """Everything that the store says it holds; each item is what its record says."""
    state: State = {}
    for image in await store.images():
        items = {key: await store.big_data(image.id, key) for key in image.big_data_names}
        for key, data in items.items():
            check_item(image, key, data)
        state[image.id] = held(image, items)
    return state


def held(image: Image, items: Mapping[str, bytes]) -> Held:
    """An image and its items' content as one value."""
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
    """Check that an item is what its record says, as far as it says something."""
    size = image.big_data_sizes.get(key, len(data))
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    assert size == len(data), (image.id, key)
    assert image.big_data_digests.get(key, digest) == digest, (image.id, key)


async def read_again(path: Path, *, read_only: bool = True) -> State:
    """What another store finds there."""
    async with ImageStore(path, read_only=read_only) as store:
        return await read_state(store)


def files_of(path: Path) -> set[str]:
    """Every file and directory of a store."""
    found = set()
    for name in os.listdir(path):
        found.add(name)
        if (path / name).is_dir():
            found |= {f"{name}/{file}" for file in os.listdir(path / name)}
    return found


def strays(path: Path, state: State) -> set[str]:
    """What lies in a store's directory that has no place there."""
    mine = {"images.json", "images.lock"}
    for image_id, image in state.items():
        mine.add(image_id)
        mine |= {f"{image_id}/{big_data_file(key)}" for key in image.items}
    return files_of(path) - mine


def apply_all(transaction: Transaction, names: list[str]) -> None:
    """Some changes of several kinds to a store that has images ``one`` and ``two``."""
    transaction.create("new", names=names, big_data={"manifest": b"m", "key": b"k"})
    transaction.set_big_data("one", "manifest", b"newer content")
    transaction.set_big_data("one", "another", b"more")
    transaction.set_metadata("two", "text")
    transaction.delete("three")
