"""Lookups of records and images, the same in catalogs, drafts and databases."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from ..errors import AmbiguousImageError, ImageUnknownError
from .digest import check_digest
from .image import Image
from .record import Record, without_names
from .refs import id_in_ref, repository_and_digest, repository_of

if TYPE_CHECKING:
    from .catalog import Catalog


CANDIDATES_MAX = 100
"""The most IDs that an :exc:`AmbiguousImageError` lists."""


class View:
    """Lookups by ref and digest: in a catalog, in a draft of the next one, or in a database."""

    __slots__ = ()

    def prefetch(self, refs: Iterable[str], names: Iterable[str]) -> None:
        """Fetch what is looked up next in one round trip, where lookups take round trips.

        :param refs: refs of images, and IDs that may be unknown
        :param names: names whose owners are looked up
        """

    def record_of(self, image_id: str) -> Record | None:
        """Return the record with this ID."""
        raise NotImplementedError

    def known_ids(self, image_ids: Iterable[str]) -> set[str]:
        """Return which of these are IDs of images."""
        return {image_id for image_id in image_ids if self.record_of(image_id) is not None}

    def owner_of(self, name: str) -> str | None:
        """Return the ID of the image that has this name."""
        raise NotImplementedError

    def ids_with_prefix(self, prefix: str, limit: int) -> Sequence[str]:
        """Return the first IDs that begin with the prefix, sorted; none for the empty prefix.

        :param limit: the most IDs to return, because a short prefix fits many
        """
        raise NotImplementedError

    def ids_with_digest(self, digest: str) -> Sequence[str]:
        """Return the IDs of the images that have this digest."""
        raise NotImplementedError

    def with_digest(self, digest: str) -> Sequence[Record]:
        """Return the records of the images that have this digest."""
        found = (self.record_of(image_id) for image_id in self.ids_with_digest(digest))
        return [record for record in found if record is not None]

    def records(self) -> Iterator[Record]:
        """Iterate over all records, in the order of images.json."""
        raise NotImplementedError

    def is_damaged(self, image_id: str) -> bool:
        """Return whether a record that cannot be read may be the one with this ID."""
        return False

    def find(self, ref: str) -> Record:
        """Return the record that the ref stands for.

        A ref is a whole ID, a name, an unambiguous prefix of an ID, ``sha256:<id>``, or
        ``name@<digest>``, tried in this order.

        :raises ImageUnknownError: no image is known by the ref
        :raises AmbiguousImageError: the ref stands for several images
        """
        if not isinstance(ref, str):
            raise TypeError(f"a ref must be a str, not {type(ref).__name__}")
        if not ref:
            raise unknown(ref)
        record = self.record_of(ref)
        if record is None:
            image_id = self.owner_of(ref) or resolve_prefix(
                ref, self.ids_with_prefix(ref, CANDIDATES_MAX + 1)
            )
            record = self.find_by_digest(ref) if image_id is None else self.record_of(image_id)
        if record is None:
            raise unknown(ref)
        return record

    def find_by_digest(self, ref: str) -> Record | None:
        """Return the record that ``sha256:<id>`` or ``name@<digest>`` stands for.

        The second form finds the image that has the digest and a name in the same repository,
        whatever the tag. Unlike podman, which also completes short names, this compares the
        repository as it is spelled.

        :raises AmbiguousImageError: several images have such a name and the digest
        """
        image_id = id_in_ref(ref)
        record = None if image_id is None else self.record_of(image_id)
        wanted = repository_and_digest(ref)
        if record is not None or wanted is None:
            return record
        repository, digest = wanted
        found = [
            record
            for record in self.with_digest(digest)
            if any(repository_of(name) == repository for name in record.names)
        ]
        if len(found) > 1:
            raise AmbiguousImageError(
                f"{ref!r} stands for {len(found)} images: use an ID or a name",
                ref=ref,
                candidates=tuple(sorted(record.id for record in found)[:CANDIDATES_MAX]),
            )
        return found[0] if found else None

    def get(self, ref: str) -> Image:
        """Return the image that the ref stands for (upstream: ``Get``).

        :raises ImageUnknownError: no image is known by the ref
        :raises AmbiguousImageError: the ref stands for several images
        """
        return self.find(ref).image

    def lookup(self, ref: str) -> str:
        """Return the whole ID of the image that the ref stands for (upstream: ``Lookup``).

        :raises ImageUnknownError: no image is known by the ref
        :raises AmbiguousImageError: the ref stands for several images
        """
        return self.find(ref).id

    def by_digest(self, digest: str) -> list[Image]:
        """Return the images that have this digest (upstream: ``ByDigest``).

        :raises ImageUnknownError: no image has the digest
        :raises InvalidDigestError: the digest is malformed
        """
        records = self.with_digest(check_digest(digest))
        if not records:
            raise ImageUnknownError(f"no image has the digest {digest}", ref=digest)
        return [record.image for record in records]

    def exists(self, ref: str) -> bool:
        """Return whether the ref stands for exactly one image (upstream: ``Exists``)."""
        try:
            self.find(ref)
        except ImageUnknownError:
            return False
        return True

    def __contains__(self, ref: object) -> bool:
        return isinstance(ref, str) and self.exists(ref)

    def __iter__(self) -> Iterator[Image]:
        """Iterate over all images, in the order of images.json."""
        return (record.listed_image() for record in self.records())

    @property
    def images(self) -> tuple[Image, ...]:
        """All images, in the order of images.json."""
        return tuple(self)

    def freeze(self) -> Catalog:
        """Return a catalog of all records, as they are now."""
        raise NotImplementedError


def resolve_prefix(ref: str, candidates: Sequence[str]) -> str | None:
    """Return the only ID that begins with the ref, or ``None`` when none does.

    :param candidates: the IDs that begin with it, one more than ``CANDIDATES_MAX`` at most
    :raises AmbiguousImageError: several IDs begin with it
    """
    if len(candidates) > 1:
        is_cut = len(candidates) > CANDIDATES_MAX
        number = f"more than {CANDIDATES_MAX}" if is_cut else len(candidates)
        raise AmbiguousImageError(
            f"{ref!r} is a prefix of {number} image IDs: give more of it",
            ref=ref,
            candidates=tuple(candidates[:CANDIDATES_MAX]),
        )
    return candidates[0] if candidates else None


def unknown(ref: str) -> ImageUnknownError:
    """Return the error for a ref that no image is known by."""
    return ImageUnknownError(f"no image is known by {ref!r}", ref=ref)


def without_hidden_names(view: View, record: Record) -> Record:
    """Return a record without the names by which the view finds another image.

    Only an image of an additional store can have such names.
    """
    lost = {name for name in record.names if view.owner_of(name) != record.id}
    return without_names(record, lost) if lost else record
