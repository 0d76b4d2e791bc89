"""Reports of what a check found, or what a repair did."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from .plain import PlainEnum, PlainType


class FindingKind(StrEnum, metaclass=PlainEnum):
    """Kinds of damage and garbage.

    Each has a ``meaning``, and a ``remedy``: who repairs it, and how.
    """

    meaning: str
    remedy: str

    def __new__(cls, value: str, meaning: str, remedy: str) -> Self:
        kind = str.__new__(cls, value)
        kind._value_ = value
        kind.meaning, kind.remedy = meaning, remedy
        kind.__doc__ = f"{meaning}. {remedy}."
        return kind

    INDEX_MISSING = (
        "index-missing",
        "images.json is missing beside image directories",
        "`repair` rebuilds it from them",
    )
    INDEX_BLANK = (
        "index-blank",
        "images.json is blank beside image directories",
        "`repair` rebuilds it from them",
    )
    INDEX_DAMAGED = (
        "index-damaged",
        "images.json is not one JSON array",
        "`repair` rebuilds it from its readable parts and the image directories",
    )
    LOCK_DAMAGED = (
        "lock-damaged",
        "images.lock is no regular file, or has other names; no program can change the store",
        "you: remove it while no program has the store open, and the next change makes it again",
    )
    RECORD_DAMAGED = (
        "record-damaged",
        "A record cannot be read; podman refuses the store or loses records",
        "`repair` takes it out where podman uses the store, else with drop=True",
    )
    DUPLICATE_ID = (
        "duplicate-id",
        "A later record has the same ID and counts instead",
        "`repair` takes it out with drop=True",
    )
    DUPLICATE_NAME = (
        "duplicate-name",
        "A later record has the same name and keeps it",
        "`repair` removes it here; so does the next change",
    )
    DIGEST_MALFORMED = (
        "digest-malformed",
        "The record has a malformed digest; containers/storage may refuse the store",
        "`repair` computes it, or removes it",
    )
    PODMAN_FAILS = (
        "podman-fails",
        "podman cannot read the image, and `podman images` fails for the store",
        "`repair` completes the image or takes it out; the detail says what is wrong",
    )
    LAYER_MISSING = (
        "layer-missing",
        "podman does not know a layer of the image; `podman images` may fail",
        "podman: `podman rmi`, or pull the image again",
    )
    LAYERS_DAMAGED = (
        "layers-damaged",
        "podman's list of layers is blank or damaged; podman refuses the store or lacks the layers",
        "podman, or a backup",
    )
    CONTAINERS_DAMAGED = (
        "containers-damaged",
        "podman's list of containers is blank or damaged; podman refuses the store or lacks them",
        "podman, or a backup",
    )
    IMAGE_MISSING = (
        "image-missing",
        "A container was made from an image that the store does not have",
        "podman: `podman rm`",
    )
    STORE_UNREADABLE = (
        "store-unreadable",
        "An additional store cannot be read; the detail says why",
        "its owner: check that store",
    )
    DIRECTORY_MISSING = (
        "directory-missing",
        "The record lists items, but the image directory is missing",
        "`repair` drops the items with drop=True",
    )
    DIRECTORY_ORPHANED = (
        "directory-orphaned",
        "An image directory has no record",
        "`repair` makes a record if it has big data; else `collect_garbage` removes it",
    )
    ITEM_MISSING = (
        "item-missing",
        "The record lists the item, but its content is missing",
        "`repair` drops it with drop=True; on a cluster it uses equal content first",
    )
    ITEM_SHORT = (
        "item-short",
        "The content is shorter than its record says",
        "`repair` corrects the size if the digest is right, else drops the item with drop=True",
    )
    ITEM_LONG = (
        "item-long",
        "The content is longer than its record says",
        "`repair` corrects the size if the digest is right, else drops the item with drop=True",
    )
    ITEM_ALTERED = (
        "item-altered",
        "The digest of the content differs from the recorded one",
        "`repair` drops the item with drop=True",
    )
    ITEM_UNREADABLE = (
        "item-unreadable",
        "The item is not a regular file, or the disk or the object store refuses to read it",
        "`repair` drops it with drop=True; on a cluster, grant the permission",
    )
    ITEM_UNLISTED = (
        "item-unlisted",
        "A file or an object is not listed by the image's record",
        "`repair` lists what podman needs; `collect_garbage` removes others",
    )
    NAMES_DIFFER = (
        "names-differ",
        "A cluster's table of names differs from the image's record",
        "`repair` corrects the table",
    )
    DIGESTS_DIFFER = (
        "digests-differ",
        "A cluster's table of digests differs from the image's record",
        "`repair` corrects the table",
    )
    ITEMS_DIFFER = (
        "items-differ",
        "A cluster's table of items has another size than the image's record",
        "`repair` corrects the table",
    )
    COUNTERS_DIFFER = (
        "counters-differ",
        "A cluster counts its images, their places or its commits wrongly",
        "`repair` counts again",
    )
    TEMPORARY_STALE = (
        "temporary-stale",
        "A temporary file of a dead writer, or an object that no image has had",
        "`collect_garbage` removes it",
    )


FindingKind.__doc__ = "\n".join(
    [
        *(FindingKind.__doc__ or "").rstrip().splitlines(),
        "",
        *(f"    {kind}: {kind.__doc__}" for kind in FindingKind),
    ]
)


STAYS = "stays: "
"""The beginning of the detail of what a garbage collection could not remove."""


@dataclass(frozen=True, slots=True)
class Finding(metaclass=PlainType):
    """One finding of a check, or one thing that a repair or a garbage collection did.

    :ivar kind: the kind of damage or garbage
    :ivar id: the image's ID, or ``""``
    :ivar key: the item's key, or ``""``
    :ivar path: the file or directory, or ``""``
    :ivar detail: more about it, for people
    """

    kind: FindingKind
    id: str = ""
    key: str = ""
    path: str = ""
    detail: str = ""

    @property
    def stays(self) -> bool:
        """Whether a garbage collection could not remove it. The detail says why."""
        return self.detail.startswith(STAYS)


@dataclass(frozen=True, slots=True)
class Report(metaclass=PlainType):
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
