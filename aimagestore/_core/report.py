"""Reports of what a check found, or what a repair did."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FindingKind(StrEnum):
    """Kinds of damage and garbage."""

    INDEX_MISSING = "index-missing"
    """images.json is missing, but there are image directories."""
    INDEX_BLANK = "index-blank"
    """images.json is blank, but there are image directories."""
    INDEX_DAMAGED = "index-damaged"
    """images.json is not one JSON array."""
    RECORD_DAMAGED = "record-damaged"
    """An element of images.json cannot be read as an image's record."""
    DUPLICATE_ID = "duplicate-id"
    """A later record with the same ID replaces this one."""
    DUPLICATE_NAME = "duplicate-name"
    """A later record has the same name, and keeps it."""
    DIGEST_MALFORMED = "digest-malformed"
    """The record has a malformed digest, of the image or of an item.

    For one of the image or of a manifest containers/storage refuses the whole store.
    """
    PODMAN_FAILS = "podman-fails"
    """podman, which keeps layers beside the store, cannot read the image.

    ``podman images`` fails then for all images, or lists none. The detail says what is wrong.
    """
    LAYER_MISSING = "layer-missing"
    """podman does not know a layer below the image's top layer.

    ``podman images`` fails then, or leaves the image out.
    """
    LAYERS_DAMAGED = "layers-damaged"
    """podman's list of layers, or a record in it, cannot be read: podman refuses the store."""
    CONTAINERS_DAMAGED = "containers-damaged"
    """podman's list of containers, or a record in it, cannot be read: podman refuses the store."""
    IMAGE_MISSING = "image-missing"
    """A container was made from this image, which the store does not have."""
    DIRECTORY_MISSING = "directory-missing"
    """The record lists items, but the image directory is missing."""
    DIRECTORY_ORPHANED = "directory-orphaned"
    """An image directory without a record."""
    ITEM_MISSING = "item-missing"
    """The record lists the item, but its file is missing."""
    ITEM_SHORT = "item-short"
    """The file is shorter than its record says."""
    ITEM_LONG = "item-long"
    """The file is longer than its record says."""
    ITEM_ALTERED = "item-altered"
    """The file's digest differs from the recorded one."""
    ITEM_UNREADABLE = "item-unreadable"
    """The item is not a regular file, or the object store does not permit to read it."""
    ITEM_UNLISTED = "item-unlisted"
    """A file or an object that the image's record does not list."""
    NAMES_DIFFER = "names-differ"
    """A cluster's table of names is not as the image's record says."""
    DIGESTS_DIFFER = "digests-differ"
    """A cluster's table of digests is not as the image's record says."""
    ITEMS_DIFFER = "items-differ"
    """A cluster's table of items has another size than the image's record."""
    COUNTERS_DIFFER = "counters-differ"
    """A cluster counts its images, their places or its commits wrongly."""
    TEMPORARY_STALE = "temporary-stale"
    """A temporary file of a writer that no longer runs, or an object that no image has had."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding of a check, or one thing that a repair did.

    :ivar kind: the kind of damage or garbage
    :ivar id: the image's ID, or ``""``
    :ivar key: the item's key, or ``""``
    :ivar path: the file or directory
    :ivar detail: more about it, for people
    """

    kind: FindingKind
    id: str = ""
    key: str = ""
    path: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a check, a repair or a garbage collection.

    :ivar findings: what was found or done
    :ivar images: the number of images that were checked
    :ivar items: the number of big-data items that were checked
    :ivar bytes: the number of bytes that were read or freed
    """

    findings: tuple[Finding, ...] = ()
    images: int = 0
    items: int = 0
    bytes: int = 0

    def __add__(self, other: Report) -> Report:
        """Combine two reports; ``images`` is the larger number of the two."""
        return Report(
            self.findings + other.findings,
            max(self.images, other.images),
            self.items + other.items,
            self.bytes + other.bytes,
        )

    @property
    def ok(self) -> bool:
        """Whether there are no findings."""
        return not self.findings
