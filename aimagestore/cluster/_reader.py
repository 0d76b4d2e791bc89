"""Reads the records of a cluster's store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from typing import TypeVar

from .._core.catalog import Catalog
from .._core.image import Image
from .._core.view import View
from ._cache import Cache
from ._feed import ClusterFeed, Feeds
from ._history import History
from ._lookups import Lookups
from ._sessions import Session, Sessions
from ._views import CommittedView, OutdatedError

T = TypeVar("T")


class ClusterReader:
    """Reads records; see :class:`aimagestore._engine.protocol.Reader`.

    No catalog is kept in memory, only a cache of records.

    :param seen: the number of the last commit
    """

    keeps_catalog = False

    def __init__(
        self, sessions: Sessions, history: History, cache: Cache, feeds: Feeds, seen: int
    ) -> None:
        self._sessions = sessions
        self._history = history
        self._cache = cache
        self._feeds = feeds
        # The last commit that was read or made here. What only a watch has seen does not count.
        self._seen = seen

    def current(self) -> Catalog | None:
        return None

    def read(self, look: Callable[[View], T]) -> T:
        return self._sessions.call(partial(self._read, look))

    def _read(self, look: Callable[[View], T], session: Session) -> T:
        view = CommittedView(session.execute, self._history, self._cache)
        try:
            return look(view)
        except OutdatedError:
            # Again, now with all lookups of the same commit.
            return self._read_consistently(look, session)
        finally:
            self.note(view.version)

    def _read_consistently(self, look: Callable[[View], T], session: Session) -> T:
        session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        view = CommittedView(session.execute, self._history, self._cache)
        try:
            return look(view)
        finally:
            self.note(view.version)
            if session.is_in_transaction:
                session.execute("ROLLBACK")

    def note(self, version: int) -> None:
        """Note the number of a commit that was seen. A slow answer may be of an older one."""
        self._seen = max(self._seen, version)

    def snapshot(self) -> Catalog:
        return self._sessions.call(partial(self._read_consistently, lambda view: view.freeze()))

    def pages(self, size: int) -> Iterator[list[Image]]:
        # An image that is created again meanwhile gets a place after this one, so it comes once.
        last = self._sessions.call(lambda session: self._lookups(session).last_place())
        place = -1
        while page := self._sessions.call(partial(self._page, place, size, last)):
            place = page[-1][0]
            yield [image for _, image in page]

    def refresh(self) -> bool:
        version = self._sessions.call(self._last_commit)
        is_modified = version > self._seen
        self.note(version)
        return is_modified

    def modified(self) -> bool:
        return self._sessions.call(self._last_commit) > self._seen

    def touched_since(self, when: datetime) -> bool:
        return self._sessions.call(lambda session: self._lookups(session).touched_since(when))

    def watch(self) -> ClusterFeed:
        return self._feeds.begin()

    def _lookups(self, session: Session) -> Lookups:
        return Lookups(session.execute, self._history)

    def _last_commit(self, session: Session) -> int:
        return self._lookups(session).head().last.version

    def _page(self, place: int, size: int, last: int, session: Session) -> list[tuple[int, Image]]:
        records = self._lookups(session).page(place, size, last)
        return [(place, record.image) for place, record in records]
