"""Where a cluster's store is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Place:
    """A database, and a part of a bucket."""

    records_url: str
    blobs_url: str

    def __str__(self) -> str:
        return f"{self.records_url} {self.blobs_url}"

    @classmethod
    def parse(cls, root: str) -> Self:
        """Return the place that was printed as this text."""
        return cls(*root.split())
