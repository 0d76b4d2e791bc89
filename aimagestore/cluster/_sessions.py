"""Sessions of PostgreSQL: kept for the next call, opened again when lost, never waited for long.

Every statement has a deadline. TCP does not notice a server that is stopped, and keepalives notice
a lost network late, so a watchdog shuts down the socket of a session whose statement is overdue.
"""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from ..errors import StoreUnavailableError
from ._addresses import DatabaseAddress
from ._backoff import Backoff

T = TypeVar("T")

Connection = psycopg.Connection[tuple[Any, ...]]
Cursor = psycopg.Cursor[tuple[Any, ...]]

DEADLINE = 10.0
"""The default deadline of a request, in seconds."""

SESSIONS = 8
"""Sessions of a store at most, besides one for each watch.

More would queue at the server's processors, and a server has a limited number of sessions.
"""

# Seconds for which an unused session is kept for the next call. It is much shorter than a deadline,
# for which other stores wait until a pooler has a session for them: a small one serves many stores.
_KEPT = 1.0

# Seconds after which a watchdog that has nothing to watch ends.
_IDLE = 60.0

# A statement after a wait for the lock must see what the holders before have committed.
_BEGIN = (
    b"BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = 0; "
    b"SET LOCAL lock_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0; "
)
_BEGIN_17 = _BEGIN + b"SET LOCAL transaction_timeout = 0; "

# Error codes of a server that stops or starts, has no session left, or has ended this transaction
# because of another one (on a standby, because of what it replays).
_PASSING = ("08", "40", "57P", "53300", "25P03")

# What libpq itself, the server or a pooler says to a login, and would say again. Such an error has
# no code, and its text may be in another language. So after any other text, the call is repeated.
_LASTING = (
    *("no password supplied", "SSL was required", "certificate", "authentication method"),
    *("authentication failed", "pg_hba.conf", "does not exist", "not permitted to log in"),
    *("permission denied", "not currently accepting connections", "Hot standby mode is disabled"),
    *("configuration parameter", "startup parameter", "no such database", "no such user"),
)


class OverdueError(psycopg.OperationalError):
    """The server did not answer in time. What the statement was to do may have happened."""


def is_lost(error: psycopg.Error) -> bool:
    """Return whether the same call may succeed in a new session."""
    if isinstance(error, OverdueError):
        return False
    if error.sqlstate is not None:
        return error.sqlstate.startswith(_PASSING)
    is_refused = any(words in str(error) for words in _LASTING)
    return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) and not is_refused


def reason(error: Exception) -> str:
    """Return the first line of an error; the others quote the statement."""
    return str(error).strip().partition("\n")[0]


def columns(rows: Iterable[tuple[Any, ...]]) -> list[list[Any]]:
    """Return rows as columns: the arrays that ``unnest`` makes these rows of."""
    return [list(column) for column in zip(*rows, strict=True)]


class Watchdog:
    """Shuts down the sessions whose statements are overdue, and closes those kept for too long.

    The process has one for all stores, so that opening and closing many leaves one thread. The
    thread is a daemon, starts on demand, and ends when it has had nothing to watch for a minute.
    """

    def __init__(self) -> None:
        # Guards everything below, and keeps a session from being closed during its shutdown.
        self.mutex: threading.Condition = threading.Condition()
        self._overdue_at: dict[Session, float] = {}
        self._is_running = False
        self._wakes_at = math.inf

    def watch(self, session: Session, until: float) -> None:
        """Shut the session down at this moment, unless :meth:`forget` is called before.

        :raises RuntimeError: when the process can have no more threads; nothing is watched then
        """
        with self.mutex:
            if not self._is_running:
                threading.Thread(target=self._run, name="aimagestore watchdog", daemon=True).start()
                self._is_running = True
            self._overdue_at[session] = until
            if until < self._wakes_at:
                self.mutex.notify()

    def forget(self, session: Session) -> None:
        """Watch the session no longer."""
        with self.mutex:
            self._overdue_at.pop(session, None)

    def _run(self) -> None:
        with self.mutex:
            while True:
                now = time.monotonic()
                for session in [s for s, until in self._overdue_at.items() if until <= now]:
                    del self._overdue_at[session]
                    session._end()
                self._wakes_at = min(self._overdue_at.values(), default=math.inf)
                if self._overdue_at:
                    self.mutex.wait(self._wakes_at - now)
                elif not self.mutex.wait(_IDLE) and not self._overdue_at:
                    self._is_running = False
                    return


_watchdog = Watchdog()


def _begin_anew_in_child() -> None:
    # A forked child has neither the thread nor the sessions.
    global _watchdog  # noqa: PLW0603 (there is one process)
    _watchdog = Watchdog()


os.register_at_fork(after_in_child=_begin_anew_in_child)


class Session:
    """One session, used by one thread at a time. Each of its statements has a deadline.

    :ivar until: the moment by which the next statement must have ended; ``None`` for a whole
        deadline from its beginning
    :ivar renews: whether a statement that succeeds clears ``until``
    """

    def __init__(self, connection: Connection, deadline: float) -> None:
        self.connection = connection
        self.until: float | None = None
        self.renews = True
        self._watchdog = _watchdog
        self._deadline = deadline
        self._is_shut_down = False
        self._is_closed = False
        self._is_kept = False

    @contextmanager
    def limited(self) -> Iterator[Connection]:
        """Use the connection inside the block, which must end by the deadline.

        :raises OverdueError: when it did not
        """
        until = time.monotonic() + self._deadline if self.until is None else self.until
        self._watchdog.watch(self, until)
        try:
            yield self.connection
        except psycopg.Error as error:
            if self._is_shut_down:
                raise _overdue(self._deadline) from error
            raise
        finally:
            self._watchdog.forget(self)
        if self.renews:
            self.until = None

    def execute(
        self,
        statement: LiteralString | bytes,
        values: Sequence[Any] | Mapping[str, Any] | None = None,
    ) -> Cursor:
        """Execute a statement.

        :raises OverdueError: when the server did not answer by the deadline
        """
        with self.limited() as connection:
            return connection.execute(statement, values)

    def rows(self, statement: LiteralString, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Execute a statement, and return its rows.

        :raises OverdueError: when the server did not answer by the deadline
        """
        return self.execute(statement, values or None).fetchall()

    @property
    def begin(self) -> bytes:
        """The statements that begin a transaction, which no time limit of the server ends.

        Sessions turn the limits off when they are opened, but a pooler may have ignored that.
        """
        return _BEGIN_17 if self.connection.info.server_version >= 170_000 else _BEGIN

    @property
    def is_idle(self) -> bool:
        """Whether it is usable, and in no transaction."""
        if self._is_shut_down or self._is_closed:
            return False
        return self.connection.info.transaction_status == TransactionStatus.IDLE

    @property
    def is_in_transaction(self) -> bool:
        """Whether a transaction is open that can be ended."""
        if self._is_shut_down or self._is_closed:
            return False
        status = self.connection.info.transaction_status
        return status in {TransactionStatus.INTRANS, TransactionStatus.INERROR}

    def roll_back(self, seconds: float) -> None:
        """Discard the open transaction, if there is one.

        :param seconds: how long that may take; then the session is shut down, and the server
            discards the transaction when it notices
        """
        if not self._is_shut_down and not self.is_idle:
            self.until = time.monotonic() + seconds
            with suppress(psycopg.Error):
                self.execute("ROLLBACK")

    def keep(self) -> None:
        """Have the session closed in a second, unless :meth:`take` is called before.

        :raises RuntimeError: when the process can have no more threads
        """
        self._is_kept = True
        self._watchdog.watch(self, time.monotonic() + _KEPT)

    def take(self) -> bool:
        """Use the session again; ``False`` when it was closed."""
        with self._watchdog.mutex:
            self._watchdog._overdue_at.pop(self, None)
            self._is_kept = False
            return not self._is_closed

    def _end(self) -> None:
        """End what is overdue, with the watchdog's mutex held."""
        if self._is_kept and not self._is_closed:
            self._is_closed = True
            self._free()
        else:
            self._shut_down()

    def shut_down(self) -> None:
        """Fail what the session is doing in any thread. Does not block."""
        with self._watchdog.mutex:
            self._shut_down()

    def _shut_down(self) -> None:
        """Shut down the socket, with the watchdog's mutex held."""
        if self._is_closed:
            return
        self._is_shut_down = True
        with suppress(OSError, psycopg.Error):
            # A duplicate of the descriptor, which stays libpq's. The family does not matter.
            end = socket.fromfd(self.connection.fileno(), socket.AF_INET, socket.SOCK_STREAM)
            with end:
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the session. Idempotent."""
        with self._watchdog.mutex:
            was_closed, self._is_closed = self._is_closed, True
        if not was_closed:
            self._free()

    def _free(self) -> None:
        with suppress(psycopg.Error):
            self.connection.close()


def _overdue(seconds: float) -> OverdueError:
    return OverdueError(f"the server did not answer within {seconds:g} s")


class _Opening:
    """A connection that another thread opens: libpq may hang while it looks up a host."""

    def __init__(self, address: DatabaseAddress) -> None:
        self._address = address
        self._mutex = threading.Lock()
        self._has_ended = threading.Event()
        self._is_unwanted = False
        self._connection: Connection | None = None
        self._error: BaseException | None = None

    def result(self, seconds: float) -> Connection | None:
        """Open the connection; return ``None`` when that takes longer.

        :raises psycopg.Error: when that fails
        """
        threading.Thread(target=self._open, name="aimagestore connect", daemon=True).start()
        self._has_ended.wait(max(0.0, seconds))
        with self._mutex:
            self._is_unwanted = True
        if self._error is not None:
            raise self._error
        return self._connection

    def _open(self) -> None:
        try:
            connection = self._address.connect(autocommit=True)
        except BaseException as error:  # noqa: BLE001 (result() raises it)
            self._error = error
        else:
            with self._mutex:
                if not self._is_unwanted:
                    self._connection = connection
            if self._connection is None:
                connection.close()
        self._has_ended.set()


class Sessions:
    """Sessions of one database, for many threads.

    psycopg's own pool reconnects in the background, with growing pauses, so calls fail although the
    server is back. Here each call tries for itself.

    :ivar address: the database
    :ivar deadline: seconds within which a statement must end
    :ivar closing: set when the store is closed
    """

    def __init__(self, address: DatabaseAddress, deadline: float) -> None:
        self.address = address
        self.deadline = deadline
        self.closing: threading.Event = threading.Event()
        self._slots = threading.Semaphore(SESSIONS)
        # Guards what follows.
        self._mutex = threading.Lock()
        self._idle: list[Session] = []
        self._acquired: set[Session] = set()

    def end_of_call(self) -> float:
        """Return the moment by which a call that begins now must have ended."""
        return time.monotonic() + self.deadline

    def connect(self, until: float) -> Session:
        """Open a session that its caller closes.

        Its first statement must end by ``until`` too.

        :raises OverdueError: when it is not open in time
        :raises psycopg.Error: when it cannot be opened
        """
        connection = _Opening(self.address).result(until - time.monotonic())
        if connection is None:
            raise _overdue(self.deadline)
        session = Session(connection, self.deadline)
        session.until = until
        return session

    def acquire(self, until: float) -> Session:
        """Return a session; :meth:`release` must follow.

        Its first statement must end by ``until`` too.

        :raises OverdueError: when none is available in time
        :raises psycopg.Error: when none can be opened
        """
        if not self._slots.acquire(timeout=max(0.0, until - time.monotonic())):
            raise OverdueError(f"all {SESSIONS} sessions were in use for {self.deadline:g} s")
        try:
            session = self._take() or self.connect(until)
            session.until, session.renews = until, True
            with self._mutex:
                self._acquired.add(session)
        except BaseException:
            self._slots.release()
            raise
        if self.closing.is_set():
            session.shut_down()
        return session

    def _take(self) -> Session | None:
        """Return the kept session that was used last; ``None`` if none is kept."""
        while True:
            with self._mutex:
                if not self._idle:
                    return None
                session = self._idle.pop()
            if session.take():
                return session

    def release(self, session: Session) -> None:
        """Keep a session for the next call; close it when it is lost or in a transaction."""
        with self._mutex:
            self._acquired.discard(session)
            is_kept = session.is_idle and not self.closing.is_set()
            if is_kept:
                try:
                    session.keep()
                except RuntimeError:  # nobody would close it
                    is_kept = False
                else:
                    self._idle.append(session)
        if not is_kept:
            session.close()
        self._slots.release()

    def call(self, work: Callable[[Session], T], until: float | None = None) -> T:
        """Call ``work`` with a session, again while the server is unavailable.

        What ``work`` does may be done twice. Its first statement must end by ``until``; of the
        others, each has the whole deadline, because large answers come in pages.

        :raises StoreUnavailableError: when the server was not available in time, or refuses
        """

        def once(until: float) -> T:
            session = self.acquire(until)
            try:
                return work(session)
            finally:
                self.release(session)

        return self.retried(once, until)

    def rows(self, statement: LiteralString, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a statement, executed again while the server is unavailable.

        :raises StoreUnavailableError: when the server was not available in time, or refuses
        """
        return self.call(lambda session: session.rows(statement, values))

    def retried(self, work: Callable[[float], T], until: float | None = None) -> T:
        """Call ``work`` with the moment by which it must have ended, again after a lost session.

        :raises StoreUnavailableError: when the server was not available in time, or refuses
        """
        until = self.end_of_call() if until is None else until
        backoff = Backoff(until, self.closing)
        while True:
            try:
                return work(until)
            except psycopg.Error as error:
                # When one session is lost or hangs, the idle ones mostly are lost as well.
                self.drop_idle()
                if not is_lost(error) or not backoff.wait():
                    raise self.unavailable(error) from error

    def unavailable(self, error: psycopg.Error) -> StoreUnavailableError:
        """Return what to raise for an error of the server, or of the connection to it."""
        return StoreUnavailableError(f"{self.address.name}: {reason(error)}")

    def drop_idle(self) -> None:
        """Close the sessions that nobody uses."""
        with self._mutex:
            idle, self._idle = self._idle, []
        for session in idle:
            session.close()

    def close(self) -> None:
        """Close all sessions; calls that still use one fail. Waits for nobody."""
        self.closing.set()
        self.drop_idle()
        with self._mutex:
            acquired = list(self._acquired)
        for session in acquired:
            session.shut_down()
