"""podman's own storage: where it is, and the layers and containers in it.

::

    from aimagestore import ImageStore
    from aimagestore.podman import locate, snapshot

    storage = await locate()
    async with ImageStore(storage.image_store, read_only=True) as store:
        now = await snapshot(store)
        for image in now.images:
            print(image.id, image.names, now.size_of(image.id), now.layers_of(image.id))
"""

from .._core.layers import Container, Layer
from .._core.podman_snapshot import PodmanSnapshot
from ._locating import PodmanStorage, locate
from ._snapshot import snapshot

__all__ = ["Container", "Layer", "PodmanSnapshot", "PodmanStorage", "locate", "snapshot"]
