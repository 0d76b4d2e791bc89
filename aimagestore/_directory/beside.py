"""What podman keeps beside an image store: its layers, and the containers made from the images.

containers/storage locks ``layers.lock``, ``images.lock`` and ``containers.lock`` in this order, and
holds all three to delete an image or a container. Nothing here takes a lock, so nothing here can
wait in another order, and nothing has to be awaited:

- Each file is replaced by renaming, so it is whole whenever it is read.
- A layer is recorded before the first image that has it, and removed after the last one. So
  images and layers are of one moment when the images are read between two looks at the layers
  that find the same files (``PodmanFiles.read`` returns the same object then).
- containers/storage holds ``images.lock`` while it records a container of an image of that store.
  So the containers of an image are known for certain under that lock.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeVar

from .._core.layers import Container, Layer, PodmanRecords
from .._format.podman_records import container_of, layer_of
from ..errors import StoreCorruptError
from .record_file import RecordFile, Records

T = TypeVar("T", Layer, Container)

_IMAGE_STORE = "-images"

_LAYER_FILES = ("layers.json", "volatile-layers.json")
_CONTAINER_FILES = ("containers.json", "volatile-containers.json")


def siblings(path: str, kind: str) -> str | None:
    """Return where the layers or containers of an image store's driver would be.

    :param path: the image store, ``…/<driver>-images`` as containers/storage lays it out
    :param kind: ``"layers"`` or ``"containers"``
    """
    parent, name = os.path.split(os.path.realpath(path))
    driver = name.removesuffix(_IMAGE_STORE)
    return None if driver in {"", name} else os.path.join(parent, f"{driver}-{kind}")


def layer_store_of(path: str) -> str | None:
    """Return the directory in which podman keeps the layers of an image store, if there is one."""
    directory = siblings(path, "layers")
    return directory if directory is not None and os.path.isdir(directory) else None


class PodmanFiles:
    """The files with layers and containers beside one image store.

    Each is read when it has changed since it was read last.

    :param path: the image store
    :ivar layer_store: the directory with its layers, if there was one at first
    """

    def __init__(self, path: str) -> None:
        # Looked up once, because the event loop reads it and must not wait for the disk.
        self.layer_store = layer_store_of(path)
        layers, containers = siblings(path, "layers"), siblings(path, "containers")
        self.layer_files = [
            RecordFile(layers, name, layer_of) for name in _LAYER_FILES if layers is not None
        ]
        self.container_files = [
            RecordFile(containers, name, container_of)
            for name in _CONTAINER_FILES
            if containers is not None
        ]
        # One attribute, because several threads read: what the files had, and what was made of it.
        self._last: tuple[Sequence[object], PodmanRecords] = ((), PodmanRecords())

    def read(self) -> PodmanRecords:
        """Return all layers and containers, the same object while no file has changed.

        Damaged records are left out.

        :raises StoreCorruptError: when a file is not a JSON array
        """
        layers = [file.read() for file in self.layer_files]
        containers = [file.read() for file in self.container_files]
        parts = [*layers, *containers]
        last_parts, last = self._last
        if list(map(id, parts)) != list(map(id, last_parts)):
            last = PodmanRecords(_by_id(layers), _by_id(containers))
            self._last = parts, last
        return last

    def containers_of(self, image_ids: Collection[str]) -> Mapping[str, tuple[Container, ...]]:
        """Return the containers of some images; images without any are left out.

        :raises StoreCorruptError: when they are not known, because a file or a record is damaged
        """
        parts = [(file, _read_containers(file)) for file in self.container_files]
        for file, records in parts:
            for element in records.damaged:
                if any(image_id.encode() in element for image_id in image_ids):
                    raise _unknown_containers(file.path, "has a damaged record of a container")
        users = PodmanRecords(containers=_by_id(records for _, records in parts)).users
        return {image_id: users[image_id] for image_id in image_ids if image_id in users}

    def close(self) -> None:
        """Release everything."""
        for layer_file in self.layer_files:
            layer_file.close()
        for container_file in self.container_files:
            container_file.close()


def _read_containers(file: RecordFile[Container]) -> Records[Container]:
    try:
        return file.read()
    except StoreCorruptError as error:
        raise _unknown_containers(file.path, f"cannot be read ({error})") from error


def _unknown_containers(path: str, problem: str) -> StoreCorruptError:
    return StoreCorruptError(
        f"{path} {problem}, so it is not known which images containers use: force=True deletes "
        "all the same",
        path=path,
    )


def _by_id(parts: Iterable[Records[T]]) -> dict[str, T]:
    """Index records by ID. Of two with one ID the first counts, as upstream."""
    found: dict[str, T] = {}
    for part in parts:
        for record in part.records:
            found.setdefault(record.id, record)
    return found
