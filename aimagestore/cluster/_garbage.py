"""Objects that no image has any more, or never had; and commits too old to be told of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID

import psycopg

from .._core.report import Finding, FindingKind, Report
from .._engine.protocol import Progress, Removal
from .blobs import Blobs
from .connections import Connection, Connections
from .lock import ClusterLock
from .writing import prune

# Removed with the lock held, which others wait for.
_AT_ONCE = 200

_REMOVED = """
    SELECT blob FROM image_items WHERE removed < clock_timestamp() - %s ORDER BY removed LIMIT %s
"""

_UNKNOWN = """
    SELECT u.blob FROM unnest(%s::uuid[]) AS u (blob)
    WHERE NOT EXISTS (SELECT FROM image_items i WHERE i.blob = u.blob)
"""

_STILL_GARBAGE = """
    SELECT u.blob, i.image_id, i.key, i.size FROM unnest(%s::uuid[]) AS u (blob)
    LEFT JOIN image_items i ON i.blob = u.blob
    WHERE i.blob IS NULL OR i.removed < clock_timestamp() - %s
"""


def strays(
    connections: Connections, blobs: Blobs, grace: timedelta
) -> Iterator[Mapping[UUID, int]]:
    """Objects older than ``grace`` that never were an item's content, and their sizes."""
    before = datetime.now(UTC) - grace
    for page in blobs.pages():
        old = {blob.id: blob.size for blob in page if blob.written < before}
        rows = connections.call(partial(_unknown, list(old)))
        yield {blob: old[blob] for (blob,) in rows}


def _unknown(blobs: Sequence[UUID], connection: Connection) -> Sequence[tuple[UUID]]:
    return connection.execute(_UNKNOWN, [blobs]).fetchall()


class Garbage:
    """Looks for garbage, and removes it under the lock.

    An object is garbage when it was written, or ceased to be an item's content, longer ago than
    ``grace``: what is younger may be on its way into a commit, or be read.
    """

    def __init__(self, lock: ClusterLock, blobs: Blobs, grace: timedelta) -> None:
        self._lock = lock
        self._blobs = blobs
        self._grace = grace

    def pieces(self) -> Iterator[Removal]:
        """Find it, and give the removal of each piece."""
        while removed := self._lock.connections.call(self._removed):
            yield self._removal(partial(self._remove, dict.fromkeys(removed, 0)))
        for page in strays(self._lock.connections, self._blobs, self._grace):
            stray = list(page.items())
            for start in range(0, len(stray), _AT_ONCE):
                piece = dict(stray[start : start + _AT_ONCE])
                yield self._removal(partial(self._remove, piece))
        yield self._removal(self._forget_commits)

    def _removal(self, work: Removal) -> Removal:
        """The same, raising the library's errors."""

        def remove(progress: Progress) -> Report:
            try:
                return work(progress)
            except psycopg.Error as error:
                raise self._lock.connections.unavailable(error) from error

        return remove

    def _removed(self, connection: Connection) -> Sequence[UUID]:
        rows = connection.execute(_REMOVED, [self._grace, _AT_ONCE])
        return [row[0] for row in rows]

    def _remove(self, suspects: Mapping[UUID, int], progress: Progress) -> Report:
        connection = self._lock.connection
        rows = connection.execute(_STILL_GARBAGE, [list(suspects), self._grace]).fetchall()
        blobs = [row[0] for row in rows]
        self._blobs.delete(blobs)
        connection.execute("DELETE FROM image_items WHERE blob = ANY(%s)", [blobs])
        connection.execute("COMMIT")
        progress(len(rows), len(rows))
        freed = sum(size or suspects[blob] for blob, _, _, size in rows)
        return Report(tuple(self._finding(*row[:3]) for row in rows), bytes=freed)

    def _finding(self, blob: UUID, image_id: str | None, key: bytes | None) -> Finding:
        path = self._blobs.path_of(blob)
        if image_id is None or key is None:
            return Finding(FindingKind.TEMPORARY_STALE, path=path, detail="never an item's content")
        detail = "the item has other content now, or is gone"
        return Finding(FindingKind.ITEM_UNLISTED, image_id, key.decode(), path, detail)

    def _forget_commits(self, progress: Progress) -> Report:
        connection = self._lock.connection
        prune(connection, self._grace.total_seconds())
        row = connection.execute("SELECT images FROM image_store").fetchone()
        connection.execute("COMMIT")
        return Report(images=row[0] if row else 0)
