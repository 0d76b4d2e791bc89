"""Finds what podman cannot read in the images of a store beside which it keeps layers."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from functools import cached_property, partial
from types import MappingProxyType
from typing import Final

from .._core.content import Content
from .._core.digest import MANIFEST
from .._core.image import Image
from .._core.layers import Layer, PodmanRecords
from .._core.mutations import has_same_items
from .._core.podman import Part, diff_ids, unreadable_items, unreadable_parts
from .._engine.items import MANIFEST_MAX
from ..errors import StoreCorruptError
from .beside import PodmanFiles
from .files import Directory, is_damage
from .pending import open_current

_NO_LAYERS: Final[Mapping[str, Layer]] = MappingProxyType({})
_NO_FILES: Final[Mapping[tuple[str, str], Content]] = MappingProxyType({})


class Podman:
    """What podman can read of the images of one store. Its layers are read once.

    :param files: what podman keeps beside the store
    :param others: layers in additional stores, by ID, besides those that ``files`` reads; ``None``
        if they are not known
    """

    def __init__(
        self, root: Directory, files: PodmanFiles, others: Mapping[str, Layer] | None = _NO_LAYERS
    ) -> None:
        self._root = root
        self._files = files
        self._others = others

    @classmethod
    def beside(
        cls, root: Directory, files: PodmanFiles, others: Mapping[str, Layer] | None = _NO_LAYERS
    ) -> Podman | None:
        """Return it for a store beside which podman keeps layers; ``None`` for others."""
        return None if files.layer_store is None else cls(root, files, others)

    def unreadable_parts(
        self, image: Image, files: Mapping[tuple[str, str], Content] = _NO_FILES
    ) -> list[Part]:
        """Return what podman cannot read of an image.

        :param files: items that are about to get new content, by image ID and key
        """
        return list(unreadable_parts(image, partial(self.read, image, files=files), self.knows))

    def new_problems(
        self, old: Image | None, new: Image, files: Mapping[tuple[str, str], Content]
    ) -> list[str]:
        """Return what podman cannot read of an image that is about to change, but could before.

        :param files: items that are about to get new content, by image ID and key
        """
        if old is not None and _looks_alike(old, new):
            return []
        before = set() if old is None else set(self.unreadable_parts(old))
        return [part.problem for part in self.unreadable_parts(new, files) if part not in before]

    def lacks_layers(self, image: Image, files: Mapping[tuple[str, str], Content]) -> bool:
        """Return whether an image has layers by its config, and none in the store.

        :param files: items that are about to get new content, by image ID and key
        """
        return not image.top_layer and bool(diff_ids(partial(self.read, image, files=files)))

    def can_use(self, image: Image, manifest: bytes) -> bool:
        """Return whether podman could read the items of an image if this were its manifest."""

        def read(key: str) -> bytes | None:
            return manifest if key == MANIFEST else self.read(image, key)

        return not any(unreadable_items(read))

    def read(
        self, image: Image, key: str, *, files: Mapping[tuple[str, str], Content] = _NO_FILES
    ) -> bytes | None:
        """Return the content of an item, listed or not; ``None`` if it has no file.

        Of content that is too large for a manifest or a config it returns nothing, ``b""``. A file
        that a damaged disk does not give back counts as missing.
        """
        content = files.get((image.id, key))
        if content is not None:
            return content.read() if content.size <= MANIFEST_MAX else b""
        try:
            with io.FileIO(open_current(self._root, image, key), "rb") as file:
                is_small = os.fstat(file.fileno()).st_size <= MANIFEST_MAX
                return file.readall() if is_small else b""
        except (FileNotFoundError, StoreCorruptError):
            return None
        except OSError as error:
            if not is_damage(error):
                raise
            return None

    def knows(self, layer: str) -> bool:
        """Return whether there is a layer with this ID; ``True`` if it is not known."""
        # A list of layers that cannot be read is a finding of its own.
        return self._records is None or layer in self._records.layers

    def missing_layers(self, image: Image) -> set[str]:
        """Return the IDs of an image's layers below the top one that podman does not know."""
        if self._records is None:
            return set()
        return self._records.missing(image) - {image.top_layer}

    def top_layer(self, image: Image) -> str:
        """Return the ID of an image's top layer as its config tells; ``""`` if there is none."""
        layers = () if self._records is None else self._records.layers.values()
        found = [""]
        for digest in diff_ids(partial(self.read, image)):
            found = [
                layer.id
                for layer in layers
                if layer.diff_digest == digest and layer.parent in found
            ]
        return min(found, default="")

    @cached_property
    def _records(self) -> PodmanRecords | None:
        """The layers that podman knows; ``None`` if a list of them cannot be read."""
        try:
            layers = self._files.read_layers()
        except StoreCorruptError:
            return None
        if self._others is None:
            return None
        try:
            others = [reader.read_layers() for reader in self._files.others]
        except (StoreCorruptError, OSError):
            return None
        for other in (*others, self._others):
            layers = {**other, **layers} if other else layers
        return PodmanRecords(layers)


def _looks_alike(one: Image, other: Image) -> bool:
    """Return whether two versions of an image are the same to podman."""
    return (
        one.names == other.names
        and one.metadata == other.metadata
        and one.top_layer == other.top_layer
        and has_same_items(one, other)
    )
