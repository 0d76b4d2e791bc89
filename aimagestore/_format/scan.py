"""Lookups in an index that was read, but not parsed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import msgspec
from msgspec import Raw

from .._core.catalog import Catalog
from .._core.image import Image
from .._core.record import Record, read, read_image
from .._core.view import View
from .pacing import yield_gil_every

_decode_elements: Final = msgspec.json.Decoder(list[Raw]).decode

_SHORTEST: Final = 6
"""The length of the shortest ref that is searched for: many strings begin with a shorter one."""

_SEARCHES: Final = 8
"""The number of searches that together take as long as indexing."""

# Each takes about 2 ms.
_BLOCKS_AT_ONCE: Final = 4

_ESCAPED: Final = frozenset('"\\')


class IndexNeededError(Exception):
    """A scan cannot answer, or takes longer than a lookup in the parsed index."""


class Scan(View):
    """The records of a large index, found by a search in its text.

    For programs that look up a few images, or list all of them once: parsing and indexing every
    record takes ten times as long as splitting the text into blocks, and half as much memory again.

    Lookups raise :exc:`IndexNeededError` where a search cannot answer, and after ``_SEARCHES``.

    :param texts: what :func:`.index.split` returned, so that no ID and no name has two spellings or
        two records
    """

    __slots__ = ("_last", "_searches", "texts")

    def __init__(self, texts: Sequence[bytes]) -> None:
        self.texts = texts
        self._searches = 0
        self._last: tuple[str, list[Record]] = "", []

    def record_of(self, image_id: str) -> Record | None:
        return self._first(image_id, lambda record: record.id == image_id)

    def known_ids(self, image_ids: Iterable[str]) -> set[str]:
        raise IndexNeededError

    def owner_of(self, name: str) -> str | None:
        record = self._first(name, lambda record: name in record.names)
        return None if record is None else record.id

    def ids_with_prefix(self, prefix: str, limit: int) -> Sequence[str]:
        found = (record.id for record in self._with(prefix) if record.id.startswith(prefix))
        return sorted(found)[:limit]

    def ids_with_digest(self, digest: str) -> Sequence[str]:
        raise IndexNeededError

    def is_damaged(self, image_id: str) -> bool:
        raise IndexNeededError

    def records(self) -> Iterator[Record]:
        raise IndexNeededError

    @property
    def images(self) -> tuple[Image, ...]:
        # A program that lists them again is better served by a catalog, which keeps them.
        if self._searches >= _SEARCHES:
            raise IndexNeededError
        self._searches = _SEARCHES
        images: list[Image | None] = []
        for text in yield_gil_every(self.texts, _BLOCKS_AT_ONCE):
            images += map(read_image, _decode_elements(text))
        return tuple([image for image in images if image is not None])

    def freeze(self) -> Catalog:
        raise IndexNeededError

    def _first(self, ref: str, matches: Callable[[Record], bool]) -> Record | None:
        return next(filter(matches, self._with(ref)), None)

    def _with(self, start: str) -> list[Record]:
        """Return the records in which a string begins with this text."""
        last, records = self._last
        if last != start:
            if len(start) < _SHORTEST or not _is_plain(start) or self._searches >= _SEARCHES:
                raise IndexNeededError
            self._searches += 1
            records = list(self._search(b'"' + start.encode()))
            self._last = start, records
        return records

    def _search(self, text: bytes) -> Iterator[Record]:
        for block in self.texts:
            if text in block:
                for raw in _decode_elements(block):
                    if text in bytes(raw) and (record := read(raw)) is not None:
                        yield record


def _is_plain(text: str) -> bool:
    """Return whether JSON spells a text as it is, except where it uses escapes without need."""
    return text.isprintable() and _ESCAPED.isdisjoint(text)
