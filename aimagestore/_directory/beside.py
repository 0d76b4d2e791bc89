"""What podman keeps beside an image store: its layers, and the containers made from the images.

containers/storage locks ``layers.lock``, ``images.lock`` and ``containers.lock`` in this order, and
holds all three to delete an image or a container. Nothing here takes a lock, so nothing here can
wait or cause a deadlock. Reads are consistent without one:

- Each file is replaced by renaming, so a read gets the whole file.
- A layer is recorded before the first image that has it, and removed after the last one. If the
  layers are read before and after the images, and have not changed in between (both reads return
  the same object), images and layers are of one moment.
- containers/storage holds ``images.lock`` while it records a container of an image of that store.
  So the containers of an image that are read under that lock are all of them.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence

from .._core.layers import Container, Layer, PodmanRecords
from .._engine.protocol import PodmanReader
from .._format.podman_records import container_of, layer_of
from ..errors import StoreCorruptError
from .record_file import RecordFile, RecordFiles, Records

IMAGE_STORE_SUFFIX = "-images"
"""containers/storage calls an image store ``<driver>-images``."""

_LAYER_FILES = ("layers.json", "volatile-layers.json")
_CONTAINER_FILES = ("containers.json", "volatile-containers.json")


def directory_beside(path: str, kind: str) -> str | None:
    """Return where the layers or containers of an image store's driver would be.

    :param path: the image store
    :param kind: ``"layers"`` or ``"containers"``
    :returns: ``None`` unless the store is called ``<driver>-images``
    """
    parent, name = os.path.split(os.path.realpath(path))
    driver = name.removesuffix(IMAGE_STORE_SUFFIX)
    return None if driver in {"", name} else os.path.join(parent, f"{driver}-{kind}")


def layer_store_of(path: str) -> str | None:
    """Return the directory in which podman keeps the layers of an image store, or ``None``."""
    directory = directory_beside(path, "layers")
    return directory if directory is not None and os.path.isdir(directory) else None


class PodmanFiles:
    """The files beside one image store; see :class:`aimagestore._engine.protocol.PodmanReader`.

    :param path: the image store
    :param container_stores: directories that may have containers of its images as well
    :ivar others: what reads the layers of additional stores
    :ivar layer_store: the directory with its layers; ``None`` if there was none when this was made
    :ivar layers: the files with layers
    :ivar containers: the files with containers
    """

    def __init__(self, path: str, container_stores: Iterable[str] = ()) -> None:
        self.others: Sequence[PodmanReader] = ()
        # Looked up once: the event loop reads it, and must not wait for the disk.
        self.layer_store = layer_store_of(path)
        layers, containers = directory_beside(path, "layers"), directory_beside(path, "containers")
        self.layers = RecordFiles([] if layers is None else [layers], _LAYER_FILES, layer_of)
        directories = [os.path.realpath(each) for each in container_stores]
        if containers is not None:
            directories.insert(0, containers)
        self.containers = RecordFiles(dict.fromkeys(directories), _CONTAINER_FILES, container_of)

    def read_layers(self) -> Mapping[str, Layer]:
        return self.layers.read()

    def read_containers(self) -> Mapping[str, Container]:
        return self.containers.read()

    def containers_of(self, image_ids: Collection[str]) -> Mapping[str, tuple[Container, ...]]:
        """Return the containers of some images by image ID, without images that have none.

        :raises StoreCorruptError: when they are not known, because a file or a record is damaged
        """
        for file in self.containers:
            for element in _read_containers(file).damaged:
                if any(image_id.encode() in element for image_id in image_ids):
                    raise _unknown_containers(file.path, "has a damaged record of a container")
        users = PodmanRecords(containers=self.containers.read()).users
        return {image_id: users[image_id] for image_id in image_ids if image_id in users}

    def close(self) -> None:
        """Release everything."""
        self.layers.close()
        self.containers.close()


def _read_containers(file: RecordFile[Container]) -> Records[Container]:
    try:
        return file.read()
    except StoreCorruptError as error:
        raise _unknown_containers(file.path, f"cannot be read ({error})") from error


def _unknown_containers(path: str, problem: str) -> StoreCorruptError:
    return StoreCorruptError(
        f"{path} {problem}, so it is not known which images containers use: restore that file, or "
        "delete the image with force=True",
        path=path,
    )
