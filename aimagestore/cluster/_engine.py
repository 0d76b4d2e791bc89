"""The engine of a cluster's store: makes the parts that have its roles."""

from __future__ import annotations

import io
from datetime import timedelta

from .._core.draft import Draft
from .._engine.lock import LockLine
from .._engine.workers import WorkerPool
from ..errors import StoreReadOnlyError
from ._addresses import BucketAddress, DatabaseAddress
from ._blobs import Blobs
from ._cache import Cache
from ._feed import Feeds
from ._garbage import Garbage
from ._history import History
from ._identity import Identity
from ._items import ClusterItems
from ._lock import AdvisoryLock, HeldLock
from ._lookups import Lookups
from ._reader import ClusterReader
from ._removers import Removers
from ._schema import check_schema
from ._sessions import Session, Sessions
from ._writer import ClusterWriter

_HELPERS = 4
_UPLOADERS = 12


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
        self._removers = Removers()
        self._primitive: AdvisoryLock | None = None
        try:
            blobs = Blobs(bucket, deadline)
            identity = Identity(self._sessions, blobs)
            self._sessions.call(
                lambda session: check_server(session, database.name, read_only=read_only)
            )
            identity.open(read_only=read_only, grace_period=grace_period)
            history = History(database.name)
            number, seen = self._sessions.call(lambda session: begin_history(session, history))
            self._primitive = lock = AdvisoryLock(self._sessions, history, number)
        except BaseException:
            self.close()
            raise
        cache = Cache(cache_size)
        feeds = Feeds(self._sessions, history, f"aimagestore_{number}")
        self._reader = ClusterReader(self._sessions, history, cache, feeds, seen)
        self._items = ClusterItems(
            self._sessions,
            self._reader,
            blobs,
            identity,
            history,
            helpers=self._helpers,
            uploaders=self._uploaders,
            removers=self._removers,
        )
        garbage = Garbage(self._sessions, blobs, identity)
        self._line: LockLine[HeldLock] = LockLine(lock, "aimagestore lock")
        self._writer = ClusterWriter(
            self._sessions,
            lock,
            self._reader,
            self._items,
            garbage,
            history=history,
            cache=cache,
            feeds=feeds,
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
        """The line for the lock. Reading never needs it, because each change is a transaction."""
        return self._line

    @property
    def writer(self) -> ClusterWriter:
        """Writes the store, under the lock."""
        return self._writer

    @property
    def items(self) -> ClusterItems:
        """Keeps the content of big-data items."""
        return self._items

    def open_item(self, draft: Draft, image_id: str, key: str) -> io.RawIOBase:
        """Open an item of the last commit."""
        return self._items.open(image_id, key)[1]

    @property
    def layer_store(self) -> str | None:
        """``None``: layers are big data here."""
        return None

    @property
    def podman(self) -> None:
        """``None``: podman cannot use a cluster."""
        return None

    def close(self) -> None:
        """Release everything. Waits for no server."""
        self._sessions.close()
        self._helpers.shutdown()
        self._uploaders.shutdown()
        self._removers.shutdown()
        if self._primitive is not None:
            self._primitive.close()


def check_server(session: Session, name: str, *, read_only: bool) -> None:
    """Check that a store can be opened on the server.

    :raises StoreSchemaError: when there are no tables, or this library works with another version
    :raises StoreReadOnlyError: when it is a standby, and ``read_only`` is false
    """
    check_schema(session, name)
    row = session.execute("SELECT pg_is_in_recovery()").fetchone()
    if not read_only and row is not None and row[0]:
        raise StoreReadOnlyError(f"{name} is a standby: open the store read_only", path=name)


def begin_history(session: Session, history: History) -> tuple[int, int]:
    """Note the last commit; return the number of the store's table, and that of the commit."""
    lookups = Lookups(session.execute, history)
    return lookups.table_number(), lookups.version
