"""Blocks: runs of records that are encoded, parsed and shared between commits together."""

from __future__ import annotations

import itertools
import re
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

from .._core.record import RawJSON, Record
from .pacing import yield_gil

BLOCK_BYTES = 256 * 1024
"""The size of a block. A change encodes one block again; the others are written as they are."""

# Building an index of a block takes as long as about this number of searches in its text.
_SEARCHES_MAX: Final = 32

new_block_id = itertools.count().__next__
"""Return a number that no other block of this process has or had. A changed block keeps its own."""


_find_heads: Final = re.compile(rb"sha256:([0-9a-f]{16})").findall


class Block:
    """A run of records and its text: a JSON array, whose inside is a part of images.json.

    :ivar text: the text
    :ivar records: the records
    """

    __slots__ = ("_heads", "_searches", "records", "text")

    def __init__(self, text: bytes, records: tuple[Record, ...]) -> None:
        self.text = text
        self.records = records
        self._searches = 0
        self._heads: array[int] | None = None

    @classmethod
    def of(cls, records: Sequence[Record]) -> Block:
        """Encode records, all of which name this block as theirs."""
        texts: list[RawJSON] = [record.raw for record in records] or [b""]
        # Here and not around the joined text, which would copy all of it once more.
        texts[0] = b"".join((b"[", texts[0]))
        texts[-1] = b"".join((texts[-1], b"]"))
        return cls(b",".join(texts), tuple(records))

    def may_have(self, digest: str) -> bool:
        """Return whether an item of its records may have this SHA-256 digest.

        The text is searched. A block that is searched often gets an index of the first 64 bits of
        each digest, which takes 1 % of the block's memory.
        """
        if self._heads is None and self._searches >= _SEARCHES_MAX:
            self._heads = _heads_of(self.text)
            yield_gil()  # indexing takes some time, and the other blocks come next
        if self._heads is None:
            self._searches += 1
            return digest.encode() in self.text
        head = _head(digest)
        found = bisect_left(self._heads, head)
        return found < len(self._heads) and self._heads[found] == head


def _heads_of(text: bytes) -> array[int]:
    """Return the sorted heads of everything in a text that could be a SHA-256 digest."""
    return array("Q", sorted({int(head, 16) for head in _find_heads(text)}))


def _head(digest: str) -> int:
    """Return the first 64 bits of a digest."""
    return int(digest.partition(":")[2][:16], 16)
