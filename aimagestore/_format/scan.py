"""Lookups in a large index of which only the IDs and names were read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Final, TypeVar

import msgspec
from msgspec import Raw

from .._core.catalog import Catalog
from .._core.image import Image
from .._core.record import Record, read, read_images
from .._core.view import View
from .index import Summary, Text, summaries
from .pacing import yield_gil_every

T = TypeVar("T")

_decode_elements: Final = msgspec.json.Decoder(list[Raw]).decode
_decode_summaries: Final = msgspec.json.Decoder(list[Summary]).decode

_LOOKUPS: Final = 8
"""The number of lookups that together take as long as parsing and indexing everything."""

_PARTS: Final = 256
"""Into how many sets IDs and names are divided: one that grew large would block other threads."""

# Each takes about 2 ms.
_RUNS_AT_ONCE: Final = 4

ReadAt = Callable[[int, int], bytes]
"""Reads as many bytes of the index as its first parameter says, from an offset on."""


class IndexNeededError(Exception):
    """A scan cannot answer, or takes longer than a lookup in the parsed index."""


class Run(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A run of records in the file of an index.

    Each has a table of its own. Freeing a large one would have the C library keep, from then on,
    what the indexes of a catalog free while they grow.
    """

    offset: int
    size: int
    ids: frozenset[str]
    names: frozenset[str]


class Scan:
    """Where the records of an index are in its file.

    For programs that look up a few images, or list all of them once: parsing and indexing every
    record takes several times as long, and the memory of the whole text.

    :ivar text: what was scanned, to be parsed with the same buffer; ``None`` if it is not kept
    :ivar runs: the runs of records
    :ivar lookups: how many lookups there were in it
    """

    __slots__ = ("lookups", "runs", "text")

    def __init__(self, text: Text | None = None, lookups: int = 0) -> None:
        self.text = text
        self.runs: list[Run] = []
        self.lookups = lookups

    @classmethod
    def of(cls, text: Text) -> Scan | None:
        """Scan an index; ``None`` unless it is an array of objects with different IDs and names."""
        scan = cls(text)
        all_ids: list[set[str]] = [set() for _ in range(_PARTS)]
        all_names: list[set[str]] = [set() for _ in range(_PARTS)]
        number = 0
        try:
            for offset, found in summaries(text):
                ids = [summary.id for summary in found]
                names = [name for summary in found for name in summary.names or ()]
                for image_id in ids:
                    all_ids[hash(image_id) % _PARTS].add(image_id)
                for name in names:
                    all_names[hash(name) % _PARTS].add(name)
                number += len(ids) + len(names)
                size = text.offset - offset
                scan.runs.append(Run(offset, size, frozenset(ids), frozenset(names)))
        except (ValueError, RecursionError):
            return None
        return scan if sum(map(len, chain(all_ids, all_names))) == number else None

    def reading(self, read_at: ReadAt) -> View:
        """Return a view for one lookup, which reads the file.

        :raises IndexNeededError: when there were many lookups before
        """
        if self.lookups >= _LOOKUPS:
            raise IndexNeededError
        self.lookups += 1
        return _ScannedView(self, read_at)


NO_SCAN: Final = Scan(lookups=_LOOKUPS)
"""Stands for a scan in which there were too many lookups."""


class _ScannedView(View):
    """The records of a scanned index. Raises :exc:`IndexNeededError` where it cannot answer."""

    __slots__ = ("_read_at", "_run", "_scan", "_text")

    def __init__(self, scan: Scan, read_at: ReadAt) -> None:
        self._scan = scan
        self._read_at = read_at
        self._run: Run | None = None
        self._text = b""

    def record_of(self, image_id: str) -> Record | None:
        return self._find(lambda run: image_id in run.ids, lambda found: found.id == image_id)

    def known_ids(self, image_ids: Iterable[str]) -> set[str]:
        raise IndexNeededError

    def owner_of(self, name: str) -> str | None:
        record = self._find(
            lambda run: name in run.names, lambda found: name in (found.names or ())
        )
        return None if record is None else record.id

    def ids_with_prefix(self, prefix: str, limit: int) -> Sequence[str]:
        if not prefix:
            return ()
        ids = chain.from_iterable(run.ids for run in self._scan.runs)
        found = sorted(image_id for image_id in ids if image_id.startswith(prefix))
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
        images: list[Image] = []
        for run in yield_gil_every(self._scan.runs, _RUNS_AT_ONCE):
            images += self._decoded(run, read_images)
        return tuple(images)

    def freeze(self) -> Catalog:
        raise IndexNeededError

    def _find(
        self, has: Callable[[Run], bool], matches: Callable[[Summary], bool]
    ) -> Record | None:
        """Return the record that matches; ``None`` if there is none, or if it is damaged."""
        run = next(filter(has, self._scan.runs), None)
        if run is None:
            return None
        elements = self._decoded(run, _decode_elements)
        for found, element in zip(self._decoded(run, _decode_summaries), elements, strict=True):
            if matches(found):
                return read(element)
        raise IndexNeededError

    def _decoded(self, run: Run, decode: Callable[[bytes], list[T]]) -> list[T]:
        if run is not self._run:
            self._text = b"[%b]" % self._read_at(run.size, run.offset)
            self._run = run
        try:
            return decode(self._text)
        except (ValueError, RecursionError):  # altered since the scan, in place
            raise IndexNeededError from None
