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
"""Into how many sets hashes are divided.

One that grew large would block other threads, and freeing it would have the C library keep, from
then on, what the indexes of a catalog free while they grow.
"""

# Each takes about 2 ms.
_RUNS_AT_ONCE: Final = 4

ReadAt = Callable[[int, int], bytes]
"""Reads as many bytes of the index as its first parameter says, from an offset on."""


class IndexNeededError(Exception):
    """A scan cannot answer, or takes longer than a lookup in the parsed index."""


class Run(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A run of records in the file of an index.

    IDs and names are lines of two texts, which are searched: an object for each would take more
    memory, and more time to allocate it than a few searches take.

    :ivar ids: the IDs, with a line break before and after each
    :ivar names: the names, likewise
    """

    offset: int
    size: int
    ids: str
    names: str


def _lines(texts: Sequence[str]) -> str:
    """Return texts with a line break before and after each.

    :raises ValueError: one of them has a line break
    """
    lines = "\n".join(("", *texts, ""))
    if lines.count("\n") != len(texts) + 1:
        raise ValueError("a line break in an ID or a name")
    return lines


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
        """Scan an index; ``None`` unless it is an array of objects with IDs and different names.

        An ID that two objects have is noticed when it is looked up. No ID and no name may have a
        line break.
        """
        scan = cls(text)
        # Two names with one hash have the index parsed, which then finds them different.
        hashes: list[set[int]] = [set() for _ in range(_PARTS)]
        number = 0
        try:
            for offset, found in summaries(text):
                names = [name for summary in found for name in summary.names or ()]
                for hashed in map(hash, names):
                    hashes[hashed % _PARTS].add(hashed)
                number += len(names)
                ids = [summary.id for summary in found]
                size = text.offset - offset
                scan.runs.append(Run(offset, size, _lines(ids), _lines(names)))
        except (ValueError, RecursionError):
            return None
        return scan if sum(map(len, hashes)) == number else None

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
        runs = [run for run in self._scan.runs if f"\n{image_id}\n" in run.ids]
        return self._find(runs, lambda found: found.id == image_id)

    def known_ids(self, image_ids: Iterable[str]) -> set[str]:
        raise IndexNeededError

    def owner_of(self, name: str) -> str | None:
        runs = [run for run in self._scan.runs if f"\n{name}\n" in run.names]
        record = self._find(runs, lambda found: name in (found.names or ()))
        # Another record with its ID would count instead of it, if that is the later one.
        return None if record is None or self.record_of(record.id) is None else record.id

    def ids_with_prefix(self, prefix: str, limit: int) -> Sequence[str]:
        if not prefix:
            return ()
        runs = [run for run in self._scan.runs if f"\n{prefix}" in run.ids]
        ids = chain.from_iterable(run.ids.split("\n") for run in runs)
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
        ids: set[str] = set()
        for run in yield_gil_every(self._scan.runs, _RUNS_AT_ONCE):
            found = self._decoded(run, read_images)
            images += found
            ids.update(image.id for image in found)
        if len(ids) != len(images):
            raise IndexNeededError
        return tuple(images)

    def freeze(self) -> Catalog:
        raise IndexNeededError

    def _find(self, runs: Sequence[Run], matches: Callable[[Summary], bool]) -> Record | None:
        """Return the record that matches; ``None`` if there is none, or if it is damaged.

        :param runs: the runs with records that match
        """
        if not runs:
            return None
        elements = self._decoded(runs[0], _decode_elements)
        summaries = self._decoded(runs[0], _decode_summaries)
        found = [e for e, summary in zip(elements, summaries, strict=True) if matches(summary)]
        if len(runs) > 1 or len(found) != 1:
            raise IndexNeededError
        return read(found[0])

    def _decoded(self, run: Run, decode: Callable[[bytes], list[T]]) -> list[T]:
        if run is not self._run:
            # Formatting would grow and shrink a piece of memory, whose pages the kernel clears.
            self._text = b"".join((b"[", self._read_at(run.size, run.offset), b"]"))
            self._run = run
        try:
            return decode(self._text)
        except (ValueError, RecursionError):  # altered since the scan, in place
            raise IndexNeededError from None
