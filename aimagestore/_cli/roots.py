"""Finds the store of ``--root``: an image store's directory, one in a graph root, or a cluster."""

from __future__ import annotations

import importlib
import os
import re
from itertools import chain
from typing import TYPE_CHECKING, Any

from anyio import to_thread

from .._core.addresses import is_address
from .._engine.protocol import Location
from .exits import CommandError, ExitCode, usage_errors

if TYPE_CHECKING:
    from ..podman import PodmanStorage

_IMAGES = "-images"
_LAYERS = "-layers"
_STORE_FILES = frozenset({"images.json", "images.lock"})
_IMAGE = "[0-9a-f]{64}"

_ADDRESSES = r"(postgres(?:ql)?://\S+) +(s3://\S+)"


async def given_store(root: str) -> str:
    """Return the image store that a directory is or contains. It need not exist yet.

    :raises CommandError: when it contains several, and the configuration names none of them
    """
    names = await to_thread.run_sync(_directory_names, root)
    is_graph_root = "storage.lock" in names or any(
        name.endswith((_IMAGES, _LAYERS)) for name in names
    )
    if is_graph_root and names.isdisjoint(_STORE_FILES):
        return await _in_graph_root(root, names)
    return root


def may_be_store(path: str) -> bool:
    """Return whether a directory is an image store, is empty, or cannot be read.

    Opening a store there gives the error of one that cannot be read.
    """
    try:
        # A large store has as many directories, so the first one that tells is enough.
        with os.scandir(path) as entries:
            names = (entry.name for entry in entries)
            name = next(names, None)
            return name is None or any(
                each in _STORE_FILES or re.fullmatch(_IMAGE, each) for each in chain([name], names)
            )
    except FileNotFoundError:
        return False
    except OSError:
        return True


def is_cluster(root: str) -> bool:
    """Return whether a root is a cluster's addresses, and not a directory."""
    return is_address(root)


def given_addresses(root: str) -> tuple[str, str]:
    """Return a cluster's two addresses: that of the records, and that of the big data.

    :raises CommandError: when it is not two addresses. The message does not repeat them, because
        they may contain a password.
    """
    found = re.fullmatch(_ADDRESSES, root)
    if found is None:
        raise CommandError(
            "give the two addresses of a cluster in one argument: "
            "'postgresql://HOST/DATABASE s3://BUCKET/PREFIX'; put ./ before the path of a "
            "directory that looks like an address",
            ExitCode.USAGE,
        )
    return found[1], found[2]


def given_cluster(root: str) -> Location:
    """Return the location of a cluster's store.

    :raises CommandError: when it is not two valid addresses, or the extra is missing
    """
    addresses = given_addresses(root)
    module = cluster_module()
    with usage_errors():
        location: Location = module.ClusterLocation(*addresses)
    return location


def cluster_module() -> Any:
    """Import :mod:`aimagestore.cluster`.

    :raises CommandError: when its extra is missing
    """
    try:
        return importlib.import_module("aimagestore.cluster")
    except ImportError as error:
        raise CommandError(str(error)) from error


async def podman_storage() -> PodmanStorage:
    """Return the storage of this user's podman.

    :raises CommandError: when podman has no images yet
    :raises StoreConfigurationError: when podman's configuration does not say where it is
    """
    from ..podman import locate  # noqa: PLC0415 - what commands with --root need not load

    storage = await locate()
    store = storage.image_store
    if not await to_thread.run_sync(os.path.isdir, store):
        raise CommandError(f"podman has no images yet in {store}: give --root for another store")
    return storage


def _directory_names(path: str) -> set[str]:
    try:
        return set(os.listdir(path))
    except FileNotFoundError:
        return set()


async def _in_graph_root(root: str, names: set[str]) -> str:
    stores = sorted(name for name in names if name.endswith(_IMAGES))
    if not stores:
        # A graph root without images yet may have layers already.
        layers = sorted(name for name in names if name.endswith(_LAYERS))
        stores = [name.removesuffix(_LAYERS) + _IMAGES for name in layers]
    if len(stores) == 1:
        return os.path.join(root, stores[0])
    from ..podman import locate  # noqa: PLC0415 - rarely needed

    configured = (await locate()).driver + _IMAGES
    if not stores:
        return os.path.join(root, configured)
    for store in (configured, "overlay" + _IMAGES):
        if store in stores:
            return os.path.join(root, store)
    raise CommandError(
        f"{root} has several image stores: give one of them as --root, "
        f"or set STORAGE_DRIVER: {', '.join(stores)}",
        ExitCode.USAGE,
    )
