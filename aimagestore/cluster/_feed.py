"""What changes in a cluster's store, told by whoever commits and found in the tables."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress

import psycopg
from psycopg import sql

from .._core.events import ChangeEvent, Kind
from .._core.image import Image
from ..errors import ImageStoreError
from .connections import Connection, Connections
from .lookups import PAGE, Lookups

_TOLD_INTERVAL = 5.0
"""Seconds between two looks where the server tells: what it tells may be lost with the session."""

_INTERVAL = 1.0
"""Seconds between two looks where it does not, as a standby does not."""

_PENDING_MAX = 10_000
"""Changes of this store's own that are kept; of more, the tables tell what came of them."""

_CHANGES = """
    SELECT version, image_id, kind FROM image_changes WHERE version > %s ORDER BY version, number
"""

# What two changes of an image come to; nothing, where it was created and deleted.
_BOTH: Mapping[tuple[Kind, Kind], Kind | None] = {
    ("created", "changed"): "created",
    ("created", "deleted"): None,
    ("changed", "changed"): "changed",
    ("changed", "deleted"): "deleted",
    ("deleted", "created"): "changed",
}


class ClusterWatch:
    """What changes in a cluster's store; see :class:`aimagestore._engine.protocol.Watch`.

    Commits of this store are told one by one by the engine. Of those of others the tables tell
    which images they changed, and what those are like now.

    """

    def __init__(self, connections: Connections, watches: Watches) -> None:
        self._connections = connections
        self._watches = watches
        self._listening: Connection | None = None
        self._own: dict[int, Sequence[ChangeEvent]] = {}
        self._own_number = 0
        self._listen()
        try:
            self._known = connections.call(last_commit)
        except BaseException:
            self.close()
            raise

    def _listen(self) -> None:
        """Have the server tell, if it does."""
        with suppress(psycopg.Error):  # a standby refuses; an outage is seen by looking
            connection = self._connections.connect()
            try:
                connection.execute(
                    sql.SQL("LISTEN {}").format(sql.Identifier(self._watches.channel))
                )
            except BaseException:
                connection.close()
                raise
            self._listening = connection

    @property
    def interval(self) -> float:
        return _INTERVAL if self._listening is None else _TOLD_INTERVAL

    @property
    def descriptor(self) -> int | None:
        return None if self._listening is None else self._listening.fileno()

    def is_due(self) -> bool:
        if self._listening is None:
            return True
        session = self._listening.pgconn
        is_told = False
        try:
            session.consume_input()
            while session.notifies() is not None:
                is_told = True
        except psycopg.Error:
            return True
        return is_told

    def add(self, version: int, changes: Sequence[ChangeEvent]) -> None:
        """Know what a commit of this store has changed."""
        self._own_number += len(changes)
        if self._own_number > _PENDING_MAX:
            self._own.clear()
        else:
            self._own[version] = changes

    def changes(self) -> Sequence[ChangeEvent]:
        if self._listening is not None and self._is_lost(self._listening):
            self._listening.close()
            self._listening = None
            self._listen()
        with self._watches.telling:
            known, changes = self._connections.call(self._look)
            self._known = known
            self._own = {v: own for v, own in self._own.items() if v > known}
            self._own_number = sum(map(len, self._own.values()))
        return changes

    @staticmethod
    def _is_lost(connection: Connection) -> bool:
        try:
            connection.pgconn.consume_input()
        except psycopg.Error:
            return True
        return False

    def _look(self, connection: Connection) -> tuple[int, Sequence[ChangeEvent]]:
        if last_commit(connection) == self._known:
            return self._known, ()
        # The changes, and what the images are like, as of one commit.
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        row = connection.execute("SELECT version, pruned FROM image_store").fetchone()
        assert row is not None, "the table has one row"
        version, pruned = row
        if pruned > self._known:
            connection.execute("ROLLBACK")
            raise ImageStoreError(
                "this watch is further behind than changes are kept: begin another, and look at "
                "all images"
            )
        rows = connection.execute(_CHANGES, [self._known]).fetchall()
        changes = list(self._told(rows, connection))
        connection.execute("ROLLBACK")
        return version, changes

    def _told(
        self, rows: Iterable[tuple[int, str, Kind]], connection: Connection
    ) -> Iterator[ChangeEvent]:
        """First this store's own changes, one by one; then what came of those of others."""
        waiting: dict[str, Kind] = {}
        for version, image_id, kind in rows:
            before = waiting.pop(image_id, None)
            both = kind if before is None else _BOTH[before, kind]
            own = next((c for c in self._own.get(version, ()) if c.id == image_id), None)
            if both is None:
                continue
            if own is not None:
                yield ChangeEvent(both, image_id, own.image)
            else:
                waiting[image_id] = both
        there = [image_id for image_id, kind in waiting.items() if kind != "deleted"]
        images: dict[str, Image] = {}
        for start in range(0, len(there), PAGE):
            records = Lookups(connection.execute).expected(there[start : start + PAGE], ())
            images |= {record.id: record.image for record in records}
        for image_id, kind in waiting.items():
            yield ChangeEvent(kind, image_id, images.get(image_id))

    def close(self) -> None:
        self._watches.forget(self)
        if self._listening is not None:
            self._listening.close()


class Watches:
    """All that watch a store, and how they are told.

    :ivar channel: what they listen to
    :ivar telling: held from a commit until they are told of it, so that they find it once
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._all: list[ClusterWatch] = []
        self.channel = ""
        self.telling: threading.Lock = threading.Lock()

    def begin(self) -> ClusterWatch:
        """Watch from now on."""
        with self.telling:
            watch = ClusterWatch(self._connections, self)
            self._all.append(watch)
        return watch

    def tell(self, version: int, changes: Iterable[ChangeEvent]) -> None:
        """Tell what a commit of this store has changed."""
        if self._all:
            told = list(changes)
            for watch in self._all:
                watch.add(version, told)

    def forget(self, watch: ClusterWatch) -> None:
        """Tell this one no more."""
        with suppress(ValueError):
            self._all.remove(watch)


def last_commit(connection: Connection) -> int:
    """The version of the last commit."""
    row = connection.execute("SELECT version FROM image_store").fetchone()
    assert row is not None, "the table has one row"
    return int(row[0])
