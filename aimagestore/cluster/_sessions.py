"""Sessions of PostgreSQL: kept for the next call, and made anew where they are lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from ..errors import StoreUnavailableError
from .addresses import Records
from .patience import Patience

T = TypeVar("T")

Connection = psycopg.Connection[tuple[Any, ...]]

# More would queue at the server's processors, and a server has only so many sessions to give.
_SESSIONS = 8

# Of what the server says: that it goes down or comes up, has no session left, or has ended this
# transaction for another's sake, a standby's for the sake of what it follows.
_PASSING = ("08", "40", "57P", "53300", "25P03")
_PASSING_REFUSALS = ("starting up", "shutting down", "recovery", "too many", "connection slots")


def is_lost(error: psycopg.Error) -> bool:
    """Whether the same may go well in a new session."""
    if error.sqlstate is not None:
        return error.sqlstate.startswith(_PASSING)
    text = str(error)
    is_refused = "FATAL:" in text and not any(words in text for words in _PASSING_REFUSALS)
    return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) and not is_refused


class Connections:
    """Sessions of one database, for many threads.

    A library's pool would do, but for what follows an outage: it tries again in the background,
    more and more seldom, while calls fail although the server is back. Here each call tries.
    """

    def __init__(self, records: Records) -> None:
        self.records = records
        self.closing: threading.Event = threading.Event()
        self._slots = threading.Semaphore(_SESSIONS)
        self._mutex = threading.Lock()
        self._idle: list[Connection] = []

    def connect(self) -> Connection:
        """A new session, for whoever closes it."""
        return psycopg.connect(self.records.conninfo, autocommit=True)

    def borrow(self) -> Connection:
        """A session, to be given back; waits for one if all are taken."""
        self._slots.acquire()
        try:
            with self._mutex:
                connection = self._idle.pop() if self._idle else None
            return connection or self.connect()
        except BaseException:
            self._slots.release()
            raise

    def give_back(self, connection: Connection) -> None:
        """Keep a session for the next call; close it when it is lost, or in a transaction."""
        is_usable = connection.info.transaction_status == TransactionStatus.IDLE
        with self._mutex:
            is_kept = is_usable and not self.closing.is_set()
            if is_kept:
                self._idle.append(connection)
        if not is_kept:
            connection.close()
        self._slots.release()

    def call(self, work: Callable[[Connection], T]) -> T:
        """Do in a session what may be done twice, and again while the server is not to be had.

        :raises StoreUnavailableError: when it was not in time, or refuses
        """

        def once() -> T:
            connection = self.borrow()
            try:
                return work(connection)
            finally:
                self.give_back(connection)

        return self.retried(once)

    def retried(self, work: Callable[[], T]) -> T:
        """Do what may be done twice, again and again while the server is not to be had.

        :raises StoreUnavailableError: when it was not in time, or refuses
        """
        patience = Patience(self.closing)
        while True:
            try:
                return work()
            except psycopg.Error as error:
                if not is_lost(error) or not patience.wait():
                    raise self.unavailable(error) from error
                # Where one session is lost, those that are idle mostly are as well.
                self._drop_idle()

    def unavailable(self, error: psycopg.Error) -> StoreUnavailableError:
        """What to raise for an error of the server or of the way to it."""
        reason = str(error).strip().partition("\n")[0]
        return StoreUnavailableError(f"{self.records.name}: {reason}")

    def _drop_idle(self) -> None:
        with self._mutex:
            idle, self._idle = self._idle, []
        for connection in idle:
            with suppress(psycopg.Error):
                connection.close()

    def close(self) -> None:
        """Close all sessions, and wait for those that are lent."""
        self.closing.set()
        self._drop_idle()
        for _ in range(_SESSIONS):
            self._slots.acquire()
