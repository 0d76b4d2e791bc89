"""The layers and containers that podman records beside the images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Final

import msgspec

from .image import Image
from .plain import PlainStruct


class Layer(msgspec.Struct, metaclass=PlainStruct, frozen=True, gc=False):
    """One layer, as podman recorded it. Immutable.

    :ivar id: the ID
    :ivar parent: the ID of the layer below it; ``""`` for the lowest
    :ivar diff_digest: the digest of its content as a tar archive; ``""`` when it is not known
    :ivar diff_size: the size of that archive in bytes; ``None`` when it is not known
    :ivar compressed_digest: the digest of the compressed archive that was pulled; ``""`` when it
        is not known
    :ivar compressed_size: the size of that archive in bytes; ``None`` when it is not known
    """

    id: str
    parent: str
    diff_digest: str
    diff_size: int | None
    compressed_digest: str
    compressed_size: int | None


class Container(msgspec.Struct, metaclass=PlainStruct, frozen=True, gc=False):
    """One container of podman, buildah or CRI-O. Immutable.

    :ivar id: the ID
    :ivar names: its names
    :ivar image: the ID of the image that it was made from; ``""`` for none
    :ivar layer: the ID of its own layer
    """

    id: str
    names: tuple[str, ...]
    image: str
    layer: str

    @property
    def name(self) -> str:
        """Its first name, or its ID where it has none."""
        return self.names[0] if self.names else self.id


_NO_LAYERS: Final[Mapping[str, Layer]] = MappingProxyType({})
_NO_CONTAINERS: Final[Mapping[str, Container]] = MappingProxyType({})


class PodmanRecords:
    """All layers and containers, by ID. Immutable."""

    def __init__(
        self,
        layers: Mapping[str, Layer] = _NO_LAYERS,
        containers: Mapping[str, Container] = _NO_CONTAINERS,
    ) -> None:
        self.layers = layers
        self.containers = containers
        # Layers with all layers below them, which many images share: their sizes so far.
        self._sizes: dict[str, int | None] = {"": 0}

    def chain(self, layer_id: str) -> Iterator[str]:
        """Iterate over the IDs of a layer and those below it, up to and including a missing one."""
        seen = set()
        while layer_id and layer_id not in seen:
            yield layer_id
            seen.add(layer_id)
            layer = self.layers.get(layer_id)
            layer_id = "" if layer is None else layer.parent

    def layer_ids(self, image: Image) -> set[str]:
        """Return the IDs of all layers of an image, also of missing ones.

        These are its top layer, the versions of that for other ID mappings, and all layers below.
        """
        tops = (image.top_layer, *image.mapped_top_layers)
        return {layer_id for top in tops for layer_id in self.chain(top)}

    def missing(self, image: Image) -> set[str]:
        """Return the IDs of an image's layers that are not recorded."""
        return self.layer_ids(image) - self.layers.keys()

    def layers_size(self, image: Image) -> int | None:
        """Return the size of an image's layers in bytes, as podman counts it.

        ``None`` when a layer is missing, or has no recorded size.
        """
        if not image.mapped_top_layers:
            return self._size_from(image.top_layer)
        total = 0
        for layer_id in self.layer_ids(image):
            layer = self.layers.get(layer_id)
            if layer is None or layer.diff_size is None:
                return None
            total += layer.diff_size
        return total

    def _size_from(self, top: str) -> int | None:
        """Return the size of a layer with all layers below it; ``None`` if they form a circle."""
        sizes = self._sizes
        chain: dict[str, Layer] = {}  # from the top down
        layer_id = top
        while layer_id not in sizes:
            layer = self.layers.get(layer_id)
            if layer is None or layer_id in chain:
                sizes[layer_id] = None
            else:
                chain[layer_id] = layer
                layer_id = layer.parent
        total = sizes[layer_id]
        for layer in reversed(chain.values()):
            size = layer.diff_size
            total = None if total is None or size is None else total + size
            sizes[layer.id] = total
        return total

    @cached_property
    def users(self) -> Mapping[str, tuple[Container, ...]]:
        """The containers by the ID of their image; by ``""`` those without an image."""
        users: defaultdict[str, list[Container]] = defaultdict(list)
        for container in self.containers.values():
            users[container.image].append(container)
        return {image_id: tuple(found) for image_id, found in users.items()}
