"""The store's lock: a lock of PostgreSQL, held by the transaction that then changes the store.

It is an advisory lock, for which sessions queue, first come first served. The transaction also
locks the one row that has the number of the last commit.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, LiteralString

import psycopg
from psycopg import pq
from psycopg.errors import LockNotAvailable, error_from_result

from .._engine.lock import Holder
from ..errors import StoreUnavailableError
from ._history import HEAD, Commit, History
from ._schema import LOCK_CLASS
from ._sessions import Cursor, OverdueError, Session, Sessions, is_lost

# Seconds between two attempts to cancel a wait, and seconds after which its session is closed even
# if the wait has not ended.
_CANCEL_PAUSE = 0.02
_CANCEL_TIMEOUT = 1.0

# Seconds that a rollback may take before the session is closed instead.
_ROLLBACK_TIMEOUT = 0.25

_HOLDER = """
    SELECT a.application_name, host(a.client_addr), a.pid
    FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE l.locktype = 'advisory' AND l.granted AND l.database = (
        SELECT oid FROM pg_database WHERE datname = current_database()
    ) AND (l.classid::bigint << 32 | l.objid::bigint) = %s
"""

_CANCEL = "SELECT pg_cancel_backend(%s)"

_IS_WAITING = "SELECT FROM pg_locks WHERE pid = %s AND locktype = 'advisory' AND NOT granted"


class HeldLock:
    """One hold of the lock.

    :ivar version: the number of the last commit, when the lock was acquired
    """

    def __init__(self, session: Session, version: int) -> None:
        self.version: int = version
        self._session: Session | None = session
        # Held while a statement of a transaction is under way. Its task may have been cancelled,
        # and its thread must not use the session any more when that belongs to another call.
        self._mutex = threading.Lock()

    @property
    def session(self) -> Session:
        """The session whose transaction holds the lock.

        :raises psycopg.OperationalError: when it was lost, or given back
        """
        if self._session is None:
            raise OverdueError("the session that held the lock was lost")
        return self._session

    def attach(self, session: Session, version: int) -> None:
        """Continue with the lock in another session."""
        self._session, self.version = session, version

    def execute(self, statement: LiteralString, values: Mapping[str, Any]) -> Cursor:
        """Execute a statement of a transaction.

        :raises psycopg.OperationalError: when the session was lost, or given back
        """
        with self._mutex:
            return self.session.execute(statement, values)

    def detach(self, seconds: float) -> Session | None:
        """Return the session for its last use, the rollback; ``None`` if that was done before.

        :param seconds: how long a statement that is under way may take; then the session is shut
            down, and the statement fails
        """
        is_free = self._mutex.acquire(timeout=seconds)
        if not is_free:
            if self._session is not None:
                self._session.shut_down()
            self._mutex.acquire()
        session, self._session = self._session, None
        self._mutex.release()
        return session


class AdvisoryLock:
    """The lock as the server has it; see :class:`aimagestore._engine.lock.LockPrimitive`.

    Acquiring it raises :exc:`StoreIdentityError` when the database does not continue the history
    that this store has seen.

    :param number: the number of the store's table, which tells it from others in its database
    """

    def __init__(self, sessions: Sessions, history: History, number: int) -> None:
        self._sessions = sessions
        self._history = history
        self._key = LOCK_CLASS + number
        # Guards what follows; held for a few instructions only.
        self._mutex = threading.Lock()
        self._is_waiting = False
        self._is_closed = False
        # Readable when the wait in acquire() is to end.
        self._wakeup, self._waker = socket.socketpair()
        self._wakeup.setblocking(False)
        self._waker.setblocking(False)

    def try_acquire(self) -> HeldLock | None:
        """Acquire the lock if it is free and nobody waits for it.

        :raises StoreUnavailableError: when the server is unavailable
        """
        return self._sessions.retried(self._try)

    def _try(self, until: float) -> HeldLock | None:
        session = self._sessions.acquire(until)
        held: HeldLock | None = None
        asked = self._history.seen
        try:
            condition = b"WHERE pg_try_advisory_xact_lock(%d)" % self._key
            answers = session.execute(session.begin + _locked_head(asked, condition))
            head = _last_value(answers)
            if head is None:
                session.execute("ROLLBACK")
            else:
                held = HeldLock(session, self._history.accept(asked, head).last.version)
        finally:
            if held is None:
                self._sessions.release(session)
        return held

    def acquire(self) -> HeldLock | None:
        """Wait for the lock; return ``None`` when :meth:`interrupt` ended the wait.

        The wait has no deadline as long as the server confirms, several times in a deadline, that
        it goes on.

        :raises StoreUnavailableError: when the server is unavailable
        """
        with self._mutex:
            if self._is_closed:
                return None
            self._is_waiting = True
        try:
            while True:
                begun = time.monotonic()
                try:
                    return self._sessions.retried(self._wait)
                except StoreUnavailableError as error:
                    # After a long wait, a lost session is retried as in a call that begins now.
                    is_long = time.monotonic() - begun > self._sessions.deadline
                    cause = error.__cause__
                    if not (is_long and isinstance(cause, psycopg.Error) and is_lost(cause)):
                        raise
        finally:
            with self._mutex:
                self._is_waiting = False
                # Here and not before the wait, which may be interrupted before it has begun. An
                # interruption that comes too late ends the next wait, which then begins again.
                self._clear_wakeup()
                if self._is_closed:
                    self._close_wakeup()

    def interrupt(self) -> None:
        """End the wait in :meth:`acquire`. Does not block."""
        with self._mutex, suppress(BlockingIOError):  # full, so the wait ends anyway
            if not self._is_closed:
                self._waker.send(b"\0")

    def _clear_wakeup(self) -> None:
        with suppress(BlockingIOError):
            while self._wakeup.recv(1024):
                pass

    def _wait(self, until: float) -> HeldLock | None:
        if _readable(0, self._wakeup.fileno()):
            return None
        session = self._sessions.acquire(until)
        held: HeldLock | None = None
        asked = self._history.seen
        try:
            head = self._wait_in(session, asked)
            if head is not None:
                held = HeldLock(session, self._history.accept(asked, head).last.version)
        finally:
            if held is None:
                # The server may still be about to cancel it, but must not cancel another statement.
                session.close()
                self._sessions.release(session)
        return held

    def _wait_in(self, session: Session, asked: Commit) -> str | None:
        """Wait in a session for as long as the server says that it waits; return the head."""
        pgconn = session.connection.pgconn
        pause = self._sessions.deadline / 4
        # Asked in this transaction: libpq knows the process of a pooler instead, if there is one.
        backend = _last_value(session.execute(session.begin + b"SELECT pg_backend_pid()"))
        pgconn.send_query(b"SELECT pg_advisory_xact_lock(%d); " % self._key + _locked_head(asked))
        results: list[pq.abc.PGresult] = []
        doubts = 0
        while True:
            pgconn.flush()
            readable = _readable(pause, pgconn.socket, self._wakeup.fileno())
            if self._wakeup.fileno() in readable:
                self._cancel(session, backend)
                return None
            if readable:
                if _receive(pgconn, results):
                    return _head_in(results)
            elif self._still_waits(backend):
                doubts = 0
            else:
                doubts += 1
                if doubts == 3:
                    raise OverdueError("the session that waited for the lock does not answer")

    def _still_waits(self, backend: int) -> bool:
        """Ask the server, in another session, whether this process of the server still waits."""
        until = time.monotonic() + self._sessions.deadline / 2
        return bool(self._sessions.call(lambda s: s.rows(_IS_WAITING, [backend]), until))

    def _cancel(self, session: Session, backend: int) -> None:
        """Have the server end the wait, so that it does not keep the session for it.

        This takes another session. A request to cancel would take none, but psycopg makes it with
        the interpreter lock held if libpq is older than 17: a server that does not answer would
        stop the whole process.
        """
        pgconn = session.connection.pgconn
        until = time.monotonic() + _CANCEL_TIMEOUT
        with suppress(psycopg.Error, StoreUnavailableError):
            # Repeated, because the server ignores it before the statement has begun.
            while time.monotonic() < until:
                self._sessions.call(lambda s: s.rows(_CANCEL, [backend]), until)
                if _readable(_CANCEL_PAUSE, pgconn.socket) and _receive(pgconn, []):
                    break

    def reacquire(self, held: HeldLock, until: float) -> None:
        """Acquire the lock in a new session after the one that held it was lost.

        The server keeps the lock for the old session until that has ended, so whatever the old
        session was doing is decided when this returns.

        :raises StoreUnavailableError: when the lock could not be acquired in time
        """
        self.release(held)

        def acquire(until: float) -> None:
            session = self._sessions.acquire(until)
            asked = self._history.seen
            has_lock = False
            try:
                # A tenth less than what remains, so that the server's answer comes in time.
                milliseconds = max(1, int((until - time.monotonic()) * 900))
                answers = session.execute(
                    session.begin
                    + b"SET LOCAL lock_timeout = %d; SELECT pg_advisory_xact_lock(%d); "
                    % (milliseconds, self._key)
                    + _locked_head(asked)
                )
                head = _last_value(answers)
                assert head is not None, "the table has one row"
                version = self._history.accept(asked, head).last.version
                has_lock = True
            finally:
                if not has_lock:
                    self._sessions.release(session)
            held.attach(session, version)

        try:
            self._sessions.retried(acquire, until)
        except StoreUnavailableError as error:
            if isinstance(error.__cause__, LockNotAvailable):
                raise StoreUnavailableError(
                    f"{self._sessions.address.name}: another session holds the lock"
                ) from error.__cause__
            raise

    def release(self, held: HeldLock) -> None:
        """Release the lock, and discard everything that was not committed."""
        session = held.detach(_ROLLBACK_TIMEOUT)
        if session is None:
            return
        try:
            session.roll_back(_ROLLBACK_TIMEOUT)
        finally:
            self._sessions.release(session)

    def describe_holder(self) -> Holder:
        """Say who holds the lock, as far as the server tells this role."""
        name = f"the lock of {self._sessions.address.name}"
        rows = self._sessions.rows(_HOLDER, [self._key])
        if not rows:
            return Holder(name, "its holder has released it meanwhile")
        application, address, session = rows[0]
        # The server does not tell the addresses of other roles' sessions.
        host = f" from {address}" if address else ""
        return Holder(name, f"session {session} of {application!r}{host} holds it")

    def close(self) -> None:
        """Release everything; if a thread is in :meth:`acquire`, it does so when it leaves."""
        self.interrupt()
        with self._mutex:
            if not self._is_closed:
                self._is_closed = True
                if not self._is_waiting:
                    self._close_wakeup()

    def _close_wakeup(self) -> None:
        self._wakeup.close()
        self._waker.close()


def _readable(seconds: float, *descriptors: int) -> set[int]:
    """Wait until one of the descriptors is readable, and return those that are."""
    poll = select.poll()  # not select(): that takes no descriptor above 1,023
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll(1000 * seconds)}


def _receive(pgconn: pq.abc.PGconn, results: list[pq.abc.PGresult]) -> bool:
    """Add the results that have arrived; return whether that was the last one."""
    pgconn.consume_input()
    while not pgconn.is_busy():
        result = pgconn.get_result()
        if result is None:
            return True
        results.append(result)
    return False


def _locked_head(asked: Commit, condition: bytes = b"") -> bytes:
    """Return the statement that locks the row of the store, and gives its head."""
    head = HEAD % {"seen": asked.version}
    return b"SELECT %s FROM image_store s %s FOR UPDATE" % (head.encode(), condition)


def _head_in(results: list[pq.abc.PGresult]) -> str:
    for result in results:
        if result.status not in {pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK}:
            raise error_from_result(result)
    value = results[-1].get_value(0, 0)
    assert value is not None, "the table has one row"
    return value.decode()


def _last_value(answers: Cursor) -> Any:
    """Return the value that the last of several statements gives; ``None`` for no row."""
    while answers.nextset():
        pass
    row = answers.fetchone()
    return None if row is None else row[0]
