"""How much storage images take, and how much deleting some of them frees."""

from __future__ import annotations

from collections.abc import Mapping, Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property

import msgspec

from .plain import PlainStruct, PlainType


class ImageUsage(msgspec.Struct, metaclass=PlainStruct, frozen=True, gc=False):
    """What one image takes, in bytes.

    :ivar size: all that is stored for it, shared content included
    :ivar unique_size: the part that only this image has; deleting the image frees it
    :ivar shared_size: the part that other images have as well
    :ivar layers_size: the recorded size of its layers, which podman keeps beside the store; a
        shared layer counts for each of its images. 0 if there are none, ``None`` if podman has not
        recorded it
    :ivar containers: the names or IDs of the containers that use it
    """

    size: int
    unique_size: int
    shared_size: int
    layers_size: int | None = 0
    containers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage(metaclass=PlainType):
    """What a store takes, in bytes. :meth:`ImageStore.usage` returns it.

    In a directory these are the bytes that the file system has allocated, as ``du`` counts them:
    for files and directories, and once for a file with several names. On a cluster they are the
    sizes of objects.

    :ivar images: what each image takes, by ID, in the order of images.json
    :ivar total: what the whole store takes: every image's content once, and what belongs to no
        image, such as the index and garbage
    :ivar reclaimable: what deleting all images that no container uses frees
    """

    images: Mapping[str, ImageUsage]
    total: int
    reclaimable: int


@dataclass(frozen=True)
class StoredContent:
    """What is stored for each image, as an engine has found it.

    Pieces of content are numbered, because there may be very many, and Python's garbage collector
    skips dictionaries of numbers.

    :ivar images: for each image, the pieces of its content and their sizes in bytes
    :ivar total: what the whole store takes in bytes
    :ivar outside: pieces that something outside the store has, too: no deletion here frees them
    """

    images: Mapping[str, Mapping[int, int]]
    total: int
    outside: AbstractSet[int] = frozenset()

    @cached_property
    def owners(self) -> Mapping[int, int]:
        """The number of images that have a piece; something outside counts as one more."""
        owners: dict[int, int] = {}
        for pieces in self.images.values():
            for piece in pieces:
                owners[piece] = owners.get(piece, 0) + 1
        return {piece: number + (piece in self.outside) for piece, number in owners.items()}

    def usage(
        self,
        layers_sizes: Mapping[str, int | None],
        containers: Mapping[str, tuple[str, ...]],
    ) -> Usage:
        """Return what each image takes, and all of them.

        :param layers_sizes: the sizes of images' layers in bytes, by the images' IDs
        :param containers: the names or IDs of the containers that use an image, by its ID
        """
        images = {}
        deletion = Deletion(self)
        for image_id, pieces in self.images.items():
            size = sum(pieces.values())
            unique = sum(n for piece, n in pieces.items() if self.owners[piece] == 1)
            users = containers.get(image_id, ())
            images[image_id] = ImageUsage(
                size, unique, size - unique, layers_sizes.get(image_id, 0), users
            )
            if not users:
                deletion.add(image_id)
        return Usage(images, self.total, deletion.freed)


class Deletion:
    """Counts what deleting one image after another frees.

    :ivar freed: the number of bytes so far
    """

    def __init__(self, content: StoredContent) -> None:
        self.freed = 0
        self._images = content.images
        self._owners = dict(content.owners)

    def add(self, image_id: str) -> None:
        """Count one more image as deleted."""
        for piece, size in self._images.get(image_id, {}).items():
            self._owners[piece] -= 1
            if not self._owners[piece]:
                self.freed += size
