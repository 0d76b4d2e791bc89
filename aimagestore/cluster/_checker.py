"""Checks a cluster's store for what is missing, altered or garbage, and for damaged tables."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

import psycopg

from .._core.digest import digest_of, hasher, is_digest
from .._core.image import Image
from .._core.report import Finding, FindingKind, Report
from .._engine.items import CHUNK, Source
from .._engine.lock import AnyLine
from .._engine.protocol import Steps
from .._engine.workers import WorkerPool
from ..errors import DigestMismatchError
from ._addresses import BucketAddress, DatabaseAddress
from ._blob_reader import BlobReader
from ._blobs import Blobs, NotPermittedError
from ._garbage import orphans
from ._identity import Identity
from ._lookups import PAGE
from ._schema import check_schema
from ._sessions import Sessions
from ._tables import Tables, readable

_RECORDS = "SELECT place, id, record FROM images WHERE place > %s ORDER BY place LIMIT %s"

_RECORD = "SELECT id, record FROM images WHERE id = %s"

_OBJECTS = """
    SELECT image_id, key, blob, EXISTS (
        SELECT FROM image_items o
        WHERE o.blob = i.blob AND o.removed IS NULL AND (o.image_id, o.key) <> (i.image_id, i.key)
    ) FROM image_items i WHERE removed IS NULL AND image_id = ANY(%s)
"""

# Objects that may have the content of missing items: those of replaced or deleted items, which stay
# for the grace period, those of items with the same digest, and those of unlisted items.
_CANDIDATES = """
    SELECT DISTINCT blob, size FROM image_items
    WHERE (removed > clock_timestamp() - (SELECT grace_period FROM image_store)
        OR removed IS NULL AND digest = ANY(%s) OR blob = ANY(%s))
        AND image_id <> '' AND size = ANY(%s)
"""

_TOTAL = "SELECT coalesce(sum(size), 0)::bigint FROM image_items WHERE removed IS NULL"

# With the digest, so that a repair can tell whether the record still describes this content.
_FOUND = "it has no object, but this one has its content: {}"


class _Item(NamedTuple):
    """An item, and its object.

    :ivar blob: the object; ``None`` if the table has none
    :ivar is_shared: whether other items have that object too
    """

    image: Image
    key: str
    blob: UUID | None
    is_shared: bool = False


class ClusterChecker:
    """Checks a cluster's store; see :class:`aimagestore._engine.protocol.Checker`.

    The tables are compared as they are at one moment. An item that looks damaged is checked again,
    because it may have been replaced meanwhile. If the object of an item is missing, another object
    with its content is looked for.
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
        # The positions of the findings of missing items, by their size and digest.
        self._missing: dict[tuple[int, str], list[int]] = {}
        # Intact objects of several items, with their digests, so that each is read once.
        self._intact: set[tuple[UUID, str]] = set()
        self._not_read = 0
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
                ((total,),) = self._sessions.rows(_TOTAL)
                for size in self._read_everything(blobs, helpers):
                    self._bytes += size
                    done = self._bytes + self._not_read
                    yield done, max(done, total)
        finally:
            helpers.shutdown()
        return self._report()

    def _read_everything(self, blobs: Blobs, helpers: Executor) -> Iterator[int]:
        """Check everything; yield how many bytes each step has read."""
        yield from self._compare_tables(blobs)
        for item in self._all_items():
            yield from self._check_item(item, blobs, helpers)
        if self._missing:
            found = [f for f in self._findings if f.kind is FindingKind.ITEM_UNLISTED]
            unlisted = [blobs.id_in(finding.path) for finding in found]
            sizes, digests = zip(*self._missing, strict=True)
            rows = self._sessions.rows(_CANDIDATES, [list(digests), unlisted, list(sizes)])
            yield from self._match(dict(rows), blobs)
        try:
            for page in orphans(self._sessions, blobs):
                for blob in page:
                    path = blobs.path_of(blob)
                    self._findings.append(Finding(FindingKind.TEMPORARY_STALE, path=path))
                yield from self._match(page, blobs)
        except NotPermittedError as error:
            detail = f"orphan objects are not looked for: {error}"
            self._findings.append(
                Finding(FindingKind.ITEM_UNREADABLE, path=blobs.name, detail=detail)
            )

    def _compare_tables(self, blobs: Blobs) -> Iterator[int]:
        session = None
        try:
            session = self._sessions.acquire(self._sessions.end_of_call())
            session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            for page in Tables(session, blobs.path_of, self._deadline).differences():
                self._findings += [difference.finding for difference in page]
                yield 0
            session.execute("ROLLBACK")
        except psycopg.Error as error:
            raise self._sessions.unavailable(error) from error
        finally:
            if session is not None:
                self._sessions.release(session)

    def _match(self, candidates: Mapping[UUID, int], blobs: Blobs) -> Iterator[int]:
        """Look for the contents of missing items in other objects.

        :param candidates: the sizes of objects, by object
        """
        sizes = {size for size, _ in self._missing}
        for blob in [blob for blob, size in candidates.items() if size in sizes]:
            state = hasher()
            try:
                with BlobReader(blobs, blob) as file:
                    while piece := file.read(CHUNK):
                        state.update(piece)
                        yield len(piece)
            except FileNotFoundError:
                continue  # collected meanwhile
            digest = digest_of(state)
            path, detail = blobs.path_of(blob), _FOUND.format(digest)
            for place in self._missing.pop((candidates[blob], digest), ()):
                self._findings[place] = replace(self._findings[place], path=path, detail=detail)

    def _all_items(self) -> Iterator[_Item]:
        place = -1
        while rows := self._sessions.rows(_RECORDS, [place, PAGE]):
            place = rows[-1][0]
            self._images += len(rows)
            for item in self._items_of([row[1:] for row in rows]):
                self._items += 1
                yield item

    def _items_of(self, rows: Sequence[tuple[Any, ...]]) -> Iterator[_Item]:
        """Iterate over the items of some records, and report damaged records."""
        ids = [image_id for image_id, _ in rows]
        objects = {
            (image_id, key): (blob, is_shared)
            for image_id, key, blob, is_shared in self._sessions.rows(_OBJECTS, [ids])
        }
        for image_id, text in rows:
            record = readable(image_id, text)
            if record is None:
                finding = Finding(FindingKind.RECORD_DAMAGED, image_id, detail=text[:100])
                self._findings.append(finding)
                continue
            for key in record.image.big_data_names:
                blob, is_shared = objects.get((image_id, key.encode()), (None, False))
                yield _Item(record.image, key, blob, is_shared)

    def _check_item(self, item: _Item, blobs: Blobs, helpers: Executor) -> Iterator[int]:
        """Check an item, again if it was replaced meanwhile."""
        finding = yield from self._compare(item, blobs, helpers)
        if finding is None:
            return
        now = self._items_of(self._sessions.rows(_RECORD, [item.image.id]))
        again = next((other for other in now if other.key == item.key), None)
        if again is not None and again.blob != item.blob:
            finding = yield from self._compare(again, blobs, helpers)
        if again is None or finding is None:
            return
        if finding.kind is FindingKind.ITEM_MISSING:
            image, key = again.image, again.key
            content = image.big_data_sizes.get(key, -1), image.big_data_digests.get(key, "")
            self._missing.setdefault(content, []).append(len(self._findings))
        self._findings.append(finding)

    def _compare(
        self, item: _Item, blobs: Blobs, helpers: Executor
    ) -> Generator[int, None, Finding | None]:
        """Compare an object with the record; return what is wrong with it."""
        image, key, blob, is_shared = item
        if blob is None:
            path = self._bucket.name
            return Finding(FindingKind.ITEM_MISSING, image.id, key, path, "it has no object")
        path = blobs.path_of(blob)
        try:
            file = BlobReader(blobs, blob)
        except FileNotFoundError:
            return Finding(FindingKind.ITEM_MISSING, image.id, key, path)
        except NotPermittedError as error:
            return Finding(FindingKind.ITEM_UNREADABLE, image.id, key, path, str(error))
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
                if (blob, expected) in self._intact:
                    self._not_read += source.size
                    yield 0
                elif expected is not None:
                    while piece := source.read(CHUNK):
                        yield len(piece)
                    if is_shared:
                        self._intact.add((blob, expected))
            except DigestMismatchError as error:
                detail = f"its digest is {error.actual}, {error.expected} is recorded"
                return Finding(FindingKind.ITEM_ALTERED, image.id, key, path, detail)
        return None
