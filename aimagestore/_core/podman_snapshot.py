"""The public snapshot of a store with its layers and containers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType

from ..errors import StoreCorruptError
from .layers import Container, Layer, PodmanRecords
from .snapshot import Snapshot


class PodmanSnapshot:
    """The images, layers and containers of a store at one moment. Immutable; holds no lock.

    :func:`aimagestore.podman.snapshot` returns it; it is not made by hand.

    :ivar images: the images
    """

    def __init__(self, images: Snapshot, records: PodmanRecords) -> None:
        self.images = images
        self._records = records

    @property
    def layers(self) -> Mapping[str, Layer]:
        """All layers by ID, also those of containers, and those that nothing uses."""
        return MappingProxyType(self._records.layers)

    @property
    def containers(self) -> Mapping[str, Container]:
        """All containers by ID."""
        return MappingProxyType(self._records.containers)

    def layers_of(self, ref: str) -> tuple[Layer, ...]:
        """Return the layers of an image, the lowest first.

        :raises ImageUnknownError: when there is no such image
        :raises StoreCorruptError: when one of its layers is missing
        """
        image = self.images.get(ref)
        chain = list(self._records.chain(image.top_layer))
        for layer_id in chain:
            if layer_id not in self._records.layers:
                raise StoreCorruptError(
                    f"layer {layer_id} of image {image.id} is missing: check the store",
                    id=image.id,
                )
        return tuple(self._records.layers[layer_id] for layer_id in reversed(chain))

    def size_of(self, ref: str) -> int | None:
        """Return the size that ``podman images`` shows: of all layers and items, in bytes.

        ``None`` when a layer of the image is missing, or has no recorded size: podman then measures
        the layer's files.

        :raises ImageUnknownError: when there is no such image
        """
        image = self.images.get(ref)
        layers_size = self._records.layers_size(image)
        return None if layers_size is None else layers_size + image.size

    def images_with(self, layer_id: str) -> tuple[str, ...]:
        """Return the IDs of the images that have this layer, in the order of images.json.

        The first call decodes all images, which takes about a second for 100,000 of them.
        """
        return tuple(self._images_by_layer.get(layer_id, ()))

    @cached_property
    def _images_by_layer(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for image in self.images:
            for layer_id in self._records.layer_ids(image):
                found.setdefault(layer_id, []).append(image.id)
        return found

    def containers_of(self, ref: str) -> tuple[Container, ...]:
        """Return the containers that were made from an image, which keep it from being deleted.

        :raises ImageUnknownError: when there is no such image
        """
        return self._records.users.get(self.images.lookup(ref), ())

    def __repr__(self) -> str:
        counts = f"{len(self.images)} images, {len(self.layers)} layers"
        return f"<PodmanSnapshot of {counts}, {len(self.containers)} containers>"
