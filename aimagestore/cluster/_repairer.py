"""Repairs a cluster's store: rebuilds tables from the records, and drops lost items on demand."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from uuid import UUID, uuid4

import psycopg

from .._core.record import Record, without_item
from .._core.report import Finding, FindingKind, Report
from .._engine.lock import AnyGrant, LockLine
from .._engine.protocol import Steps
from ..errors import StoreUnavailableError
from ._addresses import BucketAddress, DatabaseAddress
from ._blobs import Blobs
from ._engine import begin_history, check_server
from ._history import History
from ._identity import Identity
from ._lock import AdvisoryLock, HeldLock
from ._sessions import OverdueError, Session, Sessions, is_lost
from ._tables import Difference, Tables, readable, remove_item, set_record

logger = logging.getLogger("aimagestore")

_LOST_ITEM = frozenset(
    {
        FindingKind.ITEM_MISSING,
        FindingKind.ITEM_SHORT,
        FindingKind.ITEM_LONG,
        FindingKind.ITEM_ALTERED,
    }
)

_RECORD = "SELECT id, record FROM images WHERE id = %s"

_DROP_RECORD = "DELETE FROM images WHERE id = %s"

_BLOB = "SELECT blob FROM image_items WHERE image_id = %s AND key = %s AND removed IS NULL"

# Only an object that no garbage collection may take meanwhile.
_LINK = """
    INSERT INTO image_items (blob, image_id, key, size, digest)
    SELECT u.blob, u.image_id, u.key, u.size, u.digest FROM (VALUES
        (%s::uuid, %s::text, %s::bytea, %s::bigint, %s::text)
    ) AS u (blob, image_id, key, size, digest)
    WHERE NOT EXISTS (SELECT FROM image_items i WHERE i.blob = u.blob) OR EXISTS (
        SELECT FROM image_items i WHERE i.blob = u.blob AND i.image_id <> '' AND (
            i.removed IS NULL
            OR i.removed > clock_timestamp() - (SELECT grace_period FROM image_store)
        )
    )
    RETURNING blob
"""

# All changes before it count as forgotten: stores empty their caches, and watches begin anew.
_COMMIT = """
    WITH bumped AS (
        UPDATE image_store SET version = version + 1, pruned = version + 1,
            touched = clock_timestamp()
        RETURNING version
    ), noted AS (
        INSERT INTO image_commits (version, token, made)
        SELECT version, %s, clock_timestamp() FROM bumped
    )
    SELECT pg_notify(%s, '') FROM bumped
"""


class ClusterRepairer:
    """A store opened for repair; see :class:`aimagestore._engine.protocol.Repairer`.

    Everything happens in the transaction that holds the lock, and waits for the database only.

    :ivar lock: the line for its lock
    """

    def __init__(
        self, database: DatabaseAddress, bucket: BucketAddress, *, deadline: float
    ) -> None:
        self._sessions = Sessions(database, deadline)
        try:
            self._blobs = Blobs(bucket, deadline)
            self._sessions.call(lambda s: check_server(s, database.name, read_only=False))
            Identity(self._sessions, self._blobs).check(writes=True)
            history = History(database.name)
            self._number, _ = self._sessions.call(lambda s: begin_history(s, history))
        except BaseException:
            self._sessions.close()
            raise
        self._lock = AdvisoryLock(self._sessions, history, self._number)
        self.lock: LockLine[HeldLock] = LockLine(self._lock, "aimagestore lock")

    def steps(self, grant: AnyGrant, report: Report, *, drop: bool) -> Steps[Report]:
        held: HeldLock = grant.held
        done: list[Finding] = []
        try:
            for repaired in self._repair(held.session, report, drop=drop):
                done += repaired
                yield len(done), max(len(done), len(report.findings))
        except psycopg.Error as error:
            raise self._unavailable(error, may_have_happened=False) from error
        if done:
            self._commit(held.session)
            for finding in done:
                logger.info("repair, %s, %s: %s", finding.kind, finding.id, finding.detail)
        return Report(tuple(done))

    def _repair(
        self, session: Session, report: Report, *, drop: bool
    ) -> Iterator[Sequence[Finding]]:
        """Repair everything; yield what each step has done."""
        reported = {finding.id for finding in report.findings}
        if drop:
            for finding in report.findings:
                yield list(self._drop(session, finding))
        tables = Tables(session, self._blobs.path_of, self._sessions.deadline)
        for page in tables.differences() if reported else ():
            found = [d for d in page if not d.finding.id or d.finding.id in reported]
            _fix(session, found)
            yield [replace(d.finding, detail=f"repaired: {d.finding.detail}") for d in found]
        for finding in report.findings:
            yield list(self._link(session, finding))

    def _drop(self, session: Session, finding: Finding) -> Iterator[Finding]:
        """Drop a damaged record or a lost item. The tables are corrected afterwards."""
        found = session.rows(_RECORD, [finding.id])
        if not found:
            return
        record = readable(*found[0])
        if finding.kind is FindingKind.RECORD_DAMAGED and record is None:
            session.execute(_DROP_RECORD, [finding.id])
            yield replace(finding, detail=f"dropped, it was: {found[0][1]}")
        elif finding.kind in _LOST_ITEM and record is not None:
            blob = _current(session, finding)
            is_still_so = finding.path == (
                self._blobs.name if blob is None else self._blobs.path_of(blob)
            )
            if is_still_so and finding.key in record.image.big_data_names:
                session.execute(*set_record(without_item(record, finding.key)))
                yield replace(finding, detail="dropped from the record")

    def _link(self, session: Session, finding: Finding) -> Iterator[Finding]:
        """Give a missing item the object with its content that the check found."""
        blob = self._blobs.id_in(finding.path)
        if finding.kind is not FindingKind.ITEM_MISSING or blob is None:
            return
        found = session.rows(_RECORD, [finding.id])
        record = readable(*found[0]) if found else None
        if record is None or not _describes_content(record, finding):
            return
        if _current(session, finding) == blob:
            return
        key, image = finding.key.encode(), record.image
        size, digest = image.big_data_sizes[finding.key], image.big_data_digests[finding.key]
        session.execute(*remove_item(finding.id, key))
        if session.rows(_LINK, [blob, finding.id, key, size, digest]):
            yield replace(finding, detail="it has this object now")

    def _commit(self, session: Session) -> None:
        try:
            session.execute(_COMMIT, [uuid4(), f"aimagestore_{self._number}"])
            session.execute("COMMIT")
        except psycopg.Error as error:
            may_have_happened = is_lost(error) or isinstance(error, OverdueError)
            raise self._unavailable(error, may_have_happened=may_have_happened) from error

    def _unavailable(
        self, error: psycopg.Error, *, may_have_happened: bool
    ) -> StoreUnavailableError:
        unavailable = self._sessions.unavailable(error)
        unavailable.may_have_happened = may_have_happened
        doubt = "the repair may have happened: check again"
        unavailable.message += f" ({doubt if may_have_happened else 'nothing was changed'})"
        return unavailable

    def close(self) -> None:
        self._sessions.close()
        self._lock.close()


def _fix(session: Session, differences: Sequence[Difference]) -> None:
    with session.limited() as connection, connection.pipeline():
        for difference in differences:
            connection.execute(*difference.fix)


def _current(session: Session, finding: Finding) -> UUID | None:
    """Return the object that an item has now."""
    rows = session.rows(_BLOB, [finding.id, finding.key.encode()])
    return rows[0][0] if rows else None


def _describes_content(record: Record, finding: Finding) -> bool:
    """Return whether the record still describes the content that was found for an item."""
    image, key = record.image, finding.key
    is_described = key in image.big_data_names and key in image.big_data_sizes
    return is_described and image.big_data_digests.get(key, "?") in finding.detail.split()
