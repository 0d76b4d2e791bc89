"""The store's lock: PostgreSQL's, in the transaction that then changes the store.

An advisory lock makes the line: whoever waits gets it in turn, and nobody overtakes. With it the
one row is locked that tells the last commit.
"""

from __future__ import annotations

import threading
from concurrent.futures import Executor
from contextlib import suppress
from typing import Any

import psycopg
from psycopg.errors import LockNotAvailable
from psycopg.pq import TransactionStatus

from .._engine.protocol import Holder
from ..errors import StoreUnavailableError
from .connections import Connection, Connections, is_lost
from .patience import PATIENCE

# Beside the number of the table, which no other store of the database has: "aimg".
_CLASS = 0x61696D67 << 32

_CANCEL_PAUSE = 0.01

_HOLDER = """
    SELECT a.application_name, host(a.client_addr), a.pid
    FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE l.locktype = 'advisory' AND l.granted AND l.database = (
        SELECT oid FROM pg_database WHERE datname = current_database()
    ) AND (l.classid::bigint << 32 | l.objid::bigint) = %s
"""


class ClusterLock:
    """The lock, and the transaction that holds it.

    :ivar version: the store's last commit, when the lock was taken
    :ivar number: what tells this store from others in its database
    """

    def __init__(self, connections: Connections, helpers: Executor) -> None:
        self.connections = connections
        self.helpers = helpers
        self.version: int = -1
        self.number: int = 0
        self._connection: Connection | None = None

    def open(self, connection: Connection) -> None:
        """Find out what tells this store from others."""
        row = connection.execute("SELECT 'image_store'::regclass::oid::bigint").fetchone()
        assert row is not None, "a value has a row"
        self.number = row[0]

    @property
    def _key(self) -> int:
        return _CLASS + self.number

    @property
    def connection(self) -> Connection:
        """The session whose transaction holds the lock."""
        assert self._connection is not None, "the lock is held"
        return self._connection

    def try_acquire(self) -> bool:
        """Take the lock if it is free, and nobody waits for it.

        A server that is not to be had is waited for in line, which can be given up.
        """
        try:
            return self._try()
        except psycopg.Error as error:
            if is_lost(error):
                return False
            raise self.connections.unavailable(error) from error

    def _try(self) -> bool:
        connection = self.connections.borrow()
        try:
            answers = connection.execute(
                b"BEGIN; SELECT version FROM image_store "
                b"WHERE pg_try_advisory_xact_lock(%d) FOR UPDATE" % self._key
            )
            version = _last_value(answers)
            if version is None:
                connection.execute("ROLLBACK")
        except BaseException:
            self.connections.give_back(connection)
            raise
        if version is None:
            self.connections.give_back(connection)
            return False
        self.hold(connection, version)
        return True

    def wait_in(self, connection: Connection, seconds: float = 0) -> int:
        """Wait for the lock in a session, as long as it takes unless a time is given.

        :returns: the last commit
        """
        answers = connection.execute(
            b"BEGIN; SET LOCAL lock_timeout = %d; SELECT pg_advisory_xact_lock(%d); "
            b"SELECT version FROM image_store FOR UPDATE" % (seconds * 1000, self._key)
        )
        version = _last_value(answers)
        assert version is not None, "the table has one row"
        return version

    def hold(self, connection: Connection, version: int) -> None:
        """Have the lock that this session's transaction holds."""
        self._connection, self.version = connection, version

    def claim(self) -> Claim:
        """Stand in line for the lock."""
        return Claim(self)

    def acquire_again(self) -> None:
        """Take the lock in a new session after the one that held it was lost.

        The old one holds it until the server has noticed, so by then what it was at is over.

        :raises StoreUnavailableError: when it could not be had in time
        """
        self.release()

        def acquire() -> None:
            connection = self.connections.borrow()
            try:
                version = self.wait_in(connection, PATIENCE)
            except BaseException:
                self.connections.give_back(connection)
                raise
            self.hold(connection, version)

        try:
            self.connections.retried(acquire)
        except StoreUnavailableError as error:
            if isinstance(error.__cause__, LockNotAvailable):
                raise StoreUnavailableError(
                    f"{self.connections.records.name}: another session holds the lock"
                ) from error
            raise

    def release(self) -> None:
        """Let go of the lock, and of all that was not committed."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            if connection.info.transaction_status != TransactionStatus.IDLE:
                with suppress(psycopg.Error):
                    connection.execute("ROLLBACK")
        finally:
            self.connections.give_back(connection)

    def describe_holder(self) -> Holder:
        """Who holds it, as far as the server tells this role."""
        name = f"the lock of {self.connections.records.name}"
        rows = self.connections.call(
            lambda connection: connection.execute(_HOLDER, [self._key]).fetchall()
        )
        if not rows:
            return Holder(name, "who held it has let go of it meanwhile")
        application, address, session = rows[0]
        # Of other roles' sessions the server tells no address.
        place = f" from {address}" if address else ""
        return Holder(name, f"session {session} of {application!r}{place} holds it")


def _last_value(answers: psycopg.Cursor[tuple[Any, ...]]) -> int | None:
    """What the last of several statements gives, if it gives a row."""
    while answers.nextset():
        pass
    row = answers.fetchone()
    return None if row is None else int(row[0])


class Claim:
    """A place in the line; see :class:`aimagestore._engine.protocol.LockClaim`."""

    def __init__(self, lock: ClusterLock) -> None:
        self._lock = lock
        self._mutex = threading.Lock()
        self._waiting: Connection | None = None
        self._has_ended = threading.Event()
        self._is_granted = False
        self._is_over = False

    def wait(self) -> bool:
        try:
            return self._lock.connections.retried(self._wait)
        finally:
            self._has_ended.set()

    def _wait(self) -> bool:
        if self._is_over:
            return False
        connection = self._lock.connections.borrow()
        try:
            if self._begin(connection):
                self._grant(connection, self._lock.wait_in(connection))
        except psycopg.Error:
            if not self._is_over:
                raise
        finally:
            if not self._is_granted:
                # Who gave up may be cancelling it yet, and must not meet what comes after.
                connection.close()
                self._lock.connections.give_back(connection)
        return self._is_granted

    def _begin(self, connection: Connection) -> bool:
        with self._mutex:
            self._waiting = connection
            return not self._is_over

    def _grant(self, connection: Connection, version: int) -> None:
        with self._mutex:
            if not self._is_over:
                self._is_granted = True
                self._lock.hold(connection, version)

    def give_up(self) -> bool:
        with self._mutex:
            self._is_over = True
            if self._waiting is not None and not self._is_granted:
                with suppress(RuntimeError):  # the store is closing, and with it the session
                    self._lock.helpers.submit(self._cancel, self._waiting)
            return self._is_granted

    def _cancel(self, waiting: Connection) -> None:
        # More than once: it means nothing to a session that has not begun to wait.
        while not self._has_ended.wait(_CANCEL_PAUSE):
            with suppress(psycopg.Error):
                waiting.cancel_safe(timeout=PATIENCE)
