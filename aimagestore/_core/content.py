"""The content of big-data items on its way into a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from .digest import canonical_digest

if TYPE_CHECKING:
    from .record import Record

Buffer = bytes | bytearray | memoryview


class Described(Protocol):
    """The size and digest of an item's content, which its image's record lists."""

    @property
    def size(self) -> int:
        """Its length in bytes."""
        ...

    @property
    def digest(self) -> str:
        """Its SHA-256 digest."""
        ...


class Content(Described, Protocol):
    """The content of a big-data item, wherever it is kept until it is published."""

    def read(self) -> bytes:
        """Return all of it."""
        ...


class InlineContent(msgspec.Struct, frozen=True, gc=False):
    """The content of a big-data item, in memory."""

    data: bytes
    digest: str

    @classmethod
    def of(cls, data: Buffer) -> InlineContent:
        """Copy the data and compute its digest."""
        data = bytes(data)
        return cls(data, canonical_digest(data))

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return len(self.data)

    def read(self) -> bytes:
        """Return all of it."""
        return self.data


class Copies(Protocol):
    """The items of an image of an additional store, staged for a change that copies the image."""

    def contents_of(self, record: Record, keys: Sequence[str]) -> Mapping[str, Content] | None:
        """Return the content of items by key; ``None`` if they or the record have changed since.

        Blocks.

        :param record: the record of the image as it is now
        """
        ...
