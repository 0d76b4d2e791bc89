"""Blocks: runs of records that are encoded, parsed and shared between commits together."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

from .._core.record import Record

BLOCK_BYTES = 256 * 1024
"""Size of a block. A change encodes one block again; the others are written as they are."""

new_block_id = itertools.count().__next__
"""Return a number that no other block of this process has or had."""


class Block(NamedTuple):
    """A run of records and its text: a JSON array, whose inside is a part of images.json."""

    text: bytes
    records: tuple[Record, ...]

    @classmethod
    def of(cls, records: Iterable[Record], block_id: int) -> Block:
        """Encode records as the block with this ID."""
        placed = tuple(record.in_block(block_id) for record in records)
        return cls(b"".join((b"[", b",".join([r.raw for r in placed]), b"]")), placed)
