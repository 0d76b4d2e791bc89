"""Which directory is meant: an image store, or the one in a graph root."""

from __future__ import annotations

import os

from .configuration import Configuration, podman_configuration
from .exits import CommandError, ExitCode

_IMAGES = "-images"
_LAYERS = "-layers"


def given_store(root: str) -> str:
    """The image store that a directory is or has in it; it need not exist yet.

    :raises CommandError: when there are several, and nothing says which is meant
    """
    names = _directory_names(root)
    is_graph_root = "storage.lock" in names or any(
        name.endswith((_IMAGES, _LAYERS)) for name in names
    )
    if "images.json" in names or "images.lock" in names or not is_graph_root:
        return root
    return _in_graph_root(root, names, None)


def podman_store() -> str:
    """The image store of this user's podman.

    :raises CommandError: when podman has none yet, or storage.conf cannot be read
    """
    configuration = _configuration()
    root = configuration.graph_root
    store = _in_graph_root(root, _directory_names(root), configuration)
    if not os.path.isdir(store):
        raise CommandError(f"podman has no images yet in {store}: --root names another store")
    return store


def _configuration() -> Configuration:
    return podman_configuration(os.environ, os.geteuid())


def _directory_names(path: str) -> set[str]:
    try:
        return set(os.listdir(path))
    except FileNotFoundError:
        return set()


def _in_graph_root(root: str, names: set[str], configuration: Configuration | None) -> str:
    stores = sorted(name for name in names if name.endswith(_IMAGES))
    if not stores:
        # A graph root without images yet may have layers already.
        layers = sorted(name for name in names if name.endswith(_LAYERS))
        stores = [name.removesuffix(_LAYERS) + _IMAGES for name in layers]
    if len(stores) == 1:
        return os.path.join(root, stores[0])
    configured = (configuration or _configuration()).driver + _IMAGES
    overlay = "overlay" + _IMAGES
    if not stores:
        return os.path.join(root, overlay if configured == _IMAGES else configured)
    for store in (configured, overlay):
        if store in stores:
            return os.path.join(root, store)
    raise CommandError(
        f"{root} has several image stores: give one of them as --root, "
        f"or set STORAGE_DRIVER: {', '.join(stores)}",
        ExitCode.USAGE,
    )
