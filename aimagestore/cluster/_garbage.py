"""Collects garbage: objects that no image has any more or never had, and changes that are too old.

An object is removed in steps, so that the lock is never held while the object store is at work,
and so that a collection can stop anywhere:

1. Under the lock, an orphan object gets a *tombstone*: a row in ``image_items`` without an image.
   If all items of an object were replaced or deleted, a tombstone replaces their rows. From now on,
   a commit that refers to the object fails.
2. Without the lock, the object is removed. A collection that stopped before is continued here.
3. The tombstone is removed. That of an orphan object stays much longer, until no store can have the
   data staged.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, LiteralString
from uuid import UUID, uuid4

import psycopg

from .._core.report import Finding, FindingKind, Report
from .._engine.lock import AnyGrant
from .._engine.protocol import Removal, Steps
from ._blobs import Blobs, Marker
from ._identity import Identity
from ._sessions import Session, Sessions
from ._writing import FORGOTTEN_AT_ONCE, prune

logger = logging.getLogger("aimagestore")

# How long a commit that refers to a removed object fails because of its tombstone. Data that was
# staged more than a minute ago is also looked for in the bucket.
_TOMBSTONES_KEPT = timedelta(days=60)

# Objects that are condemned in one hold of the lock.
_AT_ONCE = 200

# Of several items that had one object, the last one.
_REMOVED = """
    SELECT removed, blob, image_id, key, size FROM image_items i
    WHERE image_id <> '' AND (removed, blob) > (%s, %s)
        AND removed < clock_timestamp() - (SELECT grace_period FROM image_store)
        AND NOT EXISTS (SELECT FROM image_items l WHERE l.blob = i.blob AND l.removed IS NULL)
        AND NOT EXISTS (SELECT FROM image_items l WHERE l.blob = i.blob AND l.removed > i.removed)
        AND NOT EXISTS (
            SELECT FROM image_items l WHERE l.blob = i.blob AND l.removed = i.removed
                AND (l.image_id, l.key) > (i.image_id, i.key)
        )
    ORDER BY removed, blob LIMIT %s
"""

_CONDEMN_REMOVED = """
    WITH removed AS (
        DELETE FROM image_items i WHERE blob = ANY(%s) AND image_id <> ''
            AND NOT EXISTS (SELECT FROM image_items l WHERE l.blob = i.blob AND l.removed IS NULL)
            AND NOT EXISTS (
                SELECT FROM image_items l WHERE l.blob = i.blob AND l.removed
                    >= (SELECT clock_timestamp() - grace_period FROM image_store)
            )
        RETURNING blob, size
    )
    INSERT INTO image_items (blob, image_id, key, size, removed)
    SELECT blob, '', 'replaced', max(size), clock_timestamp() FROM removed GROUP BY blob
    RETURNING blob
"""

# Rows of earlier items, if other items have the object still.
_FORGET_REMOVED = """
    DELETE FROM image_items WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM image_items i
        WHERE image_id <> ''
            AND removed < clock_timestamp() - (SELECT grace_period FROM image_store)
            AND EXISTS (SELECT FROM image_items l WHERE l.blob = i.blob AND l.removed IS NULL)
        LIMIT %s
    ))
"""

_OLDEST = "SELECT coalesce(%s, clock_timestamp()) - grace_period FROM image_store"

_UNKNOWN = """
    SELECT u.blob FROM unnest(%s::uuid[]) AS u (blob)
    WHERE NOT EXISTS (SELECT FROM image_items i WHERE i.blob = u.blob)
"""

# The key of a tombstone is 'replaced' for the object of earlier items. For an orphan object, it is
# 'pending' until that is removed.
_ADD_TOMBSTONES = """
    INSERT INTO image_items (blob, image_id, key, size, removed)
    SELECT u.blob, '', 'pending', u.size, clock_timestamp()
    FROM unnest(%s::uuid[], %s::bigint[]) AS u (blob, size)
    WHERE NOT EXISTS (SELECT FROM image_items i WHERE i.blob = u.blob)
    RETURNING blob, size
"""

_PENDING = """
    SELECT blob FROM image_items
    WHERE removed IS NOT NULL AND image_id = '' AND key <> 'removed' LIMIT %s
"""

_SET_REMOVED = """
    UPDATE image_items SET key = 'removed'
    WHERE image_id = '' AND key = 'pending' AND blob = ANY(%s)
"""

_FORGET_REPLACED = """
    DELETE FROM image_items WHERE image_id = '' AND key = 'replaced' AND blob = ANY(%s)
"""

_FORGET_TOMBSTONES = """
    DELETE FROM image_items WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM image_items
        WHERE image_id = '' AND key = 'removed' AND removed < clock_timestamp()
            - (SELECT greatest(grace_period, %s) FROM image_store)
        LIMIT %s
    ))
"""

_NO_BLOB = UUID(int=0)


def orphans(
    sessions: Sessions, blobs: Blobs, now: datetime | None = None
) -> Iterator[Mapping[UUID, int]]:
    """Iterate over pages of objects that are older than the grace period and in no row.

    Each page maps objects to their sizes.

    :param now: the present time by the object store's clock, which has stamped the objects;
        ``None`` to use the database's clock, which is good enough for a report
    """
    ((oldest,),) = sessions.rows(_OLDEST, [now])
    for page in blobs.pages():
        old = {blob.id: blob.size for blob in page if blob.written < oldest}
        if old:
            yield {blob: old[blob] for (blob,) in sessions.rows(_UNKNOWN, [list(old)])}


class Garbage:
    """Finds garbage and removes it, once it is older than the grace period."""

    def __init__(self, sessions: Sessions, blobs: Blobs, identity: Identity) -> None:
        self._sessions = sessions
        self._blobs = blobs
        self._identity = identity

    def pieces(self, *, dry_run: bool) -> Iterator[Removal]:
        """Iterate over the removals of pieces, to be called under the lock.

        The next piece is asked for without the lock, and removes the objects of the one before.
        """
        marker, token = self._identity.check(writes=True), None if dry_run else uuid4()
        begun: list[bool] = []
        yield partial(self._begin, marker, token, begun)
        if token is not None and begun:
            marker = self._identity.mark_collection(marker, token)
        if begun == [True]:
            if not dry_run:
                self._remove_pending()
            yield from self._removed_items(dry_run=dry_run)
            yield from self._orphans(None if dry_run else marker.written, dry_run=dry_run)
        else:
            logger.warning(
                "nothing is collected at %s until the grace period has passed since the store was "
                "adopted, or the database server was promoted",
                self._blobs.name,
            )
        if not dry_run:
            yield from self._forget_all()
        yield partial(self._end, None if dry_run else marker)

    def _begin(
        self, marker: Marker, token: UUID | None, begun: list[bool], grant: AnyGrant
    ) -> Steps[Report]:
        """Begin a collection, and add to ``begun`` whether anything may be collected."""
        session: Session = grant.held.session
        try:
            may_collect = self._identity.begin_collection(session, marker, token)
            session.execute("COMMIT")
        except psycopg.Error as error:
            raise self._sessions.unavailable(error) from error
        begun.append(may_collect)
        yield 0, 0
        return Report()

    def _removed_items(self, *, dry_run: bool) -> Iterator[Removal]:
        after: tuple[object, UUID] = ("-infinity", _NO_BLOB)
        while rows := self._sessions.rows(_REMOVED, [*after, _AT_ONCE]):
            after = rows[-1][0], rows[-1][1]
            if dry_run:
                yield partial(_forecast, self._items_report(rows))
            else:
                condemned: list[UUID] = []
                yield partial(self._condemn_items, rows, condemned)
                self._remove(condemned)

    def _condemn_items(
        self, rows: Sequence[tuple[Any, ...]], condemned: list[UUID], grant: AnyGrant
    ) -> Steps[Report]:
        """Replace the rows of items by tombstones, unless another item has the object by now.

        :param condemned: gets the objects to remove
        """
        blobs = [row[1] for row in rows]
        condemned += (row[0] for row in self._execute_held(grant, _CONDEMN_REMOVED, [blobs]))
        yield len(condemned), len(condemned)
        return self._items_report([row for row in rows if row[1] in condemned])

    def _items_report(self, rows: Sequence[tuple[Any, ...]]) -> Report:
        findings = tuple(self._item_finding(*row[1:4]) for row in rows)
        return Report(findings, bytes=sum(row[4] for row in rows))

    def _orphans(self, now: datetime | None, *, dry_run: bool) -> Iterator[Removal]:
        for page in orphans(self._sessions, self._blobs, now):
            found = list(page.items())
            for start in range(0, len(found), _AT_ONCE):
                piece = dict(found[start : start + _AT_ONCE])
                if dry_run:
                    yield partial(_forecast, self._orphan_report(piece))
                else:
                    condemned: list[UUID] = []
                    yield partial(self._condemn_orphans, piece, condemned)
                    self._remove(condemned)

    def _condemn_orphans(
        self, piece: Mapping[UUID, int], condemned: list[UUID], grant: AnyGrant
    ) -> Steps[Report]:
        """Add the tombstones of orphan objects, unless a commit refers to them by now.

        :param condemned: gets the objects to remove
        """
        values = [list(piece), list(piece.values())]
        rows = self._execute_held(grant, _ADD_TOMBSTONES, values)
        condemned += [row[0] for row in rows]
        yield len(rows), len(rows)
        return self._orphan_report(dict(rows))

    def _execute_held(
        self, grant: AnyGrant, statement: LiteralString, values: Sequence[object]
    ) -> list[tuple[Any, ...]]:
        """Execute a statement under the lock, and commit it."""
        session: Session = grant.held.session
        try:
            rows = session.rows(statement, values)
            session.execute("COMMIT")
        except psycopg.Error as error:
            raise self._sessions.unavailable(error) from error
        return rows

    def _remove_pending(self) -> None:
        """Remove the objects that earlier collections condemned but did not remove."""
        while rows := self._sessions.rows(_PENDING, [_AT_ONCE]):
            self._remove([row[0] for row in rows])

    def _remove(self, condemned: Sequence[UUID]) -> None:
        """Remove objects, if the prefix is still this store's, and the database did not go back."""
        if not condemned:
            return
        self._identity.check(writes=True)
        self._blobs.delete(condemned)

        def note(session: Session) -> None:
            session.execute(_SET_REMOVED, [list(condemned)])
            session.execute(_FORGET_REPLACED, [list(condemned)])

        self._sessions.call(note)

    def _forget_all(self) -> Iterator[Removal]:
        """Iterate over the removals of old rows, some at a time, until there are no more."""
        forgotten = [FORGOTTEN_AT_ONCE]
        while forgotten.pop() >= FORGOTTEN_AT_ONCE:
            yield partial(self._forget, forgotten)

    def _forget(self, forgotten: list[int], grant: AnyGrant) -> Steps[Report]:
        """Forget old commits, items and tombstones.

        :param forgotten: gets the number of rows, of the kind that had the most
        """
        session: Session = grant.held.session
        limit = FORGOTTEN_AT_ONCE
        try:
            commits = prune(session)
            items = session.execute(_FORGET_REMOVED, [limit]).rowcount
            tombstones = session.execute(_FORGET_TOMBSTONES, [_TOMBSTONES_KEPT, limit]).rowcount
            session.execute("COMMIT")
        except psycopg.Error as error:
            raise self._sessions.unavailable(error) from error
        forgotten.append(max(commits, items, tombstones))
        yield 0, 0
        return Report()

    def _end(self, marker: Marker | None, grant: AnyGrant) -> Steps[Report]:
        """Count the images, and end a collection.

        :param marker: the marker that has the collection; ``None`` for a dry run
        """
        session: Session = grant.held.session
        try:
            if marker is not None:
                self._identity.forget_collections(session, marker)
            ((images,),) = session.rows("SELECT images FROM image_store")
            session.execute("COMMIT")
        except psycopg.Error as error:
            raise self._sessions.unavailable(error) from error
        yield 0, 0
        return Report(images=images)

    def _item_finding(self, blob: UUID, image_id: str, key: bytes) -> Finding:
        path = self._blobs.path_of(blob)
        detail = "the item was replaced or deleted"
        return Finding(FindingKind.ITEM_UNLISTED, image_id, key.decode(), path, detail)

    def _orphan_report(self, piece: Mapping[UUID, int]) -> Report:
        detail = "no image has had it"
        findings = (
            Finding(FindingKind.TEMPORARY_STALE, path=self._blobs.path_of(blob), detail=detail)
            for blob in piece
        )
        return Report(tuple(findings), bytes=sum(piece.values()))


def _forecast(report: Report, grant: AnyGrant) -> Steps[Report]:
    """Report what would be removed, which needs no lock."""
    yield len(report.findings), len(report.findings)
    return report
