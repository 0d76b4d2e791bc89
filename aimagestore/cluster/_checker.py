"""Looks a cluster's store through for what is missing, altered or left over."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from functools import partial
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

from .._core.digest import is_digest
from .._core.image import Image
from .._core.record import read
from .._core.report import Finding, FindingKind, Report
from .._engine.items import CHUNK, Source
from ..errors import DigestMismatchError
from .addresses import Bucket, Records
from .blobs import Blobs
from .connections import Connections
from .garbage import strays
from .lookups import PAGE
from .reader import BlobReader
from .schema import check_schema

_RECORDS = "SELECT place, id, record FROM images WHERE place > %s ORDER BY place LIMIT %s"

_RECORD = "SELECT id, record FROM images WHERE id = %s"

_OBJECTS = """
    SELECT image_id, key, blob FROM image_items WHERE removed IS NULL AND image_id = ANY(%s)
"""

_TOTAL = "SELECT coalesce(sum(size), 0)::bigint FROM image_items WHERE removed IS NULL"


class _Item(NamedTuple):
    """An item, and which object has its content, if the tables say so."""

    image: Image
    key: str
    blob: UUID | None


class ClusterCheck:
    """A check of a cluster's store; see :class:`aimagestore._engine.protocol.Examination`.

    What looks damaged is looked at again, for it may have been replaced meanwhile.

    :param grace: what was written since then is not left over yet
    """

    def __init__(self, records: Records, bucket: Bucket, grace: timedelta, *, verify: bool) -> None:
        self._connections = Connections(records)
        self._bucket = bucket
        self._grace = grace
        self._verify = verify
        self._findings: list[Finding] = []
        self._images = self._items = self._bytes = 0

    @property
    def report(self) -> Report:
        return Report(tuple(self._findings), self._images, self._items, self._bytes)

    def steps(self) -> Iterator[tuple[int, int]]:
        with closing(self._connections), ThreadPoolExecutor(1) as helpers:
            blobs = Blobs(self._bucket)
            name = self._connections.records.name
            self._connections.call(partial(check_schema, name=name))
            total = int(self._rows(_TOTAL)[0][0])
            for item in self._all_items():
                for size in self._look_at(item, blobs, helpers):
                    self._bytes += size
                    yield self._bytes, max(self._bytes, total)
            for page in strays(self._connections, blobs, self._grace):
                for blob in page:
                    path = blobs.path_of(blob)
                    self._findings.append(Finding(FindingKind.TEMPORARY_STALE, path=path))
                yield self._bytes, max(self._bytes, total)

    def _rows(self, question: LiteralString, *values: object) -> Sequence[tuple[Any, ...]]:
        return self._connections.call(lambda c: c.execute(question, values).fetchall())

    def _all_items(self) -> Iterator[_Item]:
        place = -1
        while rows := self._rows(_RECORDS, place, PAGE):
            place = rows[-1][0]
            self._images += len(rows)
            for item in self._items_of([row[1:] for row in rows]):
                self._items += 1
                yield item

    def _items_of(self, rows: Sequence[tuple[str, str]]) -> Iterator[_Item]:
        """The items of some records, of which those that cannot be read are told."""
        objects = {
            (image_id, key): blob
            for image_id, key, blob in self._rows(_OBJECTS, [image_id for image_id, _ in rows])
        }
        for image_id, text in rows:
            record = read(text.encode())
            if record is None:
                finding = Finding(FindingKind.RECORD_DAMAGED, image_id, detail=text[:100])
                self._findings.append(finding)
                continue
            for key in record.image.big_data_names:
                yield _Item(record.image, key, objects.get((image_id, key.encode())))

    def _look_at(self, item: _Item, blobs: Blobs, helpers: ThreadPoolExecutor) -> Iterator[int]:
        finding = yield from self._examine(item, blobs, helpers)
        if finding is None:
            return
        now = self._items_of(self._rows(_RECORD, item.image.id))
        again = next((other for other in now if other.key == item.key), None)
        if again is not None and again.blob != item.blob:
            finding = yield from self._examine(again, blobs, helpers)
        if again is not None and finding is not None:
            self._findings.append(finding)

    def _examine(
        self, item: _Item, blobs: Blobs, helpers: ThreadPoolExecutor
    ) -> Generator[int, None, Finding | None]:
        image, key, blob = item
        if blob is None:
            path = self._bucket.name
            return Finding(FindingKind.ITEM_MISSING, image.id, key, path, "it has no object")
        path = blobs.path_of(blob)
        try:
            file = BlobReader(blobs, blob)
        except FileNotFoundError:
            return Finding(FindingKind.ITEM_MISSING, image.id, key, path)
        digest = image.big_data_digests.get(key, "")
        expected = digest if self._verify and is_digest(digest) else None
        with Source(file, key, expected, helpers) as source:
            recorded = image.big_data_sizes.get(key, source.size)
            if source.size != recorded:
                is_short = source.size < recorded
                kind = FindingKind.ITEM_SHORT if is_short else FindingKind.ITEM_LONG
                detail = f"{source.size} bytes, {recorded} are recorded"
                return Finding(kind, image.id, key, path, detail)
            try:
                while expected is not None and (piece := source.read(CHUNK)):
                    yield len(piece)
            except DigestMismatchError as error:
                detail = f"its digest is {error.actual}, {error.expected} is recorded"
                return Finding(FindingKind.ITEM_ALTERED, image.id, key, path, detail)
        return None
