"""A cluster's store, open: its parts by role."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, LiteralString

from .._engine.lock import LockLine
from .._engine.workers import WorkerPool
from ..errors import StoreReadOnlyError
from ._addresses import BucketAddress, DatabaseAddress
from ._blobs import Blobs
from ._cache import Cache
from ._feed import Feeds, last_commit
from ._garbage import Garbage
from ._items import ClusterItems
from ._lock import AdvisoryLock, HeldLock
from ._reader import ClusterReader
from ._schema import check_schema
from ._sessions import Session, Sessions
from ._writer import ClusterWriter

_HELPERS = 4
_UPLOADERS = 12
_REMOVERS = 2


class ClusterEngine:
    """An open store; see :class:`aimagestore._engine.protocol.Engine`.

    Making one opens it; whatever that raises, nothing stays open.
    """

    def __init__(
        self,
        database: DatabaseAddress,
        bucket: BucketAddress,
        *,
        cache_size: int,
        grace_period: timedelta,
        deadline: float,
        read_only: bool,
    ) -> None:
        self._name = f"{database.name} with {bucket.name}"
        self._sessions = Sessions(database, deadline)
        self._helpers = WorkerPool(_HELPERS, "aimagestore helper")
        self._uploaders = WorkerPool(_UPLOADERS, "aimagestore upload")
        self._removers = WorkerPool(_REMOVERS, "aimagestore remover")
        self._primitive: AdvisoryLock | None = None
        try:
            blobs = Blobs(bucket, deadline)
            number, version = self._sessions.call(
                lambda session: _begin(session, database.name, read_only)
            )
            self._primitive = lock = AdvisoryLock(self._sessions, number)
        except BaseException:
            self.close()
            raise
        cache = Cache(cache_size)
        feeds = Feeds(self._sessions, f"aimagestore_{number}")
        self._reader = ClusterReader(self._sessions, cache, feeds, version)
        self._items = ClusterItems(
            self._sessions,
            self._reader,
            blobs,
            helpers=self._helpers,
            uploaders=self._uploaders,
            removers=self._removers,
        )
        garbage = Garbage(self._sessions, blobs, grace_period)
        self._line: LockLine[HeldLock] = LockLine(lock, "aimagestore lock")
        self._writer = ClusterWriter(
            self._sessions,
            lock,
            self._reader,
            self._items,
            garbage,
            cache=cache,
            feeds=feeds,
            grace_period=grace_period,
        )

    @property
    def name(self) -> str:
        """The name of the store in messages; without secrets."""
        return self._name

    @property
    def reader(self) -> ClusterReader:
        """Reads the records."""
        return self._reader

    @property
    def lock(self) -> LockLine[HeldLock]:
        """The line for the lock."""
        return self._line

    @property
    def read_lock(self) -> LockLine[HeldLock]:
        """The line for the lock: nothing needs it to read, because all changes are transactions."""
        return self._line

    @property
    def writer(self) -> ClusterWriter:
        """Writes the store, under the lock."""
        return self._writer

    @property
    def items(self) -> ClusterItems:
        """Keeps the content of big-data items."""
        return self._items

    @property
    def layer_store(self) -> str | None:
        """``None``: layers are big data here."""
        return None

    def close(self) -> None:
        """Release everything. Waits for no server."""
        self._sessions.close()
        self._helpers.shutdown()
        self._uploaders.shutdown()
        self._removers.shutdown()
        if self._primitive is not None:
            self._primitive.close()


def _begin(session: Session, name: str, read_only: bool) -> tuple[int, int]:
    """Check that the store can be used; return the number of its table and of the last commit."""
    check_schema(session, name)
    if not read_only and _value(session, "SELECT pg_is_in_recovery()"):
        raise StoreReadOnlyError(f"{name} is a standby: open the store read_only", path=name)
    number = int(_value(session, "SELECT 'image_store'::regclass::oid::bigint"))
    return number, last_commit(session)


def _value(session: Session, statement: LiteralString) -> Any:
    row = session.execute(statement).fetchone()
    assert row is not None, "a value has a row"
    return row[0]
