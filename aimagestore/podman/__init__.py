"""Finds and opens podman's own storage, with its images, layers and containers.

::

    from aimagestore.podman import open_store, snapshot

    async with open_store() as store:
        now = await snapshot(store)
        for image in now.images:
            print(image.id, image.names, now.size_of(image.id), now.layers_of(image.id))
"""

from .._core.layers import Container, Layer
from .._core.podman_snapshot import PodmanSnapshot
from ._locating import locate
from ._opening import open_store
from ._snapshot import snapshot
from ._storage import PodmanStorage

__all__ = [
    "Container",
    "Layer",
    "PodmanSnapshot",
    "PodmanStorage",
    "locate",
    "open_store",
    "snapshot",
]
