"""What was found in a store, and done about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FindingKind(StrEnum):
    """What is wrong, or merely left over."""

    INDEX_MISSING = "index-missing"
    """There is no images.json, but there are images."""
    INDEX_BLANK = "index-blank"
    """images.json holds nothing, but there are images."""
    INDEX_DAMAGED = "index-damaged"
    """images.json is not one JSON array."""
    RECORD_DAMAGED = "record-damaged"
    """An element of images.json cannot be read as an image's record."""
    DUPLICATE_ID = "duplicate-id"
    """A later record has the same ID, and counts."""
    DUPLICATE_NAME = "duplicate-name"
    """A later record has one of the names, and keeps it."""
    DIRECTORY_MISSING = "directory-missing"
    """The record lists items, but their directory is gone."""
    DIRECTORY_ORPHANED = "directory-orphaned"
    """An image's directory that no record belongs to."""
    ITEM_MISSING = "item-missing"
    """The record lists the item, but there is no file."""
    ITEM_SHORT = "item-short"
    """The file is shorter than its record says."""
    ITEM_LONG = "item-long"
    """The file is longer than its record says."""
    ITEM_ALTERED = "item-altered"
    """The file has another digest than its record says."""
    ITEM_UNREADABLE = "item-unreadable"
    """There is something else than a regular file."""
    ITEM_UNLISTED = "item-unlisted"
    """A file that the image's record does not list."""
    TEMPORARY_STALE = "temporary-stale"
    """A temporary file of a writer that is gone."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found.

    :ivar kind: what it is
    :ivar id: the image's ID, or ``""``
    :ivar key: the item's key, or ``""``
    :ivar path: the file or directory
    :ivar detail: what people want to know besides
    """

    kind: FindingKind
    id: str = ""
    key: str = ""
    path: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What was looked at, and found.

    :ivar findings: everything that was found, or done
    :ivar images: how many images were looked at
    :ivar items: how many big-data items
    :ivar bytes: how many bytes were read of them, or freed
    """

    findings: tuple[Finding, ...] = ()
    images: int = 0
    items: int = 0
    bytes: int = 0

    def __add__(self, other: Report) -> Report:
        """Both together; of the images, the more."""
        return Report(
            self.findings + other.findings,
            max(self.images, other.images),
            self.items + other.items,
            self.bytes + other.bytes,
        )

    @property
    def ok(self) -> bool:
        """Whether there was nothing to find."""
        return not self.findings
