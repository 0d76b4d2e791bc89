"""The changes of a cluster's store: each commit notifies, and the tables have the changes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import psycopg
from psycopg import sql

from .._core.events import ChangeEvent, Kind
from .._core.image import Image
from ..errors import WatchExpiredError
from ._history import History
from ._lookups import PAGE, Lookups
from ._sessions import OverdueError, Session, Sessions

_NOTIFIED_INTERVAL = 5.0
"""Seconds between two polls if the server notifies: notifications of a lost session are lost."""

_INTERVAL = 1.0
"""Seconds between two polls if it does not, as on a standby."""

_PENDING_MAX = 10_000
"""Changes that a watch may be behind, and changes by this store that are kept for it."""

_CHANGES = """
    SELECT version, image_id, kind FROM image_changes
    WHERE version > %s ORDER BY version, number LIMIT %s
"""

# What two changes of an image amount to; nothing if it was created and deleted.
_BOTH: Mapping[tuple[Kind, Kind], Kind | None] = {
    ("created", "changed"): "created",
    ("created", "deleted"): None,
    ("changed", "changed"): "changed",
    ("changed", "deleted"): "deleted",
    ("deleted", "created"): "changed",
}


class ClusterFeed:
    """Collects the changes of a store; see :class:`aimagestore._engine.protocol.Feed`.

    Commits of this store are added one by one. The tables say which images the commits of others
    have changed, and what these images are now.
    """

    def __init__(self, sessions: Sessions, feeds: Feeds, until: float) -> None:
        self._sessions = sessions
        self._feeds = feeds
        self._listening: Session | None = None
        self._own: dict[int, Sequence[ChangeEvent]] = {}
        self._own_number = 0
        self._listen(until)
        try:
            self._known = sessions.call(self._last_commit, until)
        except BaseException:
            self.close()
            raise

    def _listen(self, until: float) -> None:
        """Have the server notify, if it can."""
        with suppress(psycopg.Error):  # a standby refuses; an outage shows in the next poll
            session = self._sessions.connect(until)
            try:
                statement = sql.SQL("LISTEN {}").format(sql.Identifier(self._feeds.channel))
                with session.limited() as connection:
                    connection.execute(statement)
            except BaseException:
                session.close()
                raise
            self._listening = session

    def _lookups(self, session: Session) -> Lookups:
        return Lookups(session.execute, self._feeds.history)

    def _last_commit(self, session: Session) -> int:
        return self._lookups(session).head().last.version

    @property
    def interval(self) -> float:
        return _INTERVAL if self._listening is None else _NOTIFIED_INTERVAL

    @property
    def descriptor(self) -> int | None:
        return None if self._listening is None else self._listening.connection.fileno()

    def is_due(self) -> bool:
        if self._listening is None:
            return True
        pgconn = self._listening.connection.pgconn
        is_notified = False
        try:
            pgconn.consume_input()
            while pgconn.notifies() is not None:
                is_notified = True
        except psycopg.Error:
            return True
        return is_notified

    def add(self, version: int, events: Sequence[ChangeEvent]) -> None:
        """Note the changes of a commit of this store, so that a poll yields each of them."""
        self._own_number += len(events)
        if self._own_number > _PENDING_MAX:
            self._own.clear()
        else:
            self._own[version] = events

    def poll(self) -> Sequence[ChangeEvent]:
        until = self._sessions.end_of_call()
        if self._listening is not None and self._is_lost(self._listening):
            self._listening.close()
            self._listening = None
        if self._listening is None:
            self._listen(until)
        try:
            with self._feeds.notifying(until):
                known, events = self._sessions.call(self._changes, until)
                self._known = known
                self._own = {v: own for v, own in self._own.items() if v > known}
                self._own_number = sum(map(len, self._own.values()))
        except psycopg.Error as error:
            raise self._sessions.unavailable(error) from error
        return events

    @staticmethod
    def _is_lost(session: Session) -> bool:
        try:
            session.connection.pgconn.consume_input()
        except psycopg.Error:
            return True
        return False

    def _changes(self, session: Session) -> tuple[int, Sequence[ChangeEvent]]:
        if self._last_commit(session) <= self._known:
            return self._known, ()  # one standby of several may be behind the others
        # In a transaction, so that the changes and the records are of the same commit.
        session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        try:
            head = self._lookups(session).head()
            rows = session.execute(_CHANGES, [self._known, _PENDING_MAX + 1]).fetchall()
            if head.pruned > self._known or len(rows) > _PENDING_MAX:
                raise WatchExpiredError(
                    f"more changed than a watch keeps ({_PENDING_MAX} changes, and those of the "
                    "grace period): start another watch, and read all images"
                )
            return head.last.version, list(self._events(rows, session))
        finally:
            if session.is_in_transaction:
                session.execute("ROLLBACK")

    def _events(
        self, rows: Iterable[tuple[int, str, Kind]], session: Session
    ) -> Iterator[ChangeEvent]:
        """Iterate over the changes by this store, then over what those by others amount to."""
        pending: dict[str, Kind] = {}
        for version, image_id, kind in rows:
            before = pending.pop(image_id, None)
            both = kind if before is None else _BOTH[before, kind]
            own = next((e for e in self._own.get(version, ()) if e.id == image_id), None)
            if both is None:
                continue
            if own is not None:
                yield ChangeEvent(both, image_id, own.image)
            else:
                pending[image_id] = both
        present = [image_id for image_id, kind in pending.items() if kind != "deleted"]
        images: dict[str, Image] = {}
        for start in range(0, len(present), PAGE):
            records = self._lookups(session).with_ids(present[start : start + PAGE])
            images |= {record.id: record.image for record in records}
        for image_id, kind in pending.items():
            yield ChangeEvent(kind, image_id, images.get(image_id))

    def close(self) -> None:
        self._feeds.forget(self)
        if self._listening is not None:
            self._listening.close()


class Feeds:
    """All feeds of a store.

    :ivar history: what the store has seen of the database
    :ivar channel: the server's channel for notifications
    """

    def __init__(self, sessions: Sessions, history: History, channel: str) -> None:
        self.history = history
        self.channel = channel
        self._sessions = sessions
        self._feeds: list[ClusterFeed] = []
        # Held from the beginning of a commit until the feeds have it, so that they find it once.
        self._notifying = threading.Lock()

    @contextmanager
    def notifying(self, until: float) -> Iterator[None]:
        """Keep feeds from polling, and commits from being made, inside the block.

        :raises OverdueError: when another thread keeps them for too long
        """
        if not self._notifying.acquire(timeout=max(0.0, until - time.monotonic())):
            raise OverdueError("the server did not answer another call of this store in time")
        try:
            yield
        finally:
            self._notifying.release()

    def begin(self) -> ClusterFeed:
        """Begin to collect changes from now on.

        :raises StoreUnavailableError: when the server is unavailable
        """
        until = self._sessions.end_of_call()
        try:
            with self.notifying(until):
                feed = ClusterFeed(self._sessions, self, until)
                self._feeds.append(feed)
        except psycopg.Error as error:
            raise self._sessions.unavailable(error) from error
        return feed

    def add(self, version: int, events: Iterable[ChangeEvent]) -> None:
        """Give the changes of a commit of this store to the feeds."""
        if self._feeds:
            noted = list(events)
            for feed in list(self._feeds):  # another thread may close one
                feed.add(version, noted)

    def forget(self, feed: ClusterFeed) -> None:
        """Give changes to this feed no longer."""
        with suppress(ValueError):
            self._feeds.remove(feed)
