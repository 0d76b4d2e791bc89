"""Examines the database of a store: the connection, the settings, and what the role may do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, LiteralString

import psycopg

from ..errors import ImageStoreError
from ._addresses import SERVER_SETTINGS
from ._diagnosis import Diagnosis, Severity
from ._schema import check_schema
from ._sessions import SESSIONS, OverdueError, Session, Sessions, columns, reason

# Seconds that two clocks may differ by.
_CLOCK_TOLERANCE = 60.0

# A pooler that shares sessions may give the same session again at first.
_ROUNDS = 3

# Seconds, and bytes, that a standby may be behind.
_LAG = 60.0
_LAG_BYTES = 64 * 1024 * 1024

_CHANGE = ("INSERT", "UPDATE", "DELETE")
_WRITES = {
    "image_store": ("UPDATE",),
    "images": _CHANGE,
    "image_names": _CHANGE,
    "image_digests": _CHANGE,
    "image_items": _CHANGE,
    "image_commits": ("INSERT", "DELETE"),
    "image_changes": ("INSERT", "DELETE"),
}

_MAY_NOT = """
    SELECT u.tab, u.privilege FROM unnest(%s::text[], %s::text[]) AS u (tab, privilege)
    WHERE NOT has_table_privilege(u.tab, u.privilege)
"""

_LIMITS = [
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "transaction_timeout",
    "client_connection_check_interval",
]

_SETTINGS = "SELECT name, setting FROM pg_settings WHERE name = ANY(%s)"

_DURABILITY = ["fsync", "full_page_writes", "synchronous_commit", "synchronous_standby_names"]

_SESSIONS_LEFT = """
    SELECT least(
        current_setting('max_connections')::int
            - current_setting('superuser_reserved_connections')::int
            - coalesce(current_setting('reserved_connections', true)::int, 0)
            - (SELECT sum(numbackends) FROM pg_stat_database),
        (SELECT datconnlimit - numbackends FROM pg_database d JOIN pg_stat_database s
            ON s.datid = d.oid WHERE d.datname = current_database() AND datconnlimit >= 0),
        (SELECT rolconnlimit - (SELECT count(*) FROM pg_stat_activity WHERE usesysid = r.oid)
            FROM pg_roles r WHERE rolname = session_user AND rolconnlimit >= 0)
    )
"""

_STANDBYS = """
    SELECT application_name, sync_state, pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn),
        extract(epoch FROM replay_lag)::float
    FROM pg_stat_replication
"""

_AS_STANDBY = """
    SELECT pg_is_wal_replay_paused(), EXISTS (SELECT FROM pg_stat_wal_receiver WHERE pid > 0),
        pg_last_wal_receive_lsn() IS NOT DISTINCT FROM pg_last_wal_replay_lsn(),
        coalesce(extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()), 0)::float
"""


class DatabaseDoctor:
    """Examines the database.

    :ivar ahead: how many seconds its clock is ahead of this machine's; ``None`` if not known
    :ivar has_tables: whether it has the tables of a store
    :ivar writes: whether the role may write any of them
    """

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self.ahead: float | None = None
        self.has_tables = False
        self.writes = False

    def diagnoses(self) -> Iterator[Diagnosis]:
        """Examine everything."""
        name = self._sessions.address.name
        try:
            self._ask("SELECT")
        except ImageStoreError as error:
            yield Diagnosis(Severity.ERROR, "database", str(error))
            return
        yield Diagnosis(Severity.OK, "database", f"{name} answers")
        parts: dict[str, Callable[[], Iterator[Diagnosis]]] = {
            "tables": self._tables,
            "role": self._role,
            "pooler": self._pooler,
            "time limits": self._time_limits,
            "durability": self._durability,
            "sessions": self._sessions_left,
            "standby": self._standbys,
            "clock": self._clock,
        }
        for about, examine in parts.items():
            try:
                yield from examine()
            except (psycopg.Error, ImageStoreError) as error:
                yield Diagnosis(Severity.NOTE, about, f"this is not known: {reason(error)}")

    def _ask(self, statement: LiteralString, *values: object) -> list[tuple[Any, ...]]:
        return self._sessions.rows(statement, values)

    def _settings(self, names: list[str]) -> dict[str, str]:
        return dict(self._ask(_SETTINGS, names))

    def _is_standby(self) -> bool:
        return bool(self._ask("SELECT pg_is_in_recovery()")[0][0])

    def _tables(self) -> Iterator[Diagnosis]:
        name = self._sessions.address.name
        try:
            self._sessions.call(lambda session: check_schema(session, name))
        except ImageStoreError as error:
            yield Diagnosis(Severity.ERROR, "tables", str(error))
            return
        self.has_tables = True
        yield Diagnosis(Severity.OK, "tables", "they have the version that this library needs")

    def _role(self) -> Iterator[Diagnosis]:
        about = "role"
        if not self.has_tables:
            return
        reads = [(table, "SELECT") for table in _WRITES]
        writes = [(table, privilege) for table, some in _WRITES.items() for privilege in some]
        lacking = set(self._ask(_MAY_NOT, *columns(reads + writes)))
        self.writes = not lacking >= set(writes)
        wanted = reads + (writes if self.writes else [])
        missing = [
            f"{privilege} on {table}"
            for table, privilege in wanted
            if (table, privilege) in lacking
        ]
        if missing:
            text = f"the role lacks {', '.join(missing)}"
            yield Diagnosis(Severity.ERROR, about, text, "grant it; see the page on clusters")
        elif not self.writes:
            text = "the role may only read: open stores with read_only=True"
            yield Diagnosis(Severity.NOTE, about, text)
        else:
            yield Diagnosis(Severity.OK, about, "the role may read and write the tables")
        if self._ask("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")[0][0]:
            text = "the role is a superuser"
            advice = (
                "give programs a role that may only use the tables, as the page on clusters shows"
            )
            yield Diagnosis(Severity.NOTE, about, text, advice)

    def _pooler(self) -> Iterator[Diagnosis]:
        until = self._sessions.end_of_call()
        first = self._sessions.connect(until)
        try:
            is_known = _process(first) == first.connection.info.backend_pid
            second = self._sessions.connect(until)
            try:
                is_shared = _share(first, second)
            finally:
                second.close()
        finally:
            first.close()
        if is_shared:
            yield Diagnosis(
                Severity.ERROR,
                "pooler",
                "a pooler gives the sessions of one client to others between two statements: "
                "watches are not notified, and prepared statements fail",
                "have it keep a session for each client (pool_mode = session), or connect to the "
                "server itself",
            )
        elif not is_known:
            yield Diagnosis(Severity.OK, "pooler", "a pooler keeps a session for each client")
        else:
            yield Diagnosis(Severity.OK, "pooler", "there is none, or one that does not show")

    def _time_limits(self) -> Iterator[Diagnosis]:
        about, settings = "time limits", self._settings(_LIMITS)
        wrong = {
            name: value
            for name, value in settings.items()
            if value != SERVER_SETTINGS.get(name, "0")
        }
        for name, value in wrong.items():
            text = f"{name} is {value} ms in the sessions of this library"
            if name == "client_connection_check_interval":
                text += ": the server does not notice at once that a program has left"
                advice = "let the pooler pass the options of sessions on"
            else:
                text += ": calls that take longer fail"
                advice = f"ALTER ROLE … SET {name} = 0, or leave it out of the address"
            yield Diagnosis(Severity.WARNING, about, text, advice)
        if not wrong:
            yield Diagnosis(Severity.OK, about, "the server sets none to the calls of this library")

    def _durability(self) -> Iterator[Diagnosis]:
        about, settings = "durability", self._settings(_DURABILITY)
        loses = "a crash of the server may lose or damage what was committed"
        wrong = [
            Diagnosis(Severity.ERROR, about, f"{name} is off: {loses}", f"set {name} = on")
            for name in ("fsync", "full_page_writes")
            if settings[name] == "off"
        ]
        level = settings["synchronous_commit"]
        if level == "off":
            text = "synchronous_commit is off: a crash of the server loses the last commits"
            advice = "set synchronous_commit = on, for the role at least"
            wrong.append(Diagnosis(Severity.ERROR, about, text, advice))
        elif level == "local" and settings["synchronous_standby_names"]:
            text = (
                "synchronous_commit is local: a standby that takes over may lack the last commits"
            )
            wrong.append(Diagnosis(Severity.WARNING, about, text, "set synchronous_commit = on"))
        yield from wrong
        if not wrong:
            yield Diagnosis(Severity.OK, about, "what is committed is on the server's disk")

    def _sessions_left(self) -> Iterator[Diagnosis]:
        ((left,),) = self._ask(_SESSIONS_LEFT)
        about, needed = "sessions", SESSIONS + 1
        text = f"{max(0, left)} are left; a store has up to {SESSIONS}, and one for each watch"
        advice = "raise max_connections or the CONNECTION LIMIT, or have fewer stores open"
        if left < needed:
            yield Diagnosis(Severity.ERROR, about, text, advice)
        elif left < 3 * needed:
            yield Diagnosis(Severity.WARNING, about, text, advice)
        else:
            yield Diagnosis(Severity.OK, about, text)

    def _standbys(self) -> Iterator[Diagnosis]:
        if self._is_standby():
            yield self._as_standby()
            return
        about, rows = "standby", self._ask(_STANDBYS)
        wanted = self._settings(_DURABILITY)["synchronous_standby_names"]
        if rows and all(row[1] is None for row in rows):
            text = f"{len(rows)} follow, but this role may not see how far behind they are"
            yield Diagnosis(Severity.NOTE, about, text, "GRANT pg_read_all_stats TO the role")
            return
        if wanted and not any(row[1] in {"sync", "quorum"} for row in rows):
            text = "no synchronous standby follows: every commit waits for one"
            advice = "start the standby, or empty synchronous_standby_names"
            yield Diagnosis(Severity.ERROR, about, text, advice)
        elif not rows:
            text = "none follows this server: what its disk loses is in backups only"
            yield Diagnosis(Severity.NOTE, about, text)
        elif not wanted:
            text = "the standbys are asynchronous: one that takes over may lack the last commits"
            yield Diagnosis(Severity.NOTE, about, text, "set synchronous_standby_names")
        for name, _, size, seconds in rows:
            is_late = (seconds or 0) > _LAG or (size or 0) > _LAG_BYTES
            text = f"{name} is {seconds or 0:.0f} s and {size or 0} bytes behind"
            severity = Severity.WARNING if is_late else Severity.OK
            yield Diagnosis(severity, about, text, "see what holds it up" if is_late else "")

    def _as_standby(self) -> Diagnosis:
        about = "standby"
        ((is_paused, follows, is_level, seconds),) = self._ask(_AS_STANDBY)
        if is_paused:
            text = "this standby is paused: readers see the store as it was"
            return Diagnosis(Severity.WARNING, about, text, "SELECT pg_wal_replay_resume()")
        if not follows:
            text = "this standby follows no server at the moment"
            return Diagnosis(Severity.WARNING, about, text, "see its log")
        if not is_level and seconds > _LAG:
            text = f"this standby is {seconds:.0f} s behind"
            return Diagnosis(Severity.WARNING, about, text, "see what holds it up")
        return Diagnosis(Severity.OK, about, "this is a standby, for stores that are read_only")

    def _clock(self) -> Iterator[Diagnosis]:
        before = time.time()
        ((there,),) = self._ask("SELECT extract(epoch FROM clock_timestamp())::float")
        ahead = there - (before + time.time()) / 2
        self.ahead = ahead
        yield compare_clocks("this machine", "the database", ahead)


def compare_clocks(one: str, other: str, ahead: float) -> Diagnosis:
    """Judge the difference of two clocks.

    :param ahead: how many seconds the other clock is ahead
    """
    if abs(ahead) <= _CLOCK_TOLERANCE:
        return Diagnosis(Severity.OK, "clock", f"{one} and {other} agree")
    way = "behind" if ahead > 0 else "ahead of"
    text = f"the clock of {one} is {abs(ahead):.0f} s {way} that of {other}"
    return Diagnosis(Severity.WARNING, "clock", text, "have all of them follow one time server")


def _process(session: Session) -> int:
    row = session.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None, "the statement has a row"
    return int(row[0])


def _share(first: Session, second: Session) -> bool:
    """Return whether a pooler lets two clients share processes of the server."""
    seen = {_process(first)}
    for _ in range(_ROUNDS):
        second.execute("BEGIN")
        if _process(second) in seen:
            return True
        # The second session keeps its process while its transaction is open.
        try:
            seen.add(_process(first))
        except OverdueError:
            return True
        second.execute("ROLLBACK")
    return len(seen) > 1
