"""The sizes of images as ``podman images`` shows them: layers and items together."""

from __future__ import annotations

from .._async.store import ImageStore
from .._core.image import Image
from .._core.podman_snapshot import PodmanSnapshot
from ..errors import ImageUnknownError, StoreCorruptError
from ..podman import snapshot
from .human import human_size
from .output import say


class Sizes:
    """The sizes of the images of one store.

    :param now: the store with its layers; ``None`` if it has none, or they cannot be read
    """

    def __init__(self, now: PodmanSnapshot | None) -> None:
        self._now = now

    @classmethod
    async def of(cls, store: ImageStore) -> Sizes:
        """Read the sizes of all images. Damage of podman's lists is reported on standard error."""
        if store.layer_store is None:
            return cls(None)
        try:
            return cls(await snapshot(store))
        except StoreCorruptError as error:
            say(f"sizes are shown without layers: {error}")
            return cls(None)

    def of_layers(self, image: Image) -> int | None:
        """Return the size of an image's layers in bytes; ``None`` if it is not known."""
        try:
            size = None if self._now is None else self._now.size_of(image.id)
        except ImageUnknownError:  # it was deleted meanwhile
            return None
        return None if size is None else size - image.size

    def of_all(self, image: Image) -> int:
        """Return the size of an image's layers and items in bytes, as far as it is known."""
        return image.size + (self.of_layers(image) or 0)

    def shown(self, image: Image) -> str:
        """Format the size of an image, with ``>`` before it if a part is not known."""
        is_partial = self._now is not None and self.of_layers(image) is None
        return ">" * is_partial + human_size(self.of_all(image))

    def described(self, image: Image) -> str:
        """Format the size of an image with its parts."""
        layers, items = self.of_layers(image), human_size(image.size)
        if not layers:
            return self.shown(image)
        return f"{self.shown(image)} ({human_size(layers)} of layers, {items} of items)"
