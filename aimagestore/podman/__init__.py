"""podman's own storage: where it is.

::

    from aimagestore import ImageStore
    from aimagestore.podman import locate

    storage = await locate()
    async with ImageStore(storage.image_store, read_only=True) as store:
        images = await store.images()
"""

from ._locating import PodmanStorage, locate

__all__ = ["PodmanStorage", "locate"]
