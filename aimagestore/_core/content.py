"""The content of big-data items on its way into a store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .digest import canonical_digest

Buffer = bytes | bytearray | memoryview


class Described(Protocol):
    """What a record says of the content of an item."""

    @property
    def size(self) -> int:
        """Its length in bytes."""
        ...

    @property
    def digest(self) -> str:
        """Its SHA-256 digest."""
        ...


class Content(Described, Protocol):
    """A big-data item's content, wherever it is kept until it is published."""

    def read(self) -> bytes:
        """Return all of it."""
        ...


@dataclass(frozen=True, slots=True)
class InlineContent:
    """A big-data item's content that is in memory."""

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
