"""PostgreSQL and an object store as an engine: who calls what, and what a lost server means."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import partial
from typing import Any, LiteralString, TypeVar

import psycopg

from .._core.catalog import Catalog
from .._core.draft import Draft
from .._core.image import Image
from .._core.mutations import Mutation
from .._core.view import View
from .._engine.protocol import Holder, Outcome, Removal
from ..errors import StoreClosedError, StoreReadOnlyError
from .addresses import Bucket, Records
from .blobs import Blobs
from .cache import Cache
from .check import ClusterCheck
from .committer import Committer
from .connections import Connection, Connections
from .garbage import Garbage
from .lock import Claim, ClusterLock
from .reader import BlobReader
from .schema import check_schema
from .staged import StagedBlob
from .views import CommittedView, OutdatedError
from .watch import ClusterWatch, Watches, last_commit

T = TypeVar("T")

_HELPERS = 4

_DAY = timedelta(days=1)


class ClusterEngine:
    """Keeps the records of a store in PostgreSQL, and its big data in an object store.

    Used so::

        engine = ClusterEngine("postgresql://db.example/images", "s3://bucket/prefix")
        async with ImageStore(engine) as store: ...

    Any number of stores, on any number of machines, may use the same database and bucket. The
    tables are made by :func:`aimagestore.cluster.migrate`. Credentials come from where libpq and
    the S3 client look for them: ``PGPASSWORD``, ``~/.pgpass`` or a service file, and
    ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_ENDPOINT_URL``, ``AWS_REGION``. They
    are in no message, log or ``repr``.

    While a server is not to be had, what can be done again safely is tried for ten seconds; then
    it is a :exc:`StoreUnavailableError`. A commit whose answer was lost is looked up.

    :param records: a URL or connection string of PostgreSQL. A standby's serves a store that is
        opened ``read_only``
    :param blobs: a bucket, and what the names of this store's objects begin with. Plain http is
        spoken on this machine only, unless ``AWS_ALLOW_HTTP`` says otherwise
    :param cache_size: about how many bytes of records are kept in memory
    :param grace: how long the content of an item that was replaced or deleted can still be read
        by who has it open, and changes are told to who watches; what is staged is handed over
        within half of it, and after it :meth:`ImageStore.collect_garbage` removes what no image has
    """

    checks_instantly = False

    def __init__(
        self,
        records: str,
        blobs: str,
        *,
        cache_size: int = 64 * 1024 * 1024,
        grace: timedelta = _DAY,
    ) -> None:
        self._records = Records.at(records)
        self._bucket = Bucket.at(blobs)
        self.name: str = f"{self._records.name} with {self._bucket.name}"
        self.read_only: bool = False
        self.helpers: Executor = ThreadPoolExecutor(
            _HELPERS, thread_name_prefix="aimagestore helper"
        )
        self._grace = grace
        self._cache = Cache(cache_size)
        self._connections = Connections(self._records)
        self._lock = ClusterLock(self._connections, self.helpers)
        self._watches = Watches(self._connections)
        self._committer = Committer(
            self._lock,
            self._cache,
            self._watches,
            stage=self.stage,
            check=self._check_age,
            seconds=grace.total_seconds(),
        )
        self._seen = -1
        self._was_opened = False

    def __repr__(self) -> str:
        return f"ClusterEngine({self._records.name!r}, {self._bucket.name!r})"

    # Opening and closing

    def open(self) -> None:
        if self._was_opened:
            raise StoreClosedError("an engine is for one store: make another ClusterEngine")
        self._was_opened = True
        try:
            self._blobs = Blobs(self._bucket)
            self._connections.call(self._begin)
        except BaseException:
            self.close()
            raise

    def _begin(self, connection: Connection) -> None:
        check_schema(connection, self._records.name)
        if not self.read_only and _value(connection, "SELECT pg_is_in_recovery()"):
            raise StoreReadOnlyError(
                f"{self._records.name} is a standby: open the store read_only", path=self.name
            )
        self._lock.open(connection)
        self._watches.channel = f"aimagestore_{self._lock.number}"
        self._see(last_commit(connection))

    def close(self) -> None:
        self._connections.closing.set()
        self._lock.release()
        self.helpers.shutdown()
        self._connections.close()

    def check(self, *, verify: bool) -> ClusterCheck:
        return ClusterCheck(self._records, self._bucket, self._grace, verify=verify)

    # Reading

    def current(self) -> Catalog | None:
        return None

    def read(self, look: Callable[[View], T]) -> T:
        return self._connections.call(partial(self._look, look))

    def _look(self, look: Callable[[View], T], connection: Connection) -> T:
        view = CommittedView(connection.execute, self._cache)
        try:
            return look(view)
        except OutdatedError:
            # Now with all of its lookups answered from one commit.
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            view = CommittedView(connection.execute, self._cache)
            result = look(view)
            connection.execute("ROLLBACK")
            return result
        finally:
            self._see(view.version)

    def _see(self, version: int) -> None:
        """Know of a commit; an answer that took longer may be of an older one."""
        self._seen = max(self._seen, version)

    def refresh(self) -> bool:
        version = self._connections.call(last_commit)
        is_modified = version > self._seen
        self._see(version)
        return is_modified

    def modified(self) -> bool:
        return self._connections.call(last_commit) > self._seen

    def touched_since(self, when: datetime) -> bool:
        question = "SELECT touched > %s FROM image_store"
        return bool(self._connections.call(lambda c: _value(c, question, when)))

    def watch(self) -> ClusterWatch:
        return self._watches.begin()

    # The lock

    def try_lock(self) -> bool:
        return self._lock.try_acquire()

    def claim_lock(self) -> Claim:
        return self._lock.claim()

    def unlock(self) -> None:
        self._lock.release()

    def describe_holder(self) -> Holder:
        return self._lock.describe_holder()

    def touch(self) -> None:
        try:
            self._lock.connection.execute(
                "UPDATE image_store SET touched = clock_timestamp(); COMMIT"
            )
        except psycopg.Error as error:
            raise self._connections.unavailable(error) from error

    # Changing the store

    def commit(self, changes: Sequence[Mutation]) -> list[Outcome]:
        try:
            return self._committer.commit(changes)
        finally:
            self._see(self._committer.version)

    def draft(self) -> Draft:
        return self._committer.draft()

    def publish(self, draft: Draft) -> None:
        try:
            self._committer.publish(draft)
        finally:
            self._see(self._committer.version)

    def garbage(self) -> Iterator[Removal]:
        return Garbage(self._lock, self._blobs, self._grace).pieces()

    # Big data

    def stage(self) -> StagedBlob:
        return StagedBlob(self._blobs, self.helpers)

    def layer_store(self) -> str | None:
        return None

    def _check_age(self, content: StagedBlob) -> None:
        """Check that no collection of garbage has removed what took so long to be handed over.

        :raises ValueError: when one has
        """
        is_old = content.age > self._grace.total_seconds() / 2
        if is_old and not self._blobs.exists(content.id):
            raise ValueError(
                f"data that was staged longer ago than {self._grace} is garbage: stage it again"
            )

    def open_item(self, image: Image, key: str) -> io.RawIOBase:
        question = """
            SELECT blob FROM image_items WHERE image_id = %s AND key = %s AND removed IS NULL
        """
        blob = self._connections.call(lambda c: _value(c, question, image.id, key.encode()))
        if blob is None:
            path = f"{self._bucket.name} ({image.id}, {key!r})"
            raise FileNotFoundError(errno.ENOENT, "the item has no object", path)
        return BlobReader(self._blobs, blob)


def _value(connection: Connection, question: LiteralString, *values: object) -> Any:
    """The one value that a question has for its answer; ``None`` where there is no row."""
    row = connection.execute(question, values).fetchone()
    return None if row is None else row[0]
