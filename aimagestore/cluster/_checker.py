"""Checks a cluster's store for what is missing, altered or garbage."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import closing
from functools import partial
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

from .._core.digest import is_digest
from .._core.image import Image
from .._core.record import read
from .._core.report import Finding, FindingKind, Report
from .._engine.items import CHUNK, Source
from .._engine.lock import AnyLine
from .._engine.protocol import Steps
from .._engine.workers import WorkerPool
from ..errors import DigestMismatchError
from ._addresses import BucketAddress, DatabaseAddress
from ._blob_reader import BlobReader
from ._blobs import Blobs
from ._garbage import orphans
from ._identity import Identity
from ._lookups import PAGE
from ._schema import check_schema
from ._sessions import Sessions

_RECORDS = "SELECT place, id, record FROM images WHERE place > %s ORDER BY place LIMIT %s"

_RECORD = "SELECT id, record FROM images WHERE id = %s"

_OBJECTS = """
    SELECT image_id, key, blob FROM image_items WHERE removed IS NULL AND image_id = ANY(%s)
"""

_TOTAL = "SELECT coalesce(sum(size), 0)::bigint FROM image_items WHERE removed IS NULL"


class _Item(NamedTuple):
    """An item, and the object with its content, if the tables have one."""

    image: Image
    key: str
    blob: UUID | None


class ClusterChecker:
    """Checks a cluster's store; see :class:`aimagestore._engine.protocol.Checker`.

    What looks damaged is checked again, because it may have been replaced meanwhile.
    """

    def __init__(
        self,
        database: DatabaseAddress,
        bucket: BucketAddress,
        *,
        deadline: float,
        verify: bool,
    ) -> None:
        self._database = database
        self._bucket = bucket
        self._deadline = deadline
        self._verify = verify
        self._findings: list[Finding] = []
        self._images = self._items = self._bytes = 0

    def join_lock(self) -> AnyLine | None:
        """``None``: each query is of one commit, so nothing needs a recheck under the lock."""
        return None

    def recheck(self) -> Steps[Report]:
        yield from ()
        return self._report()

    def _report(self) -> Report:
        return Report(tuple(self._findings), self._images, self._items, self._bytes)

    def steps(self) -> Steps[Report]:
        self._sessions = Sessions(self._database, self._deadline)
        helpers = WorkerPool(1, "aimagestore helper")
        try:
            with closing(self._sessions):
                blobs = Blobs(self._bucket, self._deadline)
                self._sessions.call(partial(check_schema, name=self._database.name))
                Identity(self._sessions, blobs).check(writes=False)
                total = int(self._rows(_TOTAL)[0][0])
                for item in self._all_items():
                    for size in self._check_item(item, blobs, helpers):
                        self._bytes += size
                        yield self._bytes, max(self._bytes, total)
                for page in orphans(self._sessions, blobs):
                    for blob in page:
                        path = blobs.path_of(blob)
                        self._findings.append(Finding(FindingKind.TEMPORARY_STALE, path=path))
                    yield self._bytes, max(self._bytes, total)
        finally:
            helpers.shutdown()
        return self._report()

    def _rows(self, statement: LiteralString, *values: object) -> Sequence[tuple[Any, ...]]:
        return self._sessions.call(lambda s: s.execute(statement, values).fetchall())

    def _all_items(self) -> Iterator[_Item]:
        place = -1
        while rows := self._rows(_RECORDS, place, PAGE):
            place = rows[-1][0]
            self._images += len(rows)
            for item in self._items_of([row[1:] for row in rows]):
                self._items += 1
                yield item

    def _items_of(self, rows: Sequence[tuple[str, str]]) -> Iterator[_Item]:
        """Iterate over the items of some records, and report damaged records."""
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

    def _check_item(self, item: _Item, blobs: Blobs, helpers: Executor) -> Iterator[int]:
        finding = yield from self._compare(item, blobs, helpers)
        if finding is None:
            return
        now = self._items_of(self._rows(_RECORD, item.image.id))
        again = next((other for other in now if other.key == item.key), None)
        if again is not None and again.blob != item.blob:
            finding = yield from self._compare(again, blobs, helpers)
        if again is not None and finding is not None:
            self._findings.append(finding)

    def _compare(
        self, item: _Item, blobs: Blobs, helpers: Executor
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
