"""Lookups in a large index of which only the IDs and names were read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Final, TypeVar

import msgspec
from msgspec import Raw

from .._core.catalog import Catalog
from .._core.image import Image
from .._core.record import Record, read, read_image
from .._core.view import View
from .index import Summary, Text, summaries
from .pacing import yield_gil_every

T = TypeVar("T")

_decode_elements: Final = msgspec.json.Decoder(list[Raw]).decode
_decode_summaries: Final = msgspec.json.Decoder(list[Summary]).decode

_LOOKUPS: Final = 8
"""The number of lookups that together take as long as parsing and indexing everything."""

# Each takes about 2 ms.
_BLOCKS_AT_ONCE: Final = 4

ReadAt = Callable[[int, int], bytes]
"""Reads as many bytes of the index as its first parameter says, from an offset on."""


class IndexNeededError(Exception):
    """A scan cannot answer, or takes longer than a lookup in the parsed index."""


class Scan:
    """Where the records of an index are in its file.

    For programs that look up a few images, or list all of them once: parsing and indexing every
    record takes several times as long, and the memory of the whole text.

    :ivar ids: the number of the block with each image, by ID
    :ivar names: the number of the block with each image, by name
    :ivar blocks: the offset and size in bytes of each block of records
    :ivar lookups: how many lookups there were in it, and in earlier scans
    """

    __slots__ = ("blocks", "ids", "lookups", "names")

    def __init__(self, lookups: int) -> None:
        self.ids: dict[str, int] = {}
        self.names: dict[str, int] = {}
        self.blocks: list[tuple[int, int]] = []
        self.lookups = lookups

    @classmethod
    def of(cls, text: Text, lookups: int = 0) -> Scan | None:
        """Scan an index; ``None`` unless it is an array of objects whose IDs and names all differ.

        :param lookups: what :attr:`lookups` begins with
        """
        scan = cls(lookups)
        ids = names = 0
        try:
            for offset, found in summaries(text):
                named = [name for each in found if each.names for name in each.names]
                scan.ids.update(dict.fromkeys([each.id for each in found], len(scan.blocks)))
                scan.names.update(dict.fromkeys(named, len(scan.blocks)))
                ids += len(found)
                names += len(named)
                scan.blocks.append((offset, text.offset - offset))
        except (ValueError, RecursionError):
            return None
        return scan if ids == len(scan.ids) and names == len(scan.names) else None

    def reading(self, read_at: ReadAt) -> View:
        """Return a view for one lookup, which reads the file.

        :raises IndexNeededError: when there were many lookups before
        """
        if self.lookups >= _LOOKUPS:
            raise IndexNeededError
        self.lookups += 1
        return _ScannedView(self, read_at)


class _ScannedView(View):
    """The records of a scanned index. Raises :exc:`IndexNeededError` where it cannot answer."""

    __slots__ = ("_block", "_read_at", "_scan", "_text")

    def __init__(self, scan: Scan, read_at: ReadAt) -> None:
        self._scan = scan
        self._read_at = read_at
        self._block = -1
        self._text = b""

    def record_of(self, image_id: str) -> Record | None:
        return self._find(self._scan.ids.get(image_id), lambda found: found.id == image_id)

    def known_ids(self, image_ids: Iterable[str]) -> set[str]:
        raise IndexNeededError

    def owner_of(self, name: str) -> str | None:
        block = self._scan.names.get(name)
        record = self._find(block, lambda found: name in (found.names or ()))
        return None if record is None else record.id

    def ids_with_prefix(self, prefix: str, limit: int) -> Sequence[str]:
        if not prefix:
            return ()
        found = sorted(image_id for image_id in self._scan.ids if image_id.startswith(prefix))
        return list(islice((i for i in found if self.record_of(i) is not None), limit))

    def ids_with_digest(self, digest: str) -> Sequence[str]:
        raise IndexNeededError

    def is_damaged(self, image_id: str) -> bool:
        raise IndexNeededError

    def records(self) -> Iterator[Record]:
        raise IndexNeededError

    @property
    def images(self) -> tuple[Image, ...]:
        # A program that lists them again is better served by a catalog, which keeps them.
        self._scan.lookups = _LOOKUPS
        images: list[Image | None] = []
        for block in yield_gil_every(range(len(self._scan.blocks)), _BLOCKS_AT_ONCE):
            images += map(read_image, self._decoded(block, _decode_elements))
        return tuple([image for image in images if image is not None])

    def freeze(self) -> Catalog:
        raise IndexNeededError

    def _find(self, block: int | None, matches: Callable[[Summary], bool]) -> Record | None:
        """Return the record in a block that matches; ``None`` if it is damaged."""
        if block is None:
            return None
        elements = self._decoded(block, _decode_elements)
        for found, element in zip(self._decoded(block, _decode_summaries), elements, strict=True):
            if matches(found):
                return read(element)
        raise IndexNeededError

    def _decoded(self, block: int, decode: Callable[[bytes], list[T]]) -> list[T]:
        if block != self._block:
            offset, size = self._scan.blocks[block]
            self._text = b"[%b]" % self._read_at(size, offset)
            self._block = block
        try:
            return decode(self._text)
        except (ValueError, RecursionError):  # altered since the scan, in place
            raise IndexNeededError from None
