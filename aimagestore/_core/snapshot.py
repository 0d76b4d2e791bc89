"""The public snapshot of a store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .catalog import Catalog
from .image import Image


class Snapshot:
    """The images of a store at one commit. Immutable; keeping it holds no lock.

    ``ref in snapshot``, ``len(snapshot)`` and iteration over its images work as well.
    :meth:`ImageStore.snapshot` returns it; it is not made by hand.
    """

    __slots__ = ("_catalog",)

    if TYPE_CHECKING:  # so that help() does not show it
        _catalog: Catalog

    def get(self, ref: str) -> Image:
        """Return the image that the ref stands for.

        :raises ImageUnknownError: no image is known by the ref
        :raises AmbiguousImageError: the ref stands for several images
        """
        return self._catalog.get(ref)

    def lookup(self, ref: str) -> str:
        """Return the whole ID of the image that the ref stands for.

        :raises ImageUnknownError: no image is known by the ref
        :raises AmbiguousImageError: the ref stands for several images
        """
        return self._catalog.lookup(ref)

    def by_digest(self, digest: str) -> list[Image]:
        """Return the images that have this digest: their own, or that of one of their manifests.

        :raises ImageUnknownError: no image has the digest
        :raises InvalidDigestError: the digest is malformed
        """
        return self._catalog.by_digest(digest)

    def __contains__(self, ref: object) -> bool:
        """Return whether the ref stands for exactly one image."""
        return ref in self._catalog

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._catalog)

    def __iter__(self) -> Iterator[Image]:
        """Iterate over the images, in the order of images.json."""
        return iter(self._catalog)

    def __repr__(self) -> str:
        return f"<Snapshot of {len(self)} image{'' if len(self) == 1 else 's'}>"


def snapshot_of(catalog: Catalog) -> Snapshot:
    """Return a public snapshot of a catalog."""
    snapshot = Snapshot()
    snapshot._catalog = catalog
    return snapshot
