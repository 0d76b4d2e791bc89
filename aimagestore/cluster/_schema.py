"""The tables, and their migration to a newer version."""

from __future__ import annotations

import psycopg
from psycopg.errors import LockNotAvailable, UndefinedTable

from .._core.digest import is_canonical, is_digest, is_manifest_key
from .._core.record import read
from ..errors import StoreSchemaError, StoreUnavailableError
from ._addresses import DatabaseAddress
from ._sessions import Connection, Session, columns, reason

_STEPS = (
    # One row. Every commit updates it, so all commits have one order.
    """
    CREATE TABLE image_store (
        single boolean PRIMARY KEY DEFAULT true CHECK (single),
        schema_version integer NOT NULL,
        version bigint NOT NULL DEFAULT 0,
        pruned bigint NOT NULL DEFAULT 0,
        last_place bigint NOT NULL DEFAULT 0,
        images bigint NOT NULL DEFAULT 0,
        touched timestamptz NOT NULL DEFAULT clock_timestamp()
    ) WITH (fillfactor = 10);
    COMMENT ON COLUMN image_store.version IS 'the number of the last commit';
    COMMENT ON COLUMN image_store.pruned IS 'of the last commit that image_changes has lost';

    CREATE TABLE images (
        id text COLLATE "C" PRIMARY KEY,
        place bigint NOT NULL UNIQUE,
        record text NOT NULL
    );
    COMMENT ON TABLE images IS 'records, as they would stand in images.json';

    CREATE TABLE image_names (
        name bytea PRIMARY KEY,
        image_id text COLLATE "C" NOT NULL
    );
    COMMENT ON COLUMN image_names.name IS
        'SHA-256 of the name: a name may be longer than an index takes';

    CREATE TABLE image_digests (
        digest text COLLATE "C",
        image_id text COLLATE "C",
        PRIMARY KEY (digest, image_id)
    );

    CREATE TABLE image_items (
        blob uuid PRIMARY KEY,
        image_id text COLLATE "C" NOT NULL,
        key bytea NOT NULL,
        size bigint NOT NULL,
        removed timestamptz
    );
    CREATE UNIQUE INDEX image_items_current ON image_items (image_id, key)
        WHERE removed IS NULL;
    CREATE INDEX image_items_removed ON image_items (removed) WHERE removed IS NOT NULL;
    COMMENT ON TABLE image_items IS 'which object has which item''s content';

    CREATE TABLE image_commits (
        version bigint PRIMARY KEY,
        token uuid NOT NULL,
        made timestamptz NOT NULL
    );

    CREATE TABLE image_changes (
        version bigint,
        number integer,
        image_id text COLLATE "C" NOT NULL,
        kind text NOT NULL,
        PRIMARY KEY (version, number)
    );

    INSERT INTO image_store (schema_version) VALUES (0);
    """,
    # The identity is given by the first store that is opened for writing; see _identity.
    """
    ALTER TABLE image_store
        ADD COLUMN identity uuid,
        ADD COLUMN origin text,
        ADD COLUMN blobs_url text,
        ADD COLUMN collections uuid[] NOT NULL DEFAULT '{}',
        ADD COLUMN timeline text,
        ADD COLUMN owned_since timestamptz NOT NULL DEFAULT '-infinity',
        ADD COLUMN grace_period interval NOT NULL DEFAULT '1 day'
            CHECK (grace_period > interval '0');
    COMMENT ON COLUMN image_store.origin IS
        'the server, database and table that the identity was given to: a copy has others';
    COMMENT ON COLUMN image_store.blobs_url IS
        'the prefix of the bucket, once its marker names the identity';
    COMMENT ON COLUMN image_store.collections IS
        'tokens of garbage collections; the marker has one of them';
    COMMENT ON COLUMN image_store.timeline IS
        'of the server, in the last garbage collection: another one after a promotion';
    COMMENT ON COLUMN image_store.owned_since IS
        'nothing is collected until the grace period has passed since then';

    INSERT INTO image_commits (version, token, made)
        SELECT version, gen_random_uuid(), clock_timestamp() FROM image_store
        ON CONFLICT (version) DO NOTHING;
    """,
    # One object for many items: found by its digest, which the records have.
    """
    ALTER TABLE image_items
        DROP CONSTRAINT image_items_pkey,
        ALTER COLUMN blob SET NOT NULL,
        ADD COLUMN digest text COLLATE "C";
    COMMENT ON COLUMN image_items.digest IS
        'of the object, computed when it was written: items of equal content share it';
    CREATE INDEX image_items_blob ON image_items (blob, removed);
    CREATE UNIQUE INDEX image_items_tombstone ON image_items (blob) WHERE image_id = '';
    CREATE INDEX image_items_digest ON image_items (digest, removed) WHERE digest IS NOT NULL;
    """,
)

_WITH_DIGESTS = 3
"""The version that has the digests of objects."""

_RECORDS = "SELECT place, record FROM images WHERE place > %s ORDER BY place LIMIT 1000"

_NOTE_DIGESTS = """
    UPDATE image_items i SET digest = u.digest
    FROM unnest(%s::text[], %s::bytea[], %s::text[]) AS u (image_id, key, digest)
    WHERE i.image_id = u.image_id AND i.key = u.key AND i.removed IS NULL
"""

SCHEMA_VERSION = len(_STEPS)
"""The version of the tables that this library works with."""

LOCK_CLASS = 0x61696D67 << 32
"""The upper half of the key of a store's lock, "aimg"; the lower half is its table's number."""

# Seconds that a step waits for statements that use the tables. New ones wait behind it meanwhile.
_TABLES_TIMEOUT = 10


def migrate(records_url: str) -> int:
    """Create the tables of a cluster's store, or bring them up to date. Blocks.

    If the tables are current, it changes nothing and waits for nothing. Otherwise it waits for the
    store's lock, and does everything in one transaction. The role that does it owns the tables;
    the roles that use the store need fewer privileges.

    :param records_url: as for :class:`ClusterLocation`
    :returns: the version that the tables have now
    :raises ValueError: when the address is malformed
    :raises StoreSchemaError: when the tables are newer than this library, or the database does not
        have the encoding UTF8
    :raises StoreUnavailableError: when the server is unavailable, or refuses
    """
    address = DatabaseAddress.of(records_url)
    try:
        with address.connect(autocommit=True) as connection:
            if _present_version(connection, address.name) < SCHEMA_VERSION:
                _wait_for_others(connection)
                connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
                with connection.transaction():
                    _migrate(connection, address.name)
    except LockNotAvailable as error:
        raise StoreUnavailableError(
            f"{address.name}: transactions of other programs used the tables for "
            f"{_TABLES_TIMEOUT} s: migrate again when they have ended"
        ) from error
    except psycopg.Error as error:
        raise StoreUnavailableError(f"{address.name}: {reason(error)}") from error
    return SCHEMA_VERSION


def _wait_for_others(connection: Connection) -> None:
    """Keep other migrations out until the session ends: they would create the same tables.

    This comes before the transaction, which would not see what they did while it waited.
    """
    connection.execute("SET statement_timeout = 0; SET lock_timeout = 0")
    connection.execute("SELECT pg_advisory_lock(hashtext('aimagestore migrate'))")


def _migrate(connection: Connection, name: str) -> None:
    present = _present_version(connection, name)
    if present == SCHEMA_VERSION:
        return
    if present:
        # Writers hold the store's lock while they use the tables. A wait for the tables themselves
        # would make all readers wait as well.
        statement = "SELECT pg_advisory_xact_lock(%s + 'image_store'::regclass::oid::bigint)"
        connection.execute(statement, [LOCK_CLASS])
    connection.execute("SELECT set_config('lock_timeout', %s, true)", [f"{_TABLES_TIMEOUT}s"])
    for step in _STEPS[present:]:
        connection.execute(step)
    if 0 < present < _WITH_DIGESTS:
        _note_digests(connection)
    connection.execute("UPDATE image_store SET schema_version = %s", [SCHEMA_VERSION])


def _note_digests(connection: Connection) -> None:
    """Note the digests of the objects that items have."""
    place = -1
    while rows := connection.execute(_RECORDS, [place]).fetchall():
        place = rows[-1][0]
        images = [record.image for _, text in rows if (record := read(text.encode())) is not None]
        noted = [
            (image.id, key.encode(), digest)
            for image in images
            for key, digest in image.big_data_digests.items()
            # The digest of a manifest may be that of a part of it.
            if is_canonical(digest) and is_digest(digest) and not is_manifest_key(key)
        ]
        if noted:
            connection.execute(_NOTE_DIGESTS, columns(noted))


def _present_version(connection: Connection, name: str) -> int:
    """Return the version of the tables; 0 when there are none, and they can be created."""
    row = connection.execute("SELECT to_regclass('image_store') IS NOT NULL").fetchone()
    if row is None or not row[0]:
        found = connection.execute("SHOW server_encoding").fetchone()
        if found is None or found[0] != "UTF8":
            raise StoreSchemaError(
                f"{name} does not have the encoding UTF8: create a database with ENCODING 'UTF8' "
                "TEMPLATE template0",
                path=name,
            )
        return 0
    row = connection.execute("SELECT schema_version FROM image_store").fetchone()
    assert row is not None, "the table has one row"
    present: int = row[0]
    if present > SCHEMA_VERSION:
        check_version(present, name)
    return present


def check_schema(session: Session, name: str) -> None:
    """Check the version of the tables.

    :raises StoreSchemaError: when there are none, or this library works with another version
    """
    try:
        row = session.execute("SELECT schema_version FROM image_store").fetchone()
    except UndefinedTable as error:
        raise StoreSchemaError(
            f"{name} has no tables of a store: run aimagestore cluster migrate", path=name
        ) from error
    check_version(row[0] if row is not None else 0, name)


def check_version(present: int, name: str) -> None:
    """Check that this library works with tables of a version.

    :raises StoreSchemaError: when it does not
    """
    if present == SCHEMA_VERSION:
        return
    advice = (
        f"this library knows {SCHEMA_VERSION}: use a newer aimagestore"
        if present > SCHEMA_VERSION
        else f"and {SCHEMA_VERSION} is needed: run aimagestore cluster migrate"
    )
    raise StoreSchemaError(f"the tables of {name} have version {present}, {advice}", path=name)
