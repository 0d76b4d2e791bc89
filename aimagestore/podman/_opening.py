"""Opens podman's own store."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from .._async.locations import AdditionalStore
from .._async.store import ImageStore
from .._directory.location import DirectoryLocation
from .._engine.protocol import Location
from ._locating import locate
from ._storage import PodmanStorage


@asynccontextmanager
async def open_store(
    *,
    read_only: bool = True,
    lock_timeout: float | None = None,
    environ: Mapping[str, str] | None = None,
) -> AsyncIterator[ImageStore]:
    """Open podman's image store, which :func:`locate` finds, with its additional stores.

    An async context manager. An additional store that does not exist is left out, as podman takes
    it for an empty one.

    :param read_only: as for :class:`aimagestore.ImageStore`
    :param lock_timeout: as for :class:`aimagestore.ImageStore`
    :param environ: as for :func:`locate`
    :raises StoreConfigurationError: as :func:`locate` does
    :raises FileNotFoundError: when podman has no images yet, and ``read_only`` is true
    """
    storage = await locate(environ=environ)
    async with ImageStore(
        storage_location(storage),
        read_only=read_only,
        lock_timeout=lock_timeout,
        additional_stores=additional_stores(storage),
    ) as store:
        yield store


def storage_location(storage: PodmanStorage) -> Location:
    """Return where podman keeps its images and the containers that use them.

    With ``imagestore`` or ``transient_store`` the containers are not beside the images.
    """
    transient = os.path.join(storage.run_root, f"{storage.driver}-containers")
    return DirectoryLocation(
        storage.image_store, container_stores=[storage.container_store, transient]
    )


def additional_stores(storage: PodmanStorage) -> list[AdditionalStore]:
    """Return podman's additional stores, as :class:`ImageStore` takes them."""
    return [AdditionalStore(path, required=False) for path in storage.additional_image_stores]
