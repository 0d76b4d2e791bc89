"""The identity of a store: which database and which prefix of a bucket belong together.

1. The first store that is opened for writing gives the database a random identity, and writes a
   *marker* with it into the prefix. It refuses a prefix with a marker, or with unknown objects.
2. The database also notes its *origin*: the server, database and table, which a restored dump or
   another copy does not share. And it notes the URL of the prefix, which a copied bucket does not
   share.
3. Each garbage collection adds a random token to the row of ``image_store``, then to the marker.
   So a database that was restored to a time before it does not know the token of the marker.
4. Opening, checking and collecting compare all of this; a store that uploads does so once a
   minute. Each lookup and each commit also shows whether the database went back: see ``_history``.
5. A difference raises :exc:`StoreIdentityError`. :func:`adopt` accepts it under a new identity;
   stores that use the old one notice that.
6. Nothing is collected until the grace period has passed since an adoption, or since the server's
   timeline changed. A copy of the server that was promoted, as in a drill, shares the objects with
   the original. Its first collection only changes the marker, and the original notices that.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, LiteralString, NamedTuple, NoReturn
from uuid import UUID, uuid4

from ..errors import StoreIdentityError, StoreReadOnlyError
from ._addresses import BucketAddress, DatabaseAddress
from ._blobs import Blobs, Marker
from ._schema import check_schema
from ._sessions import DEADLINE, Session, Sessions

_ADVICE = (
    "use the database and the bucket that belong together, or run aimagestore cluster adopt to "
    "make them one store, and then check"
)

# Seconds after which a store that uploads compares everything again.
_RECHECK = 60.0

_ORIGIN = """(
    SELECT concat_ws('/', c.system_identifier, d.oid, 'image_store'::regclass::oid)
    FROM pg_control_system() c, pg_database d WHERE d.datname = current_database()
)"""

_TIMELINE = "left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)"

_REGISTERED = f"""
    SELECT identity, blobs_url, origin, {_ORIGIN}, collections, pg_is_in_recovery(),
        EXISTS (SELECT FROM image_items WHERE removed IS NULL)
    FROM image_store
"""

_KNOWS = "SELECT EXISTS (SELECT FROM image_items WHERE blob = ANY(%s))"

_REGISTER = f"""
    UPDATE image_store SET identity = %(identity)s, collections = ARRAY[%(collection)s::uuid],
        blobs_url = NULL, origin = {_ORIGIN}, timeline = {_TIMELINE},
        grace_period = %(grace_period)s
    WHERE identity IS NULL
"""

_ADOPT = f"""
    UPDATE image_store SET identity = %(identity)s, collections = ARRAY[%(collection)s::uuid],
        blobs_url = NULL, origin = {_ORIGIN}, timeline = {_TIMELINE},
        owned_since = clock_timestamp()
"""

_COMPLETE = "UPDATE image_store SET blobs_url = %s WHERE identity = %s"

_NOTE_TIMELINE = f"""
    UPDATE image_store SET timeline = {_TIMELINE}, owned_since = clock_timestamp()
    WHERE timeline IS DISTINCT FROM {_TIMELINE}
"""

_MAY_COLLECT = f"""
    SELECT timeline = {_TIMELINE} AND owned_since < clock_timestamp() - grace_period
    FROM image_store
"""

_ADD_COLLECTION = "UPDATE image_store SET collections = collections || %s::uuid"

# The marker never gets a token again that is before its present one.
_FORGET_COLLECTIONS = """
    UPDATE image_store SET collections =
        collections[coalesce(array_position(collections, %s::uuid), 1):]
"""


class _Registered(NamedTuple):
    """What the database has about the store's identity.

    :ivar blobs_url: the URL of the prefix whose marker names the identity; ``None`` until then
    :ivar origin: the origin of the database that got the identity
    :ivar present_origin: the origin of the database that has the row
    :ivar collections: tokens of garbage collections; the marker has one of them
    :ivar is_standby: whether the server is a standby
    :ivar has_items: whether the database refers to any object
    """

    identity: UUID | None
    blobs_url: str | None
    origin: str | None
    present_origin: str
    collections: Sequence[UUID]
    is_standby: bool
    has_items: bool


class _Claim(NamedTuple):
    """The content of a marker.

    :ivar identity: the identity of the store that the prefix belongs to
    :ivar collection: the token of the last garbage collection
    """

    identity: str
    collection: str

    @classmethod
    def of(cls, marker: Marker) -> _Claim | None:
        """Parse a marker; ``None`` when it is not one of this library."""
        try:
            found = json.loads(marker.text)
            return cls(str(found["identity"]), str(found["collection"]))
        except (ValueError, KeyError, TypeError):
            return None

    @property
    def text(self) -> bytes:
        """The text of a marker with this content."""
        return json.dumps(self._asdict()).encode()


class Identity:
    """Compares the identity of a store in its database and in its bucket."""

    def __init__(self, sessions: Sessions, blobs: Blobs) -> None:
        self._sessions = sessions
        self._blobs = blobs
        self._seen: UUID | None = None
        self._checked_at = time.monotonic()

    def open(self, *, read_only: bool, grace_period: timedelta) -> None:
        """Check the identity, or give the store one if it is new and is not read-only.

        :param grace_period: the grace period of a new store
        :raises StoreIdentityError: when the database and the bucket do not belong together
        :raises StoreUnavailableError: when a server is unavailable, or refuses
        """
        found = self._registered()
        if not read_only:
            if found.identity is None:
                try:
                    self._check_new(found)
                except StoreIdentityError:
                    # The marker or the objects may be from another first opening, which was faster.
                    if self._registered().identity is None:
                        raise
                self._register(_REGISTER, grace_period)
                found = self._registered()
            if found.blobs_url is None:
                self._complete(found)
                found = self._registered()
        self._check(found, writes=not read_only)

    def check(self, *, writes: bool) -> Marker:
        """Compare everything; return the marker.

        :param writes: whether the bucket is to be written to; then it must not be a copy
        :raises StoreIdentityError: when the database and the bucket do not belong together
        :raises StoreUnavailableError: when a server is unavailable, or refuses
        """
        return self._check(self._registered(), writes=writes)

    def check_marker(self) -> None:
        """Compare everything before an upload, unless that was done in the last minute.

        :raises StoreIdentityError: when the database and the bucket do not belong together
        :raises StoreUnavailableError: when a server is unavailable, or refuses
        """
        if time.monotonic() > self._checked_at + _RECHECK:
            self.check(writes=True)
            self._checked_at = time.monotonic()

    def begin_collection(self, session: Session, marker: Marker, token: UUID | None) -> bool:
        """Begin a garbage collection, under the store's lock; return whether to collect now.

        :param marker: the marker, as it was checked last
        :param token: the token of the collection; ``None`` for a dry run
        :raises psycopg.Error: when the server is unavailable, or refuses
        """
        if token is not None:
            session.execute(_NOTE_TIMELINE)
            self.forget_collections(session, marker)
            session.execute(_ADD_COLLECTION, [token])
        row = session.execute(_MAY_COLLECT).fetchone()
        return row is not None and bool(row[0])

    def forget_collections(self, session: Session, marker: Marker) -> None:
        """Forget the collections before the one of the marker, under the store's lock.

        From then on, a bucket that was restored to a time before that one is refused.

        :param marker: the marker, as it was checked last
        :raises psycopg.Error: when the server is unavailable, or refuses
        """
        claim = _Claim.of(marker)
        assert claim is not None, "it was checked"
        session.execute(_FORGET_COLLECTIONS, [claim.collection])

    def mark_collection(self, marker: Marker, token: UUID) -> Marker:
        """Write the token of a collection that has begun into the marker. Needs no lock.

        Call it before anything is removed.

        :returns: the new marker, whose ``written`` is the present time by the object store's clock
        :raises StoreIdentityError: when the prefix belongs to another store by now
        :raises StoreUnavailableError: when a server is unavailable, or refuses
        """
        claim = _Claim.of(marker)
        assert claim is not None, "it was checked"
        self._blobs.replace_marker(marker, claim._replace(collection=str(token)).text)
        return self.check(writes=True)  # another collection of this store may have been faster

    def adopt(self) -> UUID:
        """Give the store a new identity; see :func:`adopt`."""
        if self._registered().is_standby:
            name = self._sessions.address.name
            raise StoreReadOnlyError(f"{name} is a standby: adopt it once it is promoted")
        self._check_objects()
        marker = self._blobs.read_marker()
        self._register(_ADOPT)
        found = self._registered()
        self._complete(found, marker)
        assert found.identity is not None, "it was just given"
        return found.identity

    def _registered(self) -> _Registered:
        return _Registered(*self._row(_REGISTERED))

    def _row(self, statement: LiteralString, values: Sequence[Any] = ()) -> tuple[Any, ...]:
        row = self._sessions.call(lambda session: session.execute(statement, values).fetchone())
        assert row is not None, "the statement has a row"
        return row

    def _register(self, statement: LiteralString, grace_period: timedelta | None = None) -> None:
        values = {"identity": uuid4(), "collection": uuid4(), "grace_period": grace_period}
        self._sessions.call(lambda session: session.execute(statement, values))

    def _complete(self, found: _Registered, marker: Marker | None = None) -> None:
        """Write the marker of an identity, and note in the database that it was written.

        :param marker: the marker to replace; ``None`` if there is to be none
        """
        claim = _Claim(str(found.identity), str(found.collections[-1]))
        if not self._blobs.replace_marker(marker or Marker(), claim.text):
            present = _Claim.of(self._blobs.read_marker())
            if present is None or present.identity != claim.identity:
                self._fail_for_prefix(found, present)
        values = [self._blobs.name, found.identity]
        self._sessions.call(lambda session: session.execute(_COMPLETE, values))

    def _check_new(self, found: _Registered) -> None:
        """Check that the prefix has nothing of another store."""
        marker = self._blobs.read_marker()
        if marker.version is not None:
            self._fail_for_prefix(found, _Claim.of(marker))
        if not self._check_objects() and found.has_items:
            self._fail("the bucket has none of the objects that the database refers to", found)

    def _check_objects(self) -> bool:
        """Return whether the prefix has objects.

        :raises StoreIdentityError: when it has, and the database knows none of them
        """
        is_empty = True
        for page in self._blobs.pages():
            if self._row(_KNOWS, [[blob.id for blob in page]])[0]:
                return True
            is_empty &= not page
        if not is_empty:
            raise StoreIdentityError(
                f"the database {self._sessions.address.name} knows none of the objects at "
                f"{self._blobs.name}: another store has written them; use another prefix, or the "
                "database that belongs there",
                path=self._blobs.name,
            )
        return False

    def _check(self, found: _Registered, *, writes: bool) -> Marker:
        marker = self._blobs.read_marker()
        try:
            self._compare(found, marker, writes=writes)
        except StoreIdentityError:
            # A garbage collection, or a first opening, may have begun since the row was read.
            self._compare(self._registered(), marker, writes=writes)
        return marker

    def _compare(self, found: _Registered, marker: Marker, *, writes: bool) -> None:
        """Compare a row of the database with a marker, which must not be the older one.

        :raises StoreIdentityError: when they do not belong together
        """
        if self._seen is None:
            self._seen = found.identity
        elif found.identity != self._seen:
            self._fail("the database was adopted as a new store, or is another one now", found)
        if found.identity is not None and found.origin != found.present_origin:
            self._fail("the database is a copy, or was restored from a dump", found)
        if marker.version is None:
            if found.blobs_url is None:
                return  # nobody has written to the store yet
            self._fail(f"the bucket has no marker of a store at {self._blobs.name}", found)
        claim = _Claim.of(marker)
        if found.is_standby and found.identity is None:
            return  # it has not replicated the first opening yet
        if claim is None or claim.identity != str(found.identity):
            self._fail_for_prefix(found, claim)
        # A standby may not have replicated the collection yet.
        if not found.is_standby and claim.collection not in map(str, found.collections):
            self._fail(
                "one of them was restored: the bucket has the mark of a garbage collection that "
                "the database does not know",
                found,
            )
        if writes and found.blobs_url != self._blobs.name:
            self._fail(
                f"the bucket is a copy: the database has its objects at {found.blobs_url}", found
            )

    def _fail_for_prefix(self, found: _Registered, claim: _Claim | None) -> NoReturn:
        self._fail(
            f"another database uses {self._blobs.name}",
            found,
            None if claim is None else claim.identity,
        )

    def _fail(self, problem: str, found: _Registered, actual: str | None = None) -> NoReturn:
        raise StoreIdentityError(
            f"{self._sessions.address.name} with {self._blobs.name}: {problem}; {_ADVICE}",
            path=self._blobs.name,
            expected=None if found.identity is None else str(found.identity),
            actual=actual,
        )


def adopt(records_url: str, blobs_url: str) -> UUID:
    """Make a database and a prefix of a bucket one store, under a new identity. Blocks.

    Use it after a database or a bucket was restored or copied. Stores that are open with the old
    identity raise :exc:`aimagestore.StoreIdentityError` from then on, as do those of another
    database that has used the prefix. Run :func:`aimagestore.check` next: it names what the bucket
    lacks. Nothing is collected as garbage until the grace period has passed.

    :param records_url: as for :class:`ClusterLocation`
    :param blobs_url: as for :class:`ClusterLocation`
    :returns: the new identity
    :raises ValueError: when an address is malformed, or a setting in the environment cannot be used
    :raises StoreIdentityError: when the database knows none of the objects that are there
    :raises StoreSchemaError: when the database has no tables, or those of another version
    :raises StoreReadOnlyError: when it is a standby
    :raises StoreUnavailableError: when a server is unavailable, or refuses
    """
    sessions = Sessions(DatabaseAddress.of(records_url), DEADLINE)
    try:
        blobs = Blobs(BucketAddress.of(blobs_url), DEADLINE)
        sessions.call(lambda session: check_schema(session, sessions.address.name))
        return Identity(sessions, blobs).adopt()
    finally:
        sessions.close()
