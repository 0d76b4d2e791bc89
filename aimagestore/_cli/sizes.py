"""The sizes of images as ``podman images`` shows them: layers and items together."""

from __future__ import annotations

from .._async.layers import read_layers
from .._async.store import ImageStore, core_of
from .._core.image import Image
from .._core.layers import PodmanRecords
from ..errors import StoreCorruptError
from .human import human_size
from .output import say


class Sizes:
    """The sizes of the images of one store.

    :param layers: its layers; ``None`` if it has none, or they cannot be read
    """

    def __init__(self, layers: PodmanRecords | None) -> None:
        self._layers = layers

    @classmethod
    async def of(cls, store: ImageStore) -> Sizes:
        """Read the sizes of all layers. Standard error says why if they cannot be read."""
        core = core_of(store)
        podman = core.engine.podman
        if podman is None or podman.layer_store is None:
            return cls(None)
        try:
            return cls(await read_layers(core))
        except (StoreCorruptError, OSError) as error:
            say(f"sizes are shown without layers: {error}")
            return cls(None)

    def of_layers(self, image: Image) -> int | None:
        """Return the size of an image's layers in bytes; ``None`` if it is not known."""
        return None if self._layers is None else self._layers.layers_size(image)

    def of_all(self, image: Image) -> int:
        """Return the size of an image's layers and items in bytes, as far as it is known."""
        return image.size + (self.of_layers(image) or 0)

    def shown(self, image: Image) -> str:
        """Format the size of an image, with ``>`` before it if a part is not known."""
        layers = self.of_layers(image)
        size = human_size(image.size + (layers or 0))
        return f">{size}" if layers is None and self._layers is not None else size

    def described(self, image: Image) -> str:
        """Format the size of an image with its parts."""
        layers, items = self.of_layers(image), human_size(image.size)
        if not layers:
            return self.shown(image)
        return f"{self.shown(image)} ({human_size(layers)} of layers, {items} of items)"
