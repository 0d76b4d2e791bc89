"""Takes a snapshot of a store with its layers and containers."""

from __future__ import annotations

from .._async.layers import read_with_layers
from .._async.store import ImageStore, core_of
from .._core.podman_snapshot import PodmanSnapshot
from .._core.snapshot import snapshot_of


async def snapshot(store: ImageStore) -> PodmanSnapshot:
    """Return the images of an open store, with their layers and containers, as they are now.

    Layers and containers are those that podman, buildah or CRI-O keep beside the store; other
    stores have none. Nothing is written and no lock is taken. It waits only for another program
    that is in the middle of a change of the images. If it is cancelled, it returns at once.

    :raises StoreCorruptError: when a file of layers or containers is damaged; it names the file
    """
    catalog, records = await read_with_layers(core_of(store))
    return PodmanSnapshot(snapshot_of(catalog), records)
