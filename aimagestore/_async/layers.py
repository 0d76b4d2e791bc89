"""The images of a store together with the layers and containers that podman keeps beside them."""

from __future__ import annotations

from .._core.catalog import Catalog
from .._core.layers import PodmanRecords
from .._engine.protocol import Engine
from .core import StoreCore


async def read_with_layers(core: StoreCore) -> tuple[Catalog, PodmanRecords]:
    """Return all images, layers and containers, as they were at one moment.

    A store that podman cannot use has no layers and containers. If interrupted, this returns at
    once.

    :raises StoreCorruptError: when the index, or a file with layers or containers, is damaged
    """
    core.check_open()
    while True:
        found = await core.read_whole(
            lambda: core.threads.run_abandonable(_read_if_unchanged, core.engine)
        )
        if found is not None:
            return found


async def read_layers(core: StoreCore) -> PodmanRecords:
    """Return all layers alone, as they are now. If interrupted, this returns at once.

    :raises StoreCorruptError: when a file with layers is damaged
    """
    core.check_open()
    podman = core.engine.podman
    if podman is None:
        return PodmanRecords()
    return PodmanRecords(await core.threads.run_abandonable(podman.read_layers))


def _read_if_unchanged(engine: Engine) -> tuple[Catalog, PodmanRecords] | None:
    """Return everything, or ``None`` if layers or containers changed while images were read."""
    podman = engine.podman
    if podman is None:
        return engine.reader.snapshot(), PodmanRecords()
    layers, containers = podman.read_layers(), podman.read_containers()
    catalog = engine.reader.snapshot()
    if podman.read_layers() is layers and podman.read_containers() is containers:
        return catalog, PodmanRecords(layers, containers)
    return None
