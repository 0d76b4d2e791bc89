"""Examines the servers of a store, so that an operator learns of problems before they do harm."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import ImageStoreError
from ._addresses import BucketAddress, DatabaseAddress
from ._blobs import Blobs
from ._diagnosis import Diagnosis, Severity
from ._doctor_bucket import BucketDoctor
from ._doctor_database import DatabaseDoctor
from ._identity import Identity
from ._location import ClusterLocation
from ._sessions import Sessions


def doctor(location: ClusterLocation) -> tuple[Diagnosis, ...]:
    """Examine the servers of a store: what is wrong with them, or will be. Blocks.

    The records stay as they are. In the bucket, an object is written and removed again. Run it with
    the role and the credentials that the programs have, because it judges these too. An unavailable
    server is a result, not an error.

    :returns: the results in a fixed order, those without a problem too
    :raises TypeError: when ``location`` is not a location of a cluster
    :raises ValueError: when a setting in the environment cannot be used
    """
    if not isinstance(location, ClusterLocation):
        raise TypeError(f"location must be a ClusterLocation, not {type(location).__name__}")
    return tuple(_diagnoses(location))


def _diagnoses(location: ClusterLocation) -> Iterator[Diagnosis]:
    bucket = BucketAddress.of(location.blobs_url)
    blobs = Blobs(bucket, location.deadline)
    sessions = Sessions(DatabaseAddress.of(location.records_url), location.deadline)
    try:
        database = DatabaseDoctor(sessions)
        yield from database.diagnoses()
        objects = BucketDoctor(bucket, blobs)
        yield from objects.diagnoses(database.ahead, writes=database.writes)
        if database.has_tables and objects.is_reachable:
            yield _identity(Identity(sessions, blobs), writes=database.writes)
    finally:
        sessions.close()


def _identity(identity: Identity, *, writes: bool) -> Diagnosis:
    try:
        marker = identity.check(writes=writes)
    except ImageStoreError as error:
        return Diagnosis(Severity.ERROR, "identity", str(error))
    if marker.version is None:
        return Diagnosis(Severity.NOTE, "identity", "no store has been opened for writing yet")
    return Diagnosis(Severity.OK, "identity", "the database and the bucket belong together")
